# SPDX-License-Identifier: Apache-2.0
"""What the splitter adds to a guest's writes: a histogram from request to reply. No I/O."""

from __future__ import annotations

from bisect import bisect_left

from replicator.control.splitter import LatencyStatus

BOUNDS_US = (
    10, 20, 35, 50, 75, 100, 150, 200, 350, 500, 750, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000,
    100_000, 500_000, 1_000_000,
)  # fmt: skip


class LatencyHistogram:
    """Counts by upper bound; the last count is of all that took longer."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_US) + 1)
        self._sum_ns = 0

    def add(self, requests: int, duration_ns: int) -> None:
        """`requests` that were answered together took `duration_ns` each."""
        self._counts[bisect_left(BOUNDS_US, duration_ns / 1000)] += requests
        self._sum_ns += requests * duration_ns

    def status(self) -> LatencyStatus:
        return LatencyStatus(
            bounds_us=list(BOUNDS_US),
            counts=list(self._counts),
            sum_us=self._sum_ns // 1000,
            count=sum(self._counts),
        )
