# SPDX-License-Identifier: Apache-2.0
"""How much of a lane's time upkeep may take: a share, whatever its steps cost. No I/O.

After a step that took t seconds comes a rest of t * (1 - share) / share. So upkeep slows down by
itself where the disk is slow or busy, and what replication waits for it is bounded by one step.
"""

from __future__ import annotations

UPKEEP_SHARE = 0.25


class Pacing:
    """Times are seconds of one monotonic clock, passed in."""

    def __init__(self, share: float = UPKEEP_SHARE) -> None:
        assert 0 < share <= 1
        self._rest = (1 - share) / share
        self._next = 0.0

    def wait_seconds(self, now: float) -> float:
        """Until the next step may be taken; 0: now."""
        return max(self._next - now, 0.0)

    def took(self, began: float, ended: float) -> None:
        """A step that began and ended then."""
        self._next = ended + (ended - began) * self._rest
