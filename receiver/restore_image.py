# SPDX-License-Identifier: Apache-2.0
"""One raw image in the making: written piece by piece, taken up again, read back.

A piece is durable before its sum is noted. What was noted in an earlier life is read and compared
before it is believed; a piece that differs is emptied and written again. Whatever lies behind the
noted pieces is cut off first: after a power cut anything may be there.

Sums are XXH3-128 of the content, in which a hole counts as zeroes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path

from xxhash import xxh3_128

from receiver.digests import any_byte
from receiver.restore_progress import READ_BYTES
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage, SystemStorage, write_all
from replicator.base.units import KIB

HOLE_BYTES = 64 * KIB
assert READ_BYTES % HOLE_BYTES == 0

Read = Callable[[int, int], bytes]
"""(offset, length) of the disk."""


class ImageWriter:
    """Makes `file` equal to what `read` says. `note(pieces)` is called whenever more is durable."""

    def __init__(
        self,
        file: File,
        size_bytes: int,
        piece_bytes: int,
        read: Read,
        note: Callable[[list[str]], None],
    ) -> None:
        self._file = file
        self._size = size_bytes
        self._piece = piece_bytes
        self._read = read
        self._note = note
        self._whole = xxh3_128()
        self.pieces: list[str] = []

    @property
    def checksum(self) -> str:
        """Of what is written so far."""
        return self._whole.hexdigest()

    def write(self, noted: list[str]) -> Generator[int, None, None]:
        """Yields up to where the image is good, in steps of READ_BYTES. `noted` are the pieces of
        an earlier life. All is durable at the end."""
        self._file.truncate(min(len(noted) * self._piece, self._size))
        self._file.truncate(self._size)
        for number, start in enumerate(range(0, self._size, self._piece)):
            end = min(start + self._piece, self._size)
            if number < len(noted):
                before = self._whole.copy()
                yield from self._take(start, end, self._file_content)
                if self.pieces[-1] == noted[number]:
                    continue
                self._whole = before
                self.pieces.pop()
                self._file.punch(start, end - start)
            yield from self._take(start, end, self._copied)
            self._file.datasync()
            self._note(self.pieces + noted[number + 1 :])
        self._file.datasync()

    def _take(self, start: int, end: int, content: Read) -> Generator[int, None, None]:
        """Adds one piece to the sums."""
        piece = xxh3_128()
        for offset in range(start, end, READ_BYTES):
            length = min(READ_BYTES, end - offset)
            read = content(offset, length)
            piece.update(read)
            self._whole.update(read)
            yield offset + length
        self.pieces.append(piece.hexdigest())

    def _file_content(self, offset: int, length: int) -> bytes:
        return self._file.pread(length, offset)

    def _copied(self, offset: int, length: int) -> bytes:
        content = self._read(offset, length)
        _write_data(self._file, content, offset)
        return content


def verify_image(
    storage: Storage, path: Path, size_bytes: int, piece_bytes: int, pieces: list[str]
) -> Generator[int, None, None]:
    """Reads the whole file back; yields up to where it is as written. Raises DamageError."""
    drop_cache(storage, path)
    with closing(storage.open(path)) as file:
        if file.size() != size_bytes:
            raise DamageError(f"{path}: {file.size()} bytes long, written were {size_bytes}")
        for number, start in enumerate(range(0, size_bytes, piece_bytes)):
            end = min(start + piece_bytes, size_bytes)
            piece = xxh3_128()
            for offset in range(start, end, READ_BYTES):
                length = min(READ_BYTES, end - offset)
                piece.update(file.pread(length, offset))
                yield offset + length
            if piece.hexdigest() != pieces[number]:
                raise DamageError(
                    f"{path}: bytes {start} to {end} are not what was written there",
                    hint="look at the disk and the kernel's log of the receiver's machine",
                )


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
