# SPDX-License-Identifier: Apache-2.0
"""The reserve: room that is kept back, so that on a full disk one can still look and make room.

    DATA_DIR/reserve/1 … 8     files of allocated blocks, all of one size, with nothing in them

On a disk that is full to the last block no order can be recorded, no point given up, no view opened
and no receiver started, so nothing could be done about it. Therefore 2 % of the disk, at most 256
MiB, are kept back as files, which cost an inode each as well. They are *given back*, all at once,
when a step of looking or of making room meets a full disk (or quota, or one without inodes): an
entry of the audit, a drop, ageing, a view, a start. What they leave is for such steps alone: while
it is given back, nothing is taken in and nothing applied, as on a disk that is full. It is *made*
again, and all goes on, when four times as much is free.

A disk below 32 MiB has none, nor has one on which there never was so much room; then nothing is
held up. It is no part of `max_bytes`. Where a step meets a full disk and the reserve is given back
already, the error says so: then only other means help.

What is kept on record is the folder: none, never made; with all files, held; else given back. So a
crash while they are made or removed counts as given back, and a restart goes on from there.

Concurrency: any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol, TypeVar

import structlog

from replicator.base import mishaps
from replicator.base.errors import NoSpaceError
from replicator.base.storage import Storage, write_all
from replicator.base.units import KIB, MIB, format_size

PIECES = 8
BYTES_MAX = 256 * MIB
SHARE = 50
DISK_BYTES_MIN = 32 * MIB
FREE_TIMES = 4
START_BYTES_MAX = 16 * MIB
"""What a start itself may write: catalog, headers of new segments, the end of a torn batch."""
START_BYTES_MIN = 256 * KIB
PROBES, PROBE_BYTES = 4, 16 * KIB
"""What a view, say, makes: a folder or two, a socket, a file."""

T = TypeVar("T")


class Room(Protocol):
    """What a group asks of the reserve of its disk. Any thread."""

    @property
    def is_given(self) -> bool: ...

    def check(self) -> None: ...

    def ready(self, what: str) -> None: ...

    def with_room(self, step: Callable[[], T], what: str) -> T: ...


class Unreserved:
    """Where nothing is kept back."""

    is_given = False

    def check(self) -> None:
        """Nobody has to wait."""

    def ready(self, _what: str) -> None:
        """There is nothing to give."""

    def with_room(self, step: Callable[[], T], _what: str) -> T:
        return step()


UNRESERVED = Unreserved()

_log = structlog.get_logger(__name__)


def size_for(disk_bytes: int) -> int:
    """Of the reserve on a disk of that size; 0: none."""
    if disk_bytes < DISK_BYTES_MIN:
        return 0
    return min(BYTES_MAX, disk_bytes // SHARE) // (PIECES * 4096) * PIECES * 4096


def start_bytes(disk_bytes: int) -> int:
    """What must be free for a start, on a disk of that size: no more than the reserve leaves."""
    return max(START_BYTES_MIN, min(START_BYTES_MAX, disk_bytes // SHARE // 2))


class Reserve:
    """See the head of this file. `data_dir` may not be there yet: then there is none."""

    def __init__(self, storage: Storage, data_dir: Path) -> None:
        self._storage = storage
        self._data_dir = data_dir
        self._folder = data_dir / "reserve"
        self._lock = threading.Lock()
        self._probing = threading.Lock()
        self._is_used_up = False
        self._cannot_make = ""
        self._pieces = [self._folder / str(number) for number in range(1, PIECES + 1)]
        self._is_given = storage.exists(self._folder) and not self._is_whole

    # -- what is known

    @property
    def held_bytes(self) -> int:
        """What can be given back."""
        return sum(
            self._storage.allocated_bytes(each)
            for each in self._pieces
            if self._storage.exists(each)
        )

    @property
    def is_given(self) -> bool:
        """There was one, and it has been given back. It is not while the first one is made."""
        return self._is_given

    @property
    def _is_whole(self) -> bool:
        return all(self._storage.exists(each) for each in self._pieces)

    @property
    def needed_bytes(self) -> int:
        """What must be free for it to be made."""
        return FREE_TIMES * size_for(self._storage.total_bytes(self._data_dir))

    def check(self) -> None:
        """Raises NoSpaceError while it is given back: whoever would fill the disk waits."""
        if self.is_given:
            raise NoSpaceError(
                f"the disk of {self._data_dir} is full: what was kept back there has been given"
                " back, for looking and for making room alone",
                hint="make room there (`replicator points drop`, or a larger disk); it goes on by"
                f" itself when {format_size(self.needed_bytes)} are free, and nothing is lost"
                " meanwhile",
            )

    # -- giving back

    def give(self, what: str) -> bool:
        """Gives it back for that step; whether there was anything to give."""
        with self._lock:
            given = self.held_bytes
            self._clear(self._pieces)
            if given:
                self._is_given = True
                self._storage.sync_directory(self._folder)
                _log.error("reserve.given", bytes=given, needed_for=what)
            elif self.is_given and not self._is_used_up:
                self._is_used_up = True
                _log.error("reserve.used_up", needed_for=what, free=self._free_bytes)
            return given > 0

    @property
    def _free_bytes(self) -> int:
        return self._storage.free_bytes(self._data_dir)

    def with_room(self, step: Callable[[], T], what: str) -> T:
        """What `step` returns. On a full disk once more with the reserve given back: so it may be
        done again where it has failed for that."""
        try:
            return step()
        except (OSError, NoSpaceError) as error:
            if not is_full(error) or not self.give(what):
                raise self._said_twice(error) from error
        try:
            return step()
        except (OSError, NoSpaceError) as error:
            raise self._said_twice(error) from error

    def _said_twice(self, error: OSError | NoSpaceError) -> OSError | NoSpaceError:
        """That it is full, though there was something to give back."""
        if not is_full(error) or not self.is_given:
            return error
        return NoSpaceError(
            f"{said(error)}, and what was kept back there is used up as well",
            hint="free some space by other means: move other files away, or give it a larger disk",
        )

    def ready(self, what: str) -> None:
        """A step that looks comes next: it is given back if not even a small file can be made."""
        if not self._can_write():
            self.give(what)

    def _can_write(self) -> bool:
        """All groups ask, and on a full disk all at once: the probes are one's at a time."""
        with self._probing:
            return self._probed()

    def _probed(self) -> bool:
        probes = [self._data_dir / f"probe.{number}" for number in range(PROBES)]
        try:
            self._clear(probes)
            for probe in probes:
                with closing(self._storage.create(probe)) as file:
                    write_all(file, [bytes(PROBE_BYTES)], 0)
        except OSError as error:
            if not is_full(error):
                raise
            return False
        finally:
            self._clear(probes)
        return True

    def _clear(self, paths: Iterable[Path]) -> None:
        for each in paths:
            with suppress(FileNotFoundError):
                self._storage.unlink(each)

    def prepare_start(self) -> None:
        """Gives it back where there would be no room for a start. Raises NoSpaceError where that
        is not enough."""
        if self._free_bytes < start_bytes(self._total_bytes) or not self._can_write():
            self.give("the start")
            check_room(self._storage, self._data_dir)
            if not self._can_write():
                raise NoSpaceError(
                    f"the disk of {self._data_dir} is full: no file can be made there",
                    hint="free some space or inodes there; nothing was changed",
                )

    @property
    def _total_bytes(self) -> int:
        return self._storage.total_bytes(self._data_dir)

    # -- making

    def tend(self) -> None:
        """Makes it where there is none and room for it. To be called now and then."""
        size = size_for(self._total_bytes)
        if not size or self._is_whole or self._free_bytes < FREE_TIMES * size:
            return
        with self._lock:
            is_first = not self._storage.exists(self._folder)
            try:
                self._make(size)
            except OSError as error:
                self._unmake(is_first=is_first)
                if not self._cannot_make:
                    _log.warning("reserve.not_made", error=said(error))
                self._cannot_make = said(error)
                return
            self._is_given, self._is_used_up, self._cannot_make = False, False, ""
            _log.info("reserve.made", bytes=size)

    def _unmake(self, *, is_first: bool) -> None:
        self._clear(self._pieces)
        if is_first and self._storage.exists(self._folder):
            self._storage.remove_directory(self._folder)

    def _make(self, size: int) -> None:
        self._storage.make_directory(self._folder)
        self._clear(self._pieces)
        for each in self._pieces:
            with closing(self._storage.create(each)) as file:
                file.allocate(size // PIECES)
                file.datasync()
        self._storage.sync_directory(self._folder)


def is_full(error: OSError | NoSpaceError) -> bool:
    """A disk, a quota, or a filesystem without an inode left."""
    return isinstance(error, NoSpaceError) or mishaps.is_full(error)


def said(error: OSError | NoSpaceError) -> str:
    return error.message if isinstance(error, NoSpaceError) else mishaps.mishap(error).message


def check_room(storage: Storage, data_dir: Path) -> None:
    """Raises NoSpaceError where a start would stop half-way. What is kept back counts as free."""
    free = storage.free_bytes(data_dir) + Reserve(storage, data_dir).held_bytes
    needed = start_bytes(storage.total_bytes(data_dir))
    if free < needed:
        raise NoSpaceError(
            f"the disk of {data_dir} is full: {format_size(free)} are free, and a start needs"
            f" {format_size(needed)}",
            hint="free some space there, or give the receiver a larger disk; nothing was changed",
        )
