# SPDX-License-Identifier: Apache-2.0
"""Opening a history after whatever happened: what is there, and what its newest end means.

Every segment but the newest is sealed. Of those the header, the first record and the seal are
read, by which they are linked to each other, and the summary (receiver.history.summary); where
there is none that can be believed, the segment itself by its headers (receiver.history.units).
The newest segment is read whole, by its chain. So opening costs what there is in segments, not in
batches.

What can be left at the newest end, and what is concluded (journal.recovery has the table):
* everything up to a whole unit (a batch with its commit, an applied, a dropped): clean.
* an incomplete unit that was never durable: torn. It is not cut here: a batch whose images were
  being written means that the replica has not been touched by it, and that is *checked*, by
  comparing every image of it that is whole with the replica (`Tail.images`). Only then is it
  believed and cut.
* an incomplete unit below what a later record states as durable: damage.
* a newest segment without a whole STATE: it was being made; removed, if nothing says otherwise.

Leftovers of a compaction (receiver.history.compaction): `*.new` was not finished, and is removed;
segments that another one stands for were replaced, and are removed.

Nothing is reused before it is synced: the page cache may hold what the disk does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from xxhash import xxh3_64_intdigest

from journal.format import RECORDS
from journal.record import HEADER, HEADER_BYTES, Record, RecordType, Scan, scan
from journal.recovery import Action, Fault, TailFacts, classify_tail
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import Seal, SegmentHeader, SegmentKind, parse_header
from journal.spool import SegmentFile
from journal.stream_files import read_seal
from journal.survey import survey_behind
from receiver.history import bodies
from receiver.history.batches import Batch, Segment, batch_of
from receiver.history.images import BLOCK_BYTES, ImageTable
from receiver.history.packing import unpack
from receiver.history.summaries import KnownSummaries, NoSummaries
from receiver.history.summary import SegmentIdentity, Summary
from receiver.history.units import (
    Contents,
    begin_of,
    check_commit,
    read_body,
    read_units,
    summary_of,
    table_of,
    take_small,
)
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage

NEW_SUFFIX = ".new"
IMAGE_TYPES = (RecordType.WRITE, RecordType.PACKED_WRITE, RecordType.ZERO)


@dataclass(frozen=True, slots=True)
class TailImage:
    """A whole before-image of a batch that is not complete. `content` is None for zeroes."""

    slot: int
    offset: int
    length: int
    content: bytes | None


@dataclass(frozen=True, slots=True)
class Tail:
    """What lies behind the last complete unit, to be cut off once it is believed."""

    where: str
    label: str
    images: list[TailImage]


@dataclass(slots=True)
class Opened:
    """The history as it lies on the disk. `newest` is the segment to go on in, None if the next
    append opens one. `contents` are those of the last segment that there is."""

    segments: list[Segment] = field(default_factory=list)
    contents: Contents | None = None
    batches: list[Batch] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    newest: Segment | None = None
    tail: Tail | None = None

    def take(self, storage: Storage, found: _Found, contents: Contents | None = None) -> None:
        """The next segment, which must go on where the one before ends. Raises DamageError."""
        summary, seal, path = found.summary, found.seal, found.file.path
        if self.segments:
            _check_link(self.segments[-1], found)
        stands = summary.stands_for
        digest = seal.digest if seal is not None else b""
        taken = Segment(
            found.file.first_lsn,
            found.end if stands is None else stands.end,
            found.end,
            path,
            found.chain if stands is None else stands.chain,
            digest if stands is None else stands.digest,
            storage.allocated_bytes(path),
            sealed=seal is not None,
            imageless=summary.imageless,
            seal_digest=digest,
        )
        self.segments.append(taken)
        self.contents = contents
        self.newest = None if taken.sealed else taken
        self.batches += summary.batches
        self.dropped |= summary.dropped
        self.texts.update(summary.texts)


def _check_link(before: Segment, found: _Found) -> None:
    first, path, seal = found.file.first_lsn, found.file.path, found.seal
    if (before.end, before.chain) != (first, found.header.chain):
        raise DamageError(
            f"{path}: does not continue {before.path.name};"
            f" the history between LSN {before.end} and {first} is missing"
        )
    if seal is not None and seal.previous_digest != before.digest:
        raise DamageError(f"{path}: does not follow the digest of {before.path.name}")


def open_history(
    storage: Storage,
    folder: Path,
    files: list[SegmentFile],
    summaries: KnownSummaries | None = None,
) -> Opened:
    """Reads all segments (`files`, in order, of `folder`). Raises DamageError, VersionError."""
    opened = Opened()
    for segment in files[:-1]:
        with closing(storage.open(segment.path)) as file:
            opened.take(storage, _sealed(file, segment, summaries or NoSummaries()))
    for segment in files[-1:]:
        with closing(storage.open(segment.path, writable=True)) as file:
            file.datasync()
            storage.sync_directory(folder)
            _take_newest(opened, storage, file, segment)
    if opened.contents is None and opened.segments:  # the newest one was being made
        _read_last(opened, storage, opened.segments[-1])
    return opened


def _read_last(opened: Opened, storage: Storage, last: Segment) -> None:
    with closing(storage.open(last.path)) as file:
        opened.contents = read_units(file, SegmentFile(last.first, last.path), last.data_end)


def clear_leftovers(storage: Storage, folder: Path, files: list[SegmentFile]) -> list[SegmentFile]:
    """Ends a compaction that a crash interrupted; the segments that are left."""
    for name in storage.names(folder):
        if name.endswith(NEW_SUFFIX):
            storage.unlink(folder / name)
    kept: list[SegmentFile] = []
    covered = 0
    for segment in files:
        if segment.first_lsn < covered:
            storage.unlink(segment.path)
            storage.sync_directory(folder)
            continue
        kept.append(segment)
        covered = _stands_until(storage, segment)
    return kept


def _stands_until(storage: Storage, segment: SegmentFile) -> int:
    with closing(storage.open(segment.path)) as file:
        first, where = segment.first_lsn, str(segment.path)
        try:
            state = read_body(file, first, first, bodies.StateBody, where)
        except DamageError:
            return 0  # then what it stands for, if that is left, does not follow it
    return state.stands_for.end if state.stands_for is not None else 0


# -- sealed segments


@dataclass(frozen=True, slots=True)
class _Found:
    """A segment as it was read. Its records end at `end`, with that chain; `seal` is None where it
    has none yet."""

    file: SegmentFile
    header: SegmentHeader
    summary: Summary
    end: int
    chain: int
    seal: Seal | None


def _sealed(file: File, segment: SegmentFile, summaries: KnownSummaries) -> _Found:
    header = _header(file, segment)
    seal = read_seal(file, segment.first_lsn)
    if seal is None:
        raise DamageError(f"{segment.path}: not sealed, although newer segments follow")
    identity = SegmentIdentity(segment.first_lsn, seal.end_lsn, seal.digest)
    summary = summaries.read(identity)
    if summary is None:
        summary = summary_of(read_units(file, segment, seal.end_lsn), segment)
        summaries.put(identity, summary)
    return _Found(segment, header, summary, seal.end_lsn, seal.chain, seal)


# -- the newest segment


def _take_newest(opened: Opened, storage: Storage, file: File, segment: SegmentFile) -> None:
    where, first = str(segment.path), segment.first_lsn
    data = file.pread(file.size(), 0)
    header: SegmentHeader | None = None
    try:
        header = _header(file, segment)
    except DamageError:
        found = Scan([], first, 0, f"{where}: unreadable segment header")
    else:
        found = scan(memoryview(data)[SEGMENT_HEADER_BYTES:], first, header.chain, where=where)
    contents = _units_of(found, data, where, first)
    if header is not None and contents.end == first:
        contents.chain = header.chain
    seal = read_seal(file, first)
    if seal is not None and (seal.end_lsn, seal.chain) != (contents.end, contents.chain):
        seal = None  # bytes that look like one
    if header is not None and seal is not None and contents.end == found.end_lsn:
        opened.take(storage, _found(segment, header, contents, seal), contents)
        return
    if found.problem or contents.end < found.end_lsn or contents.state is None:
        opened.tail = _judge(data, segment, header, found, contents)
    if contents.state is None or header is None:
        storage.unlink(segment.path)
        storage.sync_directory(segment.path.parent)
        return
    opened.take(storage, _found(segment, header, contents, None), contents)


def _found(
    segment: SegmentFile, header: SegmentHeader, contents: Contents, seal: Seal | None
) -> _Found:
    summary = summary_of(contents, segment)
    return _Found(segment, header, summary, contents.end, contents.chain, seal)


def _units_of(found: Scan, data: bytes, where: str, first: int) -> Contents:
    """The complete units among verified records. What follows the last of them is left out."""
    contents = Contents(end=first)
    begin: tuple[bodies.BatchBegin, int] | None = None
    for position, record in found.records:
        behind = position + record.size
        if record.type == RecordType.BATCH_BEGIN:
            begin = begin_of(record, position, where), behind
            continue
        if record.type in IMAGE_TYPES:
            continue
        if record.type == RecordType.BATCH_COMMIT:
            if begin is None:
                raise DamageError(f"{where}: a batch ends at LSN {position} that has not begun")
            body, images_at = begin
            table = table_of(body, images_at, where)
            if images_at + table.record_bytes != position:
                raise DamageError(f"{where}: the batch at LSN {body.position} has other images")
            check_commit(record, body, position, where)
            contents.begins.append((body, batch_of(body, behind, table.figures)))
            begin = None
        else:
            take_small(contents, record, position, where)
        contents.end = behind
        contents.chain = RECORDS.stored_chain(data, SEGMENT_HEADER_BYTES + position - first)
    return contents


def _judge(
    data: bytes,
    segment: SegmentFile,
    header: SegmentHeader | None,
    found: Scan,
    contents: Contents,
) -> Tail:
    """Torn or damaged? Raises DamageError for the latter."""
    first = segment.first_lsn
    known = max(
        [
            first if header is None else header.known_durable,
            *(record.known_durable for _, record in found.records),
        ]
    )
    offset = SEGMENT_HEADER_BYTES + found.end_lsn - first
    behind = survey_behind(RECORDS, data[offset:], found.end_lsn, found.chain, known)
    fault = Fault.BAD if found.problem and not found.torn else Fault.TORN
    facts = TailFacts(
        contents.end,
        fault,
        last=True,
        sealed=False,
        good_behind=behind.entries > 0 and fault is Fault.BAD,
        known_durable=behind.known_durable,
    )
    verdict = classify_tail(facts)
    if verdict.action is Action.STOP:
        problem = found.problem or f"{segment.path}: a batch is not complete"
        raise DamageError(
            f"{problem} (file offset {offset}); {verdict.prose}",
            hint="the history up to there is good; restore the file from a copy, or set the group"
            " aside and let it sync anew",
        )
    return Tail(
        f"{segment.path} from offset {SEGMENT_HEADER_BYTES + contents.end - first}",
        verdict.label,
        list(_whole_images(data, first, contents.end, found)),
    )


def _whole_images(data: bytes, first: int, start: int, found: Scan) -> Iterator[TailImage]:
    """Images of the incomplete batch at `start`: those in the unbroken run, and those behind the
    fault that the batch's header leads to, or else the next header that goes on from the fault."""
    table: ImageTable | None = None
    for position, record in found.records:
        if position < start:
            continue
        if record.type == RecordType.BATCH_BEGIN:
            begin = begin_of(record, position, "tail")
            table = table_of(begin, position + record.size, "tail")
        elif record.type in IMAGE_TYPES:
            yield _tail_image(record)
    if table is not None:
        for row in range(len(table)):
            image = table.image(row)
            if image.position >= found.end_lsn:
                yield from _image_at(data, first, image.position, image.slot, image.block)
    else:
        yield from _images_behind(data, first, found)


