# SPDX-License-Identifier: Apache-2.0
"""What the machine's clocks say, and which boot this is.

The kernel's boot_id tells boots apart. The receiver's unit hides it (ProcSubset=pid leaves nothing
of /proc but processes), and ProtectClock forbids what else could tell. Then a *marker* does: a file
with a random name in the RuntimeDirectory, which is on tmpfs, outlives a restart of the service
(RuntimeDirectoryPreserve) and no boot. A marker that outlives a boot all the same, because it lies
on a disk, does no harm: CLOCK_BOOTTIME begins anew with each boot, so what is counted by it is less
than what has passed.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from receiver.counted.rules import Reading

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MARKER = "boot"
_IDENTITY = re.compile(r"[0-9a-f-]{32,36}", re.ASCII)


class Machine(Protocol):
    def read(self) -> Reading:
        """Of one moment. Any thread."""
        ...


class SystemMachine:
    """This one. `boot` is from `boot_identity`."""

    def __init__(self, boot: str) -> None:
        self._boot = boot

    def read(self) -> Reading:
        return Reading(self._boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns())


def boot_identity(runtime_dir: Path, boot_id: Path = BOOT_ID) -> str:
    """See the head of this file. The marker is made where it is needed and not there; where not
    even that can be done every start counts as one on another boot."""
    known = _identity_in(boot_id)
    if known:
        return known
    marker = runtime_dir / MARKER
    known = _identity_in(marker)
    if known:
        return known
    made = str(uuid4())
    try:
        fresh = marker.with_name(f"{MARKER}.{os.getpid()}")
        fresh.write_text(made + "\n")
        fresh.replace(marker)
    except OSError:
        pass  # no harm but that of not knowing: see above
    return made


def runtime_dir_of(control: Path) -> Path:
    """The service's RuntimeDirectory; where nobody has made one, the folder of its socket."""
    given = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(given) if given else control.parent


def _identity_in(path: Path) -> str:
    try:
        found = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return found if _IDENTITY.fullmatch(found) else ""
