# SPDX-License-Identifier: Apache-2.0
"""Files and directories, behind an interface, so that a simulation can own the disk.

Spool, inbox, history, replica images and state files are reached through `Storage` alone. All
calls are synchronous; an asyncio shell runs the slow ones in a thread. Paths are absolute.

What `SystemStorage` promises is what Linux promises, no more:
* `pwritev` may be short; the caller decides whether to go on or to take the rest back.
* After `datasync` returned, the bytes and the size of that file survive a power cut; its
  directory entry does only after `sync_directory` of the directory that holds it.
* `datasync` that failed once is never tried again by a caller: the kernel may have dropped the
  dirty pages, so the second call proves nothing. The file is condemned.
* `replace` is atomic for readers; durable only after `sync_directory`.
Errors are OSError, and always have a place: the path, what was being done, at which offset
(replicator.base.mishaps, which also puts them into words).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from xxhash import xxh3_64_intdigest

from replicator.base.mishaps import placed

Buffer = bytes | bytearray | memoryview

# One writev takes at most this many buffers (limits.h IOV_MAX on Linux).
IOV_MAX = 1024

READ_ERRORS = (errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ)
"""The medium cannot give what was written: as bad as rot."""

_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class File(Protocol):
    """An open file. Positions are absolute; there is no cursor."""

    @property
    def path(self) -> Path: ...

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes; shorter only at the end of the file."""
        ...

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Bytes written, from the first buffer on; may be fewer than given. ≤ IOV_MAX buffers."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """The range reads as zeroes afterwards; its blocks are freed where the filesystem can.
        The size stays."""
        ...

    def truncate(self, size: int) -> None: ...

    def allocate(self, size: int) -> None:
        """The file is so large, and its blocks are its own from now on. OSError where there are
        not so many, or where the filesystem cannot."""
        ...

    def size(self) -> int: ...

    def data_ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        """[(from, to)] that may hold anything but zeroes; everything between reads as zeroes."""
        ...

    def drop_cache(self, offset: int, length: int) -> None:
        """The next read of the range comes from the medium, if nothing in it waits to be written
        and the system can; else nothing happens."""
        ...

    def datasync(self) -> None: ...

    def close(self) -> None:
        """Idempotent. Promises nothing about durability."""
        ...


class Storage(Protocol):
    """A tree of directories."""

    def create(self, path: Path) -> File:
        """A new, empty file, readable and writable, mode 0600. FileExistsError if it is there."""
        ...

    def open(self, path: Path, *, writable: bool = False) -> File: ...

    def exists(self, path: Path) -> bool: ...

    def names(self, directory: Path) -> list[str]:
        """Sorted names in a directory; empty for one that does not exist."""
        ...

    def make_directory(self, path: Path) -> None:
        """Creates it and its parents, mode 0700, each one durable. Fine if it exists."""
        ...

    def remove_directory(self, path: Path) -> None:
        """Removes an empty directory. OSError if it is not empty."""
        ...

    def replace(self, source: Path, target: Path) -> None: ...

    def unlink(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None: ...

    def allocated_bytes(self, path: Path) -> int:
        """Bytes that the file takes on its medium (holes take none)."""
        ...

    def inode(self, path: Path) -> int:
        """Which file lies at an existing path: a number that stays with the file, whatever it is
        called, and that no other file of its filesystem has. Never 0. A filesystem that gives the
        number of a removed file to the next one is asked for its generation as well; one that has
        none tells files apart that are there at the same time."""
        ...

    def times(self, path: Path) -> tuple[int, int]:
        """When an existing file was written, and when it was changed in any way (renamed, its owner
        set), last: nanoseconds of the system's clock. A power cut may take back what was not
        synced with all of the file's metadata, which `datasync` does not do."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Bytes an unprivileged writer may still use on the filesystem of an existing path."""
        ...

    def total_bytes(self, path: Path) -> int:
        """Of that filesystem, used or not."""
        ...


