# SPDX-License-Identifier: Apache-2.0
"""The units of a segment: a batch with its commit, an applied, a dropped, a state. Reads, and
writes nothing.

A sealed segment is walked by its headers alone: each BATCH_BEGIN says where its images lie, so its
commit, and the unit behind it, are found without reading them. Each record's payload is verified,
and that it states its own position; its chain is not, for that leads through the images. Those are
verified when they are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from xxhash import xxh3_64_intdigest

from journal.format import RECORDS
from journal.record import HEADER, HEADER_BYTES, NO_DISK, Record, RecordType
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.spool import SegmentFile
from receiver.history import bodies
from receiver.history.batches import Batch, batch_of
from receiver.history.images import ImageTable
from receiver.history.summary import Summary
from replicator.base.errors import DamageError
from replicator.base.storage import File

_T = TypeVar("_T", bound=msgspec.Struct)
_SMALL_READ_BYTES = 4096


@dataclass(slots=True)
class Contents:
    """What the units of one segment say."""

    state: bodies.StateBody | None = None
    begins: list[tuple[bodies.BatchBegin, Batch]] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    applied: int = 0
    end: int = 0
    chain: int = 0


def read_units(file: File, segment: SegmentFile, end: int) -> Contents:
    """The units of a sealed segment. Raises DamageError."""
    contents = Contents(end=end)
    for _ in walk_units(file, segment, end, contents):
        pass
    return contents


def walk_units(file: File, segment: SegmentFile, end: int, contents: Contents) -> Iterator[None]:
    """The same, a unit at a time, into `contents`. Raises DamageError."""
    where, first = str(segment.path), segment.first_lsn
    position = first
    while position < end:
        record = _read_record(file, first, position, where)
        behind = position + record.size
        if record.type == RecordType.BATCH_BEGIN:
            begin = begin_of(record, position, where)
            table = table_of(begin, behind, where)
            commit_at = behind + table.record_bytes
            commit = _read_record(file, first, commit_at, where)
            check_commit(commit, begin, commit_at, where)
            behind = commit_at + commit.size
            contents.begins.append((begin, batch_of(begin, behind, table.figures)))
        else:
            take_small(contents, record, position, where)
        position = behind
        yield
    if position != end:
        raise DamageError(f"{where}: its units do not end where its seal says")


def summary_of(contents: Contents, segment: SegmentFile) -> Summary:
    """What is left of it in memory. Raises DamageError."""
    state = contents.state
    if state is None or state.position != segment.first_lsn:
        raise DamageError(f"{segment.path}: does not begin with the group's state")
    texts = dict(state.texts)
    for begin, _ in contents.begins:
        texts.update(begin.texts)
    return Summary(
        state.stands_for,
        state.imageless,
        texts,
        frozenset(contents.dropped),
        [batch for _, batch in contents.begins],
    )


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
    return table_of(begin_of(record, position, where), position + record.size, where)


def read_chain_behind(file: File, first: int, batch: Batch, where: str) -> int:
    """The log's chain at the end of the batch, in the segment that begins at `first`. Raises
    DamageError."""
    record = _read_record(file, first, batch.begin, where)
    table = table_of(begin_of(record, batch.begin, where), batch.begin + record.size, where)
    commit_at = batch.begin + record.size + table.record_bytes
    offset = SEGMENT_HEADER_BYTES + commit_at - first
    return RECORDS.stored_chain(file.pread(HEADER_BYTES, offset), 0)


def begin_of(record: Record, position: int, where: str) -> bodies.BatchBegin:
    begin = bodies.decode(bodies.BatchBegin, record, where)
    if begin.position != position:
        raise DamageError(f"{where}: the batch at LSN {position} belongs at {begin.position}")
    return begin


def table_of(begin: bodies.BatchBegin, images_at: int, where: str) -> ImageTable:
    table = ImageTable.parse(begin.extents, images_at, where)
    if len(begin.sums) not in (0, 8 * table.block_count):
        raise DamageError(f"{where}: the batch at LSN {begin.position} has sums of other blocks")
    return table


def check_commit(record: Record, begin: bodies.BatchBegin, position: int, where: str) -> None:
    if record.type != RecordType.BATCH_COMMIT:
        raise DamageError(f"{where}: the batch at LSN {begin.position} does not end in a commit")
    commit = bodies.decode(bodies.BatchCommit, record, where)
    if (commit.position, commit.begin, commit.number) != (position, begin.position, begin.number):
        raise DamageError(f"{where}: the commit at LSN {position} is another batch's")


def take_small(contents: Contents, record: Record, position: int, where: str) -> None:
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
