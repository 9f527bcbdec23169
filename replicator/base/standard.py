# SPDX-License-Identifier: Apache-2.0
"""The three streams that a program is started with, where it is started without one of them.

Whoever starts us may have closed 0, 1 or 2. Then the next file that is opened gets that number:
what is printed, by us or by a program that we start, would go into a segment or an image. So
/dev/null takes the place, before anything else is opened.
"""

from __future__ import annotations

import os
import sys

STDIN, STDOUT, STDERR = 0, 1, 2


def occupy_standard_streams() -> frozenset[int]:
    """Those that were closed."""
    closed = frozenset(number for number in (STDIN, STDOUT, STDERR) if not _is_open(number))
    for number in sorted(closed):
        opened = os.open(os.devnull, os.O_RDWR)
        if opened == number:
            os.set_inheritable(number, True)
        else:
            os.dup2(opened, number)
            os.close(opened)
    if STDIN in closed:
        sys.stdin = open(STDIN, closefd=False)  # noqa: SIM115 - for as long as we live
    if STDOUT in closed:
        sys.stdout = open(STDOUT, "w", closefd=False)  # noqa: SIM115
    if STDERR in closed:
        sys.stderr = open(STDERR, "w", closefd=False)  # noqa: SIM115
    return closed


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
