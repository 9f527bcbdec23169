# SPDX-License-Identifier: Apache-2.0
"""The summary of a sealed segment: what opening a history takes from it. No I/O.

Opening needs of a sealed segment its batches as they are known in memory
(receiver.history.batches), the points that it says were given up, the domains' XML that it brings,
and what of its STATE tells whether it was compacted. To gather that, the header and the commit of
each batch are read: seconds for 28,000 points. A segment that is sealed never changes, so all of
it is written down once, in a file that is read at one go.

It is derived: the history is the authority (decision 0003), and to lose every summary loses time.
It is *believed* only if it is whole (both checksums, its version), and tells of the very segment
that lies there: the same positions, and the digest of its own seal. That digest covers each byte of
the segment, and the digests of all before it, so no segment of another time, place, group or
compaction has it. The seal itself is read from the segment each time, and links it to its
neighbours; a segment without one has no summary.

What a summary cannot tell is whether the segment still holds what its seal says: that a header has
rotted since. An opening by the segments found that, of headers, though never of images. It is found
right behind the opening now: upkeep goes through each segment whose summary was believed, by its
headers, a bounded part a step (receiver.history.summaries), and whatever is rotten there, or is
otherwise than the summary had it, stops the group as it would have stopped the opening. Until then
an opening knows exactly what the process before it knew, and stands as good as that did: each
header, table and image is verified when it is read.

    header   0 magic `RPLSMRY1`   8 u16 version   10 u16 zeroes   12 u32 bytes of the body
            16 u64 first   24 u64 end   32 digest (32)   64 u64 xxh3-64 of the body
            72 u64 xxh3-64 of 0..71
    body    msgpack, see `_Body`: rows, with what many points share (members, domains) told once
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from xxhash import xxh3_64_intdigest

from receiver.history.batches import Batch
from receiver.history.bodies import BatchKind, Count, Held, StandsFor
from receiver.history.images import ImageFigures
from receiver.points.values import Point, PointDisk, PointKind

MAGIC = b"RPLSMRY1"
VERSION = 1
"""Another one for each field that is told differently, or more: what says less than an opening
needs must not be believed."""
_HEADER = struct.Struct("<8sHHIQQ32sQQ")
HEADER_BYTES = 80
assert _HEADER.size == HEADER_BYTES


@dataclass(frozen=True, slots=True)
class SegmentIdentity:
    """Which segment: where its records lie, and the digest of its own seal."""

    first: int
    end: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Summary:
    """`stands_for` and `imageless` are those of its STATE, `texts` all that it brings, `dropped`
    the points that it says were given up."""

    stands_for: StandsFor | None
    imageless: int
    texts: dict[str, str]
    dropped: frozenset[int]
    batches: list[Batch]


class _DiskRow(msgspec.Struct, frozen=True, array_like=True):
    slot: Count
    name: str
    instance: str
    size_bytes: Count
    image_name: str


class _PointRow(msgspec.Struct, frozen=True, array_like=True):
    """`members` and `domains` by their places in the body's lists."""

    sequence: Count
    time_ns: Count
    kind: PointKind
    label: str | None
    lsn: Count
    ordinal: Count
    clock_step_ns: int
    consistent: bool
    members: Count
    domains: Count
    received_ns: Count
    expire_ns: Count
    monotonic_ns: Count
    made_ns: Count


class _BatchRow(msgspec.Struct, frozen=True, array_like=True):
    number: Count
    kind: BatchKind
    begin: Count
    end: Count
    ordinal: Count
    start_lsn: Count
    end_lsn: Count
    images: Count
    blocks: Count
    record_bytes: Count
    last_point: Count
    held: Held | None
    point: _PointRow | None


class _Body(msgspec.Struct, frozen=True, array_like=True):
    stands_for: StandsFor | None
    imageless: Count
    texts: dict[str, str]
    dropped: list[Count]
    members: list[list[_DiskRow]]
    domains: list[dict[str, str]]
    batches: list[_BatchRow]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Body)


def pack(identity: SegmentIdentity, summary: Summary) -> bytes:
    body = _encoder.encode(_body_of(summary))
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        0,
        len(body),
        identity.first,
        identity.end,
        identity.digest,
        xxh3_64_intdigest(body),
        0,
    )[:-8]
    return head + xxh3_64_intdigest(head).to_bytes(8, "little") + body


