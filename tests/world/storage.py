# SPDX-License-Identifier: Apache-2.0
"""A disk in memory that loses exactly what a real one may lose. Implements Storage.

To a caller that nothing happens to it behaves as SystemStorage does, errors included; one
contract test runs over both. What may happen to it:

`kill()`        the process dies: every handle is dead (EBADF), the page cache stays.
`power_cut(r)`  the machine dies: as kill(), and of everything not synced any subset survives:
  * content by sectors of SECTOR_BYTES, each on its own: the synced version, the one of now, or
    one in between if it was written more than once. Old and new sectors mix within one write;
  * the size of a file: any that it has had since the last sync, or one between;
  * directory entries: each creation, unlink or replace since the last sync of its directory on
    its own; a replace happens as a whole or not at all;
  * where a file grew, a sector that did not arrive reads as zeroes or as stale bytes of some
    file that was deleted long ago (blocks recycled before their new data came).
  What survived is then on the disk for good. A `volatile` volume (tmpfs) comes back empty.
`plan(Failure)` the nth call of a kind fails, once or for ever, with an errno; a pwritev may write
  a part first. A datasync that fails leaves its pages clean and not on the disk, as Linux does:
  a later datasync of the same file succeeds and makes nothing of that durable.
`stop_at(n)`    the nth call from now on raises Stopped, and so does each after it, until kill() or
  power_cut(): a crash before every system call, one after another.
`Volume`        a capacity: a pwritev that does not fit is short, then ENOSPC.

What is not modelled: reordering across a completed datasync (disks that lie about flushes), and
a directory that is made but not durable, for Storage promises make_directory to be durable.

Only pages of PAGE_BYTES that were written exist, so large sparse files cost nothing.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from replicator.base.mishaps import placed
from replicator.base.storage import IOV_MAX, Buffer, File
from tests.world.faults import ALL_CALLS, CHANGING_CALLS, Failure, Stopped
from tests.world.inode import PAGE_BYTES, SECTOR_BYTES, UNLIMITED_BYTES, Inode, Volume

__all__ = [
    "ALL_CALLS",
    "CHANGING_CALLS",
    "PAGE_BYTES",
    "SECTOR_BYTES",
    "Failure",
    "SimFile",
    "SimStorage",
    "Stopped",
    "Volume",
]

_STALE_PAGES_MAX = 64
DOING = {
    "pread": "reading",
    "pwritev": "writing",
    "punch": "punching a hole",
    "truncate": "setting the size",
    "size": "looking at the size",
    "data_ranges": "looking for holes",
    "datasync": "syncing",
    "create": "creating",
    "open": "opening",
    "names": "listing",
    "make_directory": "making the directory",
    "remove_directory": "removing the directory",
    "replace": "renaming",
    "unlink": "removing",
    "sync_directory": "syncing the directory",
    "look": "looking",
}
"""What an error of each call says was being done."""


class _Directory:
    """Names: those of now, and those that are on the disk."""

    __slots__ = ("durable", "entries", "volume")

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.entries: dict[str, Inode | _Directory] = {}
        self.durable: dict[str, Inode | _Directory] = {}


_Node = Inode | _Directory
_Change = tuple[_Directory, str, _Node | None]


class SimFile:
    """A handle, alive until it is closed or its process dies."""

    def __init__(self, storage: SimStorage, path: Path, inode: Inode, *, writable: bool) -> None:
        self.path = path
        self._storage = storage
        self._inode = inode
        self._writable = writable
        self._life = storage.life
        self._closed = False
        self._place: tuple[str, int | None] = DOING["size"], None
        inode.handles += 1

    def pread(self, size: int, offset: int) -> bytes:
        inode = self._alive("pread", offset)
        if size < 0 or offset < 0:
            raise self._error(errno.EINVAL)
        end = min(offset + size, inode.size)
        if end <= offset:
            return b""
        pages = inode.pages
        first, last = offset // PAGE_BYTES, (end - 1) // PAGE_BYTES
        nothing = bytes(PAGE_BYTES)
        parts = b"".join([pages.get(number, nothing) for number in range(first, last + 1)])
        low = offset - first * PAGE_BYTES
        return parts[low : low + end - offset]

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        inode, failure = self._start("pwritev", offset)
        if len(buffers) > IOV_MAX or offset < 0:
            raise self._error(errno.EINVAL)
        if not self._writable:
            raise self._error(errno.EBADF)
        data = b"".join(buffers)
        if failure is not None:
            if not failure.written:
                raise self._error(failure.errno)
            data = data[: failure.written]
        written = self._fit(inode, offset, len(data))
        if data and not written:
            raise self._error(errno.ENOSPC)
        self._put(inode, memoryview(data)[:written], offset)
        self._storage.written_bytes += written
        return written

    def punch(self, offset: int, length: int) -> None:
        inode = self._alive("punch", offset)
        if offset < 0 or length <= 0:
            raise self._error(errno.EINVAL)
        if not self._writable:
            raise self._error(errno.EBADF)
        inode.zero(offset, offset + length)

    def truncate(self, size: int) -> None:
        inode = self._alive("truncate")
        if size < 0 or not self._writable:
            raise self._error(errno.EINVAL)
        if size < inode.size and inode.pages:
            inode.zero(size, max(inode.size, (max(inode.pages) + 1) * PAGE_BYTES))
        inode.resize(size)

    def allocate(self, size: int) -> None:
        """Blocks of zeroes, as many pages as that."""
        inode = self._alive("pwritev")
        more = max(size - inode.size, 0)
        if self._fit(inode, inode.size, more) < more:
            raise self._error(errno.ENOSPC)
        self._put(inode, memoryview(bytes(more)), inode.size)

    def size(self) -> int:
        self._place = DOING["size"], None
        self._check_alive()
        return self._inode.size

    def data_ranges(self, start: int, end: int) -> list[tuple[int, int]]:
        self._place = DOING["data_ranges"], start
        self._check_alive()
        end = min(end, self._inode.size)
        ranges: list[tuple[int, int]] = []
        for number in sorted(self._inode.pages):
            low, high = max(number * PAGE_BYTES, start), min((number + 1) * PAGE_BYTES, end)
            if low >= high:
                continue
            if ranges and ranges[-1][1] == low:
                ranges[-1] = (ranges[-1][0], high)
            else:
                ranges.append((low, high))
        return ranges

    def drop_cache(self, offset: int, length: int) -> None:
        self._check_alive()
        self._inode.drop_cache(offset, offset + length)

    def datasync(self) -> None:
        inode, failure = self._start("datasync")
        if failure is not None:
            inode.condemn()
            raise self._error(failure.errno)
        inode.settle()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._life == self._storage.life:
                self._inode.handles -= 1
                self._storage.release(self._inode)

    def _check_alive(self) -> None:
        if self._closed or self._life != self._storage.life:
            raise self._error(errno.EBADF)

    def _alive(self, call: str, offset: int | None = None) -> Inode:
        inode, failure = self._start(call, offset)
        if failure is not None:
            raise self._error(failure.errno)
        return inode

    def _start(self, call: str, offset: int | None = None) -> tuple[Inode, Failure | None]:
        self._place = DOING[call], offset
        self._check_alive()
        return self._inode, self._storage.enter(call, self.path)

    def _error(self, code: int) -> OSError:
        doing, offset = self._place
        return placed(OSError(code, os.strerror(code)), doing, self.path, offset)

    def _fit(self, inode: Inode, offset: int, size: int) -> int:
        """How many of `size` bytes at `offset` the volume has room for."""
        room = inode.volume.room_pages()
        end = offset + size
        pages = range(offset // PAGE_BYTES, (end + PAGE_BYTES - 1) // PAGE_BYTES)
        if room >= len(pages):
            return size
        for number in pages:
            if number not in inode.pages:
                room -= 1
                if room < 0:
                    return max(number * PAGE_BYTES - offset, 0)
        return size

    def _put(self, inode: Inode, data: memoryview, offset: int) -> None:
        at, end = offset, offset + len(data)
        pages = inode.pages
        while at < end:
            number, low = divmod(at, PAGE_BYTES)
            size = min(PAGE_BYTES - low, end - at)
            inode.touch(number)
            page = pages.get(number)
            if page is None:
                page = pages[number] = bytearray(PAGE_BYTES)
                inode.volume.used_pages += 1
            page[low : low + size] = data[at - offset : at - offset + size]
            at += size
        if end > inode.size and data:
            inode.resize(end)


class SimStorage:
    """The disk of one simulated machine. Not thread-safe: the simulated world has one thread."""

    def __init__(self, *volumes: Volume, capacity_bytes: int = UNLIMITED_BYTES) -> None:
        self._root_volume = Volume(Path("/"), capacity_bytes)
        self._root = _Directory(self._root_volume)
        self._operations: list[list[_Change]] = []  # not synced yet, oldest first
        self._failures: list[Failure] = []
        self._stop_in: int | None = None
        self._stale: list[bytes] = []
        self._nameless: list[Inode] = []  # unlinked, but open
        self._volumes = volumes
        self._doing = DOING["look"]
        self.life = 0
        self.calls: Counter[str] = Counter()
        self.written_bytes = 0
        for volume in volumes:
            self._mount(volume)

    # Storage

    def create(self, path: Path) -> File:
        self._step("create", path)
        directory = self._directory(path.parent, path)
        if path.name in directory.entries:
            raise self._error(errno.EEXIST, path)
        inode = Inode(directory.volume)
        inode.links = 1
        self._change((directory, path.name, inode))
        return SimFile(self, path, inode, writable=True)

    def open(self, path: Path, *, writable: bool = False) -> File:
        self._step("open", path)
        node = self._find(path)
        if node is None:
            raise self._error(errno.ENOENT, path)
        if isinstance(node, _Directory):
            raise self._error(errno.EISDIR, path)
        return SimFile(self, path, node, writable=writable)

    def exists(self, path: Path) -> bool:
        return self._find(path) is not None

    def names(self, directory: Path) -> list[str]:
        self._step("names", directory)
        node = self._find(directory)
        if isinstance(node, Inode):
            raise self._error(errno.ENOTDIR, directory)
        return [] if node is None else sorted(node.entries)

    def make_directory(self, path: Path) -> None:
        node = self._find(path)
        if isinstance(node, _Directory):
            return
        self._step("make_directory", path)
        if node is not None:
            raise self._error(errno.EEXIST, path)
        directory = self._root
        for part in path.parts[1:]:
            below = directory.entries.get(part)
            if isinstance(below, Inode):
                raise self._error(errno.ENOTDIR, path)
            if below is None:
                below = _Directory(directory.volume)
                directory.entries[part] = below
                self.sync_node(directory)
            directory = below

    def remove_directory(self, path: Path) -> None:
        self._step("remove_directory", path)
        if self._directory(path).entries:
            raise self._error(errno.ENOTEMPTY, path)
        self._change((self._directory(path.parent), path.name, None))

    def replace(self, source: Path, target: Path) -> None:
        self._step("replace", source)
        node = self._find(source)
        if node is None:
            raise self._error(errno.ENOENT, source)
        into = self._directory(target.parent)
        before = into.entries.get(target.name)
        if isinstance(before, _Directory):
            raise self._error(errno.EISDIR, target)
        if before is node:
            return
        assert isinstance(node, Inode), "only files are replaced"
        self._change((self._directory(source.parent), source.name, None), (into, target.name, node))
        if before is not None:
            before.links -= 1
            self.release(before)

    def unlink(self, path: Path) -> None:
        self._step("unlink", path)
        directory = self._directory(path.parent, path)
        node = directory.entries.get(path.name)
        if node is None:
            raise self._error(errno.ENOENT, path)
        if isinstance(node, _Directory):
            raise self._error(errno.EISDIR, path)
        self._change((directory, path.name, None))
        node.links -= 1
        self.release(node)

    def sync_directory(self, path: Path) -> None:
        self._step("sync_directory", path)
        self.sync_node(self._directory(path))

    def allocated_bytes(self, path: Path) -> int:
        self._doing = DOING["look"]
        node = self._find(path)
        if node is None:
            raise self._error(errno.ENOENT, path)
        return len(node.pages) * PAGE_BYTES if isinstance(node, Inode) else PAGE_BYTES

    def inode(self, path: Path) -> int:
        node = self._find(path)
        if not isinstance(node, Inode):
            raise self._error(errno.ENOENT, path)
        return node.number

    def times(self, path: Path) -> tuple[int, int]:
        node = self._find(path)
        if not isinstance(node, Inode):
            raise self._error(errno.ENOENT, path)
        return node.written, node.changed

    def total_bytes(self, path: Path) -> int:
        node = self._find(path)
        if node is None:
            raise self._error(errno.ENOENT, path)
        return node.volume.capacity_bytes

    def free_bytes(self, path: Path) -> int:
        node = self._find(path)
        if node is None:
            raise self._error(errno.ENOENT, path)
        return max(node.volume.room_pages(), 0) * PAGE_BYTES

    # Faults

    def kill(self) -> None:
        """The process that held the handles dies. The kernel, and so the page cache, lives."""
        self.life += 1
        self._stop_in = None
        for inode in self._all_inodes():
            inode.handles = 0
        for inode in self._nameless:
            if inode.handles > 0:
                inode.handles = 0
                self.release(inode)
        self._nameless.clear()

    def power_cut(self, rng: Random) -> None:
        """The machine dies. Afterwards it is as at boot: nothing un-synced, nothing planned."""
        self.kill()
        self._failures.clear()
        for changes in self._operations:
            if rng.getrandbits(1):
                for directory, name, node in changes:
                    _bind(directory.durable, name, node)
        self._operations.clear()
        for directory in list(self._all_directories(durable=True)):
            directory.entries = dict(directory.durable)
        for volume in (self._root_volume, *self._volumes):
            volume.used_pages = 0
            if volume.volatile:
                mounted = self._directory(volume.path)
                mounted.entries, mounted.durable = {}, {}
        for inode in self._all_inodes():
            inode.tear(rng, self._stale)
            inode.links = 1
            inode.volume.used_pages += len(inode.pages)

    def plan(self, *failures: Failure) -> None:
        """Adds faults. They strike in the order given; `heal()` takes all back."""
        self._failures += failures

    def heal(self) -> None:
        self._failures.clear()
        self._stop_in = None

    def stop_at(self, nth: int) -> None:
        """The nth changing call from now on (1 = the next) raises Stopped, and all after it."""
        self._stop_in = nth

    @property
    def stopped(self) -> bool:
        """Whether the process has been stopped and not yet been killed."""
        return self._stop_in is not None and self._stop_in <= 0

    @property
    def changing_calls(self) -> int:
        """How many calls so far could have been stopped at."""
        return sum(count for call, count in self.calls.items() if call in CHANGING_CALLS)

    def is_synced(self, path: Path) -> bool:
        """Whether a power cut now would leave this file as it is, name and all."""
        node = self._find(path)
        if not isinstance(node, Inode):
            return False
        named = self._directory(path.parent).durable.get(path.name) is node
        return named and not node.unsynced and not node.doomed and node.sizes == [node.size]

    def flip(self, path: Path, offset: int, mask: int = 1, *, cached: bool = False) -> None:
        """Rot: changes bits of one byte, on the disk and in the cache; `cached`: there alone."""
        node = self._find(path)
        assert isinstance(node, Inode), path
        number = offset // PAGE_BYTES
        if cached:
            assert number not in node.unsynced, "it is not on the disk yet"
            node.medium.setdefault(number, bytes(node.pages[number]))
        page = node.pages.setdefault(offset // PAGE_BYTES, bytearray(PAGE_BYTES))
        page[offset % PAGE_BYTES] ^= mask

    # What handles call

    def enter(self, call: str, path: Path) -> Failure | None:
        """Counts a call; raises Stopped, or returns the failure that strikes it."""
        self.calls[call] += 1
        if self._stop_in is not None and call in CHANGING_CALLS:
            self._stop_in -= 1
        if self.stopped:
            raise Stopped(f"stopped at {call} {path}")
        for failure in self._failures:
            if failure.strikes(call, path):
                return failure
        return None

    def release(self, inode: Inode) -> None:
        """Frees the room of a file that has neither name nor handle. (Its content stays for as
        long as a power cut may bring its name back.)"""
        if inode.links > 0:
            return
        if inode.handles > 0:
            self._nameless.append(inode)
            return
        if len(self._stale) < _STALE_PAGES_MAX:
            self._stale += [bytes(page) for page in list(inode.pages.values())[:8]]
        inode.volume.used_pages -= len(inode.pages)

    def sync_node(self, directory: _Directory) -> None:
        directory.durable = dict(directory.entries)
        rest: list[list[_Change]] = []
        for changes in self._operations:
            if any(changed is directory for changed, _, _ in changes):
                for changed, name, node in changes:
                    if changed is not directory:
                        _bind(changed.durable, name, node)
            else:
                rest.append(changes)
        self._operations = rest

    # Inside

    def _mount(self, volume: Volume) -> None:
        self.make_directory(volume.path.parent)
        mounted = _Directory(volume)
        parent = self._directory(volume.path.parent)
        parent.entries[volume.path.name] = mounted
        parent.durable[volume.path.name] = mounted

    def _error(self, code: int, path: Path) -> OSError:
        return placed(OSError(code, os.strerror(code)), self._doing, path)

    def _step(self, call: str, path: Path) -> None:
        self._doing = DOING[call]
        failure = self.enter(call, path)
        if failure is not None:
            raise self._error(failure.errno, path)

    def _change(self, *changes: _Change) -> None:
        for directory, name, node in changes:
            _bind(directory.entries, name, node)
        self._operations.append(list(changes))

    def _find(self, path: Path) -> _Node | None:
        node: _Node = self._root
        for part in path.parts[1:]:
            if isinstance(node, Inode):
                return None
            below = node.entries.get(part)
            if below is None:
                return None
            node = below
        return node

    def _directory(self, path: Path, asked: Path | None = None) -> _Directory:
        """`asked`: the path in it that an error is to name."""
        node = self._find(path)
        if node is None:
            raise self._error(errno.ENOENT, asked or path)
        if isinstance(node, Inode):
            raise self._error(errno.ENOTDIR, asked or path)
        return node

    def _all_directories(self, *, durable: bool) -> Iterator[_Directory]:
        waiting = [self._root]
        while waiting:
            directory = waiting.pop()
            yield directory
            entries = directory.durable if durable else directory.entries
            waiting += [node for node in entries.values() if isinstance(node, _Directory)]

    def _all_inodes(self) -> list[Inode]:
        found: dict[int, Inode] = {}
        for directory in self._all_directories(durable=False):
            for node in directory.entries.values():
                if isinstance(node, Inode):
                    found[id(node)] = node
        return list(found.values())


def _bind(entries: dict[str, _Node], name: str, node: _Node | None) -> None:
    if node is None:
        entries.pop(name, None)
    else:
        entries[name] = node
