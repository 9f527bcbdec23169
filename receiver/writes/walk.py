# SPDX-License-Identifier: Apache-2.0
"""The single writes behind a point, numbered in the order of the log. No I/O.

Write number M of point #N is the M-th write or zero record behind the cut that made #N, over all
disks, from 1 on; #N with its first M writes laid over it is what the source's disks held just
behind the M-th: a prefix of the order in which writes were answered, as every point is. Cuts
between, of points that retention gave up, change nothing about the numbers.

The walk ends where that is true no longer: at the next point, whose own writes follow; at a sync, a
resize or a detach; at records that were folded, of which nobody knows what lay between; and where
frames are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from journal.bodies import Cut, decode_body
from journal.record import Record, RecordType
from receiver.points.values import Point
from replicator.base.storage import Buffer
from replicator.wire.frames import OpenedFrame

_SKIPPED = frozenset((RecordType.CUT, RecordType.DOMAIN_XML, RecordType.VERIFY))
_BARRIERS = {
    int(RecordType.SYNC_BEGIN): "a sync begins there",
    int(RecordType.SYNC_END): "a sync ends there",
    int(RecordType.SAME): "a sync is under way there",
    int(RecordType.RESIZE): "a disk is resized there",
    int(RecordType.DETACH): "a disk is detached there",
}


@dataclass(frozen=True, slots=True)
class FineWrite:
    """`content` is None for zeroes; it may be a view into a larger buffer."""

    number: int
    lsn: int
    disk: str
    offset: int
    length: int
    time_ns: int
    content: Buffer | None


@dataclass(frozen=True, slots=True)
class WritesEnd:
    """There are `count` writes behind the point, and `why` there are no more. `is_natural`: those
    are all there were up to the next point, or all that have come."""

    count: int
    why: str
    is_natural: bool = False


def walk(
    frames: Iterable[OpenedFrame], point: Point, next_point: Point | None
) -> Iterator[FineWrite | WritesEnd]:
    """The writes behind `point`, then one WritesEnd. `frames` begin with the one that holds its
    cut. Raises DamageError."""
    count = 0
    names: dict[int, str] = {}
    at = point.lsn - 1
    for frame in frames:
        header = frame.header
        if header.start_lsn > at:
            break
        at = header.end_lsn
        if header.reduced:
            yield WritesEnd(count, "what follows was folded, or reduced in a sync")
            return
        for lsn, record in frame.records:
            if lsn < point.lsn:
                if lsn + record.size == point.lsn and record.type == RecordType.CUT:
                    names = {m.disk: m.name for m in decode_body(Cut, record, lsn).members}
                continue
            if next_point is not None and lsn + record.size >= next_point.lsn:
                yield WritesEnd(
                    count, f"those that follow lie behind {next_point}", is_natural=True
                )
                return
            why = _why_not(record, names)
            if why:
                yield WritesEnd(count, why)
                return
            if record.type not in _SKIPPED:
                count += 1
                yield _write(count, lsn, record, names[record.disk])
    else:
        if at >= point.lsn:
            yield WritesEnd(count, "no more have come in that stream", is_natural=True)
            return
    yield WritesEnd(count, "the frames that follow are not kept")


def _why_not(record: Record, names: dict[int, str]) -> str:
    if record.type in _SKIPPED:
        return ""
    if record.type in (RecordType.WRITE, RecordType.ZERO):
        return "" if record.disk in names else "a disk is written that the point has not"
    return _BARRIERS.get(record.type, f"a record of type {record.type} lies there")


def _write(number: int, lsn: int, record: Record, disk: str) -> FineWrite:
    content = record.payload if record.type == RecordType.WRITE else None
    return FineWrite(number, lsn, disk, record.offset, record.length, record.time_ns, content)
