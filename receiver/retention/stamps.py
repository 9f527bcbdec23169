# SPDX-License-Identifier: Apache-2.0
"""Stamps that are ahead of the counted clock, and how they are mended. No I/O.

Before there was a counted clock, points were stamped with the highest reading that the wall clock
had ever shown: a clock that jumped ahead for seconds froze the age of all later points for the
length of the jump. And after a power cut the counted clock goes on from where it was kept, which
may be a minute before its last stamps.

A *mend* says: points up to number N were received at `at_ns` at the latest. Where a group is opened
with stamps ahead of C, one more is made with C as it is then; it stands in the state of the group
(the history is the authority), so the age of such a point goes on from there in every later life.
Until it is on record a crash makes it anew, later: then the point lives longer. No age counts more
than what has passed.

What was stamped while the clock lagged (receiver.counted.ages) is moved besides, by what the clock
itself keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from receiver.counted.ages import Lag, moved_ns
from receiver.history.bodies import Mend
from receiver.points.values import Point, received_at_ns
from replicator.base.clock import NS_PER_S

SLACK_NS = NS_PER_S
"""By so little a clock that was drawn to the wall clock may be behind its last stamps after a
crash: such points are young in any case."""


def mended(points: Iterable[Point], mends: Sequence[Mend]) -> list[Point]:
    """The points as they age."""
    return [_mended(point, mends) for point in points] if mends else list(points)


def _mended(point: Point, mends: Sequence[Mend]) -> Point:
    bounds = [each.at_ns for each in mends if point.sequence <= each.upto]
    if not bounds or received_at_ns(point) <= min(bounds):
        return point
    return replace(point, received_ns=min(bounds), is_restamped=True)


def moved(points: Iterable[Point], lags: tuple[Lag, ...]) -> list[Point]:
    """By lags that the points have not been moved by yet."""
    if not lags:
        return list(points)
    return [replace(point, received_ns=moved_ns(point.received_ns, lags)) for point in points]


def mends_for(points: Sequence[Point], mends: Sequence[Mend], counted_ns: int) -> tuple[Mend, ...]:
    """What has to be on record: `points` are those with a batch, as they age by `mends`. Those that
    say nothing any more are left out once another is needed."""
    ahead = [point.sequence for point in points if received_at_ns(point) > counted_ns + SLACK_NS]
    if not ahead:
        return tuple(mends)
    oldest = points[0].sequence
    kept = [each for each in mends if oldest <= each.upto and each.at_ns < counted_ns]
    return (*kept, Mend(ahead[-1], counted_ns))
