# SPDX-License-Identifier: Apache-2.0
"""Scrubs of one group, from the event loop: by order and by the clock, one at a time, throttled.

A scrub is a task of its own. Who orders one waits for it or not; who goes away does not end it; who
comes while one runs waits for that one, at the rate that was said last. An order cancels it: what
it has found stays on record, and the next one begins anew. Its steps take turns with batches in the
apply lane, and between two there is a rest, so that no more than `rate` bytes a second are read.

By the clock: the first one within a tenth of `every` after the start (so groups do not all begin at
once), then `every` after the last one ended. One that a shutdown or a crash interrupted goes on at
once.

Concurrency: the event loop. Failure: see receiver.scrub; an error ends the task, is told to whoever
waits, and the clock tries again an hour later; a fault of the program stops the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
from xxhash import xxh3_64_intdigest

from receiver.history.batches import Segment
from receiver.points.figures import GroupFigures
from receiver.scrub.scrub import Scrub, SegmentReading
from receiver.tasks.change import Change
from receiver.tasks.lane import Aside, Lane
from receiver.tasks.stop import Stop
from replicator.base.clock import NS_PER_S, rfc3339
from replicator.base.errors import (
    NotFoundError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.base.mishaps import mishap
from replicator.base.trouble import is_bug
from replicator.base.units import format_size
from replicator.config.receiver import SCRUB_RATE_MIN, ScrubSection
from replicator.control.service import Report
from replicator.control.types import BadPlace, Progress, ScrubReport

RETRY_SECONDS = 3600.0
FIRST_SHARE = 0.1
_SPREAD = 1 << 64

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step in the lane came to. `is_ready` false: a batch has to be applied first."""

    is_ready: bool
    segment: Segment | None = None


