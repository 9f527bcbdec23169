# SPDX-License-Identifier: Apache-2.0
"""How a program tells a person on stderr that it failed."""

from __future__ import annotations

import sys

from replicator.base.errors import ReplicatorError


def report(error: ReplicatorError) -> int:
    """Writes the error and its hint; the exit code that belongs to it."""
    lines = [f"error: {error.message}"] + ([f"hint: {error.hint}"] if error.hint else [])
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
    return error.exit_code
