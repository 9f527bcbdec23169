# SPDX-License-Identifier: Apache-2.0
"""The pump and its lane: one step at a time, pauses, the end."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable

import pytest

import receiver.tasks.pump
from receiver.tasks.lane import Lane
from receiver.tasks.pump import ApplyPump
from receiver.tasks.stop import Stop
from replicator.base.errors import DamageError, NoSpaceError, ReplicatorError, VersionError


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


async def pumping(
    batches: Batches, until: Callable[[ApplyPump], bool], stop: Stop | None = None
) -> ApplyPump:
    """Runs a pump until the condition holds, and closes it."""
    lane, news = Lane("test"), asyncio.Event()
    stop = stop or Stop("web", lambda: None)
    stop.told = news.set
    pump = ApplyPump("web", lane, batches, news.set, stop)
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
    monkeypatch.setattr(receiver.tasks.pump, "SPACE_RETRY_SECONDS", 0.01)
    full = NoSpaceError("full")
    paused: list[object] = []
    batches = Batches(True, full, full, True)

    def finished(pump: ApplyPump) -> bool:
        paused.append(pump.paused)
        return batches.done == 2 and pump.paused is None

    stop = Stop("web", lambda: None)
    await pumping(batches, finished, stop)
    assert full in paused
    assert stop.reason is None


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (DamageError("history/0.seg at 17"), DamageError, "history/0.seg at 17"),
        (VersionError("format 9"), VersionError, "format 9"),
        (OSError(errno.EIO, "", "/d/x.raw"), ReplicatorError, "/d/x.raw: Input/output error"),
        (KeyError("lost"), ReplicatorError, "unexpected KeyError: 'lost'"),
        (AssertionError("no"), ReplicatorError, "unexpected AssertionError: no"),
    ],
)
async def test_whatever_else_comes_out_of_a_step_stops_the_group_for_good(
    error: Exception, kind: type[ReplicatorError], said: str
) -> None:
    batches, stop = Batches(True, error, True), Stop("web", lambda: None)
    await pumping(batches, lambda _: stop.reason is not None, stop)
    assert type(stop.reason) is kind
    assert (stop.reason.message, batches.done) == (said, 1)
    for _ in range(3):
        with pytest.raises(kind) as raised:
            stop.check()
    assert raised.value is not stop.reason  # whose frames would grow with each who asks
    assert stop.reason.__traceback__ is None


async def test_a_full_disk_pauses_it_however_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver.tasks.pump, "SPACE_RETRY_SECONDS", 0.01)
    batches = Batches(OSError(errno.EDQUOT, "", "/d/x.raw"), True)
    pump = await pumping(batches, lambda pump: batches.done == 1)
    assert pump.paused is None


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
