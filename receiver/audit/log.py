# SPDX-License-Identifier: Apache-2.0
"""The audit on the disk: DATA_DIR/audit/SEQUENCE.jsonl, one entry a line (receiver.audit.chain).

A file is named by the sequence of its first entry, in 16 decimal digits. Nothing is ever removed or
written over; behind FILE_BYTES_MAX the next file begins, and the chain runs on.

The promise: when `append` returns the entry survives a power cut. When it raises, the entry is not
there: a short write is taken back. After a sync that failed nobody knows what is there, so the log
is condemned, and refuses every order, until the receiver starts anew.

Opening. The whole chain is checked (a million entries take seconds). Only the last line of the
newest file can be torn by a crash, since each is durable before the next is begun: what is there
of a line without its end, or with bytes that were never written (zeroes), is cut off, and an entry
says so; unless it is known that the line was whole once. Anything else that does not hold is a
*break*: it is reported and left exactly as it is; the log goes on in a new file whose first entry
names the break. A break is named once.

Concurrency: one thread appends (the control API's loop). Readers read the files.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from receiver.audit.chain import (
    BREAK_ORDER,
    CUT_ORDER,
    LINE_BYTES_MAX,
    NOTHING_SEEN,
    Break,
    Entry,
    Fact,
    Link,
    Seen,
    Walk,
    file_name,
    is_sound,
    pack_entry,
)
from replicator.base.mishaps import placed
from replicator.base.storage import File, Storage
from replicator.base.units import MIB

FILE_BYTES_MAX = 16 * MIB
READ_BYTES = 1 * MIB
_NAME = re.compile(r"(\d{16})\.jsonl", re.ASCII)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file, with where it begins; `is_whole`: it has its end."""

    file: Path
    offset: int
    data: bytes
    is_whole: bool


