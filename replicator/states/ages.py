# SPDX-License-Identifier: Apache-2.0
"""How old a stamp of the source is, told without the difference of two walls. No I/O.

Points bear stamps of the source's clock, which may be wrong, and may step. What is asked of a
point is its age here and now. So whoever sees a stamp when it is fresh notes it beside the
monotonic clock of its own machine: an *anchor*. The age of any stamp is then told from the
anchors next to it:

    between two anchors   as far behind the earlier one as the stamps are apart, but never past the
                          later one
    above the newest      the same, and never past now
    below the oldest      as far before it as the stamps are apart

Differences are thus taken between readings of one clock only. Over a step of the source's clock
the distance of two stamps is not that of their moments; the anchors on both sides bound the error
to the time between them, and an age is never negative.

A stamp lower than the newest anchor's is of another clock (another host took over): the anchors of
the old one say nothing any more, and go.
"""

from __future__ import annotations

from bisect import bisect_right

from replicator.base.clock import NS_PER_S

APART_NS = NS_PER_S // 2
ANCHORS_MAX = 512


class StampAges:
    """Anchors of one group, oldest first; bounded, and the older the further apart."""

    def __init__(self) -> None:
        self._stamps: list[int] = []
        self._moments: list[int] = []

    def note(self, stamp_ns: int, moment_ns: int) -> None:
        """The source's clock stood at `stamp_ns` when our monotonic one stood at `moment_ns`."""
        if self._stamps and stamp_ns < self._stamps[-1]:
            self._stamps.clear()
            self._moments.clear()
        if self._stamps and (stamp_ns == self._stamps[-1] or moment_ns <= self._moments[-1]):
            return
        if len(self._moments) >= 2 and moment_ns - self._moments[-2] < APART_NS:
            self._stamps[-1], self._moments[-1] = stamp_ns, moment_ns
            return
        self._stamps.append(stamp_ns)
        self._moments.append(moment_ns)
        if len(self._stamps) > ANCHORS_MAX:
            self._thin()

    def age_seconds(self, stamp_ns: int, now_ns: int) -> float | None:
        """None without an anchor. `now_ns` is monotonic."""
        if not self._stamps:
            return None
        after = bisect_right(self._stamps, stamp_ns)
        at = max(after - 1, 0)
        moment_ns = self._moments[at] + stamp_ns - self._stamps[at]
        if after < len(self._stamps):
            moment_ns = min(moment_ns, self._moments[after])
        return max(now_ns - moment_ns, 0) / NS_PER_S

    def _thin(self) -> None:
        """Every second one of the older half goes."""
        half = ANCHORS_MAX // 2
        self._stamps[:half] = self._stamps[:half:2]
        self._moments[:half] = self._moments[:half:2]
