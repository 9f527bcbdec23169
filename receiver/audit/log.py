# SPDX-License-Identifier: Apache-2.0
"""The audit on the disk: DATA_DIR/audit/SEQUENCE.jsonl, one entry a line (receiver.audit.chain).

A file is named by the sequence of its first entry, in 16 decimal digits. Nothing is ever removed or
written over; behind FILE_BYTES_MAX the next file begins, and the chain runs on.

The promise: when `append` returns the entry survives a power cut. When it raises, the entry is not
there: a short write is taken back. After a sync that failed nobody knows what is there, so the log
is condemned, and refuses every order, until the receiver starts anew.

Opening. The whole chain is checked (a million entries take seconds). Only the last line of the
newest file can be torn by a crash, since each is durable before the next is begun: a line without
its end, or with bytes that were never written (zeroes), is cut off, and an entry says so. Anything
else that does not hold is a *break*: it is reported and left exactly as it is; the log goes on in a
new file whose first entry names the break. A break is named once.

Concurrency: one thread appends (the control API's loop). Readers read the files.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    pack_entry,
)
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
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
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
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.path))
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
    walk, named = Walk(), set[tuple[str, str]]()
    torn: Line | None = None
    newest: Path | None = None
    for line in read_lines(storage, directory):
        newest = line.file
        if is_torn(line):
            torn = line
            continue
        if torn is not None:  # it was not the last one, so no crash has left it
            walk.take(torn.data, torn.file.name, torn.offset)
            torn = None
        entry = walk.take(line.data, line.file.name, line.offset)
        if entry is not None and entry.order == BREAK_ORDER:
            named.add((entry.object, entry.argument))
    if torn is not None and torn.file == newest:
        _cut(storage, torn)
    name, end = _end_of(storage, newest)
    walk.expect_end(kept or Link(), name, end)
    log = AuditLog(
        storage, directory, now_ns, walk.last, walk.breaks, file_bytes_max=file_bytes_max
    )
    unnamed = [each for each in walk.breaks if (each.file, str(each.offset)) not in named]
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
                message=f"{len(torn.data)} bytes of an entry that a crash had torn were cut off",
            )
        )
    return log


def verify_audit(storage: Storage, directory: Path, kept: Link | None = None) -> Walk:
    """Checks the whole log, and changes nothing. A break that was found and named once is one for
    ever, even if nothing else shows it any more."""
    walk = Walk()
    end = ("", 0)
    named: list[Break] = []
    for line in read_lines(storage, directory):
        entry = walk.take(line.data, line.file.name, line.offset)
        end = line.file.name, line.offset + len(line.data)
        if entry is not None and entry.order == BREAK_ORDER and entry.argument.isdecimal():
            named.append(Break(entry.object, int(entry.argument), entry.message))
    walk.expect_end(kept or Link(), *end)
    seen = {(each.file, each.offset) for each in walk.breaks}
    walk.breaks += [each for each in named if (each.file, each.offset) not in seen]
    return walk


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


def is_torn(line: Line) -> bool:
    """Whether a crash may have left this behind, if it is the last line."""
    return not line.is_whole or b"\0" in line.data


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