class SystemFile:
    """A file of the machine."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._fd = descriptor

    def pread(self, size: int, offset: int) -> bytes:
        try:
            data = os.pread(self._fd, size, offset)
            if len(data) == size or not data:
                return data
            parts = [data]  # a read may be short in the middle of a file on some filesystems
            have = len(data)
            while have < size:
                more = os.pread(self._fd, size - have, offset + have)
                if not more:
                    break
                parts.append(more)
                have += len(more)
            return b"".join(parts)
        except OSError as error:
            placed(error, "reading", self.path, offset)
            raise

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        try:
            return os.pwritev(self._fd, buffers, offset)
        except OSError as error:
            placed(error, "writing", self.path, offset)
            raise

    def punch(self, offset: int, length: int) -> None:
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if _libc.fallocate(self._fd, mode, offset, length) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise placed(OSError(code, os.strerror(code)), "punching a hole", self.path, offset)
        length = min(length, self.size() - offset)
        if length > 0:
            write_all(self, [bytes(min(length, 1 << 20))], offset, repeat_to=length)

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            placed(error, f"setting the size to {size}", self.path)
            raise

    def allocate(self, size: int) -> None:
        if _libc.fallocate(self._fd, 0, 0, size):
            code = ctypes.get_errno()
            raise placed(OSError(code, os.strerror(code)), f"allocating {size} bytes", self.path)

    def size(self) -> int:
        with _Doing("looking at the size", self.path):
            return os.fstat(self._fd).st_size

    def data_ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        end = min(end, self.size())
        ranges: list[tuple[int, int]] = []
        while start < end:
            try:
                data = os.lseek(self._fd, start, os.SEEK_DATA)
                if data >= end:
                    break
                hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    break
                placed(error, "looking for holes", self.path, start)
                raise
            ranges.append((data, hole))
            start = hole
        return ranges

    def drop_cache(self, offset: int, length: int) -> None:
        with suppress(OSError):  # a courtesy of the system
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)

    def datasync(self) -> None:
        with _Doing("syncing", self.path):
            os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SystemStorage:
    """The machine's filesystems."""

    def create(self, path: Path) -> File:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with _Doing("creating", path):
            return SystemFile(path, os.open(path, flags, 0o600))

    def open(self, path: Path, *, writable: bool = False) -> File:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        with _Doing("opening", path):
            return SystemFile(path, os.open(path, flags))

    def exists(self, path: Path) -> bool:
        with _Doing("looking", path):
            return path.exists()

    def names(self, directory: Path) -> list[str]:
        try:
            with _Doing("listing", directory):
                return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []

    def make_directory(self, path: Path) -> None:
        if path.is_dir():
            return
        if path.parent != path:
            self.make_directory(path.parent)
        try:
            with _Doing("making the directory", path):
                path.mkdir(mode=0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
            return
        self.sync_directory(path.parent)

    def remove_directory(self, path: Path) -> None:
        with _Doing("removing the directory", path):
            path.rmdir()

    def replace(self, source: Path, target: Path) -> None:
        with _Doing(f"renaming to {target.name}", source):
            os.replace(source, target)

    def unlink(self, path: Path) -> None:
        with _Doing("removing", path):
            os.unlink(path)

    def sync_directory(self, path: Path) -> None:
        with _Doing("syncing the directory", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def allocated_bytes(self, path: Path) -> int:
        with _Doing("looking at its blocks", path):
            return os.stat(path).st_blocks * 512

    def inode(self, path: Path) -> int:
        with _Doing("looking at its inode", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                number = os.fstat(descriptor).st_ino
                generation = _generation(descriptor)
            finally:
                os.close(descriptor)
        return number if generation is None else _as_one(number, generation)

    def times(self, path: Path) -> tuple[int, int]:
        with _Doing("looking at its times", path):
            found = os.stat(path)
        return found.st_mtime_ns, found.st_ctime_ns

    def free_bytes(self, path: Path) -> int:
        with _Doing("looking at the free room", path):
            figures = os.statvfs(path)
        return figures.f_bavail * figures.f_frsize

    def total_bytes(self, path: Path) -> int:
        with _Doing("looking at the size", path):
            figures = os.statvfs(path)
        return figures.f_blocks * figures.f_frsize


class _Doing:
    """What goes wrong in the block gets its place."""

    def __init__(self, doing: str, path: Path) -> None:
        self._doing = doing
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            placed(error, self._doing, self._path)


def write_all(
    file: File, buffers: Sequence[Buffer], offset: int, *, repeat_to: int | None = None
) -> int:
    """Writes every byte, going on after short writes; returns the bytes written.

    With `repeat_to`, the one buffer given is repeated until so many bytes are written.
    Not for logs, where a short append must be taken back as a whole (journal.appender).
    """
    if repeat_to is not None:
        (pattern,) = buffers
        done = 0
        while done < repeat_to:
            done += write_all(file, [memoryview(pattern)[: repeat_to - done]], offset + done)
        return done
    pending = [memoryview(buffer) for buffer in buffers if len(buffer)]
    done = 0
    while pending:
        written = file.pwritev(pending[:IOV_MAX], offset + done)
        if written <= 0:
            stuck = OSError(errno.EIO, "it made no progress")
            raise placed(stuck, "writing", file.path, offset + done)
        done += written
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if written:
            pending[0] = pending[0][written:]
    return done


def write_durably(storage: Storage, path: Path, data: bytes) -> None:
    """Replaces a small file so that after a crash it is the old or the new one, never a mix.
    Durable when this returns. A stray `.new` file of an earlier crash is overwritten."""
    fresh = path.with_name(path.name + ".new")
    if storage.exists(fresh):
        storage.unlink(fresh)
    file = storage.create(fresh)
    try:
        write_all(file, [data], 0)
        file.datasync()
    finally:
        file.close()
    storage.replace(fresh, path)
    storage.sync_directory(path.parent)


def read_whole(storage: Storage, path: Path, limit_bytes: int) -> bytes:
    """The content of a small file; OSError(EFBIG) when it is larger than `limit_bytes`."""
    file = storage.open(path)
    try:
        if file.size() > limit_bytes:
            raise placed(OSError(errno.EFBIG, f"more than {limit_bytes} bytes"), "reading", path)
        return file.pread(limit_bytes, 0)
    finally:
        file.close()


_GET_GENERATION = 0x80087601  # FS_IOC_GETVERSION; what comes back has 32 bits


def _generation(descriptor: int) -> int | None:
    """Of the file's inode number: ext4, xfs and btrfs have one, tmpfs and NFS do not."""
    try:
        answer = fcntl.ioctl(descriptor, _GET_GENERATION, bytes(8))
    except OSError:
        return None
    return int.from_bytes(answer[:4], "little")


def _as_one(number: int, generation: int) -> int:
    """Never 0, and fits where a file's size does."""
    packed = number.to_bytes(8, "little") + generation.to_bytes(4, "little")
    return xxh3_64_intdigest(packed) >> 1 or 1
