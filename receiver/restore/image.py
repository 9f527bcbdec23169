# SPDX-License-Identifier: Apache-2.0
"""One raw image in the making: written piece by piece, taken up again, read back.

Holes of the disk are neither read nor written, and holes of the image are not read back: what that
costs follows from what the disk holds, not from its size. The image is judged all the same: where
the disk holds nothing, the image must hold nothing, and the other way round.

A piece is durable before its sum (receiver.restore.sums) is noted, which happens when as much as a
piece was written since the last time. What was noted in an earlier life is read and compared before
it is believed; a piece that differs is emptied and written again. Whatever lies behind the noted
pieces is cut off first: after a power cut anything may be there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Protocol

from receiver.blocks.digests import any_byte
from receiver.blocks.holes import Extents, every
from receiver.restore.progress import READ_BYTES
from receiver.restore.sums import NOTHING, PieceSum, Ranges, by_piece, checksum_of
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage, SystemStorage, write_all
from replicator.base.units import KIB

HOLE_BYTES = 64 * KIB
assert READ_BYTES % HOLE_BYTES == 0
TOLD_PIECES = 1024
"""How many without content are passed over before that is told."""


class Content(Protocol):
    """A disk as it is to be."""

    def read(self, offset: int, length: int) -> bytes:
        """Raises DamageError, OSError."""
        ...

    def extents(self, offset: int, length: int) -> Extents:
        """Which of the range are holes; see receiver.blocks.holes."""
        ...


class ImageWriter:
    """Makes `file` equal to `content`. `note(pieces)` is called whenever more is durable."""

    def __init__(
        self,
        file: File,
        size_bytes: int,
        piece_bytes: int,
        content: Content,
        note: Callable[[list[str]], None],
    ) -> None:
        self._file = file
        self._size = size_bytes
        self._piece = piece_bytes
        self._content = content
        self._note = note
        self._unnoted_bytes = 0
        self.pieces: list[str] = []

    @property
    def checksum(self) -> str:
        """Of what is written so far."""
        return checksum_of(self.pieces)

    def write(self, noted: list[str]) -> Generator[int, None, None]:
        """Yields up to where the image is good, in steps of at most READ_BYTES of content. `noted`
        are the pieces of an earlier life. All is durable at the end."""
        self._file.truncate(min(len(noted) * self._piece, self._size))
        self._file.truncate(self._size)
        believed = min(len(noted) * self._piece, self._size)
        held = by_piece(believed, self._piece, self._file.data_ranges)
        for start, end, data in by_piece(self._size, self._piece, self._data_within):
            number = start // self._piece
            if number < len(noted):
                _, _, theirs = next(held)
                if (yield from self._is_as_noted(theirs, noted[number])):
                    self.pieces.append(noted[number])
                    continue
                self._file.punch(start, end - start)
            yield from self._copy(start, end, data)
            if self._unnoted_bytes >= self._piece:
                self._settle(noted)
        self._settle(noted)

    def _is_as_noted(self, held: Ranges, noted: str) -> Generator[int, None, bool]:
        """Reads a piece of an earlier life back."""
        return (yield from _sum_of(self._file, held)) == noted

    def _copy(self, start: int, end: int, data: Ranges) -> Generator[int, None, None]:
        piece = PieceSum() if data else None
        for low, high in _steps(data):
            assert piece is not None
            content = self._content.read(low, high - low)
            piece.update(low, content)
            _write_data(self._file, content, low)
            self._unnoted_bytes += high - low
            yield high
        self.pieces.append(NOTHING if piece is None else piece.text)
        if end == self._size or len(self.pieces) % TOLD_PIECES == 0:
            yield end

    def _settle(self, noted: list[str]) -> None:
        self._file.datasync()
        self._note(self.pieces + noted[len(self.pieces) :])
        self._unnoted_bytes = 0

    def _data_within(self, start: int, end: int) -> Ranges:
        parts = every(self._content.extents, start, end - start)
        return [(offset, offset + length) for offset, length, is_hole in parts if not is_hole]


def verify_image(
    storage: Storage, path: Path, size_bytes: int, piece_bytes: int, pieces: list[str]
) -> Generator[int, None, None]:
    """Reads back all that the file holds; yields up to where it is as written. Raises
    DamageError."""
    drop_cache(storage, path)
    with closing(storage.open(path)) as file:
        if file.size() != size_bytes:
            raise DamageError(f"{path}: {file.size()} bytes long, written were {size_bytes}")
        for start, end, data in by_piece(size_bytes, piece_bytes, file.data_ranges):
            found = NOTHING
            if data:
                found = yield from _sum_of(file, data)
            number = start // piece_bytes
            if found != pieces[number]:
                raise DamageError(
                    f"{path}: bytes {start} to {end} are not what was written there",
                    hint="look at the disk and the kernel's log of the receiver's machine",
                )
            if end == size_bytes or number % TOLD_PIECES == 0:
                yield end


def _sum_of(file: File, ranges: Ranges) -> Generator[int, None, str]:
    """Of a piece that holds something in these ranges at most."""
    piece = PieceSum()
    for low, high in _steps(ranges):
        piece.update(low, file.pread(high - low, low))
        yield high
    return piece.text


def _steps(ranges: Ranges) -> Ranges:
    return [
        (at, min(at + READ_BYTES, end))
        for start, end in ranges
        for at in range(start, end, READ_BYTES)
    ]


def drop_cache(storage: Storage, path: Path) -> None:
    """What is read next comes from the medium, where the filesystem can do that."""
    if not isinstance(storage, SystemStorage):
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _write_data(file: File, content: bytes, offset: int) -> None:
    """Writes what is not zero, in as few calls as the holes allow."""
    view = memoryview(content)
    start = None
    for at in range(0, len(view), HOLE_BYTES):
        if any_byte(view[at : at + HOLE_BYTES]):
            start = at if start is None else start
        elif start is not None:
            write_all(file, [view[start:at]], offset + start)
            start = None
    if start is not None:
        write_all(file, [view[start:]], offset + start)
