# SPDX-License-Identifier: Apache-2.0
"""The admin's scripts: their environment, their limits, and what is left of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent.quiesce.scripts import Phase, Script
from replicator.base.errors import ReplicatorError


def script(text: str, phase: Phase = "pre", limit_seconds: float = 20.0) -> Script:
    return Script(("/bin/sh", "-c", text), "g", phase, limit_seconds)


async def test_a_script_learns_what_it_is_run_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = f'echo "$REPLICATOR_GROUP/$REPLICATOR_LABEL/$REPLICATOR_PHASE" >>{out}'
    await script(text).run("before $(upgrade)")
    await script(text, "post").run(None)
    assert out.read_text() == "g/before $(upgrade)/pre\ng//post\n"


async def test_none_is_fine() -> None:
    await Script((), "g", "pre", 1.0).run("x")


async def test_a_failure_says_how_and_quotes_the_last_line() -> None:
    with pytest.raises(ReplicatorError, match="ended with code 3") as caught:
        await script("echo one; echo 'no such database' >&2; exit 3").run(None)
    assert caught.value.hint == "its last line: no such database"
    with pytest.raises(ReplicatorError, match="signal 9"):
        await script("kill -9 $$").run(None)
    with pytest.raises(ReplicatorError, match="cannot be run: No such file"):
        await Script(("/nowhere/script",), "g", "post", 1.0).run(None)


async def test_what_takes_too_long_is_killed_with_all_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    text = f"sleep 1000 & echo $! >{pid_file}; wait"
    with pytest.raises(ReplicatorError, match=r"takes longer than 0\.5 s"):
        await script(text, limit_seconds=0.5).run(None)
    assert await is_gone(int(pid_file.read_text()))


async def test_a_script_that_is_cancelled_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    running = asyncio.create_task(script(f"echo $$ >{fifo}; exec sleep 1000").run(None))
    pid = int(await asyncio.to_thread(fifo.read_text))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await is_gone(pid)


async def test_what_a_script_leaves_running_is_not_waited_for(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with asyncio.timeout(10):
        await script(f"sleep 1000 & echo $! >{pid_file}").run(None)
    pid = int(pid_file.read_text())
    assert not await is_gone(pid, wait=False)
    os.kill(pid, 9)


async def test_endless_output_costs_little() -> None:
    with pytest.raises(ReplicatorError) as caught:
        await script("head -c 3000000 /dev/zero | tr '\\0' x; exit 1").run(None)
    assert len(caught.value.hint) < 1100


async def is_gone(pid: int, *, wait: bool = True) -> bool:
    """A killed process may be seen for a moment until its new parent has waited for it."""
    for _ in range(200 if wait else 1):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        await asyncio.sleep(0.01)
    return False
