# SPDX-License-Identifier: Apache-2.0
"""Request to reply, as a histogram: what we add to a guest's write. No I/O.

Measured from the moment a batch of requests is taken out of the receive buffer until its replies
are handed to the socket; all requests of a batch count with the batch's time. What a request waits
in the socket before we read it is not in it.
"""

from __future__ import annotations

from typing import Final

# 1 µs, 2 µs, 4 µs … 4.2 s, and the rest: one bit per bucket, so that counting is a shift.
BOUNDS_US: Final = [1 << power for power in range(23)]


class Histogram:
    """`counts[i]` are requests of at most `BOUNDS_US[i]`, and more than the bound before."""

    __slots__ = ("count", "counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_US) + 1)
        self.sum_ns = 0
        self.count = 0

    def add(self, nanoseconds: int, requests: int) -> None:
        bucket = min((nanoseconds // 1000).bit_length(), len(BOUNDS_US))
        self.counts[bucket] += requests
        self.sum_ns += nanoseconds * requests
        self.count += requests

    def merge(self, other: Histogram) -> None:
        self.counts = [
            mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.sum_ns += other.sum_ns
        self.count += other.count
