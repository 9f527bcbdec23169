# SPDX-License-Identifier: Apache-2.0
"""Sizes and durations as people write them. No I/O.

`1GiB`, `512 MiB`, `4096`; `250ms`, `1s`, `15min`, `24h`, `7d`. Binary and decimal prefixes are
both exact: 1KiB = 1024, 1KB = 1000. Anything else is a ValueError that says what is accepted.
"""

from __future__ import annotations

import re

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SIZE_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _SIZE_UNITS[f"{_letter}IB"] = 1024**_power
    _SIZE_UNITS[f"{_letter}B"] = 1000**_power

_DURATION_UNITS_NS = {
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "min": 60 * 1_000_000_000,
    "h": 3_600 * 1_000_000_000,
    "d": 86_400 * 1_000_000_000,
    "w": 7 * 86_400 * 1_000_000_000,
}

_QUANTITY = re.compile(r"\s*(\d+)(?:\.(\d{1,9}))?\s*([A-Za-z]*)\s*", re.ASCII)
_LIMIT = 1 << 63  # both end up in 64-bit fields


def _scale(text: str, unit: int, whole: str, fraction: str | None) -> int:
    if len(whole) > 19:
        raise ValueError(f"{text!r} is too large")
    value = int(whole) * unit
    if fraction:
        value += int(fraction) * unit // 10 ** len(fraction)
    if value >= _LIMIT:
        raise ValueError(f"{text!r} is too large")
    return value


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError."""
    found = _QUANTITY.fullmatch(text)
    unit = _SIZE_UNITS.get(found[3].upper()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is not a size; write for example 512MiB, 10GiB or 4096")
    return _scale(text, unit, found[1], found[2])


def parse_duration_ns(text: str) -> int:
    """Nanoseconds. A bare number has no unit and is refused. Raises ValueError."""
    found = _QUANTITY.fullmatch(text)
    unit = _DURATION_UNITS_NS.get(found[3].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is not a duration; write for example 250ms, 1s, 15min or 24h")
    return _scale(text, unit, found[1], found[2])


def exact_size(size: int) -> str:
    """As it may stand in a config: `512MiB`, or bytes. `parse_size` gives back the very number."""
    for power in (5, 4, 3, 2, 1):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{'KMGTP'[power - 1]}iB"
    return str(size)


def exact_duration(nanoseconds: int) -> str:
    """As it may stand in a config: `250ms`, `24h`. Of whole microseconds, as every parsed one
    whose fraction is no finer; `parse_duration_ns` gives back the very number."""
    for unit in ("d", "h", "min", "s", "ms"):
        if nanoseconds and nanoseconds % _DURATION_UNITS_NS[unit] == 0:
            return f"{nanoseconds // _DURATION_UNITS_NS[unit]}{unit}"
    whole, rest = divmod(nanoseconds, 1000)
    return f"{whole}us" if not rest else f"{whole}.{rest:03d}us"


def format_size(size: int) -> str:
    """For people: three significant digits (four between 1000 and 1023), binary prefix."""
    if size < 1024:
        return f"{size} B"
    value = size / 1024
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1023.5:
            return f"{_digits(value)} {unit}"
        value /= 1024
    return f"{_digits(value)} PiB"


def format_resize(before: int, after: int) -> str:
    """`from 24 MiB to 33 MiB`; in bytes where that would say the same twice."""
    texts = format_size(before), format_size(after)
    if texts[0] == texts[1]:
        texts = f"{before} bytes", f"{after} bytes"
    return f"from {texts[0]} to {texts[1]}"


def format_duration(nanoseconds: int) -> str:
    """For people: `250 us`, `340 ms`, `1.2 s`, `4 min 10 s`, `3 h 2 min`, `5 d 1 h`."""
    if nanoseconds < 0:
        return f"-{format_duration(-nanoseconds)}"
    if 0 < nanoseconds < 999_500:
        return f"{_digits(nanoseconds / 1000)} us"
    if nanoseconds < 999_500_000:
        return f"{_digits(nanoseconds / 1_000_000)} ms"
    if nanoseconds < 59_950_000_000:
        return f"{nanoseconds / 1e9:.1f} s"
    whole = (nanoseconds + 500_000_000) // 1_000_000_000
    for size, unit, small_size, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {small}"
    return f"{whole // 60} min {whole % 60} s"


def _digits(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
