# SPDX-License-Identifier: Apache-2.0
"""Which point a person means: `latest`, `#12`, a label, a time, `10m ago`, `now`. No I/O.

A time means the last point at or before it. The answer says how far that is from what was asked:
the time from the end of the point's span (an idle group's point holds on) to the asked time. A text
that is the label of a point is that point, whatever else it could mean.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from receiver.values import Point
from replicator.base.clock import rfc3339
from replicator.base.errors import NoPointError, NotFoundError, UsageError
from replicator.base.units import format_duration, parse_duration_ns

_FORMS = (
    "a point is 'latest', '#12', a label, a time like 2026-03-01T12:00:00Z, or '10m ago';"
    " `replicator points GROUP` lists them"
)
_SEQUENCE = re.compile(r"#(\d{1,18})", re.ASCII)
_AGO = re.compile(r"((?:\d+(?:\.\d{1,9})?\s*[a-z]+\s*)+)\s+ago", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"\d+(?:\.\d{1,9})?\s*[a-z]+", re.ASCII | re.IGNORECASE)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T t]\d\d:\d\d", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PointSpec:
    """What a text may mean. `sequence` for `#12`, `time_ns` for a time; neither: a label, or
    `latest` if that is the text."""

    text: str
    sequence: int | None = None
    time_ns: int | None = None

    @property
    def is_latest(self) -> bool:
        return self.text == "latest"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The point for `asked`. `distance_ns` is None where no time was asked for."""

    point: Point
    asked: str
    distance_ns: int | None = None


def parse(text: str, now_ns: int) -> PointSpec:
    """Raises UsageError for what can be no point."""
    text = text.strip()
    if not text:
        raise UsageError("no point is given", hint=_FORMS)
    if found := _SEQUENCE.fullmatch(text):
        return PointSpec(text, sequence=int(found[1]))
    if text.startswith("#"):
        raise UsageError(f"{text[:80]!r} is not a point number", hint=_FORMS)
    if text == "now":
        return PointSpec(text, time_ns=now_ns)
    if found := _AGO.fullmatch(text):
        return PointSpec(text, time_ns=max(now_ns - _duration_ns(found[1]), 0))
    if _TIME.match(text):
        return PointSpec(text, time_ns=_time_ns(text))
    return PointSpec(text)


def resolve(spec: PointSpec, points: Sequence[Point]) -> Chosen:
    """`points` in order, oldest first. Raises NotFoundError, NoPointError."""
    labelled = next((point for point in points if point.label == spec.text), None)
    if labelled is not None:
        return Chosen(labelled, spec.text)
    if spec.sequence is not None:
        for point in points:
            if point.sequence == spec.sequence:
                return Chosen(point, spec.text)
        raise NotFoundError(f"there is no point #{spec.sequence}", hint=_span(points))
    if spec.time_ns is not None:
        return _before(spec.text, spec.time_ns, points)
    if not spec.is_latest:
        raise NotFoundError(f"no point has the label {spec.text[:80]!r}", hint=_FORMS)
    if not points:
        raise NoPointError("the group has no point yet", hint="the first one follows its sync")
    return Chosen(points[-1], spec.text)


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
    if chosen.distance_ns:
        text += f", {format_duration(chosen.distance_ns)} before {chosen.asked}"
    return text


def _duration_ns(text: str) -> int:
    total = 0
    for part in _PART.findall(text):
        minutes = re.fullmatch(r"([\d.]+)\s*m", part, re.ASCII | re.IGNORECASE)
        try:
            total += parse_duration_ns(f"{minutes[1]}min" if minutes else part)
        except ValueError as error:
            raise UsageError(str(error), hint=_FORMS) from error
    return total


def _time_ns(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text.replace(" ", "T", 1).replace("t", "T", 1))
    except ValueError as error:
        raise UsageError(f"{text[:80]!r} is not a time: {error}", hint=_FORMS) from error
    if moment.tzinfo is None:
        raise UsageError(
            f"{text[:80]!r} does not say in which time zone",
            hint="end it with Z for UTC, or with an offset like +02:00",
        )
    return max((moment - _EPOCH) // timedelta(microseconds=1), 0) * 1000
