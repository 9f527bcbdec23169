# SPDX-License-Identifier: Apache-2.0
"""Writing a point into new images: `DIR/DISK.raw`, sparse, and `DIR/DOMAIN.xml`.

Reads through a view, so replication goes on meanwhile and the point cannot go. Nothing that is
there is ever overwritten: that is found out before the first byte. What fails in the middle (a
full disk, damage, the caller's `progress` raising) is taken away again: there is a whole restore
or none. One that a crash cut short leaves its files; they are in the way of the next, which says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from receiver.history.log import no_space
from receiver.point_view import PointView
from replicator.base.errors import NoSpaceError, UsageError
from replicator.base.storage import File, Storage, SystemStorage, write_all
from replicator.base.units import MIB

CHUNK_BYTES = 1 * MIB
_HOLE_BYTES = 4096
_ZEROES = bytes(CHUNK_BYTES)


def restore_view(
    view: PointView,
    directory: Path,
    progress: Callable[[int, int], None] | None = None,
    storage: Storage | None = None,
) -> list[Path]:
    """Writes all disks of the view's point, and the XML of its domains, into `directory`, which
    is made if need be. Durable when this returns the files. `progress(done, total)` counts bytes;
    if it raises, the restore is undone. Raises UsageError where a file is in the way, NoSpaceError,
    DamageError, OSError."""
    storage = storage or SystemStorage()
    disks = {directory / f"{name}.raw": (name, size) for name, size in view.disks}
    texts = {directory / f"{name}.xml": text for name, text in view.domains.items()}
    _check_clear(storage, directory, [*disks, *texts])
    made: list[Path] = []
    done, total = 0, sum(size for _, size in disks.values())
    try:
        storage.make_directory(directory)
        for path, (name, size) in disks.items():
            file = storage.create(path)
            made.append(path)
            try:
                for end in _copy(view, name, size, file):
                    if progress is not None:
                        progress(done + end, total)
                file.datasync()
            finally:
                file.close()
            done += size
        for path, text in texts.items():
            file = storage.create(path)
            made.append(path)
            try:
                write_all(file, [text.encode()], 0)
                file.datasync()
            finally:
                file.close()
        storage.sync_directory(directory)
    except BaseException as error:
        for path in made:
            with suppress(OSError):
                storage.unlink(path)
        if isinstance(error, OSError) and no_space(error):
            raise NoSpaceError(
                f"the disk of {directory} is full; nothing was left there",
                hint=f"point {view.point} needs up to {total} bytes",
            ) from error
        raise
    return made


def _check_clear(storage: Storage, directory: Path, paths: list[Path]) -> None:
    for path in paths:
        if storage.exists(path):
            raise UsageError(
                f"{path} is there already, and a restore overwrites nothing",
                hint="choose another directory, or move the file away",
            )
    if storage.exists(directory):
        try:
            storage.names(directory)
        except NotADirectoryError:
            raise UsageError(f"{directory} is not a directory") from None


def _copy(view: PointView, name: str, size: int, file: File) -> Iterator[int]:
    """Writes a disk, chunk by chunk; yields up to where. Zeroes become holes."""
    file.truncate(size)
    for start in range(0, size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - start)
        content = view.read(name, start, length)
        if content != _ZEROES[:length]:
            _write_data(file, start, content)
        yield start + length


def _write_data(file: File, start: int, content: bytes) -> None:
    """Writes what is not zero, in whole blocks, neighbours together."""
    chunk = memoryview(content)
    zero = memoryview(_ZEROES)
    begin = -1
    for at in range(0, len(chunk), _HOLE_BYTES):
        block = chunk[at : at + _HOLE_BYTES]
        is_zero = block == zero[: len(block)]
        if is_zero and begin >= 0:
            write_all(file, [chunk[begin:at]], start + begin)
            begin = -1
        elif not is_zero and begin < 0:
            begin = at
    if begin >= 0:
        write_all(file, [chunk[begin:]], start + begin)
