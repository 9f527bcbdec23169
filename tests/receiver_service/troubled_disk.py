# SPDX-License-Identifier: Apache-2.0
"""A real directory with parts of it in trouble: refusing, full, slow, or silent for ever.

What a group's trouble may be on a real machine, for the folders that a test names: a disk that
answers EIO, one that is full, one that is slow, one that does not answer until it is let go.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from replicator.base.storage import Buffer, File, SystemFile, SystemStorage

WRITES = frozenset({"create", "write", "sync", "make_directory", "replace", "truncate", "punch"})
READS = frozenset({"open", "read", "names", "size"})


@dataclass
class Trouble:
    """`befall(what, path)` is called before each operation on a path in one of `folders`."""

    folders: tuple[Path, ...]
    befall: Callable[[str, Path], None]


def refusing(
    *folders: Path, code: int = errno.EIO, what: frozenset[str] = READS | WRITES
) -> Trouble:
    """Every operation of those in `what` fails."""

    def befall(operation: str, path: Path) -> None:
        if operation in what:
            raise OSError(code, os.strerror(code), str(path))

    return Trouble(folders, befall)


def full(*folders: Path) -> Trouble:
    return refusing(*folders, code=errno.ENOSPC, what=frozenset({"write", "create"}))


def slow(*folders: Path, seconds: float = 0.05) -> Trouble:
    """A disk of another time: each operation takes so long."""
    return Trouble(folders, lambda _what, _path: time.sleep(seconds))


@dataclass
class Silent:
    """A disk that does not answer, until `free`."""

    folders: tuple[Path, ...]
    waiting: threading.Event = field(default_factory=threading.Event)
    freed: threading.Event = field(default_factory=threading.Event)

    def befall(self, _what: str, _path: Path) -> None:
        self.waiting.set()
        assert self.freed.wait(60), "a silent disk was never freed"


class TroubledFile(SystemFile):
    def __init__(self, path: Path, descriptor: int, storage: TroubledStorage) -> None:
        super().__init__(path, descriptor)
        self._storage = storage

    def pread(self, size: int, offset: int) -> bytes:
        self._storage.meet("read", self.path)
        return super().pread(size, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        self._storage.meet("write", self.path)
        return super().pwritev(buffers, offset)

    def punch(self, offset: int, length: int) -> None:
        self._storage.meet("punch", self.path)
        super().punch(offset, length)

    def truncate(self, size: int) -> None:
        self._storage.meet("truncate", self.path)
        super().truncate(size)

    def size(self) -> int:
        self._storage.meet("size", self.path)
        return super().size()

    def datasync(self) -> None:
        self._storage.meet("sync", self.path)
        super().datasync()


class TroubledStorage(SystemStorage):
    """`troubles` may change at any time."""

    def __init__(self, *troubles: Trouble | Silent) -> None:
        self.troubles = list(troubles)

    def meet(self, what: str, path: Path) -> None:
        for trouble in self.troubles:
            if any(path.is_relative_to(folder) for folder in trouble.folders):
                trouble.befall(what, path)

    def create(self, path: Path) -> File:
        self.meet("create", path)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return TroubledFile(path, os.open(path, flags, 0o600), self)

    def open(self, path: Path, *, writable: bool = False) -> File:
        self.meet("open", path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        return TroubledFile(path, os.open(path, flags), self)

    def names(self, directory: Path) -> list[str]:
        self.meet("names", directory)
        return super().names(directory)

    def make_directory(self, path: Path) -> None:
        self.meet("make_directory", path)
        super().make_directory(path)

    def replace(self, source: Path, target: Path) -> None:
        self.meet("replace", target)
        super().replace(source, target)

    def sync_directory(self, path: Path) -> None:
        self.meet("sync", path)
        super().sync_directory(path)
