# SPDX-License-Identifier: Apache-2.0
"""Opening a history after whatever happened: what is there, and what its newest end means.

Every segment but the newest is sealed, and read by its headers alone: STATE, each BATCH_BEGIN
(which says where its images lie), and the small records between batches. Images are verified when
they are read. The newest segment is read whole, by its chain. Opening 100 GiB takes seconds.

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
from typing import TypeVar

import msgspec
from xxhash import xxh3_64_intdigest

from journal.format import RECORDS
from journal.record import HEADER, HEADER_BYTES, NO_DISK, Record, RecordType, Scan, scan
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
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage

_T = TypeVar("_T", bound=msgspec.Struct)
_SMALL_READ_BYTES = 4096
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
class Contents:
    """What the units of one segment say."""

    state: bodies.StateBody | None = None
    begins: list[tuple[bodies.BatchBegin, Batch]] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    applied: int = 0
    end: int = 0
    chain: int = 0


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


def open_history(storage: Storage, folder: Path, files: list[SegmentFile]) -> Opened:
    """Reads all segments (`files`, in order, of `folder`). Raises DamageError, VersionError."""
    opened = Opened()
    for at, segment in enumerate(files):
        with closing(storage.open(segment.path, writable=at == len(files) - 1)) as file:
            if at < len(files) - 1:
                _take_sealed(opened, storage, file, segment)
            else:
                file.datasync()
                storage.sync_directory(folder)
                _take_newest(opened, storage, file, segment)
    return opened


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
        try:
            record = _read_record(file, segment.first_lsn, segment.first_lsn, str(segment.path))
            if record.type != RecordType.STATE:
                return 0
            state = bodies.decode(bodies.StateBody, record, str(segment.path))
        except DamageError:
            return 0  # whatever is wrong with it is found, and said, when it is read in earnest
    return state.stands_for.end if state.stands_for is not None else 0


# -- sealed segments


def _take_sealed(opened: Opened, storage: Storage, file: File, segment: SegmentFile) -> None:
    header = _header(file, segment)
    seal = read_seal(file, segment.first_lsn)
    if seal is None:
        raise DamageError(f"{segment.path}: not sealed, although newer segments follow")
    contents = read_units(file, segment, seal.end_lsn)
    contents.chain = seal.chain
    _take(opened, storage, segment, header, contents, seal)


def read_units(file: File, segment: SegmentFile, end: int) -> Contents:
    """The units of a segment by their headers, images skipped. Raises DamageError."""
    where, first = str(segment.path), segment.first_lsn
    contents = Contents(end=end)
    position = first
    while position < end:
        record = _read_record(file, first, position, where)
        behind = position + record.size
        if record.type == RecordType.BATCH_BEGIN:
            begin = _begin(record, position, where)
            table = _table(begin, behind, where)
            commit_at = behind + table.record_bytes
            commit = _read_record(file, first, commit_at, where)
            _check_commit(commit, begin, commit_at, where)
            behind = commit_at + commit.size
            contents.begins.append((begin, batch_of(begin, behind, table.figures)))
        else:
            _take_small(contents, record, position, where)
        position = behind
    if position != end:
        raise DamageError(f"{where}: its units do not end where its seal says")
    return contents


def _read_record(file: File, first: int, position: int, where: str) -> Record:
    """A record read by itself: its payload is verified, its chain is not."""
    offset = SEGMENT_HEADER_BYTES + position - first
    data = file.pread(_SMALL_READ_BYTES, offset)
    size = RECORDS.stated_bytes(data)
    if size > len(data):
        data = file.pread(size, offset)
    if not size or len(data) < size:
        raise DamageError(f"{where}: no record at offset {offset}")
    kind, flags, disk, _, place, length, sequence, time_ns, total, known, _ = HEADER.unpack_from(
        data
    )
    payload = data[HEADER_BYTES:size]
    if xxh3_64_intdigest(payload) != total:
        raise DamageError(f"{where}: record at offset {offset} fails its checksum")
    if kind not in tuple(RecordType) or disk != NO_DISK:
        raise DamageError(f"{where}: no record of a history at offset {offset}")
    return Record(kind, disk, place, length, sequence, time_ns, payload, flags, known, total)


def read_body(file: File, first: int, position: int, kind: type[_T], where: str) -> _T:
    """The body of the one record at `position`, in the segment that begins at `first`."""
    return bodies.decode(kind, _read_record(file, first, position, where), where)


def read_table(file: File, first: int, position: int, where: str) -> ImageTable:
    """Where the images of the batch at `position` lie, likewise. Raises DamageError."""
    record = _read_record(file, first, position, where)
    if record.type != RecordType.BATCH_BEGIN:
        raise DamageError(f"{where}: no batch begins at LSN {position}")
    return _table(_begin(record, position, where), position + record.size, where)


def read_chain_behind(file: File, first: int, batch: Batch, where: str) -> int:
    """The log's chain at the end of the batch, in the segment that begins at `first`. Raises
    DamageError."""
    record = _read_record(file, first, batch.begin, where)
    table = _table(_begin(record, batch.begin, where), batch.begin + record.size, where)
    commit_at = batch.begin + record.size + table.record_bytes
    offset = SEGMENT_HEADER_BYTES + commit_at - first
    return RECORDS.stored_chain(file.pread(HEADER_BYTES, offset), 0)


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
        _take(opened, storage, segment, header, contents, seal)
        return
    if found.problem or contents.end < found.end_lsn or contents.state is None:
        opened.tail = _judge(data, segment, header, found, contents)
    if contents.state is None or header is None:
        storage.unlink(segment.path)
        storage.sync_directory(segment.path.parent)
        return
    _take(opened, storage, segment, header, contents, None)


def _units_of(found: Scan, data: bytes, where: str, first: int) -> Contents:
    """The complete units among verified records. What follows the last of them is left out."""
    contents = Contents(end=first)
    begin: tuple[bodies.BatchBegin, int] | None = None
    for position, record in found.records:
        behind = position + record.size
        if record.type == RecordType.BATCH_BEGIN:
            begin = _begin(record, position, where), behind
            continue
        if record.type in IMAGE_TYPES:
            continue
        if record.type == RecordType.BATCH_COMMIT:
            if begin is None:
                raise DamageError(f"{where}: a batch ends at LSN {position} that has not begun")
            body, images_at = begin
            table = _table(body, images_at, where)
            if images_at + table.record_bytes != position:
                raise DamageError(f"{where}: the batch at LSN {body.position} has other images")
            _check_commit(record, body, position, where)
            contents.begins.append((body, batch_of(body, behind, table.figures)))
            begin = None
        else:
            _take_small(contents, record, position, where)
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
            begin = _begin(record, position, "tail")
            table = _table(begin, position + record.size, "tail")
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


# -- both


def _take(
    opened: Opened,
    storage: Storage,
    segment: SegmentFile,
    header: SegmentHeader,
    contents: Contents,
    seal: Seal | None,
) -> None:
    """Adds a segment, which must go on where the one before ends."""
    state = contents.state
    if state is None or state.position != segment.first_lsn:
        raise DamageError(f"{segment.path}: does not begin with the group's state")
    if opened.segments:
        before = opened.segments[-1]
        if (before.end, before.chain) != (segment.first_lsn, header.chain):
            raise DamageError(
                f"{segment.path}: does not continue {before.path.name};"
                f" the history between LSN {before.end} and {segment.first_lsn} is missing"
            )
        if seal is not None and seal.previous_digest != before.digest:
            raise DamageError(f"{segment.path}: does not follow the digest of {before.path.name}")
    stands = state.stands_for
    digest = seal.digest if seal is not None else b""
    taken = Segment(
        segment.first_lsn,
        contents.end if stands is None else stands.end,
        contents.end,
        segment.path,
        contents.chain if stands is None else stands.chain,
        digest if stands is None else stands.digest,
        storage.allocated_bytes(segment.path),
        sealed=seal is not None,
        imageless=state.imageless,
    )
    opened.segments.append(taken)
    opened.contents = contents
    opened.newest = None if taken.sealed else taken
    opened.batches += [batch for _, batch in contents.begins]
    opened.dropped |= contents.dropped
    opened.texts.update(state.texts)
    for begin, _ in contents.begins:
        opened.texts.update(begin.texts)


def _begin(record: Record, position: int, where: str) -> bodies.BatchBegin:
    begin = bodies.decode(bodies.BatchBegin, record, where)
    if begin.position != position:
        raise DamageError(f"{where}: the batch at LSN {position} belongs at {begin.position}")
    return begin


def _table(begin: bodies.BatchBegin, images_at: int, where: str) -> ImageTable:
    table = ImageTable.parse(begin.extents, images_at, where)
    if len(begin.sums) not in (0, 8 * table.block_count):
        raise DamageError(f"{where}: the batch at LSN {begin.position} has sums of other blocks")
    return table


def _check_commit(record: Record, begin: bodies.BatchBegin, position: int, where: str) -> None:
    if record.type != RecordType.BATCH_COMMIT:
        raise DamageError(f"{where}: the batch at LSN {begin.position} does not end in a commit")
    commit = bodies.decode(bodies.BatchCommit, record, where)
    if (commit.position, commit.begin, commit.number) != (position, begin.position, begin.number):
        raise DamageError(f"{where}: the commit at LSN {position} is another batch's")


def _take_small(contents: Contents, record: Record, position: int, where: str) -> None:
    match record.type:
        case RecordType.STATE:
            contents.state = bodies.decode(bodies.StateBody, record, where)
        case RecordType.BATCH_APPLIED:
            contents.applied = bodies.decode(bodies.BatchApplied, record, where).number
        case RecordType.POINTS_DROPPED:
            body = bodies.decode(bodies.PointsDropped, record, where)
            contents.dropped.update(body.sequences)
        case _:
            raise DamageError(f"{where}: {record} has no place in a history (LSN {position})")


def _header(file: File, segment: SegmentFile) -> SegmentHeader:
    header = parse_header(file.pread(SEGMENT_HEADER_BYTES, 0), str(segment.path))
    if header.kind is not SegmentKind.HISTORY or header.first_lsn != segment.first_lsn:
        raise DamageError(f"{segment.path}: is no segment of this history")
    return header
