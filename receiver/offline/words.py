# SPDX-License-Identifier: Apache-2.0
"""The records of a history in words, each on one line of bounded length. No I/O.

Anything that is not a history's record, or not understood, is described as any log's is. Texts
from a file are quoted: none can play tricks on a terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from journal.dump import describe
from journal.record import NO_DISK, Record, RecordType
from receiver.history import bodies
from receiver.history.images import BLOCK_BYTES, ImageTable
from replicator.base.clock import rfc3339, rfc3339_exact
from replicator.base.errors import DamageError
from replicator.base.pointtext import label_text
from replicator.base.units import format_size

SHOWN_MAX = 8
TEXT_CHARS = 60


def describe_record(entry: object) -> str:
    """See the head of this file."""
    if not isinstance(entry, Record):
        return describe(entry)
    words = _WORDS.get(RecordType(entry.type))
    if words is None:
        return describe(entry)
    try:
        return f"{rfc3339_exact(entry.time_ns)}  {words(entry)}"
    except DamageError:
        return describe(entry)


def _state(record: Record) -> str:
    state = bodies.decode(bodies.StateBody, record, "")
    parts = [f"state in front of batch {state.next_batch}", _group(state.group)]
    if state.stands_for is not None:
        parts.append(f"compacted: stands for all up to position {state.stands_for.end}")
    return "; ".join(parts)


def _group(group: bodies.GroupBody) -> str:
    parts = [f"generation {group.generation}", f"next point #{group.next_point}"]
    if group.ordinal:
        parts.append(f"stream {group.ordinal} applied to LSN {group.lsn}")
    if group.rollback is not None:
        parts.append(f"in a rollback to #{group.rollback.target}")
    disks = (_disk(disk) for disk in group.disks)
    return ", ".join(parts) + f"; disks: {_some(disks, len(group.disks))}"


def _disk(disk: bodies.DiskBody) -> str:
    condition = "in a sync" if disk.syncing else "complete" if disk.complete else "not complete"
    return f"{_text(disk.name)} (slot {disk.slot}, {format_size(disk.size_bytes)}, {condition})"


def _begin(record: Record) -> str:
    begin = bodies.decode(bodies.BatchBegin, record, "")
    table = ImageTable.parse(begin.extents, begin.position, "")
    lsns = f"stream {begin.group.ordinal} LSN {begin.start_lsn} to {begin.group.lsn}"
    content = format_size(table.block_count * BLOCK_BYTES)
    stored = format_size(table.record_bytes)
    parts = [
        f"batch {begin.number} ({begin.kind}), {lsns}",
        f"{len(table)} images of {table.block_count} blocks ({content}, stored as {stored})",
    ]
    if begin.held is not None:
        parts.append(f"#{begin.held.sequence} had held until {rfc3339(begin.held.until_ns)}")
    if begin.point is not None:
        parts.append(_point(begin.point))
    return "; ".join(parts)


def _point(point: bodies.PointBody) -> str:
    label = "" if point.label is None else f" {_text(label_text(point.label))}"
    members = _some((_text(disk.name) for disk in point.members), len(point.members))
    return f"point #{point.sequence}{label} of {rfc3339(point.time_ns)} ({point.kind}): {members}"


def _image(record: Record) -> str:
    if record.disk == NO_DISK:
        raise DamageError("no image")
    kind = {RecordType.ZERO: "zeroes", RecordType.PACKED_WRITE: "packed"}.get(
        RecordType(record.type), "plain"
    )
    stored = f", {len(record.payload)} stored" if record.type == RecordType.PACKED_WRITE else ""
    return (
        f"image of batch {record.sequence}: slot {record.disk}, {record.length} bytes at"
        f" {record.offset}, {kind}{stored}"
    )


def _commit(record: Record) -> str:
    return f"batch {bodies.decode(bodies.BatchCommit, record, '').number} is whole"


def _applied(record: Record) -> str:
    return f"batch {bodies.decode(bodies.BatchApplied, record, '').number} is in the replica"


def _dropped(record: Record) -> str:
    numbers = bodies.decode(bodies.PointsDropped, record, "").sequences
    return f"points given up: {_some((f'#{number}' for number in numbers), len(numbers))}"


def _some(texts: Iterable[str], count: int) -> str:
    shown = [text for _, text in zip(range(SHOWN_MAX), texts, strict=False)]
    more = f" and {count - SHOWN_MAX} more" if count > SHOWN_MAX else ""
    return (", ".join(shown) or "none") + more


def _text(text: str) -> str:
    shown = text if text.isidentifier() and text.isascii() else repr(text)
    return shown if len(shown) <= TEXT_CHARS else f"{shown[:TEXT_CHARS]}…"


_WORDS: dict[RecordType, Callable[[Record], str]] = {
    RecordType.STATE: _state,
    RecordType.BATCH_BEGIN: _begin,
    RecordType.BATCH_COMMIT: _commit,
    RecordType.BATCH_APPLIED: _applied,
    RecordType.POINTS_DROPPED: _dropped,
    RecordType.PACKED_WRITE: _image,
}
