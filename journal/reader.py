# SPDX-License-Identifier: Apache-2.0
"""Reading a log of records: whole, verified, following the tail over rotations.

A reader is told how far the log goes (`end_lsn`, published by its writer) and never looks beyond:
behind that a record may be half written. Of a log whose writer is dead nobody publishes an end;
`verified_end` finds it by the chain.

Every byte that leaves here has passed scan(): header by the chain, payload by its sum. A record
that fails is DamageError with file and offset. A segment that is missing in the middle is too.

Concurrency: one caller at a time. The writer may append, and others may free segments below the
position that is read, meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from journal.record import HEADER, HEADER_BYTES, PAYLOAD_LIMIT_BYTES, Record, scan
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import TRAILER_BYTES, SegmentHeader, parse_header, parse_seal
from journal.spool import SegmentFile, StreamName, list_segments
from replicator.base.errors import DamageError, NotFoundError
from replicator.base.storage import File, Storage

# How much is read and verified at once where only the end or a chain is wanted.
WALK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of whole records. `data` is the log itself, `records` its parts with their LSNs,
    `end_lsn` and `chain` what lies behind it."""

    data: bytes
    records: list[tuple[int, Record]]
    end_lsn: int
    chain: int


@dataclass(frozen=True, slots=True)
class _Open:
    """The segment that is read now. `data_end` is None while the segment may still grow."""

    segment: SegmentFile
    file: File
    header: SegmentHeader
    data_end: int | None


