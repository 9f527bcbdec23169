# SPDX-License-Identifier: Apache-2.0
"""The replica: `disks/DISK.raw`, plain sparse images, and `disks/state.json` beside them.

An image never changes its size. That of a disk which came back with another size is
`DISK@NUMBER.raw`, the number rising; the one before keeps its name for as long as it is needed.

A raw image can be read with nothing of ours installed; state.json says whether that is wise: it
is consistent, and at which point, or it is not (in a sync, an unfinished apply or rollback). It
says "not" durably before the first byte of a batch is written, and "consistent" again when there
is nothing more to apply; under a steady load it stays at "not", which is the truth most of the
time, and costs nothing.

Only the group's apply thread writes here. Views read from other threads, through the same files.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from receiver.points.values import Point
from replicator.base.clock import rfc3339
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage, write_durably

_STATE_NAME = "state.json"
_SUFFIX = ".raw"
_ASIDE = "set-aside"


def _untold(_path: Path, _kept: Path) -> None:
    """Nobody listens."""


class Replica:
    """The images of one group, by their names: receiver.history.state has whose image is which."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        set_aside: Callable[[Path, Path], None] = _untold,
    ) -> None:
        """`set_aside` is told where a file of another size has had to make room, and as what it is
        kept."""
        self._set_aside = set_aside
        self._storage = storage
        self._directory = directory
        self._files: dict[str, File] = {}
        self._inodes: dict[str, int] = {}
        self._lock = threading.Lock()
        self._said: int | None = None  # the point it is consistent at; 0: it is not

    def path(self, name: str) -> Path:
        return self._directory / f"{name}{_SUFFIX}"

    @property
    def directory(self) -> Path:
        return self._directory

    def prepare(self) -> None:
        self._storage.make_directory(self._directory)

    def size_of(self, name: str) -> int | None:
        """Of the image that lies there; None where there is none."""
        return self.file(name).size() if self._storage.exists(self.path(name)) else None

    def inode(self, name: str) -> int:
        """Of the image that is open; 0 where there is none."""
        if name not in self._inodes and self.size_of(name) is None:
            return 0
        return self._inodes[name]

    def times(self, name: str) -> tuple[int, int]:
        """See Storage. Of an image that is there."""
        return self._storage.times(self.path(name))

    def images(self) -> list[str]:
        """Names of the disks whose images lie there, known to the group or not."""
        return [
            name.removesuffix(_SUFFIX)
            for name in self._storage.names(self._directory)
            if name.endswith(_SUFFIX)
        ]

    def create(self, name: str, size_bytes: int) -> bool:
        """Makes a sparse image, durable. One that is there already is taken as it is, if its size
        fits: what it holds counts as old content; else it is kept under another name. Whether it
        was made now."""
        path = self.path(name)
        if self._storage.exists(path):
            if self.file(name).size() == size_bytes:
                self._storage.sync_directory(self._directory)  # its name may be in the cache alone
                return False
            self._forget(name)
            self._set_aside(path, self._keep(path))
        self._make(name, size_bytes)
        self._storage.replace(self._fresh(name), path)
        self._storage.sync_directory(self._directory)
        return True

    def remove(self, name: str) -> None:
        """For good. No matter if there is none. Raises OSError, and may be called again."""
        self._forget(name)
        path = self.path(name)
        if self._storage.exists(path):
            self._storage.unlink(path)
        self._storage.sync_directory(self._directory)

    def stand_in(self, name: str, size_bytes: int) -> None:
        """Zeroes stand in for an image that is missing, or cannot be used, until `put_in_place`.
        Nothing that lies there is touched. Raises OSError."""
        self._forget(name)
        self._make(name, size_bytes)
        with self._lock:
            fresh = self._fresh(name)
            self._files[name] = self._storage.open(fresh, writable=True)
            self._inodes[name] = self._storage.inode(fresh)

    def put_in_place(self, name: str) -> None:
        """Zeroes become the image, durably. One that lies there is kept under another name."""
        path = self.path(name)
        if self._storage.exists(path):
            self._keep(path)
        self._storage.replace(self._fresh(name), path)
        self._storage.sync_directory(self._directory)

    def _keep(self, path: Path) -> Path:
        """Under another name, which it returns."""
        kept = self._free_name(path)
        self._storage.replace(path, kept)
        return kept

    def _fresh(self, name: str) -> Path:
        path = self.path(name)
        return path.with_name(path.name + ".new")  # a size is not written at once

    def _make(self, name: str, size_bytes: int) -> None:
        fresh = self._fresh(name)
        if self._storage.exists(fresh):
            self._storage.unlink(fresh)
        file = self._storage.create(fresh)
        try:
            file.truncate(size_bytes)
            file.datasync()
        finally:
            file.close()

    def _free_name(self, path: Path) -> Path:
        number = 1
        while self._storage.exists(path.with_name(f"{path.name}.{_ASIDE}-{number}")):
            number += 1
        return path.with_name(f"{path.name}.{_ASIDE}-{number}")

    def file(self, name: str) -> File:
        """The image, writable; open for as long as the replica is."""
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = self._storage.open(self.path(name), writable=True)
                self._inodes[name] = self._storage.inode(self.path(name))
            return file

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises DamageError where the file ends too early."""
        data = self.file(name).pread(length, offset)
        if len(data) != length:
            raise DamageError(f"{self.path(name)}: ends before offset {offset + length}")
        return data

    def allocated_bytes(self, name: str) -> int:
        """What its image takes on the medium."""
        return self._storage.allocated_bytes(self.path(name))

    def sync(self, names: Iterable[str]) -> None:
        for name in names:
            self.file(name).datasync()

    def say_inconsistent(self, reason: str) -> None:
        """Durable when this returns. Cheap when it is said already."""
        if self._said != 0:
            self._say({"consistent": False, "reason": reason, "point": None})
            self._said = 0

    def say_consistent(self, point: Point) -> None:
        if self._said != point.sequence:
            about = {
                "sequence": point.sequence,
                "time": rfc3339(point.time_ns),
                "kind": point.kind,
                "label": point.label,
            }
            disks = [disk.name for disk in point.members]
            images = {disk.name: self.path(disk.image).name for disk in point.members}
            self._say(
                {
                    "consistent": True,
                    "reason": "",
                    "point": about,
                    "disks": disks,
                    "images": images,
                }
            )
            self._said = point.sequence

    def _say(self, state: dict[str, object]) -> None:
        text = json.dumps(state, indent=2, ensure_ascii=False) + "\n"
        write_durably(self._storage, self._directory / _STATE_NAME, text.encode())

    def close(self) -> None:
        for name in list(self._files):
            self._forget(name)

    def _forget(self, name: str) -> None:
        with self._lock:
            file = self._files.pop(name, None)
            self._inodes.pop(name, None)
        if file is not None:
            file.close()
