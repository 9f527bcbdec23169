# SPDX-License-Identifier: Apache-2.0
"""The pump and its lane: one step at a time, pauses, the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

import receiver.pump
from receiver.lane import Lane
from receiver.pump import ApplyPump
from replicator.base.errors import DamageError, NoSpaceError


class Batches:
    """Steps that do what a test says, one after the other: True, False, or an error to raise."""

    def __init__(self, *outcomes: bool | Exception) -> None:
        self.outcomes = list(outcomes)
        self.done = 0
        self.threads: set[int] = set()

    def __call__(self) -> float:
        self.threads.add(threading.get_ident())
        outcome = self.outcomes.pop(0) if self.outcomes else False
        if isinstance(outcome, Exception):
            raise outcome
        self.done += outcome
        return 0.0 if outcome else 60.0


async def pumping(batches: Batches, until: Callable[[ApplyPump], bool]) -> ApplyPump:
    """Runs a pump until the condition holds, and closes it."""
    lane, news = Lane("test"), asyncio.Event()
    pump = ApplyPump("web", lane, batches, news.set)
    pump.start()
    async with asyncio.timeout(10):
        while not until(pump):
            news.clear()
            await news.wait()
    await pump.close()
    await lane.close()
    return pump


async def test_it_applies_while_there_is_anything() -> None:
    batches = Batches(True, True, True)
    await pumping(batches, lambda _: batches.done == 3)
    assert len(batches.threads) == 1


async def test_a_full_disk_pauses_it_and_it_goes_on_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiver.pump, "SPACE_RETRY_SECONDS", 0.01)
    full = NoSpaceError("full")
    paused: list[object] = []
    batches = Batches(True, full, full, True)

    def finished(pump: ApplyPump) -> bool:
        paused.append(pump.paused)
        return batches.done == 2 and pump.paused is None

    pump = await pumping(batches, finished)
    assert full in paused
    assert pump.stopped is None


async def test_damage_stops_it_for_good() -> None:
    damage = DamageError("history/0.seg at 17")
    batches = Batches(True, damage, True)
    pump = await pumping(batches, lambda pump: pump.stopped is not None)
    assert pump.stopped is damage
    assert batches.done == 1


async def test_a_step_under_way_is_waited_for_and_nothing_runs_afterwards() -> None:
    lane = Lane("test")
    entered, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    later: list[int] = []

    def slow() -> None:
        entered.set()
        assert may_end.wait(10)
        ended.set()

    step = asyncio.create_task(lane.run(slow))
    queued = asyncio.create_task(lane.run(later.append, 1))
    await asyncio.to_thread(entered.wait)
    step.cancel()  # who waits goes away; the step does not
    closing = asyncio.create_task(lane.close())
    done, _ = await asyncio.wait([closing], timeout=0.2)
    assert not done
    may_end.set()
    await closing
    assert ended.is_set()
    assert later == []
    await asyncio.gather(step, queued, return_exceptions=True)


async def test_a_lane_has_one_thread_and_keeps_the_order_of_calls() -> None:
    lane = Lane("test")
    seen: list[tuple[int, int]] = []
    await asyncio.gather(
        *(lane.run(lambda n: seen.append((n, threading.get_ident())), n) for n in range(50))
    )
    assert [number for number, _ in seen] == list(range(50))
    assert len({thread for _, thread in seen}) == 1
    await lane.close()
