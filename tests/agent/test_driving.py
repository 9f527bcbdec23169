# SPDX-License-Identifier: Apache-2.0
"""The loop that drives a source: what it waits for after a step, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from agent.group.driving import FAILED_LIMIT_SECONDS, LOOK_SECONDS, Driving
from replicator.base.errors import ReplicatorError


class Script:
    """Steps that end as the script says; waits that are only noted. It ends with the script."""

    def __init__(self, *results: bool | str | None) -> None:
        self.results: list[bool | str | None] = list(results)
        self.waits: list[tuple[str, float]] = []
        self.problems: list[str] = []
        self.driving = Driving("g", self.step, self.wait)

    async def step(self) -> bool | None:
        if not self.results:
            raise asyncio.CancelledError
        result = self.results.pop(0)
        if isinstance(result, str):
            raise ReplicatorError(result)
        return result

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        assert not event.is_set()
        self.driving.wake()
        woken = event.is_set()
        self.driving.wake(anew=True)
        assert event.is_set()
        self.waits.append(("any word" if woken else "news", seconds))
        self.problems.append(self.driving.problem)

    async def run(self) -> Sequence[tuple[str, float]]:
        with pytest.raises(asyncio.CancelledError):
            await self.driving.run()
        return self.waits


async def test_a_step_that_did_something_is_followed_at_once() -> None:
    assert await Script(True, True, False).run() == [("any word", LOOK_SECONDS)]


async def test_each_failure_waits_longer_and_only_news_cuts_it_short() -> None:
    script = Script(*["no"] * 7)
    waits = await script.run()
    assert waits == [("news", s) for s in (1, 2, 4, 8, 16, FAILED_LIMIT_SECONDS, 30)]
    assert all(problem.endswith("it failed: no") for problem in script.problems)


async def test_a_look_ends_the_row_and_no_look_does_not() -> None:
    script = Script("no", None, "no", False, "no")
    waits = await script.run()
    assert [seconds for what, seconds in waits if what == "news"] == [1, 2, 1]
    assert [bool(problem) for problem in script.problems] == [True, True, True, False, True]
