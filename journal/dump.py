# SPDX-License-Identifier: Apache-2.0
"""A readable dump of segments: `replicator journal inspect PATH`.

For people with a problem, so it reads whatever it is given: a segment of a log, an inbox or a
history, or a directory with any number of them at any depth. It never fails on what the bytes
are; it says what is wrong and at which offset of which file, and goes on with the next segment.
Every string from a file is printed quoted, so that none can play tricks on a terminal.

It changes nothing, and reads a log that is being appended to as far as that is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from journal.entry import Entry
from journal.format import ENTRIES, RECORDS, EntryFormat
from journal.record import NO_DISK, Record, RecordType
from journal.segment import HEADER_BYTES, Seal, SegmentHeader, SegmentKind, parse_header
from journal.stream_files import read_seal
from journal.survey import next_good, survey_behind
from replicator.base.clock import rfc3339, rfc3339_exact
from replicator.base.errors import DamageError, NotFoundError, VersionError
from replicator.base.mishaps import reason
from replicator.base.storage import File, SystemStorage
from replicator.base.units import format_size

WALK_BYTES = 4 << 20
_TEXT_CHARS = 120
_DEPTH = 6
_WITH_CONTENT = frozenset((RecordType.WRITE, RecordType.ZERO, RecordType.SAME))


Describe = Callable[[object], str]
"""An entry in words, on one line of bounded length."""


class _Stands(msgspec.Struct):
    """Of a history's state: which positions a compacted segment stands for."""

    end: int
    chain: int


class _State(msgspec.Struct):
    stands_for: _Stands | None = None


def inspect_path(path: Path, in_words: Describe | None = None) -> Iterator[str]:
    """Lines about a segment, or about every segment below a directory; `in_words` for who knows
    more of the entries than this package. Raises NotFoundError."""
    in_words = in_words or describe
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or directory")
    if not path.is_dir():
        yield from _Inspection(path, in_words).lines()
        return
    segments = sorted(path.rglob("*.seg"))
    if not segments:
        yield f"{path}: no segments"
    before: _Inspection | None = None
    for segment in segments:
        inspection = _Inspection(segment, in_words)
        yield from inspection.lines()
        if before is not None and segment.parent == before.path.parent:
            yield from _seam(before, inspection)
        before = inspection


def describe(entry: object) -> str:
    """One entry, in words."""
    if isinstance(entry, Entry):
        return str(entry)
    assert isinstance(entry, Record)
    name = RecordType(entry.type).name.lower().replace("_", "-")
    parts = [f"record {entry.sequence}", rfc3339_exact(entry.time_ns), name]
    if entry.disk != NO_DISK:
        parts.append(f"disk {entry.disk}")
    if entry.type in _WITH_CONTENT:
        parts.append(f"{entry.length} bytes at {entry.offset}")
    else:
        parts.append(_body(bytes(entry.payload)))
    if entry.flags:
        parts.append(f"flags {entry.flags:#x}")
    return "  ".join(parts)


def _body(payload: bytes) -> str:
    if not payload:
        return "no body"
    try:
        value = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return f"{len(payload)} bytes that are no msgpack: {error}"
    if isinstance(value, dict):
        return " ".join(f"{_plain(name)}={_plain(each)}" for name, each in value.items())
    return _plain(value)


def _plain(value: object, depth: int = 0) -> str:
    """A value on one line, quoted where it is text, shortened where it is long or deep."""
    if depth > _DEPTH:
        return "…"
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, str):
        shown = value if value.isidentifier() else repr(value)
    elif isinstance(value, list | tuple):
        shown = "[" + ", ".join(_plain(each, depth + 1) for each in value[:8]) + "]"
        shown += f" of {len(value)}" if len(value) > 8 else ""
        return shown
    elif isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{_plain(name)}: {_plain(each, depth + 1)}" for name, each in value.items()
            )
            + "}"
        )
    else:
        shown = repr(value)
    return shown if len(shown) <= _TEXT_CHARS else f"{shown[:_TEXT_CHARS]}… ({len(shown)})"


