# SPDX-License-Identifier: Apache-2.0
"""The operating system's refusal in words: the one place that makes them.

An OSError of the storage seam has a place (`placed`): which file, what was being done to it, and at
which offset. It travels up as it is, through everything that may know what to do about it, and
becomes words once, where nobody will: at the edge of a supervision (replicator.base.trouble), of
the control API, of a program (replicator.base.report). Then it is a sentence

    /dr/groups/web/disks/vda.raw: reading at offset 8192: Input/output error

and no longer an OSError, so nobody can make words of it a second time. Whoever has a sentence of
their own around it, with the file in it, puts in `reason`, which names no file.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from replicator.base.errors import NoSpaceError, ReplicatorError


def placed(error: OSError, doing: str, path: Path | str, offset: int | None = None) -> OSError:
    """The same error, with its place. What was nearer to it has said it already, is left."""
    if error.filename is None:
        error.filename = str(path)
    if not _doing(error):
        error.add_note(doing if offset is None else f"{doing} at offset {offset}")
    return error


def reason(error: OSError) -> str:
    """`reading at offset 8192: Input/output error`."""
    words = error.strerror or (os.strerror(error.errno) if error.errno else str(error))
    return f"{doing}: {words}" if (doing := _doing(error)) else words


def mishap(error: OSError) -> ReplicatorError:
    """The sentence; a write to a pipe or stdout names no file."""
    where = "a write failed" if error.filename is None else os.fsdecode(error.filename)
    text = f"{where}: {reason(error)}"
    return NoSpaceError(text) if is_full(error) else ReplicatorError(text)


def is_full(error: OSError) -> bool:
    """The disk, or somebody's share of it; of bytes or of files."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _doing(error: OSError) -> str:
    notes: list[str] = getattr(error, "__notes__", [])
    return notes[0] if notes else ""
