# SPDX-License-Identifier: Apache-2.0
"""The clock, behind an interface, so that a simulation can own time.

Rules take `now` as an argument; shells take a `Clock`. Nothing that decides asks the real one.
UTC is for people and stamps; it may step. Monotonic is for every duration and deadline.
Timers and sleeps belong to the event loop, which a simulation replaces as a whole.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

NS_PER_S = 1_000_000_000


class Clock(Protocol):
    """Two clocks, both in integer nanoseconds."""

    def utc_ns(self) -> int:
        """Wall clock, nanoseconds since 1970 UTC. May step backwards."""
        ...

    def monotonic_ns(self) -> int:
        """Never steps, never goes backwards; its zero means nothing."""
        ...


class SystemClock:
    """The machine's clocks."""

    def utc_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


def rfc3339(utc_ns: int) -> str:
    """`2026-03-01T02:03:04.000005Z`: UTC with microseconds, rounded down."""
    seconds, rest = divmod(utc_ns, NS_PER_S)
    stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{stamp}.{rest // 1000:06d}Z"


def rfc3339_exact(utc_ns: int) -> str:
    """`2026-03-01T02:03:04.000005017Z`: to the nanosecond."""
    return f"{rfc3339(utc_ns)[:-1]}{utc_ns % 1000:03d}Z"


class PointClock:
    """Stamps for the log of one group: never backwards, and honest about steps. No I/O.

    `stamp` is for cuts, and for the time until which one holds: whole microseconds, for so they are
    printed. `passing_ns` is for what is written between: behind every stamp before, in front of
    every one after, so a write's time tells on which side of a cut it lies.

    The wall clock decides while it runs forward. After a step backwards the stamps go on from
    the last one at half the pace of the monotonic clock, until the wall clock has caught up:
    so they neither freeze for the length of the step nor run ahead for ever. Each stamp comes
    with the step of the wall clock against the monotonic one since the stamp before, in
    nanoseconds; steps below `NOTED_STEP_NS` are the usual slewing of NTP and count as 0.
    """

    NOTED_STEP_NS = NS_PER_S // 2

    def __init__(self, clock: Clock, *, last_stamp_ns: int = 0) -> None:
        """`last_stamp_ns`: as `behind`."""
        self._clock = clock
        self._last_utc_ns = clock.utc_ns()
        self._last_monotonic_ns = clock.monotonic_ns()
        self._last_stamp_ns = self._newest_ns = last_stamp_ns
        self._stamped_monotonic_ns = self._last_monotonic_ns

    def behind(self, stamp_ns: int) -> None:
        """Somebody holds a stamp of an earlier life: every one from here on is behind it."""
        if stamp_ns > self._newest_ns:
            self._last_stamp_ns = self._newest_ns = stamp_ns
            self._stamped_monotonic_ns = self._clock.monotonic_ns()

    def stamp(self) -> tuple[int, int]:
        """(time_ns, clock_step_ns). Times rise by at least 1 µs from stamp to stamp, and are never
        less than a wall clock that runs forward shows, by less than 1 µs more."""
        utc_ns, monotonic_ns = self._clock.utc_ns(), self._clock.monotonic_ns()
        step_ns = utc_ns - self._last_utc_ns - (monotonic_ns - self._last_monotonic_ns)
        slewed_ns = self._slewed_ns(monotonic_ns) // 1000 * 1000
        time_ns = max(_whole_us(max(utc_ns, self._newest_ns + 1)), slewed_ns)
        self._last_utc_ns, self._last_monotonic_ns = utc_ns, monotonic_ns
        self._last_stamp_ns = self._newest_ns = time_ns
        self._stamped_monotonic_ns = monotonic_ns
        return time_ns, step_ns if abs(step_ns) >= self.NOTED_STEP_NS else 0

    def passing_ns(self) -> int:
        """Not less than the one before, and more than the last stamp."""
        utc_ns = self._clock.utc_ns()
        if utc_ns <= self._newest_ns:
            floor_ns = max(self._newest_ns, self._last_stamp_ns + 1)
            utc_ns = max(utc_ns, floor_ns, self._slewed_ns(self._clock.monotonic_ns()))
        self._newest_ns = utc_ns
        return utc_ns

    def _slewed_ns(self, monotonic_ns: int) -> int:
        """How far time has come at half the pace since the last stamp, if there was one."""
        if not self._last_stamp_ns:
            return 0
        return self._last_stamp_ns + (monotonic_ns - self._stamped_monotonic_ns) // 2


def _whole_us(time_ns: int) -> int:
    """Rounded up."""
    return -(-time_ns // 1000) * 1000
