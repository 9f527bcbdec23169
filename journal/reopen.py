# SPDX-License-Identifier: Apache-2.0
"""Opening a log or an inbox again after its writer died: survey, decide, cut, sync.

    reopened = reopen(storage, directories, stream, ENTRIES, acknowledged=position)
    writer = LogWriter(…, first_lsn=reopened.end_lsn, chain=reopened.chain, …)
    reopened.attach(writer)

Order, and what a crash in between leaves
1. Read from `start_lsn` (the oldest segment without it) to the first fault, and survey what
   stands behind it. Nothing has been changed.
2. journal.recovery decides. On damage or a gap DamageError is raised, still with nothing changed.
3. A torn tail is cut: later segments are unlinked, newest first, then the torn one is truncated.
   A crash in between leaves a torn tail with the same verdict and the same end.
4. Every segment and directory is synced before the end is reported, cut or not: what was read
   may have come from the page cache and be nowhere on the disk. So `end_lsn` is durable.

Concurrency: nobody else may use the stream meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from journal.appender import LogWriter
from journal.format import EntryFormat
from journal.record import first_chain
from journal.recovery import Action, Fault, TailFacts, Verdict, classify_tail
from journal.segment import HEADER_BYTES, SegmentHeader
from journal.spool import SegmentFile, StreamName, list_segments
from journal.stream_files import read_header, read_seal
from journal.survey import survey_behind
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage

WALK_BYTES = 4 << 20

E = TypeVar("E")
Visit = Callable[[int, E], None]


@dataclass(frozen=True, slots=True)
class Reopened:
    """A log that is whole and durable up to `end_lsn`. `verdict` says what was found.

    `first_lsn` is the oldest position still there (`end_lsn` if nothing is). `newest` is the
    segment to go on in; None if the next append has to open one.
    """

    first_lsn: int
    end_lsn: int
    chain: int
    newest: SegmentFile | None
    verdict: Verdict
    cut_bytes: int

    def attach(self, writer: LogWriter) -> None:
        """Makes a writer that starts at `end_lsn` go on in the newest segment."""
        if self.newest is not None:
            writer.continue_in(self.newest.path, self.newest.first_lsn, self.end_lsn, self.chain)


def reopen(
    storage: Storage,
    directories: Sequence[Path],
    stream: StreamName,
    form: EntryFormat[E],
    *,
    start_lsn: int | None = None,
    chain: int | None = None,
    acknowledged: int | None = None,
    visit: Visit[E] | None = None,
) -> Reopened:
    """See above. `start_lsn`, `chain`: a place known to be good and durable; nothing before it is
    read. Without them the log is taken to begin where its oldest segment does: whether that is
    where it has to begin, the caller can tell from `first_lsn`.
    `visit` is called with every good entry from there on, in order, before the decision.

    Raises DamageError, which names file and offset, and OSError.
    """
    segments = list_segments(storage, directories, stream)
    walk = _Walk(storage, stream, form, segments, visit or _ignore)
    walk.start(start_lsn, chain)
    walk.run()
    facts = TailFacts(
        walk.lsn,
        walk.fault,
        last=walk.last,
        sealed=walk.sealed,
        good_behind=walk.good_behind,
        known_durable=walk.known_durable,
        acknowledged=acknowledged,
    )
    verdict = classify_tail(facts)
    if verdict.action is Action.STOP:
        raise DamageError(
            walk.describe(verdict.prose, acknowledged),
            hint="restore the file from a copy, or give this stream up and sync again",
        )
    kept, cut_bytes = segments, 0
    if verdict.action is Action.CUT:
        kept, cut_bytes = _cut(storage, segments, walk.lsn, walk.chain)
    _sync(storage, directories, stream, kept)
    newest = _newest(storage, kept, walk.lsn, walk.chain)
    first_lsn = kept[0].first_lsn if kept else walk.lsn
    return Reopened(first_lsn, walk.lsn, walk.chain, newest, verdict, cut_bytes)


def _ignore(_lsn: int, _entry: object) -> None:
    """Nobody wants to see the entries."""


@dataclass(slots=True)
class _Walk(Generic[E]):
    """Goes through the segments up to the first fault. `at` is the index of the segment that it
    has come to; `lsn` and `chain` are the end of the unbroken run."""

    storage: Storage
    stream: StreamName
    form: EntryFormat[E]
    segments: list[SegmentFile]
    visit: Visit[E]
    at: int = 0
    lsn: int = 0
    chain: int = 0
    fault: Fault = Fault.NONE
    problem: str = ""
    last: bool = True
    sealed: bool = False
    good_behind: bool = False
    known_durable: int = 0
    _started: bool = field(default=False)

    def start(self, lsn: int | None, chain: int | None) -> None:
        if lsn is not None:
            assert chain is not None, "a start needs its chain"
            self.lsn, self.chain, self.known_durable = lsn, chain, lsn
            holding = [i for i, each in enumerate(self.segments) if each.first_lsn <= lsn]
            self.at = holding[-1] if holding else 0
            self._started = True
        else:
            self.chain = first_chain(self.stream.stream, self.stream.ordinal)

    def run(self) -> None:
        while self.at < len(self.segments):
            file = self.storage.open(self.segments[self.at].path)
            try:
                self._segment(file)
            finally:
                file.close()
            if self.fault is not Fault.NONE:
                self._look_behind()
                return
            self.at += 1
        self.at = max(len(self.segments) - 1, 0)

    def describe(self, prose: str, acknowledged: int | None) -> str:
        where = "no segment"
        if self.segments:
            segment = self.segments[self.at]
            where = f"{segment.path} at offset {HEADER_BYTES + self.lsn - segment.first_lsn}"
        known = f"durable up to {self.known_durable}"
        if acknowledged is not None:
            known += f", acknowledged up to {acknowledged}"
        cause = f"{self.problem}; " if self.problem else ""
        return f"{where}: {cause}good up to LSN {self.lsn}, {known}: {prose}"

    def _fail(self, fault: Fault, problem: str) -> None:
        self.fault, self.problem = fault, problem
        self.last = self.at == len(self.segments) - 1

    def _segment(self, file: File) -> None:
        segment = self.segments[self.at]
        self.sealed = False
        try:
            header = read_header(file, segment, self.stream)
        except DamageError as error:
            if not self._started:
                self.lsn, self._started = segment.first_lsn, True
            torn = file.size() < HEADER_BYTES
            self._fail(Fault.TORN if torn else Fault.BAD, error.message)
            return
        if not self._started:
            self.lsn, self.chain, self._started = segment.first_lsn, header.chain, True
        elif self.lsn < segment.first_lsn:
            self._fail(Fault.TORN, f"nothing holds LSN {self.lsn} to {segment.first_lsn}")
            self.last = False
            return
        elif self.lsn == segment.first_lsn and self.chain != header.chain:
            self._fail(Fault.BAD, f"{segment.path}: does not follow the segment before it")
            return
        self.known_durable = max(self.known_durable, header.known_durable)
        self._entries(file, segment)

    def _entries(self, file: File, segment: SegmentFile) -> None:
        bound = self._bound(file, segment)
        if bound < self.lsn:  # the place to start from, known to be good, is no longer there
            self.lsn = bound
            self._fail(Fault.TORN, f"{segment.path}: ends before LSN {self.known_durable}")
            return
        want = WALK_BYTES
        while self.lsn < bound:
            size = min(want, bound - self.lsn)
            is_all = size == bound - self.lsn
            data = file.pread(size, HEADER_BYTES + self.lsn - segment.first_lsn)
            found = self.form.scan(data, self.lsn, self.chain, where=str(segment.path))
            for lsn, entry in found.records:
                self.known_durable = max(self.known_durable, self.form.known_durable(entry))
                self.visit(lsn, entry)
            self.lsn, self.chain = found.end_lsn, found.chain
            want = WALK_BYTES
            if found.torn and not is_all:
                want = WALK_BYTES if found.records else self.form.stated_bytes(data)
            elif found.problem:
                self._fail(Fault.TORN if found.torn else Fault.BAD, found.problem)
                break
        self._end_of_segment(file, segment)

    def _end_of_segment(self, file: File, segment: SegmentFile) -> None:
        """A seal behind the last entry is no fault. (Where the file is entries to its last byte,
        what looks like a seal is a guest's write.)"""
        following = self._following_lsn()
        end = segment.first_lsn + file.size() - HEADER_BYTES
        seal = read_seal(file, segment.first_lsn) if self.lsn < end else None
        self.sealed = seal is not None
        if seal is not None and (seal.end_lsn, seal.chain) == (self.lsn, self.chain):
            self.fault, self.problem = Fault.NONE, ""
        if self.fault is Fault.NONE and following is not None and self.lsn < following:
            self._fail(Fault.TORN, f"{segment.path}: ends before LSN {following}")

    def _following_lsn(self) -> int | None:
        behind = self.at + 1
        return self.segments[behind].first_lsn if behind < len(self.segments) else None

    def _bound(self, file: File, segment: SegmentFile) -> int:
        end = segment.first_lsn + max(0, file.size() - HEADER_BYTES)
        following = self._following_lsn()
        return end if following is None else min(end, following)

    def _look_behind(self) -> None:
        """Gathers what the log states behind the fault: in the rest of this segment and in the
        segments after it."""
        faulty = self.at
        for at, segment in enumerate(self.segments[faulty:], start=faulty):
            self.at = at
            file = self.storage.open(segment.path)
            try:
                start, chain = segment.first_lsn, self.chain
                if at == faulty:
                    start = max(self.lsn, start)
                if start == segment.first_lsn and (header := self._header(file, segment)):
                    self.known_durable = max(self.known_durable, header.known_durable)
                    chain = header.chain
                size = max(0, self._bound(file, segment) - start)
                data = file.pread(size, HEADER_BYTES + start - segment.first_lsn)
                self._survey(data, start, chain)
            finally:
                file.close()
        self.at = faulty

    def _header(self, file: File, segment: SegmentFile) -> SegmentHeader | None:
        try:
            return read_header(file, segment, self.stream)
        except DamageError:
            return None

    def _survey(self, data: bytes, lsn: int, chain: int) -> None:
        """An entry that is merely cut short has nothing behind it: what looks like good entries
        in what there is of its payload is a guest's write."""
        whole = self.form.scan(data, lsn, chain)
        stated = [self.form.known_durable(entry) for _, entry in whole.records]
        self.known_durable = max([self.known_durable, *stated])
        entries = len(whole.records)
        if whole.problem and not whole.torn:
            rest = data[whole.end_lsn - lsn :]
            behind = survey_behind(self.form, rest, whole.end_lsn, whole.chain, self.known_durable)
            entries += behind.entries
            self.known_durable = behind.known_durable
        self.good_behind = self.good_behind or entries > 0


def _cut(
    storage: Storage, segments: list[SegmentFile], lsn: int, chain: int
) -> tuple[list[SegmentFile], int]:
    """(segments that stay, bytes that went): nothing is left at or behind `lsn`."""
    kept = [segment for segment in segments if segment.first_lsn < lsn]
    cut_bytes = 0
    for segment in reversed(segments[len(kept) :]):
        file = storage.open(segment.path)
        cut_bytes += file.size()
        file.close()
        storage.unlink(segment.path)
    if kept:
        file = storage.open(kept[-1].path, writable=True)
        try:
            size = HEADER_BYTES + lsn - kept[-1].first_lsn
            if file.size() > size and not _is_sealed(file, kept[-1], lsn, chain):
                cut_bytes += file.size() - size
                file.truncate(size)
        finally:
            file.close()
    return kept, cut_bytes


def _is_sealed(file: File, segment: SegmentFile, lsn: int, chain: int) -> bool:
    seal = read_seal(file, segment.first_lsn)
    return seal is not None and (seal.end_lsn, seal.chain) == (lsn, chain)


def _newest(storage: Storage, kept: list[SegmentFile], lsn: int, chain: int) -> SegmentFile | None:
    """The segment to go on in: the last one, unless it is sealed."""
    if not kept:
        return None
    file = storage.open(kept[-1].path)
    try:
        return None if _is_sealed(file, kept[-1], lsn, chain) else kept[-1]
    finally:
        file.close()


def _sync(
    storage: Storage, directories: Sequence[Path], stream: StreamName, kept: list[SegmentFile]
) -> None:
    for segment in kept:
        file = storage.open(segment.path, writable=True)
        try:
            file.datasync()
        finally:
            file.close()
    for directory in directories:
        for path in (directory / stream.directory, directory, directory.parent):
            if storage.exists(path):
                storage.sync_directory(path)
