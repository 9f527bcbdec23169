# SPDX-License-Identifier: Apache-2.0
"""What the receiver's core hands to those around it: points, notices, outcomes. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from replicator.base.pointtext import label_text

PointKind = Literal["crash", "application", "before-rollback", "rollback"]
Condition = Literal["idle", "syncing", "complete", "rolling-back", "rolled-back"]


@dataclass(frozen=True, slots=True)
class PointDisk:
    """A disk as it belongs to a point, under the name that the source gave it. `slot` is its number
    in the history, which never means another image: a disk that came back under the name keeps it,
    one that came back with another size has a new one (receiver.history.state). `instance` tells
    apart two disks that came under one name. `image_name` is empty where its image has its own
    name."""

    slot: int
    name: str
    instance: str
    size_bytes: int
    image_name: str = ""

    @property
    def image(self) -> str:
        """What the replica calls its image."""
        return self.image_name or self.name


@dataclass(frozen=True, slots=True)
class Point:
    """A recovery point. `lsn` is the end of its cut record in stream `ordinal`; 0 where no cut
    made it. `consistent` is false only for the pinned state before a rollback that was ordered
    in the middle of a sync. `domains` maps a domain's name to the digest of its XML.

    `received_ns` is when it was applied here, by the receiver's counted clock: what retention ages
    by; 0 while it is not applied, or was by a version that did not note it. `is_restamped`: its
    stamp was ahead of that clock and was taken back; many points share the new one. `stood_ns`: for
    how long it stood from then on, by that clock: never more than what the source says. `expire_ns`
    is how long a labelled or application-consistent point is to survive thinning from its receipt
    on; 0: for ever.

    `time_ns` is the source's wall clock, which may have been set. `monotonic_ns` is what its other
    clock showed, `made_ns` when that was by ours (receiver.points.source_clock); 0: nobody
    knows."""

    sequence: int
    time_ns: int
    until_ns: int
    kind: PointKind
    label: str | None = None
    lsn: int = 0
    ordinal: int = 0
    clock_step_ns: int = 0
    consistent: bool = True
    members: tuple[PointDisk, ...] = ()
    domains: Mapping[str, str] = field(default_factory=dict)
    received_ns: int = 0
    expire_ns: int = 0
    monotonic_ns: int = 0
    made_ns: int = 0
    is_restamped: bool = False
    stood_ns: int = 0

    @property
    def ahead_ns(self) -> int:
        """How far its time is ahead of when it was made; 0 where that is not known."""
        return self.time_ns - self.made_ns if self.made_ns else 0

    def __str__(self) -> str:
        return f"#{self.sequence}" + (f" {label_text(self.label)!r}" if self.label else "")


def received_at_ns(point: Point) -> int:
    """By the receiver's counted clock; of a time when that was not noted, by the point's own."""
    return point.received_ns or point.time_ns


@dataclass(frozen=True, slots=True)
class SyncNotice:
    """A sync of a disk has begun for which the source wants digests, as soon as everything below
    `begun_lsn` is applied. `disk` is the stream's index of it, `sync_lsn` that of its
    sync-begin record."""

    disk: int
    sync_lsn: int
    begun_lsn: int
    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WelcomeFacts:
    """What a source has to know to resume. `stream` is None where nothing may be resumed; then
    `durable_lsn` and `chain` mean nothing. Ordinals are 0 where there is none."""

    generation: int
    stream: UUID | None
    ordinal: int
    durable_lsn: int
    chain: int
    applied_lsn: int
    closed_ordinal: int
    next_point: int


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """Frames may come from `durable_lsn` on. `points` became durable on the way."""

    durable_lsn: int
    syncs: list[SyncNotice]
    points: list[Point]


@dataclass(frozen=True, slots=True)
class Durable:
    """Survives a power cut from here on: the log up to `durable_lsn`, and these new points.
    `syncs` have begun in it, and want digests."""

    durable_lsn: int
    points: list[Point]
    syncs: list[SyncNotice]


@dataclass(frozen=True, slots=True)
class DigestRun:
    """Blocks from `first_block` on: 16 bytes each in `digests`, or `zero_blocks` of zeroes."""

    first_block: int
    digests: bytes = b""
    zero_blocks: int = 0


@dataclass(frozen=True, slots=True)
class DigestChunk:
    """Blocks of the replica as they were with everything below `lsn` applied."""

    lsn: int
    runs: list[DigestRun]


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """What a rollback to `point` would do. Bytes are counted in whole blocks."""

    point: Point
    changed_bytes: int
    disks: list[str]
    points_after: int


@dataclass(frozen=True, slots=True)
class RollbackDone:
    """`before` is the pinned state just before: a rollback to it is the undo."""

    before: Point
    point: Point


@dataclass(frozen=True, slots=True)
class Dropped:
    """Points that were given up by order, or would be. `freed_bytes` of the disk are free since
    then, `to_come_bytes`, about, will be when what is left of the history has been put together."""

    points: list[Point]
    freed_bytes: int = 0
    to_come_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Retained:
    """`over_budget` says why history and inbox are still larger than they may be; empty if they
    are not. `must_wait`: the history by itself is, so nothing more may be applied."""

    dropped: list[Point]
    used_bytes: int
    over_budget: str = ""
    must_wait: bool = False


@dataclass(frozen=True, slots=True)
class GroupEvent:
    """Something the operator should find in the log."""

    name: str
    group: str
    fields: Mapping[str, object]


def ignore_event(_event: GroupEvent) -> None:
    """Where nobody listens."""
