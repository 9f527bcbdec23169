# SPDX-License-Identifier: Apache-2.0
"""Which parts of a disk are holes: ranges side by side, block by block or byte by byte. No I/O.

A hole reads as zeroes, and nothing lies there. What is no hole may hold anything, zeroes too.
`Extents` cover a range from its beginning on, and may stop short of its end; whoever wants the rest
asks for it from there (`every`). What cannot be read (damage) is never a hole: a hole is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np

from receiver.history.images import BLOCK_BYTES, Bools
from replicator.base.units import GIB

Extents = list[tuple[int, bool]]
"""(length, whether it is a hole) of ranges side by side."""
AskExtents = Callable[[int, int], Extents]
"""(offset, length) of a disk."""

SPAN_BYTES = 4 * GIB
"""What is answered at once: a byte of memory for each block of it."""
assert SPAN_BYTES % BLOCK_BYTES == 0


def span_of(offset: int, length: int) -> tuple[int, int]:
    """(first block, end block) of as much of the range as is answered at once."""
    end = min(offset + length, offset // SPAN_BYTES * SPAN_BYTES + SPAN_BYTES)
    return offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)


def of_blocks(is_data: Bools, offset: int, length: int) -> Extents:
    """Of [offset, +length), as far as `is_data` goes, which begins with the block of `offset`."""
    at = offset // BLOCK_BYTES * BLOCK_BYTES
    end = min(offset + length, at + len(is_data) * BLOCK_BYTES)
    changes = np.flatnonzero(is_data[1:] != is_data[:-1]) + 1
    bounds = [0, *changes.tolist(), len(is_data)]
    found: Extents = []
    for low, high in pairwise(bounds):
        start, stop = max(at + low * BLOCK_BYTES, offset), min(at + high * BLOCK_BYTES, end)
        if start < stop:
            found.append((stop - start, not is_data[low]))
    return found


def data_blocks(extents: Iterable[tuple[int, bool]], is_data: Bools) -> None:
    """Marks the blocks that hold any of what is no hole; `extents` begin with a block."""
    at = 0
    for length, is_hole in extents:
        if not is_hole:
            is_data[at // BLOCK_BYTES : -(-(at + length) // BLOCK_BYTES)] = True
        at += length


def every(ask: AskExtents, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, whether it is a hole) of all of a range, in order; neighbours of one kind
    may come apart."""
    end = offset + length
    while offset < end:
        extents = ask(offset, end - offset)
        assert extents, "an answer covers something"
        for size, is_hole in extents:
            yield offset, size, is_hole
            offset += size


def laid_over(below: Extents, offset: int, pieces: Iterable[tuple[int, int, bool]]) -> Extents:
    """`below`, which begins at `offset`, with (offset, length, is_hole) `pieces` over it, which are
    disjoint, in order, and within it."""
    found: Extents = []
    at = offset
    rest = iter(below)
    left, is_hole = next(rest, (0, True))

    def take(upto: int, *, is_kept: bool) -> None:
        nonlocal at, left, is_hole
        while at < upto:
            size = min(left, upto - at)
            if is_kept:
                found.append((size, is_hole))
            at, left = at + size, left - size
            if not left:
                left, is_hole = next(rest, (1 << 63, True))

    for start, size, covers_hole in pieces:
        take(start, is_kept=True)
        found.append((size, covers_hole))
        take(start + size, is_kept=False)
    take(offset + sum(size for size, _ in below), is_kept=True)
    return found