def parse(data: bytes, identity: SegmentIdentity) -> Summary | None:
    """None unless it is whole, and that segment's."""
    if len(data) < HEADER_BYTES:
        return None
    magic, version, zeroes, size, first, end, digest, body_sum, head_sum = _HEADER.unpack_from(data)
    body = memoryview(data)[HEADER_BYTES:]
    if (
        (magic, version, zeroes, size) != (MAGIC, VERSION, 0, len(body))
        or xxh3_64_intdigest(data[: HEADER_BYTES - 8]) != head_sum
        or SegmentIdentity(first, end, digest) != identity
        or xxh3_64_intdigest(body) != body_sum
    ):
        return None
    try:
        return _summary_of(_decoder.decode(body))
    except (msgspec.DecodeError, IndexError):
        return None  # whole, and yet none: of a program that is at fault, not of a disk


# -- to rows


class _Shared:
    """Values that many points have, each told once."""

    def __init__(self) -> None:
        self.members: list[list[_DiskRow]] = []
        self.domains: list[dict[str, str]] = []
        self._members: dict[tuple[PointDisk, ...], int] = {}
        self._domains: dict[tuple[tuple[str, str], ...], int] = {}

    def place_of_members(self, point: Point) -> int:
        place = self._members.setdefault(point.members, len(self.members))
        if place == len(self.members):
            self.members.append(
                [
                    _DiskRow(d.slot, d.name, d.instance, d.size_bytes, d.image_name)
                    for d in point.members
                ]
            )
        return place

    def place_of_domains(self, point: Point) -> int:
        place = self._domains.setdefault(tuple(point.domains.items()), len(self.domains))
        if place == len(self.domains):
            self.domains.append(dict(point.domains))
        return place


def _body_of(summary: Summary) -> _Body:
    shared = _Shared()
    rows = [_row_of(batch, shared) for batch in summary.batches]
    return _Body(
        summary.stands_for,
        summary.imageless,
        summary.texts,
        sorted(summary.dropped),
        shared.members,
        shared.domains,
        rows,
    )


def _row_of(batch: Batch, shared: _Shared) -> _BatchRow:
    figures, point = batch.images, batch.point
    return _BatchRow(
        batch.number,
        batch.kind,
        batch.begin,
        batch.end,
        batch.ordinal,
        batch.start_lsn,
        batch.end_lsn,
        figures.image_count,
        figures.block_count,
        figures.record_bytes,
        batch.last_point,
        batch.held,
        None if point is None else _point_row_of(point, shared),
    )


def _point_row_of(point: Point, shared: _Shared) -> _PointRow:
    return _PointRow(
        point.sequence,
        point.time_ns,
        point.kind,
        point.label,
        point.lsn,
        point.ordinal,
        point.clock_step_ns,
        point.consistent,
        shared.place_of_members(point),
        shared.place_of_domains(point),
        point.received_ns,
        point.expire_ns,
        point.monotonic_ns,
        point.made_ns,
    )


# -- and back


def _summary_of(body: _Body) -> Summary:
    members = [
        tuple(PointDisk(d.slot, d.name, d.instance, d.size_bytes, d.image_name) for d in disks)
        for disks in body.members
    ]
    batches = [_batch_of(row, members, body.domains) for row in body.batches]
    return Summary(body.stands_for, body.imageless, body.texts, frozenset(body.dropped), batches)


def _batch_of(
    row: _BatchRow, members: Sequence[tuple[PointDisk, ...]], domains: Sequence[dict[str, str]]
) -> Batch:
    point = row.point
    return Batch(
        row.number,
        row.kind,
        row.begin,
        row.end,
        row.ordinal,
        row.start_lsn,
        row.end_lsn,
        ImageFigures(row.images, row.blocks, row.record_bytes),
        None if point is None else _point_of(point, members, domains),
        row.held,
        row.last_point,
    )


def _point_of(
    row: _PointRow, members: Sequence[tuple[PointDisk, ...]], domains: Sequence[dict[str, str]]
) -> Point:
    return Point(
        row.sequence,
        row.time_ns,
        row.time_ns,
        row.kind,
        row.label,
        row.lsn,
        row.ordinal,
        row.clock_step_ns,
        row.consistent,
        members[row.members],
        domains[row.domains],
        row.received_ns,
        row.expire_ns,
        row.monotonic_ns,
        row.made_ns,
    )
