# SPDX-License-Identifier: Apache-2.0
"""Holes for disks in memory: what of their content is zero, block by block."""

from __future__ import annotations

import numpy as np

from receiver.blocks.holes import AskExtents, Extents, every, of_blocks, span_of

BLOCK = 4096


def extents_of(content: bytes, offset: int, length: int) -> Extents:
    """What a DiskReader of this content says."""
    first, end = span_of(offset, length)
    blocks = [content[at * BLOCK : (at + 1) * BLOCK] for at in range(first, end)]
    return of_blocks(np.array([any(block) for block in blocks], dtype=np.bool_), offset, length)


def check_extents(ask: AskExtents, content: bytes, *, is_exact: bool = False) -> None:
    """All of it is covered, and what is said to be a hole is zero; exactly that, if so wanted."""
    at = 0
    holes = bytearray(len(content))
    for offset, length, is_hole in every(ask, 0, len(content)):
        assert (offset, length > 0) == (at, True)
        at += length
        if is_hole:
            holes[offset:at] = b"\1" * length
            assert not any(content[offset:at]), (offset, length)
    assert at == len(content)
    if is_exact:
        for start in range(0, len(content) - BLOCK + 1, BLOCK):
            is_zero = not any(content[start : start + BLOCK])
            assert all(holes[start : start + BLOCK]) is is_zero, start
