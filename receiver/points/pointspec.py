# SPDX-License-Identifier: Apache-2.0
"""Which of a group's points a text means; replicator.base.pointtext says what the text says. No I/O
but reading the time zone database.

A time means the last point at or before it: at or before the end of what the text stands for, so a
point's printed time, which is rounded down to the microsecond, means that point. The answer says
how far the point is from what was asked: the time from the end of its span (an idle group's point
holds on) to the asked time.

`now` and `10m ago` are said from where the receiver is, and mean its time: they go by when a point
was made (`Point.made_ns`), where that is known, and not by its stamp, which is the source's word,
and wrong for as long as the clock there is. They go by the counted clock (receiver.counted), which
a jump of our own wall clock does not move. Every other time means the stamp that is printed.

`#12+3w` is the third write behind point #12, over all disks, in the log's order; `#12+0w` is the
point. A time within a second means the last *write* at or before it, where writes are kept: to
find that one is for who can read them (receiver.writes.walk). Writes are printed with nine digits,
and as those that came in together have one stamp, such a time means the last of them. `latest
application` is the newest point that the guest declared consistent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from receiver.counted.ages import Ages, moved_ns
from receiver.points.values import Point
from replicator.base.clock import rfc3339
from replicator.base.errors import NoPointError, NotFoundError, UsageError
from replicator.base.moments import Moment
from replicator.base.pointtext import (
    FORMS,
    LATEST_APPLICATION,
    PointSpec,
    label_text,
    parse,
)
from replicator.base.units import format_duration


@dataclass(frozen=True, slots=True)
class Chosen:
    """The point for `asked`. `distance_ns` is None where no time was asked for. `writes` behind
    the point are meant as well. `fine_ns`: the last write up to then, if writes are kept. `notice`:
    what a person should know of it."""

    point: Point
    asked: str
    distance_ns: int | None = None
    writes: int = 0
    fine_ns: int | None = None
    local: str | None = None
    notice: str = ""


def find(
    text: str, now_ns: int, zone: str | None, points: Sequence[Point], ages: Ages | None = None
) -> Chosen:
    """`read` and `resolve` in one. `points` in order, oldest first. A label that would be read as
    something else is told of."""
    text = text.strip()
    told = ""
    if any(point.label == text for point in points) and (said := label_text(text)) != text:
        told = f"the point with the label {text!r} is named {said!r}"
    try:
        chosen = resolve(read(text, now_ns, zone, ages), points, ages)
    except (UsageError, NotFoundError, NoPointError) as error:
        if not told:
            raise
        raise type(error)(error.message, hint=told) from None
    return replace(chosen, notice=told)


def read(text: str, now_ns: int, zone: str | None, ages: Ages | None) -> PointSpec:
    """What the text says. `now_ns` is our wall clock, by which `14:00` is today's; what is said by
    its distance from now is turned into the counted clock's time. Raises UsageError."""
    spec = parse(text, now_ns, zone)
    moment = spec.moment
    if ages is None or moment is None or not moment.is_relative:
        return spec
    apart_ns = ages.counted_ns - now_ns
    start_ns, end_ns = (max(each + apart_ns, 0) for each in (moment.time_ns, moment.end_ns))
    return replace(spec, moment=replace(moment, time_ns=start_ns, end_ns=end_ns))


def resolve(spec: PointSpec, points: Sequence[Point], ages: Ages | None = None) -> Chosen:
    """`points` in order, oldest first. Raises NotFoundError, NoPointError."""
    if spec.label is not None:
        return _labelled(spec.label, spec.text, points)
    if spec.sequence is not None:
        for point in points:
            if point.sequence == spec.sequence:
                return Chosen(point, spec.text, writes=spec.writes)
        raise NotFoundError(f"there is no point #{spec.sequence}", hint=_span(points))
    if spec.moment is not None and spec.moment.is_relative:
        return _made_before(spec.text, spec.moment.time_ns, points, ages)
    if spec.moment is not None:
        return _before(spec.text, spec.moment, points)
    if spec.word == LATEST_APPLICATION:
        return _latest_application(spec.text, points)
    if not points:
        raise NoPointError("the group has no point yet", hint="the first one follows its sync")
    return Chosen(points[-1], spec.text)


