# SPDX-License-Identifier: Apache-2.0
"""How fast the replica is overwritten, for saying how long a rollback will take. No I/O.

A rollback does what applying does, so the rate of the recent batches is what it may expect; before
there was enough of that, ASSUMED is. Older batches count for less: each time HALF_BYTES were
written, what came before is halved.
"""

from __future__ import annotations

from replicator.base.units import MIB

ASSUMED_BYTES_PER_SECOND = 64.0 * MIB
ENOUGH_BYTES = 16 * MIB
HALF_BYTES = 512 * MIB


class RewriteRate:
    def __init__(self) -> None:
        self._bytes = 0.0
        self._seconds = 0.0

    def note(self, size: int, seconds: float) -> None:
        """So much was overwritten in that time."""
        self._bytes += size
        self._seconds += seconds
        if self._bytes > HALF_BYTES:
            self._bytes /= 2
            self._seconds /= 2

    @property
    def bytes_per_second(self) -> float:
        """Above 0."""
        if self._bytes < ENOUGH_BYTES or not self._seconds:
            return ASSUMED_BYTES_PER_SECOND
        return self._bytes / self._seconds
