# SPDX-License-Identifier: Apache-2.0
"""A batch of the history as it is known in memory, and a segment of it. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from receiver.history.bodies import BatchBegin, BatchKind, Held, MemberBody, PointBody
from receiver.history.images import ImageFigures
from receiver.points.values import Point, PointDisk


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch that is whole in the history. It lies at history positions [begin, end);
    `ordinal` and `end_lsn` say which stream position the replica has behind it. `size_bytes`
    is what its records take; where its images lie, HistoryLog.table says. `last_point` is the
    sequence of the newest point at its end, whether it makes that itself or not."""

    number: int
    kind: BatchKind
    begin: int
    end: int
    ordinal: int
    start_lsn: int
    end_lsn: int
    images: ImageFigures
    point: Point | None
    held: Held | None = None
    last_point: int = 0

    @property
    def size_bytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of the history, holding positions [first, end). A compacted one holds less than
    that, and `data_end` says how far its records go. `chain` and `digest` are those that the next
    segment continues; an unsealed one (the newest) has no digest yet. `imageless`: bodies.StateBody
    says it. `seal_digest`: of its own seal, which of a compacted one is another."""

    first: int
    end: int
    data_end: int
    path: Path
    chain: int
    digest: bytes
    size_bytes: int
    sealed: bool
    imageless: int = 0
    seal_digest: bytes = b""


def batch_of(body: BatchBegin, end: int, images: ImageFigures) -> Batch:
    return Batch(
        body.number,
        body.kind,
        body.position,
        end,
        body.group.ordinal,
        body.start_lsn,
        body.group.lsn,
        images,
        None if body.point is None else point_of(body.point),
        body.held,
        body.group.last_point,
    )


def point_of(body: PointBody) -> Point:
    return Point(
        sequence=body.sequence,
        time_ns=body.time_ns,
        until_ns=body.time_ns,
        kind=body.kind,
        label=body.label,
        lsn=body.lsn,
        ordinal=body.ordinal,
        clock_step_ns=body.clock_step_ns,
        consistent=body.consistent,
        members=tuple(
            PointDisk(
                disk.slot,
                disk.name,
                disk.instance,
                disk.size_bytes,
                body.images.get(disk.name, ""),
            )
            for disk in body.members
        ),
        domains=body.domains,
        received_ns=body.received_ns,
        expire_ns=body.expire_ns,
        monotonic_ns=body.monotonic_ns,
        made_ns=body.made_ns,
    )


def point_body(point: Point) -> PointBody:
    return PointBody(
        point.sequence,
        point.time_ns,
        point.kind,
        point.label,
        point.lsn,
        point.ordinal,
        point.clock_step_ns,
        point.consistent,
        [
            MemberBody(disk.slot, disk.name, disk.instance, disk.size_bytes)
            for disk in point.members
        ],
        dict(point.domains),
        point.received_ns,
        point.expire_ns,
        point.monotonic_ns,
        point.made_ns,
        {disk.name: disk.image_name for disk in point.members if disk.image_name},
    )


def end_of(segments: Sequence[Segment]) -> int:
    """Behind the last whole unit in them."""
    return segments[-1].end if segments else 0


def imageless_upto(segments: Sequence[Segment]) -> int:
    """Number of the last batch that is known to have lost its images."""
    return max((each.imageless for each in segments), default=0)
