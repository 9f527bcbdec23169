# SPDX-License-Identifier: Apache-2.0
"""What a group's work is counted in. A lock, no I/O.

Plain integers, written by the code that does the work and read by /metrics whenever it is asked:
a figure that is a moment old is as good as any. Each field has one writer, but for the damage
that is found.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

SYNC_BOUNDS_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)


class Durations:
    """A histogram of seconds. `counts[i]` are those ≤ bounds[i] and above the bound before; the
    last count is of those above all bounds."""

    def __init__(self, bounds: tuple[float, ...] = SYNC_BOUNDS_SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum_seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum_seconds += seconds


@dataclass(slots=True)
class GroupFigures:
    """Since this process started."""

    received_frames: int = 0
    received_bytes: int = 0
    """As they came: compressed."""
    received_raw_bytes: int = 0
    applied_log_bytes: int = 0
    inbox_syncs: Durations = field(default_factory=Durations)
    batches: int = 0
    sessions: int = 0
    checksum_failures: Counter[str] = field(default_factory=Counter)
    """By where they were found: wire, recovery, apply, view."""
    points_made: int = 0
    points_dropped: int = 0
    scrub_errors: int = 0
    """Bad places that scrubs found, healed or not."""
    unverified_bytes: int = 0
    """Replica content that batches changed, and that had no sum to be verified against."""
    digest_bytes: int = 0
    """Replica content compared in syncs."""
    _damage_lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def found_damage(self, where: str) -> None:
        """From any thread: several readers of views may find some at once."""
        with self._damage_lock:
            self.checksum_failures[where] += 1
