# SPDX-License-Identifier: Apache-2.0
"""What some writes come to, byte by byte: the last one of each byte, as disjoint pieces. No I/O.

Two writes may share a block without sharing a sector, so nothing here is rounded to blocks. The
contents are views of the frames that they came in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from receiver.blocks.content import Operation
from receiver.history.extents import ExtentSet
from receiver.history.images import BLOCK_BYTES
from receiver.writes.walk import FineWrite


class FineOverlay:
    """See the head of this file. Immutable."""

    def __init__(self, writes: Sequence[FineWrite]) -> None:
        """`writes` in order."""
        self.writes = len(writes)
        self._pieces: dict[str, list[Operation]] = {}
        self._covered: dict[str, ExtentSet] = {}
        for write in reversed(writes):
            covered = self._covered.setdefault(write.disk, ExtentSet())
            end = write.offset + write.length
            pieces = self._pieces.setdefault(write.disk, [])
            pieces += [_part(write, low, high) for low, high in _gaps(covered, write.offset, end)]
            covered.add(write.offset, end)
        for pieces in self._pieces.values():
            pieces.sort(key=_offset)

    @property
    def disks(self) -> list[str]:
        return sorted(self._pieces)

    def within(self, disk: str, start: int, end: int) -> list[Operation]:
        """What it says of [start, end), in order."""
        pieces = self._pieces.get(disk)
        if not pieces:
            return []
        at = max(bisect_right(pieces, start, key=_offset) - 1, 0)
        found = []
        while at < len(pieces) and pieces[at].offset < end:
            piece = pieces[at]
            low, high = max(piece.offset, start), min(piece.offset + piece.length, end)
            if low < high:
                found.append(_cut(piece, low, high))
            at += 1
        return found

    def block_runs(self, disk: str) -> list[tuple[int, int]]:
        """The blocks that it touches, as disjoint runs [first, end)."""
        runs = ExtentSet()
        for start, end in self._covered.get(disk, ()):
            runs.add(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        return list(runs)

    @property
    def block_count(self) -> int:
        return sum(end - first for disk in self._pieces for first, end in self.block_runs(disk))


def _gaps(covered: ExtentSet, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [start, end) that are not covered."""
    at = start
    for low, high in covered.within(start, end):
        if at < low:
            yield at, low
        at = high
    if at < end:
        yield at, end


def _part(write: FineWrite, low: int, high: int) -> Operation:
    return _cut(Operation(write.offset, write.length, write.content), low, high)


def _cut(piece: Operation, low: int, high: int) -> Operation:
    content = piece.content
    if content is not None:
        content = memoryview(content)[low - piece.offset : high - piece.offset]
    return Operation(low, high - low, content)


def _offset(piece: Operation) -> int:
    return piece.offset
