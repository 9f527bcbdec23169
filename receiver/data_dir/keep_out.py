# SPDX-License-Identifier: Apache-2.0
"""Where images never go: the directory in which the receiver keeps replicas and histories.

A name says nothing: a symbolic link, a bind mount or `.` leads in by another one. So it is asked
* of each directory on the way to the target whether it is the kept one, by device and inode. What
  does not exist yet can lie nowhere else than below its nearest ancestor that does;
* of each mount on that way whether it shows a folder of the kept one (its inode tells nothing of
  what lies above it);
* and the same of `own`, a folder in it that may be a link to another disk.

Nothing else in the kept directory is looked at: the disks of other groups may not answer.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePosixPath

from replicator.base.errors import UsageError

MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")


def refuse_inside(target: Path, kept: Path, own: Path | None = None) -> None:
    """Raises UsageError for a target that lies in the directory `kept` or in `own`, or is it."""
    real = Path(os.path.realpath(target))
    way = [real, *real.parents]
    for directory in [kept] if own is None else [kept, own]:
        if _is_on(way, directory) or _is_shown(way, directory):
            raise UsageError(
                f"{target} lies in {directory}, where replicas and histories are kept",
                hint="name a folder outside of it",
            )


def _is_on(way: list[Path], directory: Path) -> bool:
    wanted = _identity(directory)
    return wanted is not None and any(_identity(place) == wanted for place in way)


def _identity(path: Path) -> tuple[int, int] | None:
    """None for what is no directory, or cannot be looked at."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def _is_shown(way: list[Path], directory: Path) -> bool:
    """Whether a mount on the way shows that directory, or a folder in it."""
    mounts = _mounts()
    device, inside = _place(Path(os.path.realpath(directory)), mounts)
    for mount in way:
        if str(mount) in mounts:
            shown_device, root = mounts[str(mount)]
            if shown_device == device and (root == inside or inside in root.parents):
                return True
    return False


Mounts = dict[str, tuple[str, PurePosixPath]]


def _mounts() -> Mounts:
    """By where it is mounted: the device, and which folder of it is shown there."""
    found: Mounts = {}
    for line in MOUNTS.read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        found[_plain(fields[4])] = fields[2], PurePosixPath(_plain(fields[3]))
    return found


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda code: chr(int(code[1], 8)), text)


def _place(real: Path, mounts: Mounts) -> tuple[str, PurePosixPath]:
    """The device that a path lies on, and where there."""
    mount = next((each for each in (real, *real.parents) if str(each) in mounts), Path("/"))
    device, root = mounts.get(str(mount), ("", PurePosixPath("/")))
    return device, root / real.relative_to(mount)
