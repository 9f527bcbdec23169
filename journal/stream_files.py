# SPDX-License-Identifier: Apache-2.0
"""The segments of one stream as one run of positions: which file holds an LSN, up to where.

A segment that has a successor ends where that begins, whatever else its file holds (a seal, half
a seal). The newest ends where its file does, and may still grow; if it is sealed, the seal stands
behind its last entry, where the run of entries breaks off, and only there is it believed: a guest
may well have written bytes that look like one.

Concurrency: one caller at a time. A writer may append, and others may free, seal or move segments,
meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from journal.segment import (
    HEADER_BYTES,
    INDEX_ENTRY,
    TRAILER_BYTES,
    Seal,
    SegmentHeader,
    parse_header,
    parse_seal,
)
from journal.spool import SegmentFile, StreamName, list_segments
from replicator.base.errors import DamageError, NotFoundError, ReplicatorError
from replicator.base.storage import File, Storage


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A segment that is being read. `next_lsn`: where its successor begins; None for the newest."""

    segment: SegmentFile
    file: File
    header: SegmentHeader
    next_lsn: int | None

    @property
    def path(self) -> Path:
        return self.segment.path

    def offset_of(self, lsn: int) -> int:
        return HEADER_BYTES + lsn - self.header.first_lsn

    def pread(self, lsn: int, size: int) -> bytes:
        return self.file.pread(size, self.offset_of(lsn))

    def data_end(self) -> int:
        """The LSN behind the last byte that may belong to an entry."""
        end = self.header.first_lsn + max(0, self.file.size() - HEADER_BYTES)
        return end if self.next_lsn is None else min(end, self.next_lsn)

    def seal_at(self, lsn: int, chain: int) -> Seal | None:
        """The seal of a segment whose last good entry ends at `lsn` with `chain`, if it has one."""
        seal = read_seal(self.file, self.header.first_lsn)
        return seal if seal is not None and (seal.end_lsn, seal.chain) == (lsn, chain) else None


class StreamFiles:
    """Finds and opens the segments of a stream, in whichever of `directories` they lie. At most
    one is open at a time."""

    def __init__(self, storage: Storage, directories: Sequence[Path], stream: StreamName) -> None:
        self._storage = storage
        self._directories = directories
        self._stream = stream
        self._segments: list[SegmentFile] = []
        self._open: OpenSegment | None = None
        self.refresh()

    @property
    def segments(self) -> list[SegmentFile]:
        return list(self._segments)

    @property
    def first_lsn(self) -> int | None:
        """The oldest LSN still there; None when there is no segment."""
        return self._segments[0].first_lsn if self._segments else None

    def refresh(self) -> None:
        """Looks again which segments there are."""
        self._segments = list_segments(self._storage, self._directories, self._stream)

    def at(self, lsn: int) -> OpenSegment:
        """The segment that holds `lsn`, or that ends there if it is the newest.

        Raises NotFoundError for what is freed, DamageError for what no segment holds, or for one
        whose header is not what its place says.
        """
        found = self._search(lsn)
        if found is not None and found == self._segments[-1] and not self._is_inside(lsn):
            found = None  # there may be a newer one by now
        opened = self._opened(found)
        if opened is None:  # or it has been moved to another directory
            self.refresh()
            opened = self._opened(self._search(lsn))
        if opened is None:
            raise NotFoundError(f"LSN {lsn} of {self._stream.directory} is no longer there")
        if opened.next_lsn is not None and lsn >= opened.data_end():
            end = opened.data_end()
            raise DamageError(
                f"{opened.path}: ends at LSN {end}, the next begins at {opened.next_lsn}"
            )
        return opened

    def close(self) -> None:
        if self._open is not None:
            self._open.file.close()
            self._open = None

    def _is_inside(self, lsn: int) -> bool:
        opened = self._open
        return opened is not None and opened.header.first_lsn <= lsn < opened.data_end()

    def _search(self, lsn: int) -> SegmentFile | None:
        found = None
        for segment in self._segments:
            if segment.first_lsn > lsn:
                break
            found = segment
        return found

    def _next_lsn(self, segment: SegmentFile) -> int | None:
        behind = self._segments.index(segment) + 1
        return self._segments[behind].first_lsn if behind < len(self._segments) else None

    def _opened(self, segment: SegmentFile | None) -> OpenSegment | None:
        """Makes it the open one; None if it is not there."""
        if segment is None:
            return None
        opened = self._open
        if opened is None or opened.segment != segment:
            self.close()
            try:
                file = self._storage.open(segment.path)
            except FileNotFoundError:
                return None
            try:
                header = read_header(file, segment, self._stream)
            except (ReplicatorError, OSError):
                file.close()
                raise
        else:
            file, header = opened.file, opened.header
        self._open = OpenSegment(segment, file, header, self._next_lsn(segment))
        return self._open


def read_header(file: File, segment: SegmentFile, stream: StreamName) -> SegmentHeader:
    """The header of a segment, which must be the one that its place says. Raises DamageError."""
    header = parse_header(file.pread(HEADER_BYTES, 0), str(segment.path))
    expected = (stream.stream, stream.ordinal, segment.first_lsn)
    if (header.stream, header.ordinal, header.first_lsn) != expected:
        raise DamageError(f"{segment.path}: segment of another place in the log")
    return header


def read_seal(file: File, first_lsn: int) -> Seal | None:
    """The seal at the end of a file, if its numbers fit the file's size. Whether it belongs to the
    entries is for the caller to say, by its `end_lsn` and `chain`."""
    size = file.size()
    seal = parse_seal(file.pread(TRAILER_BYTES, max(size - TRAILER_BYTES, 0)))
    if seal is None:
        return None
    index_bytes = seal.index_entries * INDEX_ENTRY.size
    fits = size == HEADER_BYTES + seal.end_lsn - first_lsn + index_bytes + TRAILER_BYTES
    return seal if fits else None
