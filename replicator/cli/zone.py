# SPDX-License-Identifier: Apache-2.0
"""The time zone of this machine, as it is sent along with an order: a name, or an offset.

`TZ` decides, then what /etc/localtime links to. Where neither is an IANA name it is the offset that
is in force now, so a time on the other side of a change of clocks is off by that change; the answer
echoes the time as it was understood.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

LOCALTIME = Path("/etc/localtime")
_DATABASE = "/zoneinfo/"


def local_zone(environ: Mapping[str, str] | None = None, localtime: Path = LOCALTIME) -> str:
    stated = (os.environ if environ is None else environ).get("TZ", "").removeprefix(":")
    if stated and _is_name(stated):
        return stated
    if not stated:
        name = os.path.realpath(localtime).rpartition(_DATABASE)[2]
        if _is_name(name):
            return name
    return time.strftime("%z")[:3] + ":" + time.strftime("%z")[3:5]


def _is_name(text: str) -> bool:
    return text == "UTC" or ("/" in text and not text.startswith("/"))
