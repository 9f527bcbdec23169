# SPDX-License-Identifier: Apache-2.0
"""What a writable view writes: a throw-away layer over one disk of a point.

    read   = the overlay where a block is in it, else the point
    write  = into the overlay; a block that is written in part is filled from the point first

Neither replica nor history is touched. A block is 4 KiB, and is one of three things: as at the
point, data in the overlay's sparse file, or zeroes (a hole of that file). One byte a block says
which, in anonymous memory that the kernel hands out by the page: a page of it for each 16 MiB of
disk that was written to, 256 MiB for a whole TiB.

Budget. All disks of a view share an `OverlayBudget`: bytes of data blocks, and the room that must
stay free on the file system, which the receiver needs for its own work. A write that does not fit
raises NoSpaceError and has changed nothing. Room that others use up meanwhile is looked at again
for each FREE_CHECK_BYTES, so the reserve is kept to within that much for each view.

Nothing here survives the process, hence nothing is ever synced: a flush has nothing to promise.

Concurrency: any thread. Writers take turns by a lock; readers do not wait. Bytes that no write
under way covers are always right: a block's data is in the file before the block is marked, and
marked as zeroes before its data goes.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator

import numpy as np

from receiver.blocks.holes import Extents, data_blocks, every, of_blocks, span_of
from receiver.history.images import BLOCK_BYTES
from receiver.views.export import DiskReader
from replicator.base.errors import NoSpaceError
from replicator.base.storage import Buffer, File, write_all
from replicator.base.units import GIB, MIB, format_size

FREE_RESERVE_BYTES = 1 * GIB
"""What an overlay leaves free: inbox and history live on the same file system as a rule."""
FREE_CHECK_BYTES = 64 * MIB

_POINT, _DATA, _ZERO = 0, 1, 2
_PIECE_BLOCKS = 8192
"""A long range is marked by pieces of this many blocks, so that no mark costs more memory."""


class OverlayBudget:
    """What the overlays of one view may take together. `free_bytes` asks the file system."""

    def __init__(
        self,
        max_bytes: int,
        free_bytes: Callable[[], int],
        *,
        reserve_bytes: int = FREE_RESERVE_BYTES,
    ) -> None:
        self._max_bytes = max_bytes
        self._free_bytes = free_bytes
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._vouched_bytes = 0  # that may still be taken before the file system is asked again
        self.used_bytes = 0

    def take(self, size: int) -> None:
        """Raises NoSpaceError, with nothing taken."""
        with self._lock:
            if self.used_bytes + size > self._max_bytes:
                raise NoSpaceError(
                    f"the view's overlay is full: it may take {format_size(self._max_bytes)}",
                    hint="open the view again with a larger --overlay-max",
                )
            if size > self._vouched_bytes:
                self._vouch(size)
            self._vouched_bytes -= size
            self.used_bytes += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self.used_bytes -= size

    def _vouch(self, size: int) -> None:
        stride = max(size, FREE_CHECK_BYTES)
        spare = self._free_bytes() - self._reserve_bytes
        if spare < size:
            raise NoSpaceError(
                "the view's overlay leaves the receiver's disk"
                f" {format_size(self._reserve_bytes)}, and no more than that is free",
                hint="free some space on the disk of data_dir, or close views",
            )
        self._vouched_bytes = min(stride, spare)


class Overlay:
    """One disk of a writable view. Owns `file`, which is new and empty."""

    def __init__(
        self, point: DiskReader, size_bytes: int, file: File, budget: OverlayBudget
    ) -> None:
        self._point = point
        self._size_bytes = size_bytes
        self._file = file
        self._budget = budget
        self._lock = threading.Lock()
        blocks = -(-size_bytes // BLOCK_BYTES)
        self._blocks = mmap.mmap(-1, max(blocks, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; the range lies within the disk. Raises DamageError, OSError."""
        parts: list[bytes] = []
        for start, end, state in self._runs(offset, offset + length):
            if state == _POINT:
                parts.append(self._point.read(start, end - start))
            elif state == _ZERO:
                parts.append(bytes(end - start))
            else:
                data = self._file.pread(end - start, start)
                parts.append(data + bytes(end - start - len(data)))  # behind its end are zeroes
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def extents(self, offset: int, length: int) -> Extents:
        """Which of the range are holes; see DiskReader."""
        first, end = span_of(offset, length)
        states = np.frombuffer(self._blocks[first:end], dtype=np.uint8)
        is_data = np.zeros(len(states), dtype=np.bool_)
        is_point = states == _POINT
        if is_point.any():
            start, stop = first * BLOCK_BYTES, min(end * BLOCK_BYTES, self._size_bytes)
            parts = every(self._point.extents, start, stop - start)
            data_blocks(((size, is_hole) for _, size, is_hole in parts), is_data)
            is_data &= is_point
        is_data |= states == _DATA
        return of_blocks(is_data, offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        """Raises NoSpaceError with nothing changed; DamageError, OSError."""
        view = memoryview(data)
        end = offset + len(view)
        with self._lock:
            first, last = offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)
            fresh = (last - first) - self._count(first, last, _DATA)
            head, tail = self._filling(offset, end)
            self._budget.take(fresh * BLOCK_BYTES)
            try:
                write_all(self._file, [head, view, tail], offset - len(head))
            except OSError:
                self._budget.give_back(fresh * BLOCK_BYTES)
                raise
            self._mark(first, last, _DATA)

    def zero(self, offset: int, length: int) -> None:
        """Whole blocks become holes and give their room back; parts of blocks are written."""
        end = offset + length
        first, last = -(-offset // BLOCK_BYTES), end // BLOCK_BYTES
        if end == self._size_bytes:
            last = -(-end // BLOCK_BYTES)  # the rest of its last block is not there
        if first >= last:
            self.write(offset, bytes(length))
            return
        if offset < first * BLOCK_BYTES:
            self.write(offset, bytes(first * BLOCK_BYTES - offset))
        if end > last * BLOCK_BYTES:
            self.write(last * BLOCK_BYTES, bytes(end - last * BLOCK_BYTES))
        with self._lock:
            freed = self._count(first, last, _DATA)
            self._mark(first, last, _ZERO)
            if freed:
                self._file.punch(first * BLOCK_BYTES, (last - first) * BLOCK_BYTES)
                self._budget.give_back(freed * BLOCK_BYTES)

    def close(self) -> None:
        """No read or write may be under way or follow."""
        self._file.close()
        self._blocks.close()

    # Inside.

    def _filling(self, offset: int, end: int) -> tuple[bytes, bytes]:
        """What a write of [offset, end) has to bring along: the rest of its first and last block,
        where those are no data yet. What the file holds of such a block is not believed to be
        zeroes: a write that failed may have left something there."""
        within = offset % BLOCK_BYTES
        behind = min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, self._size_bytes)
        return self._missing(offset - within, offset), self._missing(end, behind)

    def _missing(self, start: int, end: int) -> bytes:
        """[start, end), which lies within one block, if that block is no data yet."""
        state = self._blocks[start // BLOCK_BYTES] if start < end else _DATA
        if state == _POINT:
            return self._point.read(start, end - start)
        return bytes(end - start) if state == _ZERO else b""

    def _runs(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(from, to, state) of the bytes from `start` to `end`, in as few runs as there are."""
        block, last = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        states = self._blocks[block:last]
        at = 0
        while at < len(states):
            state = states[at]
            run = len(states) - len(states[at:].lstrip(states[at : at + 1]))
            low = max((block + at) * BLOCK_BYTES, start)
            high = min((block + run) * BLOCK_BYTES, end)
            yield low, high, state
            at = run

    def _count(self, first: int, last: int, state: int) -> int:
        return sum(
            self._blocks[at : min(at + _PIECE_BLOCKS, last)].count(state)
            for at in range(first, last, _PIECE_BLOCKS)
        )

    def _mark(self, first: int, last: int, state: int) -> None:
        for at in range(first, last, _PIECE_BLOCKS):
            stop = min(at + _PIECE_BLOCKS, last)
            self._blocks[at:stop] = bytes((state,)) * (stop - at)