class LogReader:
    """Reads one stream's log, whichever of `directories` its segments lie in."""

    def __init__(self, storage: Storage, directories: Sequence[Path], stream: StreamName) -> None:
        self._storage = storage
        self._directories = directories
        self._stream = stream
        self._segments: list[SegmentFile] = []
        self._open: _Open | None = None
        self.refresh()

    def refresh(self) -> None:
        """Looks again which segments there are."""
        self._segments = list_segments(self._storage, self._directories, self._stream)

    @property
    def first_lsn(self) -> int | None:
        """The oldest LSN still there; None when there is no segment."""
        return self._segments[0].first_lsn if self._segments else None

    def read(self, start_lsn: int, chain: int, end_lsn: int, max_bytes: int) -> Chunk:
        """Whole records from `start_lsn` on, up to `end_lsn` and about `max_bytes`, at least one
        if there is one, from one segment. Empty when start_lsn == end_lsn.

        `chain` is the chain at `start_lsn`. Raises DamageError, and NotFoundError when the
        position has been freed.
        """
        if start_lsn >= end_lsn:
            return Chunk(b"", [], start_lsn, chain)
        opened = self._segment_at(start_lsn)
        limit = min(end_lsn, self._data_end(opened))
        if limit <= start_lsn:
            raise DamageError(
                f"{opened.segment.path}: the log ends at LSN {limit}, {end_lsn} was published"
            )
        want = min(max(max_bytes, HEADER_BYTES), limit - start_lsn)
        data = self._pread(opened, start_lsn, want)
        found = scan(data, start_lsn, chain, where=str(opened.segment.path))
        if not found.records and found.torn and len(data) < limit - start_lsn:
            want = self._record_bytes(data, limit - start_lsn)
            data = self._pread(opened, start_lsn, want)
            found = scan(data, start_lsn, chain, where=str(opened.segment.path))
        if found.problem and not (found.torn and found.records and len(data) < limit - start_lsn):
            raise DamageError(self._locate(opened, found.problem, found.end_lsn))
        return Chunk(data[: found.end_lsn - start_lsn], found.records, found.end_lsn, found.chain)

    def chain_at(self, lsn: int) -> int:
        """The chain at an LSN that is a record boundary of this log, found by walking its segment.

        Raises NotFoundError for an LSN that is freed, beyond the end, or inside a record.
        """
        position, chain = self._segment_start(lsn)
        while position < lsn:
            try:
                chunk = self.read(position, chain, lsn, WALK_BYTES)
            except DamageError as error:
                raise NotFoundError(f"LSN {lsn} is no record boundary: {error.message}") from error
            position, chain = chunk.end_lsn, chunk.chain
        return chain

    def verified_end(self, start_lsn: int, chain: int) -> tuple[int, int, str]:
        """(end_lsn, chain, problem) of a log that nobody appends to any more: the end of what can
        be verified from `start_lsn` on without a gap, and why it ends there (empty: cleanly)."""
        self.refresh()
        position = start_lsn
        while True:
            try:
                opened = self._segment_at(position)
            except (DamageError, NotFoundError) as error:
                return position, chain, "" if self._is_end(position) else error.message
            data_end = self._data_end(opened)
            if position >= data_end:
                return position, chain, ""
            size = min(WALK_BYTES + HEADER_BYTES + PAYLOAD_LIMIT_BYTES, data_end - position)
            data = self._pread(opened, position, size)
            found = scan(data, position, chain, where=str(opened.segment.path))
            if found.problem and not (found.torn and size < data_end - position):
                return (
                    found.end_lsn,
                    found.chain,
                    self._locate(opened, found.problem, found.end_lsn),
                )
            position, chain = found.end_lsn, found.chain

    def close(self) -> None:
        if self._open is not None:
            self._open.file.close()
            self._open = None

    def _segment_start(self, lsn: int) -> tuple[int, int]:
        opened = self._segment_at(lsn, at_end=True)
        return opened.header.first_lsn, opened.header.chain

    def _segment_at(self, lsn: int, *, at_end: bool = False) -> _Open:
        """Opens the segment that holds `lsn`; with `at_end`, one that ends there will do."""
        found = self._search(lsn)
        if found is None or (self._is_newest(found) and not at_end):
            self.refresh()
            found = self._search(lsn)
        if found is None:
            raise NotFoundError(f"LSN {lsn} is no longer in the log")
        if self._open is None or self._open.segment != found:
            self.close()
            self._open = self._open_segment(found)
        elif self._open.data_end is None and not self._is_newest(found):
            self._open = self._open_segment_again(self._open)
        opened = self._open
        if opened.data_end is not None and lsn >= opened.data_end and not at_end:
            if self._is_end(lsn):
                raise NotFoundError(f"LSN {lsn} is the end of the log")
            raise DamageError(f"{found.path}: nothing follows LSN {opened.data_end}")
        return opened

    def _search(self, lsn: int) -> SegmentFile | None:
        found = None
        for segment in self._segments:
            if segment.first_lsn > lsn:
                break
            found = segment
        return found

    def _is_newest(self, segment: SegmentFile) -> bool:
        return bool(self._segments) and segment == self._segments[-1]

    def _is_end(self, lsn: int) -> bool:
        """Whether the log of the segments that are there ends cleanly at `lsn`."""
        return (
            self._open is not None
            and self._is_newest(self._open.segment)
            and self._data_end(self._open) == lsn
        )

    def _open_segment(self, segment: SegmentFile) -> _Open:
        try:
            file = self._storage.open(segment.path)
        except FileNotFoundError as error:
            raise NotFoundError(f"{segment.path} has been freed") from error
        try:
            header = parse_header(file.pread(SEGMENT_HEADER_BYTES, 0), str(segment.path))
            expected = (self._stream.stream, self._stream.ordinal, segment.first_lsn)
            if (header.stream, header.ordinal, header.first_lsn) != expected:
                raise DamageError(f"{segment.path}: segment of another place in the log")
            return _Open(segment, file, header, self._fixed_end(segment, file))
        except (DamageError, OSError):
            file.close()
            raise

    def _open_segment_again(self, opened: _Open) -> _Open:
        """The same segment, which has a successor by now and so grows no more."""
        data_end = self._fixed_end(opened.segment, opened.file)
        return _Open(opened.segment, opened.file, opened.header, data_end)

    def _fixed_end(self, segment: SegmentFile, file: File) -> int | None:
        if (size := file.size()) >= SEGMENT_HEADER_BYTES + TRAILER_BYTES:
            seal = parse_seal(file.pread(TRAILER_BYTES, size - TRAILER_BYTES))
            if seal is not None:
                return seal.end_lsn
        if self._is_newest(segment):
            return None
        return segment.first_lsn + size - SEGMENT_HEADER_BYTES

    def _data_end(self, opened: _Open) -> int:
        if opened.data_end is not None:
            return opened.data_end
        return opened.header.first_lsn + max(0, opened.file.size() - SEGMENT_HEADER_BYTES)

    def _pread(self, opened: _Open, lsn: int, size: int) -> bytes:
        return opened.file.pread(size, SEGMENT_HEADER_BYTES + lsn - opened.header.first_lsn)

    def _record_bytes(self, data: bytes, limit: int) -> int:
        """Size of the record at the start of `data`, as far as its header is there."""
        payload_bytes: int = HEADER.unpack_from(data)[3] if len(data) >= HEADER_BYTES else 0
        return min(HEADER_BYTES + min(payload_bytes, PAYLOAD_LIMIT_BYTES), limit)

    def _locate(self, opened: _Open, problem: str, lsn: int) -> str:
        offset = SEGMENT_HEADER_BYTES + lsn - opened.header.first_lsn
        return f"{problem} (file offset {offset})"