@dataclass(slots=True)
class _Inspection:
    """One segment, and where its good entries end."""

    path: Path
    in_words: Describe
    header: SegmentHeader | None = None
    end_lsn: int = 0
    chain: int = 0
    stands: _Stands | None = None

    def lines(self) -> Iterator[str]:
        try:
            file = SystemStorage().open(self.path)
        except OSError as error:
            yield f"{self.path}: cannot be opened: {reason(error)}"
            return
        try:
            yield from self._segment(file)
        except OSError as error:
            yield f"{self.path}: cannot be read: {reason(error)}"
        finally:
            file.close()

    def _segment(self, file: File) -> Iterator[str]:
        size = file.size()
        try:
            header = self.header = parse_header(file.pread(HEADER_BYTES, 0), str(self.path))
        except (DamageError, VersionError) as error:
            yield f"{error.message} ({format_size(size)})"
            return
        yield (
            f"{self.path}: {header.kind.name.lower()} of group {header.group!r}, stream "
            f"{header.stream}, ordinal {header.ordinal}, {format_size(size)}"
        )
        yield (
            f"  from LSN {header.first_lsn}, chain {header.chain:016x}, created "
            f"{rfc3339(header.created_ns)}, known durable {header.known_durable}"
        )
        yield from self._entries(file, header, size)

    def _entries(self, file: File, header: SegmentHeader, size: int) -> Iterator[str]:
        form: EntryFormat[Any] = ENTRIES if header.kind is SegmentKind.INBOX else RECORDS
        self.end_lsn, self.chain = header.first_lsn, header.chain
        end = header.first_lsn + size - HEADER_BYTES
        want = WALK_BYTES
        problem = ""
        while self.end_lsn < end and not problem:
            step = min(want, end - self.end_lsn)
            is_all = step == end - self.end_lsn
            data = file.pread(step, HEADER_BYTES + self.end_lsn - header.first_lsn)
            start, before = self.end_lsn, self.chain
            found = form.scan(data, start, before, where=str(self.path))
            for lsn, entry in found.records:
                yield self._line(lsn, entry)
            self.end_lsn, self.chain = found.end_lsn, found.chain
            want = WALK_BYTES
            if found.torn and not is_all:
                want = WALK_BYTES if found.records else form.stated_bytes(data)
            else:
                problem = found.problem
        yield from self._end(file, header, problem, end)
        if problem and self._seal(file, header) is None:
            yield from self._behind(file, header, form, end)

    def _line(self, lsn: int, entry: object) -> str:
        if isinstance(entry, Record) and entry.type == RecordType.STATE and self.stands is None:
            with suppress(msgspec.MsgspecError):
                self.stands = msgspec.msgpack.decode(entry.payload, type=_State).stands_for
        return f"  {lsn:>14}  {self.in_words(entry)}"

    def _seal(self, file: File, header: SegmentHeader) -> Seal | None:
        """The one that stands right behind the last good entry."""
        seal = read_seal(file, header.first_lsn)
        fits = seal is not None and (seal.end_lsn, seal.chain) == (self.end_lsn, self.chain)
        return seal if fits else None

    def _behind(
        self, file: File, header: SegmentHeader, form: EntryFormat[Any], end: int
    ) -> Iterator[str]:
        """What can still be read behind a fault, up to the end."""
        start = self.end_lsn
        data = file.pread(end - start, HEADER_BYTES + start - header.first_lsn)
        at = 0
        while (good := next_good(form, data, at, self.chain)) is not None:
            behind, chain = good
            yield f"  {start + at:>14}  {behind - at} bytes that cannot be read"
            run = form.scan(memoryview(data)[behind:], start + behind, chain)
            for lsn, entry in run.records:
                yield self._line(lsn, entry)
            self.end_lsn, self.chain, at = run.end_lsn, run.chain, run.end_lsn - start
            if not run.problem:
                break
        if (seal := self._seal(file, header)) is not None:
            yield f"  {self.end_lsn:>14}  the seal is that of these entries: {seal.entries} of them"

    def _end(
        self, file: File, header: SegmentHeader, problem: str, file_end_lsn: int
    ) -> Iterator[str]:
        seal = self._seal(file, header)
        if seal is not None:
            yield f"  {self.end_lsn:>14}  sealed: {seal.entries} entries"
            yield f"  {'':14}  digest {seal.digest.hex()}"
            yield f"  {'':14}  after  {seal.previous_digest.hex()}"
            return
        yield f"  {self.end_lsn:>14}  end of the good entries, chain {self.chain:016x}"
        if not problem:
            return
        offset = HEADER_BYTES + self.end_lsn - header.first_lsn
        left = file_end_lsn - self.end_lsn
        yield f"  {'':14}  {problem} (file offset {offset}, {left} bytes left)"
        seal = read_seal(file, header.first_lsn)
        if seal is not None:
            yield f"  {'':14}  it was sealed when it was good up to LSN {seal.end_lsn}"
        data = file.pread(left, offset)
        args = (data, self.end_lsn, self.chain, header.known_durable)
        inbox = header.kind is SegmentKind.INBOX
        behind = survey_behind(ENTRIES, *args) if inbox else survey_behind(RECORDS, *args)
        yield (
            f"  {'':14}  behind it: {behind.entries} good entries; the segment states that it was "
            f"durable up to {behind.known_durable}"
        )


def _seam(before: _Inspection, after: _Inspection) -> Iterator[str]:
    """Whether one segment goes on where the one before it ends."""
    if before.header is None or after.header is None:
        return
    end, chain = before.end_lsn, before.chain
    if before.stands is not None:
        end, chain = before.stands.end, before.stands.chain
    if end < after.header.first_lsn:
        yield f"  nothing holds LSN {end} to {after.header.first_lsn}"
    elif end > after.header.first_lsn:
        yield f"  {os.path.basename(before.path)} stands for it, too: it is left over"
    elif chain != after.header.chain:
        yield f"  the chain of {os.path.basename(before.path)} does not lead here"
