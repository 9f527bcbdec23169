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
