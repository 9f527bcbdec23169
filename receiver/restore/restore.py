# SPDX-License-Identifier: Apache-2.0
"""Writes a point into new images: DIR/DISK.raw or DIR/DISK.qcow2 for each disk, and DIR/DOMAIN.xml
for each domain.

Reads through a view, so replication goes on and the replica is not touched. The images are sparse:
what is zero in whole 64-KiB steps is left a hole, and what was a hole is not even read. Each is
read back and compared, unless that is not wanted. Everything is durable when it returns.

Nothing is overwritten: a file that is there already refuses the whole restore before anything is
written, and so does a disk with too little room. The order of things, each durable before the next:

    restore.json, then DISK.raw.partial piece by piece with its sums in restore.json,
    each image read back, for qcow2 converted to DISK.qcow2.partial and compared,
    DOMAIN.xml.partial, restore.json with `is_complete`,
    each file under its own name, raw images that were converted and restore.json removed.

A restore that was interrupted (the process died, or shuts down, which is UnreachableError) leaves
`*.partial` and restore.json, and one with `resume` goes on from there; without it they refuse. Any
other failure removes all that the restore has written, the directory too if it was made here.

One restore at a time into a directory. restore_progress says what restore.json holds.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from receiver.restore.image import ImageWriter, drop_cache, verify_image
from receiver.restore.progress import (
    FILE_BYTES_MAX,
    FILE_NAME,
    PIECE_BYTES,
    ImageFormat,
    RestoreProgress,
    beginning,
    decode,
)
from receiver.restore.qcow2 import compare, convert, find_qemu_img
from receiver.views.fine_view import DiskOfView, GroupView
from replicator.base.errors import (
    NoSpaceError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.base.mishaps import mishap
from replicator.base.storage import (
    File,
    Storage,
    SystemStorage,
    read_whole,
    write_all,
    write_durably,
)
from replicator.base.units import format_size

Progress = Callable[[int, int], None]

_PARTIAL = ".partial"
_busy: set[str] = set()
_busy_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class RestoreOrder:
    """What is wanted. `writes`: how many single writes behind the point the view shows."""

    group: str
    writes: int = 0
    format: ImageFormat = "raw"
    resume: bool = False
    verify: bool = True
    unverified: bool = False
    """Also from images that are not believed yet (receiver.damage.doubt)."""


@dataclass(frozen=True, slots=True)
class RestoredImage:
    """`checksum`: see receiver.restore.sums; `verified`: it was read back."""

    disk: str
    path: Path
    format: ImageFormat
    size: int
    checksum: str
    verified: bool


@dataclass(frozen=True, slots=True)
class Restored:
    """`files`: those written, disks first."""

    files: list[Path]
    images: list[RestoredImage]


def restore_view(
    view: GroupView,
    directory: Path,
    progress: Progress,
    order: RestoreOrder,
    storage: Storage | None = None,
    *,
    piece_bytes: int = PIECE_BYTES,
) -> Restored:
    """`progress(done, total)` counts bytes of disk; a byte is done when it is read back.

    Raises UsageError for files that exist and for beginnings that do not fit, OwnedError,
    NoSpaceError, DamageError; whatever `progress` raises ends the restore as any other failure
    does.
    """
    with _claimed(directory):
        restore = _Restore(view, directory, progress, order, storage or SystemStorage())
        restore.plan(piece_bytes)
        return restore.carry_out()


@contextmanager
def _claimed(directory: Path) -> Iterator[None]:
    name = os.path.realpath(directory)
    with _busy_lock:
        if name in _busy:
            raise OwnedError(f"a restore into {directory} is under way")
        _busy.add(name)
    try:
        yield
    finally:
        with _busy_lock:
            _busy.discard(name)


class _Restore:
    """One restore. `_own` are the files that it, or the one it goes on with, has written."""

    def __init__(
        self,
        view: GroupView,
        directory: Path,
        progress: Progress,
        order: RestoreOrder,
        storage: Storage,
    ) -> None:
        self._view = view
        self._directory = directory
        self._order = order
        self._storage = storage
        self._noted = directory / FILE_NAME
        self._images = {name: directory / f"{name}.{order.format}" for name, _ in view.disks}
        self._texts = {directory / f"{domain}.xml": xml for domain, xml in view.domains.items()}
        self._raws = {name: directory / f"{name}.raw" for name, _ in view.disks}
        self._is_converted = order.format != "raw"
        self._qemu_img = find_qemu_img() if self._is_converted else ""
        self._own: list[Path] = []
        self._state: RestoreProgress
        self._passes = (2 if order.verify else 1) * (2 if self._is_converted else 1)
        self._done = 0
        self._told = progress
        self._total = sum(size for _, size in view.disks)

    # -- deciding: nothing is written

    def plan(self, piece_bytes: int) -> None:
        """Raises UsageError, NoSpaceError, and DamageError or VersionError for restore.json."""
        wanted = beginning(
            self._order.group,
            self._view.point,
            self._order.writes,
            self._view.disks,
            self._order.format,
            piece_bytes,
            made_directory=not self._storage.exists(self._directory),
            unverified=self._order.unverified,
        )
        found = self._found()
        self._state = wanted if found is None else self._fitting(found, wanted)
        finals = [*self._images.values(), *self._texts]
        if found is not None:
            files = [*self._partials(), *(finals if found.is_complete else [])]
            self._own = [self._noted, *filter(self._storage.exists, files)]
        self._refuse_existing(finals)
        self._check_room()

    def _found(self) -> RestoreProgress | None:
        if self._storage.exists(self._noted):
            return decode(read_whole(self._storage, self._noted, FILE_BYTES_MAX), str(self._noted))
        for path in self._partials():
            if self._storage.exists(path):
                raise UsageError(
                    f"{path} exists already, and no {FILE_NAME} beside it",
                    hint="a restore overwrites nothing; remove it, or name another folder",
                )
        return None

    def _partials(self) -> list[Path]:
        """All that it may leave when it is interrupted, beside restore.json."""
        paths = {**dict.fromkeys(self._raws.values()), **dict.fromkeys(self._images.values())}
        return [_partial(path) for path in (*paths, *self._texts)]

    def _fitting(self, found: RestoreProgress, wanted: RestoreProgress) -> RestoreProgress:
        if not self._order.resume:
            raise UsageError(
                f"{self._directory} holds the beginnings of a restore",
                hint=f"go on with it by --resume, or remove {FILE_NAME} and *{_PARTIAL}",
            )
        differences = list(found.differences(wanted))
        if differences:
            raise UsageError(
                f"{self._directory} holds the beginnings of another restore: "
                + "; ".join(differences),
                hint=f"name the same group, point and format, or remove {FILE_NAME}"
                f" and *{_PARTIAL}",
            )
        return found

    def _refuse_existing(self, paths: list[Path]) -> None:
        for path in paths:
            if path not in self._own and self._storage.exists(path):
                raise UsageError(
                    f"{path} exists already",
                    hint="a restore overwrites nothing; name another folder",
                )

    def _check_room(self) -> None:
        """What the replica takes is about what the point takes, in either format."""
        needed = self._view.allocated_bytes * (2 if self._is_converted else 1)
        needed -= sum(self._storage.allocated_bytes(path) for path in self._own)
        place = self._directory
        while not self._storage.exists(place):
            place = place.parent
        free = self._storage.free_bytes(place)
        if needed > free:
            raise NoSpaceError(
                f"restoring into {self._directory} takes about {format_size(needed)}, and"
                f" {format_size(free)} are free",
                hint="name a folder on a larger disk",
            )

    # -- doing

    def carry_out(self) -> Restored:
        try:
            return self._write()
        except UnreachableError:
            raise  # an interruption: --resume goes on from here
        except (OSError, ReplicatorError) as error:
            self._remove()
            if isinstance(error, OSError):
                raise _mishap(error, self._directory) from error
            raise

    def _write(self) -> Restored:
        self._storage.make_directory(self._directory)
        if self._noted not in self._own:
            self._own.append(self._noted)
            self._note(self._state)
        images = [self._write_image(number) for number in range(len(self._state.disks))]
        for path, xml in self._texts.items():
            self._write_text(_partial(path), xml)
        self._storage.sync_directory(self._directory)
        self._note(self._state.completed())
        files = [*self._images.values(), *self._texts]
        for path in files:
            self._name(path)
        self._storage.sync_directory(self._directory)
        if self._is_converted:
            for path in self._raws.values():
                self._storage.unlink(_partial(path))
        self._storage.unlink(self._noted)
        self._storage.sync_directory(self._directory)
        return Restored(files, images)

    def _write_image(self, number: int) -> RestoredImage:
        disk = self._state.disks[number]
        raw = self._raws[disk.name]
        path = raw if raw in self._own else _partial(raw)
        if path in self._own:
            drop_cache(self._storage, path)
            file = self._storage.open(path, writable=True)
        else:
            file = self._storage.create(path)
            self._own.append(path)
        with closing(file):
            writer = ImageWriter(
                file,
                disk.size_bytes,
                self._state.piece_bytes,
                DiskOfView(self._view, disk.name),
                lambda pieces: self._note(self._state.with_pieces(number, pieces)),
            )
            self._tell(writer.write(disk.sums), disk.size_bytes)
        if self._order.verify:
            reading = verify_image(
                self._storage, path, disk.size_bytes, self._state.piece_bytes, writer.pieces
            )
            self._tell(reading, disk.size_bytes)
        if self._is_converted:
            self._convert(path, _partial(self._images[disk.name]), disk.size_bytes)
        return RestoredImage(
            disk=disk.name,
            path=self._images[disk.name],
            format=self._order.format,
            size=disk.size_bytes,
            checksum=writer.checksum,
            verified=self._order.verify,
        )

    def _convert(self, raw: Path, target: Path, size_bytes: int) -> None:
        with closing(self._create_anew(target)) as file:
            self._tell(convert(self._qemu_img, raw, target), size_bytes)
            file.datasync()
        if self._order.verify:
            drop_cache(self._storage, target)
            self._tell(compare(self._qemu_img, raw, target), size_bytes)

    def _tell(self, steps: Generator[int, None, None], size_bytes: int) -> None:
        """The passes over a disk count alike; a byte written again counts once."""
        with closing(steps):
            for reached in steps:
                self._told((self._done + reached) // self._passes, self._total)
        self._done += size_bytes
        self._told(self._done // self._passes, self._total)

    def _create_anew(self, path: Path) -> File:
        """In place of what an earlier life left there."""
        if path in self._own:
            self._storage.unlink(path)
            self._own.remove(path)
        file = self._storage.create(path)
        self._own.append(path)
        return file

    def _write_text(self, path: Path, text: str) -> None:
        with closing(self._create_anew(path)) as file:
            write_all(file, [text.encode()], 0)
            file.datasync()

    def _note(self, state: RestoreProgress) -> None:
        self._state = state
        write_durably(self._storage, self._noted, state.encode())

    def _name(self, path: Path) -> None:
        """Its own name, if it has not got it already."""
        partial = _partial(path)
        if partial in self._own:
            self._storage.replace(partial, path)
            self._own[self._own.index(partial)] = path

    def _remove(self) -> None:
        """restore.json is the last: what is left of it until then can still be gone on with."""
        fresh = self._noted.with_name(FILE_NAME + ".new")  # see write_durably
        with suppress(OSError):  # what made the restore fail may make this fail, and counts more
            for path in (fresh, *reversed(self._own)):
                if self._storage.exists(path):
                    self._storage.unlink(path)
            if self._state.made_directory and not self._storage.names(self._directory):
                self._storage.remove_directory(self._directory)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + _PARTIAL)


def _mishap(error: OSError, directory: Path) -> ReplicatorError:
    if isinstance(error, FileExistsError):
        return UsageError(f"{error.filename} exists already", hint="a restore overwrites nothing")
    said = mishap(error)
    text = f"restoring into {directory}: {said.message}"
    if isinstance(said, NoSpaceError):
        return NoSpaceError(text)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(
            text, hint="the receiver itself writes there: its user and its unit must allow it"
        )
    return ReplicatorError(text)
