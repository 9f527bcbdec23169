# SPDX-License-Identifier: Apache-2.0
"""Which moment a text means: RFC 3339, local times, `yesterday 14:00`, `10m ago`, `now`. No I/O
but reading the time zone database.

A text without a zone is read in the zone of whoever typed it, which comes with the order: an IANA
name, or an offset from UTC. So a receiver in Frankfurt does what an operator in Lisbon means. Local
clocks skip an hour in spring and repeat one in autumn: a time that was never on the clock, or
twice, is refused with both readings: either may be meant, and an hour of history is a lot. So is
all that is not understood exactly, a zone that nobody knows as well: nothing is guessed.

`14:00` is the last such time that is past, `monday 14:00` that of the last such day.

A text stands for a stretch of time, `time_ns` to `end_ns`. With up to six digits behind the second
it is that whole microsecond, for so points are printed, rounded down; with more it is exact, for so
writes are. Lengths of time before now are exact too.

Years before 1970 are the beginning of time, for no point is older; the end of the year 9999 is that
of the calendar, and what lies beyond is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from replicator.base.errors import UsageError
from replicator.base.units import parse_duration_ns

ZONE_HINT = (
    "end it with Z for UTC, or with an offset like +02:00; the command line sends the zone of its"
    " machine"
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_LENGTH = r"(?:\d+(?:\.\d{1,9})?\s*[a-z]+\s*)+"
_AGO = re.compile(rf"({_LENGTH})\s+ago", re.ASCII | re.IGNORECASE)
_MINUS = re.compile(rf"-\s*({_LENGTH})", re.ASCII | re.IGNORECASE)
_PART = re.compile(r"\d+(?:\.\d{1,9})?\s*[a-z]+", re.ASCII | re.IGNORECASE)
_CLOCK = r"(\d{1,2}):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
_DATED = re.compile(
    rf"(\d{{4}}-\d\d-\d\d)[T t]{_CLOCK}(?:\s*(Z|[+-]\d\d:?\d\d(?::?\d\d)?|UTC))?", re.ASCII | re.I
)
_NAMED = re.compile(rf"(?:(today|yesterday|{'|'.join(DAYS)})\s+)?{_CLOCK}", re.ASCII | re.I)
_LOOKS_DATED = re.compile(r"\d{4}-\d\d-\d\d[T t]\d", re.ASCII)
_CLOCK_AND_ZONE = re.compile(
    rf"(?:(?:today|yesterday|{'|'.join(DAYS)})\s+)?{_CLOCK}\s*(?:Z|(?-i:[A-Z]{{2,5}})|[+-]\d.*)",
    re.ASCII | re.I,
)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)(?::?(\d\d))?", re.ASCII)
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,2}", re.ASCII)
_SHOWN_DIGITS = 6
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
END_NS = (datetime(9999, 12, 30, tzinfo=UTC) - _EPOCH) // _MICROSECOND * 1000
"""Every time below can be said in every zone."""


@dataclass(frozen=True, slots=True)
class Moment:
    """See the head of this file. `is_fine`: within a second. `is_relative`: said by its distance
    from now. `local`: it in the zone of who typed it, where that is known."""

    time_ns: int
    end_ns: int
    is_fine: bool = False
    is_relative: bool = False
    local: str | None = None


def zone_of(name: str) -> tzinfo:
    """An IANA name or an offset like `+01:00`. Raises UsageError."""
    if found := _OFFSET.fullmatch(name):
        return _offset(found)
    if _ZONE_NAME.fullmatch(name):
        try:
            return ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            pass
    raise UsageError(
        f"the receiver does not know the time zone {name[:80]!r}",
        hint="install its tzdata, or give the time with an offset like +02:00",
    )


def moment_of(text: str, now_ns: int, zone: str | None) -> Moment | None:
    """None if it is no time at all. `zone` is where a time without one was typed, as `zone_of`
    takes it, None if nobody knows; one that is not known here is refused where it is needed.
    Raises UsageError for a time that is none, or not one alone."""
    found = _DATED.fullmatch(text) or _NAMED.fullmatch(text)
    if found is None:
        time_ns = _relative(text, now_ns)
        return None if time_ns is None else _checked(Moment(time_ns, time_ns, is_relative=True))
    if found.re is _DATED:
        time_ns = _dated(text, found, zone)
    else:
        time_ns = _named(text, found, now_ns, _needed(text, zone))
    fraction = found[5] or ""
    end_ns = time_ns if len(fraction) > _SHOWN_DIGITS else time_ns // 1000 * 1000 + 999
    moment = _checked(Moment(time_ns, end_ns, is_fine=bool(fraction)))
    return replace(moment, local=_shown(moment.time_ns, zone))


def _relative(text: str, now_ns: int) -> int | None:
    if text.lower() == "now":
        return now_ns
    if found := _AGO.fullmatch(text) or _MINUS.fullmatch(text):
        return max(now_ns - _duration_ns(found[1]), 0)
    if _LOOKS_DATED.match(text) or _CLOCK_AND_ZONE.fullmatch(text):
        raise UsageError(
            f"{text[:80]!r} is not a time", hint="a time is like 2026-03-01 14:00:00.5+01:00"
        )
    return None


def _checked(moment: Moment) -> Moment:
    if moment.time_ns >= END_NS:
        raise UsageError("a time beyond the year 9999 is none", hint="no point is that young")
    return moment


def _needed(text: str, zone: str | None) -> tzinfo:
    if zone is None:
        raise UsageError(f"{text[:80]!r} does not say in which time zone", hint=ZONE_HINT)
    return zone_of(zone)


def _shown(moment_ns: int, zone: str | None) -> str | None:
    try:
        return None if zone is None else local_text(moment_ns, zone_of(zone))
    except UsageError:
        return None  # it was not needed


def local_text(moment_ns: int, zone: tzinfo) -> str:
    """`2026-03-01 14:00:00+01:00`, with the fraction of the second where there is one. Means the
    same when it is typed."""
    seconds, rest = divmod(moment_ns, 1_000_000_000)
    local = datetime.fromtimestamp(seconds, zone)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    offset = local.isoformat()[len("2026-03-01T14:00:00") :]
    return local.strftime("%Y-%m-%d %H:%M:%S") + fraction + offset


def _dated(text: str, found: re.Match[str], zone: str | None) -> int:
    stated = found[6]
    try:
        day = date.fromisoformat(found[1])
    except ValueError as error:
        raise UsageError(f"{text[:80]!r} is not a time: {error}", hint=ZONE_HINT) from error
    local, rest_ns = _on(text, day, found)
    if stated is None:
        return _only(text, local, _needed(text, zone)) + rest_ns
    offset = _OFFSET.fullmatch(stated)
    return _ns(local.replace(tzinfo=UTC if offset is None else _offset(offset))) + rest_ns


def _named(text: str, found: re.Match[str], now_ns: int, zone: tzinfo) -> int:
    word = (found[1] or "").lower()
    today = datetime.fromtimestamp(now_ns // 1_000_000_000, zone).date()
    if word == "today":
        days_back, step = 0, 0
    elif word == "yesterday":
        days_back, step = 1, 0
    elif word:
        days_back, step = (today.weekday() - DAYS.index(word)) % 7, 7
    else:
        days_back, step = 0, 1
    local, rest_ns = _on(text, today - timedelta(days=days_back), found)
    if step and _ns(local.replace(tzinfo=zone)) + rest_ns > now_ns:
        local -= timedelta(days=step)  # not yet come: the one before
    return _only(text, local, zone) + rest_ns


def _on(text: str, day: date, found: re.Match[str]) -> tuple[datetime, int]:
    """(that day at the clock's time, to the microsecond; nanoseconds on top)."""
    hour, minute, second = int(found[2]), int(found[3]), int(found[4] or 0)
    fraction_ns = int((found[5] or "").ljust(9, "0"))
    try:
        clock = time(hour, minute, second)
    except ValueError as error:
        raise UsageError(f"{text[:80]!r} is not a time: {error}", hint=ZONE_HINT) from error
    return datetime.combine(day, clock), fraction_ns


def _only(text: str, local: datetime, zone: tzinfo) -> int:
    """The one moment when a clock of that zone showed `local`."""
    readings = [local.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
    first, second = (_ns(each) for each in readings)
    if first == second:
        return first
    says = "was never on the clock" if first > second else "was on the clock twice"
    offered = sorted({first, second})
    raise UsageError(
        f"{text[:80]!r} {says} in {zone}: it may mean "
        + " or ".join(local_text(each, zone) for each in offered),
        hint="give it with its offset, as it stands there",
    )


def _offset(found: re.Match[str]) -> tzinfo:
    hours, minutes, seconds = (int(part or 0) for part in found.groups()[1:])
    shift = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if hours > 23 or minutes > 59 or seconds > 59:
        raise UsageError(f"{found[0]!r} is not an offset from UTC", hint=ZONE_HINT)
    return timezone(-shift if found[1] == "-" else shift)


def _ns(moment: datetime) -> int:
    return max((moment - _EPOCH) // _MICROSECOND, 0) * 1000


def _duration_ns(text: str) -> int:
    """`1h30m`: m is minutes, for nobody rewinds by metres or months."""
    total = 0
    for part in _PART.findall(text):
        minutes = re.fullmatch(r"([\d.]+)\s*m", part, re.ASCII | re.IGNORECASE)
        try:
            total += parse_duration_ns(f"{minutes[1]}min" if minutes else part)
        except ValueError as error:
            raise UsageError(
                str(error), hint="a length of time is like 10m, 90s, 1h 30m"
            ) from error
    return total
