# SPDX-License-Identifier: Apache-2.0
"""The story of `make demo`, as a test: `tell` raises wherever it does not hold."""

from __future__ import annotations

import io
import shutil

from rich.console import Console

from replicator.demo.account import unprivileged_account
from replicator.demo.narrator import Narrator
from replicator.demo.story import Story


async def test_the_story_holds() -> None:
    account = unprivileged_account()
    home = account.make_home("rpl-story-")
    told = io.StringIO()
    story = Story(home, account, Narrator(Console(file=told, width=120)))
    try:
        figures = await story.tell()
    except Exception:
        for log in sorted(home.glob("*.log")):  # what a person would look at next
            told.write(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}\n")
        print(told.getvalue())
        raise
    finally:
        shutil.rmtree(home)
    assert figures.writes > 0
    assert figures.wire_bytes > 0
    assert figures.rpo_seconds
    assert story.boots == 2
