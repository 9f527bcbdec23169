# SPDX-License-Identifier: Apache-2.0
"""The watchdog as the process that it is: guests are thawed whoever dies, and it goes by itself."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.quiesce.guard import ThawGuard
from agent.quiesce.watch import Word
from replicator.base.errors import UnreachableError
from tests.agent.freezing import SECOND, freeze, is_frozen, watchdog_command

LIMIT_SECONDS = 60.0


async def frozen(directory: Path, *domains: str, timeout_ns: int = 10 * SECOND) -> ThawGuard:
    """A guard over guests that were frozen under it."""
    guard = await ThawGuard.start(watchdog_command(directory, *domains, timeout_ns=timeout_ns))
    guard.say(Word.FREEZING)
    for domain in domains:
        freeze(directory, domain)
    guard.say(Word.RETURNED)
    return guard


async def ended(guard: ThawGuard) -> int | None:
    await asyncio.wait_for(guard.ended.wait(), LIMIT_SECONDS)
    return guard.exit_code


async def test_the_orderly_thaw(tmp_path: Path) -> None:
    guard = await frozen(tmp_path, "a", "b")
    assert is_frozen(tmp_path, "a")
    assert await guard.thaw(LIMIT_SECONDS) == 2
    assert not is_frozen(tmp_path, "a")
    assert not is_frozen(tmp_path, "b")
    assert await ended(guard) == 0
    assert (tmp_path / "thaws").read_text().split() in (["a", "b"], ["b", "a"])


async def test_the_deadline_thaws_though_nobody_orders_it(tmp_path: Path) -> None:
    guard = await frozen(tmp_path, "a", timeout_ns=SECOND // 4)
    assert await ended(guard) == 0
    assert not is_frozen(tmp_path, "a")
    assert await guard.thaw(0) == 1  # it has said so


async def test_one_who_lets_go_thaws(tmp_path: Path) -> None:
    guard = await frozen(tmp_path, "a")
    guard.let_go()
    assert await ended(guard) == 0
    assert not is_frozen(tmp_path, "a")


async def test_a_thaw_is_tried_until_it_succeeds(tmp_path: Path) -> None:
    (tmp_path / "a.stuck").touch()
    guard = await frozen(tmp_path, "a", "b")
    with pytest.raises(UnreachableError, match="could not be thawed within"):
        await guard.thaw(0.5)
    assert not is_frozen(tmp_path, "b"), "the other one is not held up"
    assert is_frozen(tmp_path, "a")
    assert not guard.ended.is_set()
    (tmp_path / "a.stuck").unlink()
    assert await ended(guard) == 0
    assert not is_frozen(tmp_path, "a")


async def test_a_guard_that_never_froze_goes_and_thaws_nothing(tmp_path: Path) -> None:
    guard = await ThawGuard.start(watchdog_command(tmp_path, "a"))
    guard.let_go()
    assert await ended(guard) == 0
    assert not (tmp_path / "thaws").exists()


async def test_a_watchdog_that_is_killed_is_noticed(tmp_path: Path) -> None:
    guard = await frozen(tmp_path, "a")
    os.kill(guard.pid, signal.SIGKILL)
    with pytest.raises(UnreachableError, match="has ended"):
        await guard.thaw(LIMIT_SECONDS)
    assert guard.ended.is_set()


async def test_sigterm_does_not_end_it(tmp_path: Path) -> None:
    guard = await frozen(tmp_path, "a")
    os.kill(guard.pid, signal.SIGTERM)
    os.kill(guard.pid, signal.SIGINT)
    assert await guard.thaw(LIMIT_SECONDS) == 1
    assert await ended(guard) == 0


async def test_a_watchdog_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="has ended"):
        await ThawGuard.start([sys.executable, "-c", "raise SystemExit(1)"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_agent_that_is_killed_while_frozen_leaves_no_guest_frozen(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "tests.agent.freezing", "agent", str(tmp_path), "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        watchdog = os.pidfd_open(int(agent.stdout.readline()))
        assert is_frozen(tmp_path, "a")
        agent.send_signal(number)
    wait_until_ended(watchdog)
    assert not is_frozen(tmp_path, "a")


def wait_until_ended(process: int) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    assert poll.poll(LIMIT_SECONDS * 1000), "it still runs"
    os.close(process)
