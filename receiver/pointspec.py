# SPDX-License-Identifier: Apache-2.0
"""Which point a person means: `latest`, `#12`, `#12+3w`, a label, a time. No I/O.

A time (receiver.moments) means the last point at or before it. The answer says how far that is
from what was asked: the time from the end of the point's span (an idle group's point holds on) to
the asked time. A text that is the label of a point is that point, whatever else it could mean.

`#12+3w` is the third write behind point #12, over all disks, in the log's order; `#12+0w` is the
point. A time within a second means the last *write* at or before it, where writes are kept: to
find that one is for who can read them (receiver.fine_walk). `latest application` is the newest
point that the guest declared consistent.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo

from receiver.moments import has_fraction, local_text, moment_of
from receiver.values import Point
from replicator.base.clock import rfc3339
from replicator.base.errors import NoPointError, NotFoundError, UsageError
from replicator.base.units import format_duration

_FORMS = (
    "a point is 'latest', '#12', '#12+3w', a label, a time like '2026-03-01 12:00', 'yesterday"
    " 14:00' or 2026-03-01T12:00:00Z, or '10m ago'; `replicator points GROUP` lists them"
)
_SEQUENCE = re.compile(r"#(\d{1,18})(?:\+(\d{1,12})w)?", re.ASCII)
LATEST_APPLICATION = "latest application"


@dataclass(frozen=True, slots=True)
class PointSpec:
    """What a text may mean. `sequence` for `#12`, `time_ns` for a time; neither: a label, or
    `latest` if that is the text. `writes` behind that point. `is_fine`: a time within a second.
    `local`: that time in the zone of who typed it, where it is known."""

    text: str
    sequence: int | None = None
    time_ns: int | None = None
    writes: int = 0
    is_fine: bool = False
    local: str | None = None

    @property
    def is_latest(self) -> bool:
        return self.text == "latest"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The point for `asked`. `distance_ns` is None where no time was asked for. `writes` behind
    the point are meant as well. `fine_ns`: the last write up to then, if writes are kept."""

    point: Point
    asked: str
    distance_ns: int | None = None
    writes: int = 0
    fine_ns: int | None = None
    local: str | None = None


def parse(text: str, now_ns: int, zone: tzinfo | None = None) -> PointSpec:
    """`zone` is that of who typed it. Raises UsageError for what can be no point."""
    text = text.strip()
    if not text:
        raise UsageError("no point is given", hint=_FORMS)
    if found := _SEQUENCE.fullmatch(text):
        return PointSpec(text, sequence=int(found[1]), writes=int(found[2] or 0))
    if text.startswith("#"):
        raise UsageError(f"{text[:80]!r} is not a point number", hint=_FORMS)
    time_ns = moment_of(text, now_ns, zone)
    if time_ns is None:
        return PointSpec(text)
    local = None if zone is None else local_text(time_ns, zone)
    return PointSpec(text, time_ns=time_ns, is_fine=has_fraction(text), local=local)


def find(text: str, now_ns: int, zone: tzinfo | None, points: Sequence[Point]) -> Chosen:
    """`parse` and `resolve` in one; a label is not held against being a bad time."""
    text = text.strip()
    if text and any(point.label == text for point in points):
        return resolve(PointSpec(text), points)
    return resolve(parse(text, now_ns, zone), points)


def resolve(spec: PointSpec, points: Sequence[Point]) -> Chosen:
    """`points` in order, oldest first. Raises NotFoundError, NoPointError."""
    labelled = next((point for point in points if point.label == spec.text), None)
    if labelled is not None:
        return Chosen(labelled, spec.text)
    if spec.sequence is not None:
        for point in points:
            if point.sequence == spec.sequence:
                return Chosen(point, spec.text, writes=spec.writes)
        raise NotFoundError(f"there is no point #{spec.sequence}", hint=_span(points))
    if spec.time_ns is not None:
        chosen = _before(spec.text, spec.time_ns, points)
        fine_ns = spec.time_ns if spec.is_fine and chosen.distance_ns else None
        return replace(chosen, fine_ns=fine_ns, local=spec.local)
    if spec.text == LATEST_APPLICATION:
        return _latest_application(points)
    if not spec.is_latest:
        raise NotFoundError(f"no point has the label {spec.text[:80]!r}", hint=_FORMS)
    if not points:
        raise NoPointError("the group has no point yet", hint="the first one follows its sync")
    return Chosen(points[-1], spec.text)


def _latest_application(points: Sequence[Point]) -> Chosen:
    for point in reversed(points):
        if point.kind == "application":
            return Chosen(point, LATEST_APPLICATION)
    raise NoPointError(
        "the group has no application-consistent point",
        hint="`replicator mark --quiesce` makes one",
    )


def _before(text: str, time_ns: int, points: Sequence[Point]) -> Chosen:
    at = bisect_right(points, time_ns, key=lambda point: point.time_ns)
    if not at:
        raise NoPointError(
            f"there is no point at or before {rfc3339(time_ns)} ({text})", hint=_span(points)
        )
    point = points[at - 1]
    return Chosen(point, text, max(time_ns - point.until_ns, 0))


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