def _labelled(label: str, text: str, points: Sequence[Point]) -> Chosen:
    for point in points:
        if point.label == label:
            return Chosen(point, text)
    raise NotFoundError(f"no point has the label {label[:80]!r}", hint=FORMS)


def _latest_application(text: str, points: Sequence[Point]) -> Chosen:
    for point in reversed(points):
        if point.kind == "application":
            return Chosen(point, text)
    raise NoPointError(
        "the group has no application-consistent point",
        hint="`replicator mark --quiesce` makes one",
    )


def _before(text: str, moment: Moment, points: Sequence[Point]) -> Chosen:
    time_ns = moment.time_ns
    at = bisect_right(points, moment.end_ns, key=lambda point: point.time_ns)
    if not at:
        raise NoPointError(
            f"there is no point at or before {rfc3339(time_ns)} ({text})", hint=_span(points)
        )
    point = points[at - 1]
    distance_ns = max(time_ns - point.until_ns, 0)
    # A text as exact as those of writes may be one's, also where a point has the same stamp.
    is_of_a_write = moment.is_fine and (distance_ns or moment.end_ns == time_ns)
    fine_ns = time_ns if is_of_a_write else None
    return Chosen(point, text, distance_ns, fine_ns=fine_ns, local=moment.local)


def made_ns(point: Point, ages: Ages | None = None) -> int:
    """By the counted clock, as it counts by now; by the stamp where nobody knows better."""
    if not point.made_ns:
        return point.time_ns
    return point.made_ns if ages is None else moved_ns(point.made_ns, ages.lags)


def made_until_ns(point: Point, ages: Ages | None = None) -> int:
    """The end of its span, likewise."""
    return made_ns(point, ages) + point.until_ns - point.time_ns


def reaches(point: Point, moment: Moment, ages: Ages | None = None) -> bool:
    """Whether it stands for that time or a later one."""
    end_ns = made_until_ns(point, ages) if moment.is_relative else point.until_ns
    return end_ns >= moment.time_ns


def begun(point: Point, moment: Moment, ages: Ages | None = None) -> bool:
    """Whether it was there at that time."""
    return (made_ns(point, ages) if moment.is_relative else point.time_ns) <= moment.end_ns


def stamp_of(moment: Moment, points: Sequence[Point], ages: Ages | None = None) -> int:
    """What the source's clock showed then, as far as its points tell."""
    if not moment.is_relative:
        return moment.time_ns
    before = next((point for point in reversed(points) if begun(point, moment, ages)), None)
    return moment.time_ns + (0 if before is None else before.time_ns - made_ns(before, ages))


def _made_before(text: str, time_ns: int, points: Sequence[Point], ages: Ages | None) -> Chosen:
    for point in reversed(points):
        if made_ns(point, ages) <= time_ns:
            return Chosen(point, text, max(time_ns - made_until_ns(point, ages), 0))
    raise NoPointError(
        f"there is no point at or before {rfc3339(time_ns)} ({text}), by this machine's clock",
        hint=_span(points),
    )


def _span(points: Sequence[Point]) -> str:
    if not points:
        return "the group has no point yet"
    first, last = points[0], points[-1]
    return (
        f"points go from #{first.sequence} at {rfc3339(first.time_ns)}"
        f" to #{last.sequence} at {rfc3339(last.time_ns)}"
    )


def describe(chosen: Chosen) -> str:
    """One line for people."""
    point = chosen.point
    text = f"{point} of {rfc3339(point.time_ns)}"
    if chosen.writes:
        text = f"write {chosen.writes} behind {text}"
    if chosen.distance_ns:
        text += f", {format_duration(chosen.distance_ns)} before {chosen.asked}"
    return text
