# SPDX-License-Identifier: Apache-2.0
"""Writes a point into new images: DIR/DISK.raw for each disk, DIR/DOMAIN.xml for each domain.

Reads through a view, so replication goes on and the replica is not touched. The images are sparse:
what is zero in whole 64-KiB steps is left a hole. Everything is durable when it returns.

Nothing is overwritten: a file that is there already refuses the whole restore before anything is
written. If it fails later, what it has written is removed again, the directory too if it was made
here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

from receiver.digests import any_byte
from receiver.fine_view import GroupView
from replicator.base.errors import NoSpaceError, ReplicatorError, UsageError
from replicator.base.storage import File, Storage, SystemStorage, write_all
from replicator.base.units import KIB, MIB

READ_BYTES = 4 * MIB
HOLE_BYTES = 64 * KIB
assert READ_BYTES % HOLE_BYTES == 0

Progress = Callable[[int, int], None]


def restore_view(
    view: GroupView, directory: Path, progress: Progress, storage: Storage | None = None
) -> list[Path]:
    """The files written, disks first. `progress(done, total)` counts bytes of disk.

    Raises UsageError for files that exist, NoSpaceError, DamageError; whatever `progress` raises
    ends the restore as any other failure does.
    """
    storage = storage or SystemStorage()
    images = {name: directory / f"{name}.raw" for name, _ in view.disks}
    texts = {directory / f"{domain}.xml": xml for domain, xml in view.domains.items()}
    _refuse_existing(storage, [*images.values(), *texts])
    made_directory = not storage.exists(directory)
    written: list[Path] = []
    try:
        storage.make_directory(directory)
        total = sum(size for _, size in view.disks)
        done = 0
        for name, size in view.disks:
            file = storage.create(images[name])
            written.append(images[name])
            with closing(file):
                for copied in _copy(view, name, size, file):
                    progress(done + copied, total)
            done += size
        for path, xml in texts.items():
            file = storage.create(path)
            written.append(path)
            with closing(file):
                write_all(file, [xml.encode()], 0)
                file.datasync()
        storage.sync_directory(directory)
    except (OSError, ReplicatorError) as error:
        _remove(storage, written, directory if made_directory else None)
        if isinstance(error, OSError):
            raise _mishap(error, directory) from error
        raise
    return written


def _refuse_existing(storage: Storage, paths: list[Path]) -> None:
    for path in paths:
        if storage.exists(path):
            raise UsageError(
                f"{path} exists already", hint="a restore overwrites nothing; name another folder"
            )


def _copy(view: GroupView, name: str, size: int, file: File) -> Iterator[int]:
    """Writes one disk, durable at the end; yields up to where it is written."""
    file.truncate(size)
    for offset in range(0, size, READ_BYTES):
        length = min(READ_BYTES, size - offset)
        _write_data(file, view.read(name, offset, length), offset)
        yield offset + length
    file.datasync()


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


def _remove(storage: Storage, written: list[Path], directory: Path | None) -> None:
    with suppress(OSError):  # what made the restore fail may make this fail, and counts more
        for path in written:
            storage.unlink(path)
        if directory is not None and not storage.names(directory):
            storage.remove_directory(directory)


def _mishap(error: OSError, directory: Path) -> ReplicatorError:
    if isinstance(error, FileExistsError):
        return UsageError(f"{error.filename} exists already", hint="a restore overwrites nothing")
    text = f"restoring into {directory}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(text)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(
            text, hint="the receiver itself writes there: its user and its unit must allow it"
        )
    return ReplicatorError(text)
