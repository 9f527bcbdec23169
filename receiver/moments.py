# SPDX-License-Identifier: Apache-2.0
"""Which moment a text means: RFC 3339, local times, `yesterday 14:00`, `10m ago`, `now`. No I/O
but reading the time zone database.

A text without a zone is read in the zone of whoever typed it, which comes with the order: an IANA
name, or an offset from UTC. So a receiver in Frankfurt does what an operator in Lisbon means. Local
clocks skip an hour in spring and repeat one in autumn: a time that was never on the clock, or
twice, is refused with both readings: either may be meant, and an hour of history is a lot.

`14:00` is the last such time that is past, `monday 14:00` that of the last such day.

Years before 1970 are the beginning of time, for no point is older.
"""

from __future__ import annotations

import re
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
    rf"(\d{{4}}-\d\d-\d\d)[T t]{_CLOCK}(?:\s*(Z|[+-]\d\d:?\d\d|UTC))?", re.ASCII | re.I
)
_NAMED = re.compile(rf"(?:(today|yesterday|{'|'.join(DAYS)})\s+)?{_CLOCK}", re.ASCII | re.I)
_LOOKS_DATED = re.compile(r"\d{4}-\d\d-\d\d[T t]\d", re.ASCII)
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)", re.ASCII)
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,2}", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


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


def moment_of(text: str, now_ns: int, zone: tzinfo | None) -> int | None:
    """Nanoseconds since 1970 UTC; None if it is no time at all. `zone` is where a time without one
    was typed, None if nobody knows. Raises UsageError for a time that is none, or not one alone."""
    if text == "now":
        return now_ns
    if found := _AGO.fullmatch(text) or _MINUS.fullmatch(text):
        return max(now_ns - _duration_ns(found[1]), 0)
    if found := _DATED.fullmatch(text):
        return _dated(text, found, zone)
    if _LOOKS_DATED.match(text):
        raise UsageError(
            f"{text[:80]!r} is not a time", hint="a time is like 2026-03-01 14:00:00.5+01:00"
        )
    if found := _NAMED.fullmatch(text):
        return _named(text, found, now_ns, zone)
    return None


def has_fraction(text: str) -> bool:
    """Whether the text names a moment within a second."""
    found = _DATED.fullmatch(text) or _NAMED.fullmatch(text)
    return found is not None and found[5] is not None


def local_text(moment_ns: int, zone: tzinfo) -> str:
    """`2026-03-01 14:00:00 CET (+01:00)`, with the fraction of the second where there is one."""
    seconds, rest = divmod(moment_ns, 1_000_000_000)
    local = datetime.fromtimestamp(seconds, zone)
    fraction = f".{rest:09d}".rstrip("0").rstrip(".")
    shift = local.strftime("%z")
    offset = f"{shift[:3]}:{shift[3:5]}"
    name = local.tzname() or offset
    stamp = local.strftime("%Y-%m-%d %H:%M:%S") + fraction
    is_bare = name.startswith(("UTC+", "UTC-", "+", "-"))
    return f"{stamp} {offset}" if is_bare else f"{stamp} {name} ({offset})"


def _dated(text: str, found: re.Match[str], zone: tzinfo | None) -> int:
    stated = found[6]
    try:
        day = date.fromisoformat(found[1])
    except ValueError as error:
        raise UsageError(f"{text[:80]!r} is not a time: {error}", hint=ZONE_HINT) from error
    local, rest_ns = _on(text, day, found)
    if stated is None:
        if zone is None:
            raise UsageError(f"{text[:80]!r} does not say in which time zone", hint=ZONE_HINT)
        return _only(text, local, zone) + rest_ns
    offset = _OFFSET.fullmatch(stated)
    return _ns(local.replace(tzinfo=UTC if offset is None else _offset(offset))) + rest_ns


def _named(text: str, found: re.Match[str], now_ns: int, zone: tzinfo | None) -> int:
    if zone is None:
        raise UsageError(f"{text[:80]!r} does not say in which time zone", hint=ZONE_HINT)
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
        + " or ".join(f"{local_text(each, zone)}" for each in offered),
        hint="give it with its offset, as "
        + " or ".join(_with_offset(each, zone) for each in offered),
    )


def _with_offset(moment_ns: int, zone: tzinfo) -> str:
    return datetime.fromtimestamp(moment_ns // 1_000_000_000, zone).isoformat()


def _offset(found: re.Match[str]) -> tzinfo:
    shift = timedelta(hours=int(found[2]), minutes=int(found[3]))
    if shift >= timedelta(days=1):
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
