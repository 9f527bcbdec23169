# SPDX-License-Identifier: Apache-2.0
"""The time zone of this machine, as it is sent along with an order: a name, or what is set.

`TZ` decides, then what /etc/localtime links to; without either it is UTC, as for the C library. A
zone is never made up: where /etc/localtime is a file that says no name, none is sent (None), and
the receiver refuses a time that needs one. Rules in TZ that know one offset alone (`EST5`) are that
offset; others (`CET-1CEST`) are sent as they are, to be refused there by their name: the offset of
now would be wrong on the other side of a change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

LOCALTIME = Path("/etc/localtime")
UTC = "UTC"
_DATABASE = "/zoneinfo/"
_FIXED = re.compile(
    r"(?:[A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)([+-]?)(\d{1,2})(?::([0-5]\d))?", re.ASCII
)


def local_zone(environ: Mapping[str, str] | None = None, localtime: Path = LOCALTIME) -> str | None:
    stated = (os.environ if environ is None else environ).get("TZ")
    if stated is not None:
        stated = stated.removeprefix(":")
        return _named(stated) or _fixed(stated) or stated or UTC
    if not localtime.exists() and not localtime.is_symlink():
        return UTC
    return _named(os.path.realpath(localtime)) or None


def _named(path: str) -> str:
    """The zone of a file in the database."""
    return path.rpartition(_DATABASE)[2] if _DATABASE in path else ""


def _fixed(rule: str) -> str:
    """POSIX counts offsets westwards: `EST5` is -05:00."""
    found = _FIXED.fullmatch(rule)
    if found is None or int(found[2]) > 23:
        return ""
    return f"{'+' if found[1] == '-' else '-'}{int(found[2]):02}:{found[3] or '00'}"