class AuditLog:
    """See the head of this file. Made by `open_audit`."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        now_ns: Callable[[], int],
        link: Link,
        breaks: list[Break],
        *,
        file_bytes_max: int = FILE_BYTES_MAX,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._now_ns = now_ns
        self._file_bytes_max = file_bytes_max
        self._file: File | None = None
        self._size = 0
        self._condemned = False
        self.link = link
        self.breaks = breaks

    def append(self, fact: Fact, seen: Seen = NOTHING_SEEN, *, time_ns: int | None = None) -> Link:
        """Durable when this returns; the new end of the chain. OSError: it was not written."""
        if self._condemned:
            raise OSError(errno.EIO, "an earlier entry could not be made durable")
        time_ns = self._now_ns() if time_ns is None else time_ns
        line = pack_entry(fact, time_ns, seen, self.link)
        file = self._file
        if file is None or self._size >= self._file_bytes_max:
            file = self._next_file()
        self._write(file, line)
        self._size += len(line)
        self.link = Link(self.link.sequence + 1, line[-67:-3].decode())
        return self.link

    def continue_in(self, path: Path) -> None:
        """Further entries go to the end of this file."""
        self._file = self._storage.open(path, writable=True)
        self._size = self._file.size()

    def _next_file(self) -> File:
        path = self._directory / file_name(self.link.sequence + 1)
        if self._storage.exists(path):
            file = self._storage.open(path, writable=True)
            if file.size():  # never over something that is there
                file.close()
                raise placed(OSError(errno.EEXIST, os.strerror(errno.EEXIST)), "creating", path)
        else:
            file = self._storage.create(path)
        self._storage.sync_directory(self._directory)
        self.close()
        self._file, self._size = file, 0
        return file

    def _write(self, file: File, line: bytes) -> None:
        try:
            written = file.pwritev([line], self._size)
        except OSError:
            file.truncate(self._size)
            raise
        if written != len(line):
            file.truncate(self._size)
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise placed(full, "appending", file.path, self._size)
        self._condemned = True
        file.datasync()
        self._condemned = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def open_audit(
    storage: Storage,
    directory: Path,
    now_ns: Callable[[], int],
    *,
    kept: Link | None = None,
    file_bytes_max: int = FILE_BYTES_MAX,
) -> AuditLog:
    """Checks the whole log and makes it ready to append. `kept`: what the chain's end was when it
    was last heard of. Breaks that no entry names yet are named. Raises OSError."""
    storage.make_directory(directory)
    reading = _read(storage, directory, kept or Link())
    walk, torn, newest = reading.walk, reading.torn, reading.newest
    if torn is not None:
        _cut(storage, torn)
    name, end = _end_of(storage, newest)
    walk.expect_end(kept or Link(), name, end)
    log = AuditLog(
        storage, directory, now_ns, walk.last, walk.breaks, file_bytes_max=file_bytes_max
    )
    named = {(each.file, each.offset) for each in reading.named}
    unnamed = [each for each in walk.breaks if (each.file, each.offset) not in named]
    if newest is not None and not unnamed:
        log.continue_in(newest)
    for each in unnamed:
        log.append(
            Fact(BREAK_ORDER, each.file, str(each.offset), outcome="damage", message=each.problem)
        )
    if torn is not None:
        log.append(
            Fact(
                CUT_ORDER,
                torn.file.name,
                str(torn.offset),
                message=f"{reading.torn_bytes} bytes that a crash left of an entry were cut off",
            )
        )
    return log


def is_gone(storage: Storage, directory: Path, kept: Link | None) -> bool:
    """Whether nothing is left of an audit that had entries once. Raises OSError."""
    had = kept is not None and kept.sequence > 0
    return had and next(read_lines(storage, directory), None) is None


def verify_audit(storage: Storage, directory: Path, kept: Link | None = None) -> Walk:
    """Checks the whole log, and changes nothing. A break that was found and named once is one for
    ever, even if nothing else shows it any more."""
    reading = _read(storage, directory, kept or Link())
    walk = reading.walk
    walk.expect_end(kept or Link(), *reading.end)
    seen = {(each.file, each.offset) for each in walk.breaks}
    walk.breaks += [each for each in reading.named if (each.file, each.offset) not in seen]
    return walk


@dataclass(slots=True)
class _Reading:
    """The log, walked to its end. `torn` is where a tail begins that a crash has left, of
    `torn_bytes`; `named` are the breaks that entries name; `end` is file and offset behind the
    last line."""

    walk: Walk
    newest: Path | None = None
    end: tuple[str, int] = ("", 0)
    named: list[Break] = field(default_factory=list)
    torn: Line | None = None
    torn_bytes: int = 0


def _read(storage: Storage, directory: Path, kept: Link) -> _Reading:
    reading = _Reading(Walk())
    bad: list[Line] = []  # at the end so far
    for line in read_lines(storage, directory):
        if bad and bad[0].file != line.file:
            _take(reading, bad)
        bad.append(line)
        reading.newest = line.file
        reading.end = line.file.name, line.offset + len(line.data)
        if (line.is_whole and is_sound(line.data)) or sum(
            len(each.data) for each in bad
        ) > LINE_BYTES_MAX:
            _take(reading, bad)
    is_kept = kept.sequence > reading.walk.last.sequence  # it was whole once
    if bad and not is_kept and any(map(_looks_torn, bad)):
        reading.torn, reading.torn_bytes = bad[0], sum(len(each.data) for each in bad)
    else:
        _take(reading, bad)
    return reading


def _take(reading: _Reading, lines: list[Line]) -> None:
    for line in lines:
        entry = reading.walk.take(line.data, line.file.name, line.offset)
        if entry is not None and entry.order == BREAK_ORDER and entry.argument.isdecimal():
            reading.named.append(Break(entry.object, int(entry.argument), entry.message))
    lines.clear()


def _looks_torn(line: Line) -> bool:
    """Without its end, or with bytes that were never written."""
    return not line.is_whole or b"\0" in line.data


def read_entries(storage: Storage, directory: Path) -> Iterator[Entry]:
    """Those that can be read, oldest first."""
    walk = Walk()
    for line in read_lines(storage, directory):
        entry = walk.take(line.data, line.file.name, line.offset)
        if entry is not None:
            yield entry


def read_lines(storage: Storage, directory: Path) -> Iterator[Line]:
    """All lines of all files, in order. A line that is too long is given in pieces."""
    for name in storage.names(directory):
        if not _NAME.fullmatch(name):
            continue
        path = directory / name
        file = storage.open(path)
        try:
            yield from _lines_of(file, path)
        finally:
            file.close()


def _lines_of(file: File, path: Path) -> Iterator[Line]:
    rest, start, offset = b"", 0, 0
    while data := file.pread(READ_BYTES, offset):
        offset += len(data)
        rest += data
        while rest:
            at = rest.find(b"\n", 0, LINE_BYTES_MAX)
            if at < 0 and len(rest) < LINE_BYTES_MAX:
                break
            size = at + 1 if at >= 0 else LINE_BYTES_MAX
            yield Line(path, start, rest[:size], at >= 0)
            rest, start = rest[size:], start + size
    if rest:
        yield Line(path, start, rest, False)


def _cut(storage: Storage, torn: Line) -> None:
    file = storage.open(torn.file, writable=True)
    try:
        file.truncate(torn.offset)
        file.datasync()
    finally:
        file.close()


def _end_of(storage: Storage, newest: Path | None) -> tuple[str, int]:
    """Name and size of the newest file; it is synced, for the page cache may hold what the disk
    does not."""
    if newest is None:
        return "", 0
    file = storage.open(newest, writable=True)
    try:
        file.datasync()
        return newest.name, file.size()
    finally:
        file.close()
