# SPDX-License-Identifier: Apache-2.0
"""Marks by the wall clock: aligned, one at a time, none made up for, and a clock that is set."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.quiesce.schedule import Schedule, next_due_ns
from replicator.base.errors import NoPointError
from tests.splitter.rig import SECOND, ManualClock

QUARTER = 900 * SECOND


class Ended(Exception):  # noqa: N818
    """The test has seen enough."""


class Run:
    """A schedule whose sleeps move the clock. Each mark takes `mark_ns`."""

    def __init__(self, marks: int) -> None:
        self.clock = ManualClock()
        self.at: list[int] = []
        self.mark_ns = 0
        self.failing = False
        self.steps: dict[int, int] = {}  # by the number of the sleep: a step of the wall clock
        self._marks = marks
        self._sleeps = 0
        self.schedule = Schedule("g", QUARTER, self.clock, self._mark)

    async def run(self) -> None:
        with pytest.raises(Ended):
            await self.schedule.run(self._sleep)

    async def _sleep(self, seconds: float) -> None:
        assert 0 < seconds <= 5
        self.clock.move(max(1, round(seconds * SECOND)))
        self.clock.utc += self.steps.get(self._sleeps, 0)
        self._sleeps += 1

    async def _mark(self) -> None:
        if len(self.at) == self._marks:
            raise Ended
        self.at.append(self.clock.utc)
        self.clock.move(self.mark_ns)
        if self.failing:
            raise NoPointError("the group is lost")


@given(st.integers(0, 1 << 60), st.integers(1, 1 << 50))
def test_due_times_are_the_multiples_behind_now(now_ns: int, every_ns: int) -> None:
    due_ns = next_due_ns(now_ns, every_ns)
    assert due_ns % every_ns == 0
    assert now_ns < due_ns <= now_ns + every_ns


async def test_marks_are_aligned_to_the_wall_clock() -> None:
    run = Run(3)
    await run.run()
    first = next_due_ns(ManualClock().utc, QUARTER)
    assert run.at == [first, first + QUARTER, first + 2 * QUARTER]
    assert (run.schedule.made, run.schedule.failed) == (3, 0)


async def test_what_falls_due_during_a_mark_is_passed_over() -> None:
    run = Run(2)
    run.mark_ns = 2 * QUARTER + SECOND
    await run.run()
    assert run.at[1] - run.at[0] == 3 * QUARTER


async def test_a_failure_is_counted_and_the_next_one_is_tried() -> None:
    run = Run(2)
    run.failing = True
    await run.run()
    assert run.schedule.failed == 2
    assert run.schedule.made == 0


async def test_a_clock_that_is_set_back_is_followed() -> None:
    run = Run(1)
    day = 86_400 * SECOND
    run.clock.utc += day
    run.steps[0] = -day
    await run.run()
    assert run.at == [next_due_ns(ManualClock().utc, QUARTER)]


async def test_it_ends_with_its_task() -> None:
    run = Run(1)
    task = asyncio.create_task(run.schedule.run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
