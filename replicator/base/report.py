# SPDX-License-Identifier: Apache-2.0
"""How a program tells a person on stderr that it failed."""

from __future__ import annotations

import errno
import os
import sys

from replicator.base.errors import NoSpaceError, ReplicatorError


def report(error: ReplicatorError) -> int:
    """Writes the error and its hint; the exit code that belongs to it."""
    lines = [f"error: {error.message}"] + ([f"hint: {error.hint}"] if error.hint else [])
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
    return error.exit_code


def mishap(error: OSError) -> ReplicatorError:
    """The sentence for an operating system's refusal; a write to a pipe or stdout names no file."""
    where = "a write failed" if error.filename is None else error.filename
    text = f"{where}: {os.strerror(error.errno) if error.errno else error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(text)
    return ReplicatorError(text)
