# SPDX-License-Identifier: Apache-2.0
"""Verifying a whole history with no daemon: every byte of it, and every link between its parts.

For each segment: header, name and place; every record by chain, checksum and sense (offline.walk,
offline.checks); index and seal; the digest over all bytes; the link to the digest and the chain of
the segment before, or of the last of those that a compacted one stands for. The newest segment has
no seal yet: its end is judged by the recovery table (receiver.history.opening), so what a crash may
leave is told from damage.

It goes on to find everything. It writes nothing, and reads a history in use as well, though the
newest segment then moves under it.

What this proves and what not is in docs/history.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from journal.record import Record, RecordType
from journal.seal import FIRST_DIGEST
from journal.segment import (
    DIGEST_BYTES,
    DIGEST_OFFSET,
    HEADER_BYTES,
    INDEX_ENTRY,
    SEAL_MAGIC,
    TRAILER_BYTES,
    Seal,
    SegmentHeader,
    SegmentKind,
    pack_seal,
    parse_header,
)
from journal.spool import SegmentFile
from journal.stream_files import read_seal
from receiver.check.checks import Checks
from receiver.check.places import HistoryPlace
from receiver.check.read_only import ReadOnlyStorage
from receiver.check.walk import Fault, RecordWalk, Skipped
from receiver.history import bodies
from receiver.history.opening import NEW_SUFFIX, open_history
from receiver.history.writer import initial_chain
from replicator.base.errors import DamageError, VersionError
from replicator.base.mishaps import reason
from replicator.base.storage import File, Storage

Progress = Callable[[int], None]
"""Told how many bytes more have been read."""


@dataclass(slots=True)
class SegmentReport:
    """What was found of one segment. `stands_until`: positions [first, stands_until) are what it
    stands for, more than it holds where it was compacted. `digest` is its own, `linked` the one
    that the next must state; both empty where it has no seal."""

    path: Path
    size_bytes: int = 0
    first: int = 0
    end: int = 0
    stands_until: int = 0
    records: int = 0
    batches: int = 0
    images: int = 0
    points: list[int] = field(default_factory=list)
    digest: bytes = b""
    linked: bytes = b""
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_sealed(self) -> bool:
        return bool(self.digest)


@dataclass(slots=True)
class _Link:
    """Where the next segment must go on. None: not known, since the one before is unreadable."""

    end: int | None = None
    chain: int | None = None
    digest: bytes | None = None
    name: str = ""


class HistoryVerification:
    """Verifies one history; `run` yields a report for each segment, oldest first. `points` are
    those that are left, by number, when it has ended."""

    def __init__(
        self, storage: Storage, place: HistoryPlace, progress: Progress = lambda _bytes: None
    ) -> None:
        self._storage = ReadOnlyStorage(storage)
        self._place = place
        self._progress = progress
        self._link = _Link()
        self._report = SegmentReport(Path())
        self._checks = Checks(self._problem)
        self._points: list[int] = []
        self.digests: set[bytes] = set()
        self.faults: list[Fault] = []

    @property
    def points(self) -> list[int]:
        return [number for number in self._points if number not in self._checks.dropped]

    def run(self) -> Iterator[SegmentReport]:
        for note in self._strangers():
            yield SegmentReport(self._place.folder, notes=[note])
        files = self._place.segments(self._storage)
        for at, file in enumerate(files):
            self._report = SegmentReport(file.path, first=file.first_lsn)
            self._segment(file, is_newest=at == len(files) - 1)
            self.faults += self._report.faults
            yield self._report

    def _strangers(self) -> Iterator[str]:
        for name in self._storage.names(self._place.folder):
            if name.endswith(".seg" + NEW_SUFFIX) or name.endswith(NEW_SUFFIX):
                yield f"{name}: left by a compaction that was interrupted; not part of the history"

    # -- one segment

    def _segment(self, segment: SegmentFile, *, is_newest: bool) -> None:
        report = self._report
        try:
            file = self._storage.open(segment.path)
        except OSError as error:
            self._fault(None, f"cannot be opened: {reason(error)}")
            return
        try:
            report.size_bytes = file.size()
            self._read(segment, file, is_newest=is_newest)
        except OSError as error:
            self._fault(None, f"cannot be read: {reason(error)}")
            self._link = _Link(name=segment.path.name)
        finally:
            file.close()

    def _read(self, segment: SegmentFile, file: File, *, is_newest: bool) -> None:
        try:
            header = parse_header(file.pread(HEADER_BYTES, 0), "")
        except (DamageError, VersionError) as error:
            problem = error.message.removeprefix(": ")
            if is_newest and self._is_being_made(segment):
                self._report.notes.append("was being made when a crash came; holds nothing")
                return
            self._fault(0, problem)
            self._link = _Link(name=segment.path.name)
            return
        if not self._is_in_place(header, segment):
            return
        seal = read_seal(file, header.first_lsn)
        if seal is not None:
            self._sealed(file, header, seal)
            return
        if not is_newest:
            self._fault(file.size(), "has no seal, or a broken one, although newer ones follow")
        self._unsealed(segment, file, header, is_newest=is_newest)

    def _is_in_place(self, header: SegmentHeader, segment: SegmentFile) -> bool:
        name = self._place.stream
        placed = (SegmentKind.HISTORY, name.stream, name.ordinal, segment.first_lsn)
        if (header.kind, header.stream, header.ordinal, header.first_lsn) != placed:
            self._fault(
                0,
                f"is a segment of another place: {header.kind.name.lower()} of group"
                f" {header.group!r} from position {header.first_lsn}",
            )
            return False
        if header.group != self._place.group:
            self._fault(72, f"is a segment of group {header.group!r}")
        link = self._link
        if link.end is not None and header.first_lsn < link.end:
            self._report.notes.append(f"{link.name} stands for it: a compaction was interrupted")
            return False
        if link.end is not None and header.first_lsn > link.end:
            self._fault(
                None, f"positions {link.end} to {header.first_lsn} in front of it are missing"
            )
            self._link = _Link()
        elif link.chain is not None and header.chain != link.chain:
            self._fault(48, f"the chain of {link.name} does not lead here")
        if header.first_lsn == 0 and header.chain != initial_chain(header.group):
            self._fault(48, "does not begin with the chain of this history")
        return True

    def _sealed(self, file: File, header: SegmentHeader, seal: Seal) -> None:
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        digest.update(file.pread(HEADER_BYTES, 0))
        index = bytearray()
        walk, stands = self._records(file, header, seal.end_lsn, digest.update, index)
        at = HEADER_BYTES + seal.end_lsn - header.first_lsn
        stated_index = file.pread(seal.index_entries * INDEX_ENTRY.size, at)
        digest.update(stated_index)
        digest.update(pack_seal(seal)[:DIGEST_OFFSET])
        trailer_at = at + len(stated_index)
        if not self._report.faults:
            if stated_index != bytes(index):
                self._fault(at, "the index is not that of the records")
            if (seal.entries, seal.chain) != (walk.count, walk.chain):
                self._fault(trailer_at, "the seal is not that of the records")
        if digest.digest() != seal.digest:
            self._fault(trailer_at + DIGEST_OFFSET, "the digest is not that of the bytes")
        self._check_link(seal.previous_digest, header.first_lsn, trailer_at)
        self._report.digest = seal.digest
        self._follow(header, seal.end_lsn, seal.chain, seal.digest, stands)

    def _check_link(self, previous: bytes, first: int, trailer_at: int) -> None:
        wanted = FIRST_DIGEST if first == 0 else self._link.digest
        if wanted is not None and previous != wanted:
            before = self._link.name or "the beginning"
            self._fault(trailer_at + 40, f"does not follow the digest of {before}")

    def _unsealed(
        self, segment: SegmentFile, file: File, header: SegmentHeader, *, is_newest: bool
    ) -> None:
        end = header.first_lsn + max(0, file.size() - HEADER_BYTES)
        if is_newest:
            try:
                opened = open_history(self._storage, self._place.folder, [segment])
            except DamageError as error:
                self._fault(None, error.message.removeprefix(f"{segment.path}: "))
            else:
                file_end = end
                end = opened.segments[-1].data_end if opened.segments else header.first_lsn
                if _looks_sealed(file, end):
                    self._fault(file.size() - TRAILER_BYTES, "has a seal that fails its checksum")
                elif opened.tail is not None:
                    left = file_end - end
                    self._report.notes.append(
                        f"{left} bytes at its end were never durable ({opened.tail.label}):"
                        " a batch that has touched nothing; it is cut off when the receiver opens"
                    )
        walk, stands = self._records(file, header, end, lambda _data: None, bytearray())
        self._follow(header, end, walk.chain, b"", stands)

    def _is_being_made(self, segment: SegmentFile) -> bool:
        """A newest segment whose header never became durable."""
        try:
            opened = open_history(self._storage, self._place.folder, [segment])
        except (DamageError, VersionError):
            return False
        return not opened.segments

    def _records(
        self,
        file: File,
        header: SegmentHeader,
        end: int,
        update: Callable[[bytes], None],
        index: bytearray,
    ) -> tuple[RecordWalk, bodies.StandsFor | None]:
        def read(data: bytes) -> None:
            update(data)
            self._progress(len(data))

        report, checks = self._report, self._checks
        checks.begin_segment(header.first_lsn)
        batches, images = checks.batches, checks.images
        stands: bodies.StandsFor | None = None
        walk = RecordWalk(report.path, file, header, end, read)
        for step in walk.run():
            if isinstance(step, Skipped):
                self._skip(step)
                continue
            position, record = step
            if record.type == RecordType.BATCH_BEGIN:
                index += INDEX_ENTRY.pack(position, record.time_ns)
            checks.take(position, record)
            if record.type == RecordType.STATE and stands is None:
                stands = _stands_for(record)
        checks.end_segment(end)
        report.end, report.records = end, walk.count
        report.batches, report.images = checks.batches - batches, checks.images - images
        report.points = checks.points
        self._points += checks.points
        return walk, stands

    def _skip(self, step: Skipped) -> None:
        fault = step.fault
        position = self._report.first + (fault.offset or HEADER_BYTES) - HEADER_BYTES
        if what := self._checks.what_is_at(position):
            fault = replace(fault, problem=f"{fault.problem} ({what})")
        self._report.faults.append(fault)
        self._checks.skip(step.next)

    def _follow(
        self,
        header: SegmentHeader,
        end: int,
        chain: int,
        digest: bytes,
        stands: bodies.StandsFor | None,
    ) -> None:
        report = self._report
        report.stands_until, report.linked = end, digest
        if stands is not None:
            report.stands_until, report.linked = stands.end, stands.digest
            chain = stands.chain
            report.notes.append(
                f"compacted: stands for positions {header.first_lsn} to {stands.end}"
            )
            if stands.end < end:
                self._fault(HEADER_BYTES, "stands for less than it holds")
        self.digests |= {each for each in (digest, report.linked) if each}
        is_good = digest or not report.faults
        self._link = _Link(
            report.stands_until,
            chain if is_good else None,
            report.linked or None,
            report.path.name,
        )

    def _problem(self, position: int, text: str) -> None:
        self._fault(HEADER_BYTES + position - self._report.first, text)

    def _fault(self, offset: int | None, problem: str) -> None:
        self._report.faults.append(Fault(self._report.path, offset, problem))


def _looks_sealed(file: File, end: int) -> bool:
    """Whether what stands at the end of a file was a seal: of its magic and the position that it
    states, one flipped bit leaves one."""
    trailer = file.pread(TRAILER_BYTES, max(file.size() - TRAILER_BYTES, 0))
    return trailer[:8] == SEAL_MAGIC or trailer[16:24] == end.to_bytes(8, "little")


def _stands_for(record: Record) -> bodies.StandsFor | None:
    try:
        return bodies.decode(bodies.StateBody, record, "").stands_for
    except DamageError:
        return None  # the checks have said so


def total_bytes(storage: Storage, places: Sequence[HistoryPlace]) -> int:
    """What there is to read, for a progress bar."""
    return sum(
        storage.allocated_bytes(segment.path)
        for place in places
        for segment in place.segments(storage)
    )