def _images_behind(data: bytes, first: int, found: Scan) -> Iterator[TailImage]:
    """Images that go on from the fault, if a chain leads over it."""
    at = SEGMENT_HEADER_BYTES + found.end_lsn - first
    size = RECORDS.stated_bytes(data, at)
    if not size:
        return
    for seed in (RECORDS.stored_chain(data, at), RECORDS.computed_chain(data, at, found.chain)):
        if RECORDS.follows(data, at + size, seed):
            rest = scan(memoryview(data)[at + size :], found.end_lsn + size, seed)
            for _, record in rest.records:
                if record.type not in IMAGE_TYPES:
                    break
                yield _tail_image(record)
            return


def _image_at(data: bytes, first: int, position: int, slot: int, block: int) -> Iterator[TailImage]:
    """The image record at a known place, if it is whole."""
    at = SEGMENT_HEADER_BYTES + position - first
    size = RECORDS.stated_bytes(data, at)
    if not size or at + size > len(data):
        return
    kind, flags, disk, _, offset, length, sequence, time_ns, total, known, _ = HEADER.unpack_from(
        data, at
    )
    payload = data[at + HEADER_BYTES : at + size]
    if kind not in IMAGE_TYPES or (disk, offset) != (
        slot,
        block * BLOCK_BYTES,
    ):
        return
    if xxh3_64_intdigest(payload) == total:
        yield _tail_image(
            Record(kind, disk, offset, length, sequence, time_ns, payload, flags, known, total)
        )


def _tail_image(record: Record) -> TailImage:
    content: bytes | None = None
    if record.type == RecordType.WRITE:
        content = bytes(record.payload)
    elif record.type == RecordType.PACKED_WRITE:
        content = unpack(record.payload, record.length // BLOCK_BYTES, "tail")
    length = record.length if content is None else len(content)
    return TailImage(record.disk, record.offset, length, content)


def _header(file: File, segment: SegmentFile) -> SegmentHeader:
    header = parse_header(file.pread(SEGMENT_HEADER_BYTES, 0), str(segment.path))
    if header.kind is not SegmentKind.HISTORY or header.first_lsn != segment.first_lsn:
        raise DamageError(f"{segment.path}: is no segment of this history")
    return header