class Scrubbing:
    """See the head of this file. `start`, and `close` before the lane is closed."""

    def __init__(
        self,
        group: str,
        scrub: Scrub,
        lane: Lane,
        section: ScrubSection,
        figures: GroupFigures,
        until_change: Callable[[], Awaitable[None]],
        utc_ns: Callable[[], int],
        aside: Aside,
        stop: Stop,
    ) -> None:
        """`until_change` returns when something has been applied since."""
        self._group = group
        self._scrub = scrub
        self._lane = lane
        self._rate = self._rate_now = int(section.rate)
        self._repaced = asyncio.Event()
        self._is_unwanted = False
        self._every_ns = int(section.every)
        self._figures = figures
        self._until_change = until_change
        self._utc_ns = utc_ns
        self._aside = aside
        self._stop = stop
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._total_bytes = 0
        self._has_begun = asyncio.Event()
        self.moved = Change()
        """Told behind each step, and at the end."""

    # Life.

    def reload(self, section: ScrubSection) -> None:
        """The rate holds from the next step on, `every` from the end of the last scrub."""
        self._rate = int(section.rate)
        if self._every_ns != int(section.every):
            self._every_ns = int(section.every)
            if self._timer is not None:
                self._timer.cancel()
                self.start()

    def start(self) -> None:
        self._timer = asyncio.create_task(self._by_the_clock())
        self._timer.add_done_callback(self._told)

    async def close(self) -> None:
        """The step under way is the lane's; what has been done is gone on with later."""
        for task in (self._timer, self._task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    # Orders.

    async def order(self, report: Report, *, waits: bool, rate: int | None) -> ScrubReport:
        """Begins one, or joins the one under way; without `waits` the report is of its first moment
        and on. `rate` holds for this scrub from here on; else
        the configured."""
        if rate is not None and rate < SCRUB_RATE_MIN:
            raise UsageError(
                f"a scrub of {format_size(max(rate, 0))} a second would never end",
                hint=f"the least is {format_size(SCRUB_RATE_MIN)} a second",
            )
        task = self._begin(rate)
        if waits:
            while not task.done():
                state = self._scrub.state
                report(Progress(done=state.done_bytes, total=self._total_bytes, what=self._what()))
                await asyncio.wait([task], timeout=1.0)
            if task.cancelled():
                raise self._gave_up()
            task.result()
        else:
            await self._until_begun(task)
        return self.report()

    async def cancel(self) -> ScrubReport:
        """Gives up the one under way; the last report. Raises NotFoundError where there is none,
        OwnedError for one that has to come to its end."""
        task = self._task
        if task is None or task.done():
            raise NotFoundError(f"no scrub of group {self._group!r} is under way")
        self._scrub.check_may_be_cancelled()
        self._is_unwanted = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._lane.run(self._scrub.cancel)  # behind the step that was under way
        self.moved.told()
        _log.info("scrub.cancelled", group=self._group, done_bytes=self._scrub.state.done_bytes)
        return self.report()

    def report(self) -> ScrubReport:
        """The one under way, or else the last one."""
        state = self._scrub.state
        return ScrubReport(
            running=state.is_running,
            began=_time(state.began_ns),
            ended=_time(state.ended_ns),
            good=_time(state.good_ns),
            cancelled=_time(state.cancelled_ns),
            done_bytes=state.done_bytes,
            total_bytes=self._total_bytes if state.is_running else state.done_bytes,
            replica_bytes=state.replica_bytes,
            history_bytes=state.history_bytes,
            unverified_bytes=state.unverified_bytes,
            bad=[
                BadPlace(
                    where=each.where,
                    file=each.file,
                    offset=each.offset,
                    disk=each.disk,
                    block_offset=each.block_offset,
                    length=each.length,
                    points=each.points,
                    healed=each.healed,
                    problem=each.problem,
                )
                for each in list(state.bad)
            ],
        )

    @property
    def progress(self) -> float | None:
        """0 to 1, while one runs."""
        state = self._scrub.state
        if not state.is_running:
            return None
        return min(state.done_bytes / max(self._total_bytes, 1), 1.0)

    @property
    def rest_seconds(self) -> float | None:
        """In which time the one under way ends, at most, at the rate that it has: holes cost
        nothing."""
        state = self._scrub.state
        if not state.is_running:
            return None
        return max(self._scrub.total_bytes - state.done_bytes, 0) / self._rate_now

    @property
    def left(self) -> int:
        """Bad places that the last scrub, or the one under way, could not heal."""
        return self._scrub.state.left

    @property
    def ended_ns(self) -> int:
        return self._scrub.state.ended_ns

    @property
    def good_ns(self) -> int:
        """When the last one ended that left nothing bad; 0: never."""
        return self._scrub.state.good_ns

    # Inside.

    async def _until_begun(self, task: asyncio.Task[None]) -> None:
        """So that what is answered is of this scrub, and not of the last one."""
        begun = asyncio.create_task(self._has_begun.wait())
        try:
            await asyncio.wait([task, begun], return_when=asyncio.FIRST_COMPLETED)
        finally:
            begun.cancel()
        if task.done() and not task.cancelled():
            task.result()

    def _what(self) -> str:
        return f"scrubbing {self._group}"

    def _gave_up(self) -> ReplicatorError:
        if self._is_unwanted:
            return ReplicatorError(f"the scrub of group {self._group!r} was cancelled")
        return UnreachableError(
            "the receiver is shutting down", hint="the scrub goes on when it runs again"
        )

    def _begin(self, rate: int | None = None) -> asyncio.Task[None]:
        if self._task is None or self._task.done():
            self._rate_now = self._rate if rate is None else rate
            self._is_unwanted = False
            self._has_begun.clear()
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._told)
        elif rate is not None:
            self._rate_now = rate
            self._repaced.set()
        return self._task

    def _told(self, task: asyncio.Task[None]) -> None:
        """An error is logged, whether somebody waits for it or not. A supervision: a fault of the
        program stops the group."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and is_bug(error):
            self._stop.because(error, "scrub")
        elif isinstance(error, ReplicatorError):
            _log.error("scrub.failed", group=self._group, reason=error.message, hint=error.hint)

    async def _run(self) -> None:
        try:
            await self._steps()
        except OSError as error:
            said = mishap(error)
            said.hint = "the scrub goes on from here when it is ordered again"
            raise said from error

    async def _steps(self) -> None:
        scrub = self._scrub
        await self._lane.run(scrub.begin)
        self._has_begun.set()
        loop = asyncio.get_running_loop()
        while scrub.state.is_running:
            self._total_bytes = max(scrub.total_bytes, scrub.state.done_bytes)
            began, read, errors = loop.time(), scrub.read_bytes, scrub.state.errors
            step = await self._lane.run(self._step)
            if not step.is_ready:
                await self._until_change()
                continue
            if step.segment is not None:
                faults = await self._aside.run(scrub.read_segment, step.segment)
                while not await self._lane.run(self._take, step.segment, faults):
                    await self._until_change()
            self._figures.scrub_errors += scrub.state.errors - errors
            self.moved.told()
            if scrub.state.is_running:
                await self._rest(scrub.read_bytes - read, began)

    async def _rest(self, read_bytes: int, began: float) -> None:
        """The throttle: until so much may have been read since then."""
        loop = asyncio.get_running_loop()
        while (rest := read_bytes / self._rate_now - (loop.time() - began)) > 0:
            self._repaced.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._repaced.wait()

    def _step(self) -> _Step:
        """In the apply lane."""
        if not self._scrub.is_ready:
            return _Step(is_ready=False)
        return _Step(is_ready=True, segment=self._scrub.step())

    def _take(self, segment: Segment, reading: SegmentReading) -> bool:
        """In the apply lane."""
        if self._scrub.is_ready:
            self._scrub.take_segment(segment, reading)
            return True
        return False

    # The clock.

    async def _by_the_clock(self) -> None:
        if not self._every_ns and not self._scrub.is_due:
            return
        started_ns = self._utc_ns()
        while True:
            wait_seconds = self._wait_seconds(started_ns)
            if wait_seconds > 0:
                await asyncio.sleep(min(wait_seconds, RETRY_SECONDS))
                continue
            task = self._begin()
            await asyncio.wait([task])
            if not self._every_ns and not self._scrub.is_due:
                return
            if task.cancelled() or task.exception() is not None:
                await asyncio.sleep(RETRY_SECONDS)

    def _wait_seconds(self, started_ns: int) -> float:
        state = self._scrub.state
        if state.is_running:
            return 0.0
        due_ns = max(state.ended_ns, state.cancelled_ns) + self._every_ns
        share = FIRST_SHARE * xxh3_64_intdigest(self._group.encode()) / _SPREAD
        first_ns = started_ns + int(self._every_ns * share)
        return (max(due_ns, first_ns) - self._utc_ns()) / NS_PER_S


def _time(time_ns: int) -> str | None:
    return rfc3339(time_ns) if time_ns else None
