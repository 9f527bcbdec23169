# SPDX-License-Identifier: Apache-2.0
"""Which points a `keep` keeps as they age. No I/O.

    keep = ["all 1h", "1min 24h", "1h 7d"]     a rule: one point for each STEP up to an age of SPAN

A point's age is counted from its *end*, the last moment for which it stands (of an idle group's
point that may be days after its making), by the receiver's counted clock (receiver.counted). The
first rule whose span is not over decides. Time is cut into buckets of its step, at multiples of the
step since 1970 and not counted back from now, and of all points that end in one bucket the oldest
stays. A point that is older than every span goes.

So a decision is never taken back: whether a point is the oldest of its bucket does not change as
time passes (younger ones come behind it), and where steps are multiples of each other the oldest of
a long bucket is the oldest of its short one too. Thinning once late and thinning often come to the
same (tests/receiver/test_thinning.py). Points that are beyond their own rule count as occupants of
the younger buckets they lie in all the same; without that, a bucket that straddles the border of
two rules would be decided twice.

Protected, whatever the rules say:

* the newest point, those in `Protection.pinned` (a view shows them, a rollback made them);
* what a person or an application asked for (a label, a consistent cut), until its own expiry;
* whatever ends after `Protection.spared_after_ns`: the lock.

A point that is protected still occupies its bucket. The clock is the caller's `now_ns`; a point of
a time when the receiver did not note its coming (`received_ns` 0) is taken by its own time. Points
whose stamps were taken back (receiver.retention.stamps) all share one, which says when they come of
age, and nothing of their order: in their buckets lies the source's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from receiver.points.policy import Rule
from receiver.points.values import Point, received_at_ns

NEVER_NS = 1 << 63
Bucket = tuple[bool, int]


@dataclass(frozen=True, slots=True)
class Protection:
    """What must stay, whatever the reason is for which points are to go."""

    pinned: frozenset[int] = frozenset()
    spared_after_ns: int = NEVER_NS


def end_ns(point: Point) -> int:
    """The last moment for which the point stands, by the counted clock."""
    return received_at_ns(point) + point.stood_ns


def is_promised(point: Point, now_ns: int) -> bool:
    """Whether somebody asked for this very point, and its expiry has not come."""
    if point.label is None and point.kind != "application":
        return False
    return not point.expire_ns or now_ns < received_at_ns(point) + point.expire_ns


def window_ns(points: Sequence[Point], now_ns: int) -> int | None:
    """How far back the oldest point reaches. None without points."""
    return max(now_ns - received_at_ns(points[0]), 0) if points else None


def span_ns(rules: Sequence[Rule]) -> int:
    """How far back the rules reach."""
    return max((rule.span_ns for rule in rules), default=0)


def thinned(
    points: Sequence[Point], rules: Sequence[Rule], now_ns: int, protection: Protection
) -> list[Point]:
    """The points that go, oldest first. `points` are all there are, oldest first."""
    seen: list[set[Bucket]] = [set() for _ in rules]
    gone: list[Point] = []
    for point in points[:-1]:
        moment_ns = end_ns(point)
        is_oldest = [
            _occupies(buckets, rule, point) for buckets, rule in zip(seen, rules, strict=True)
        ]
        rule = _rule_of(rules, now_ns - moment_ns)
        if rule is not None and is_oldest[rule]:
            continue
        if point.sequence in protection.pinned or is_promised(point, now_ns):
            continue
        if moment_ns <= protection.spared_after_ns:
            gone.append(point)
    return gone


def _occupies(buckets: set[Bucket], rule: Rule, point: Point) -> bool:
    """Whether the point is the first in its bucket; it is in there from now on."""
    if not rule.step_ns:
        return True
    moment_ns = point.until_ns if point.is_restamped else end_ns(point)
    bucket = point.is_restamped, moment_ns // rule.step_ns
    if bucket in buckets:
        return False
    buckets.add(bucket)
    return True


def _rule_of(rules: Sequence[Rule], age_ns: int) -> int | None:
    """The first rule whose span is not over."""
    for at, rule in enumerate(rules):
        if age_ns < rule.span_ns:
            return at
    return None
