# SPDX-License-Identifier: Apache-2.0
"""A Storage that writes nothing: what would be removed is hidden, what would be synced is left.

For code that opens a history as the receiver does, and cleans up on the way (leftovers of a
compaction, a segment that was being made). Here that happens in this object alone. Anything that
would put bytes on the disk is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from replicator.base.storage import Buffer, File, Storage


class ReadOnlyFile:
    """An open file that cannot be changed."""

    def __init__(self, file: File) -> None:
        self._file = file

    @property
    def path(self) -> Path:
        return self._file.path

    def pread(self, size: int, offset: int) -> bytes:
        return self._file.pread(size, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        _refuse("written to", self.path)

    def punch(self, offset: int, length: int) -> None:
        _refuse("punched", self.path)

    def truncate(self, size: int) -> None:
        _refuse("truncated", self.path)

    def allocate(self, size: int) -> None:
        _refuse("allocated", self.path)

    def size(self) -> int:
        return self._file.size()

    def data_ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        return self._file.data_ranges(start, end)

    def drop_cache(self, offset: int, length: int) -> None:
        self._file.drop_cache(offset, length)

    def datasync(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        self._file.close()


class ReadOnlyStorage:
    """See the head of this file."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.hidden: set[Path] = set()

    def create(self, path: Path) -> File:
        _refuse("created", path)

    def open(self, path: Path, *, writable: bool = False) -> File:
        if path in self.hidden:
            raise FileNotFoundError(path)
        return ReadOnlyFile(self._storage.open(path))

    def exists(self, path: Path) -> bool:
        return path not in self.hidden and self._storage.exists(path)

    def names(self, directory: Path) -> list[str]:
        return [
            name for name in self._storage.names(directory) if directory / name not in self.hidden
        ]

    def make_directory(self, path: Path) -> None:
        if not self._storage.exists(path):
            raise FileNotFoundError(path)

    def remove_directory(self, path: Path) -> None:
        _refuse("removed", path)

    def replace(self, source: Path, target: Path) -> None:
        _refuse("replaced", target)

    def unlink(self, path: Path) -> None:
        self.hidden.add(path)

    def sync_directory(self, path: Path) -> None:
        """Nothing was changed."""

    def allocated_bytes(self, path: Path) -> int:
        return self._storage.allocated_bytes(path)

    def inode(self, path: Path) -> int:
        return self._storage.inode(path)

    def times(self, path: Path) -> tuple[int, int]:
        return self._storage.times(path)

    def total_bytes(self, path: Path) -> int:
        return self._storage.total_bytes(path)

    def free_bytes(self, path: Path) -> int:
        return self._storage.free_bytes(path)


def _refuse(what: str, path: Path) -> NoReturn:
    raise AssertionError(f"{path} would be {what} by an offline tool")
