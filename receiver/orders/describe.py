# SPDX-License-Identifier: Apache-2.0
"""A group as it is now, in the words of the control API and of /metrics. No I/O."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from receiver.counted.keeper import ClockFacts
from receiver.damage.doubt import of_point
from receiver.group.status import lag_seconds, verdict_of
from receiver.group.worker import GroupWorker
from receiver.metrics import GroupSnapshot
from receiver.points.values import Point as CorePoint
from receiver.restore.restore import Restored
from receiver.writes.history import PointWrite
from replicator.base.clock import NS_PER_S, rfc3339, rfc3339_exact
from replicator.base.pointtext import label_text
from replicator.control.types import (
    ClockStatus,
    DiskStatus,
    GroupStatus,
    Point,
    RestoredImage,
    RestoreResult,
    Write,
)
from replicator.states.words import State


def point_of(point: CorePoint, damage: str = "", *, unverified: bool = False) -> Point:
    """A point in the API's words. `damage`: which blocks of it are lost. `unverified`: see
    receiver.damage.doubt."""
    return Point(
        sequence=point.sequence,
        time=rfc3339(point.time_ns),
        until=rfc3339(point.until_ns),
        kind=point.kind,
        label=None if point.label is None else label_text(point.label),
        damaged=bool(damage),
        damage=damage,
        unverified=unverified,
        made=rfc3339(point.made_ns) if point.made_ns else None,
        clock_step_seconds=point.clock_step_ns / NS_PER_S if point.clock_step_ns else None,
    )


def write_of(found: PointWrite) -> Write:
    write = found.write
    return Write(
        point=f"#{found.point.sequence}+{write.number}w",
        time=rfc3339_exact(write.time_ns),
        disk=write.disk,
        offset=write.offset,
        length=write.length,
        kind="zero" if write.content is None else "write",
    )


def restore_result(point: Point, done: Restored) -> RestoreResult:
    images = [
        RestoredImage(
            disk=image.disk,
            path=str(image.path),
            format=image.format,
            size=image.size,
            checksum=image.checksum,
            verified=image.verified,
        )
        for image in done.images
    ]
    return RestoreResult(point=point, files=[str(path) for path in done.files], images=images)


def clock_status(facts: ClockFacts) -> ClockStatus:
    return ClockStatus(
        state=facts.state,
        wall=rfc3339(facts.wall_ns),
        counted=rfc3339(facts.counted_ns),
        behind_seconds=facts.behind_ns / NS_PER_S,
        why=facts.why,
    )


def group_state(worker: GroupWorker) -> str:
    """In a word."""
    return verdict_of(worker).state.word


def group_status(worker: GroupWorker, now_ns: int) -> GroupStatus:
    sitter, verdict = worker.seat.sitter, verdict_of(worker)
    told = GroupStatus(
        name=worker.name,
        state=verdict.state.word,
        disks=[],
        reason=verdict.reason,
        remedy=verdict.remedy,
        peer=None if sitter is None else sitter.peer,
    )
    if not worker.health.is_recovered:
        return told
    replica, facts = worker.replica, worker.replica.known.welcome()
    newest, earlier = replica.points.newest, replica.known.earlier_sizes
    points, kept = replica.points.all, replica.keeping.facts(worker.policy)
    fine = replica.fine.log
    has_stream, unverified = facts.stream is not None, replica.opening.unverified
    return msgspec.structs.replace(
        told,
        rpo_seconds=lag_seconds(worker),
        end_watched=verdict.is_watched if verdict.state is State.SHUT_OFF else None,
        unprotected_seconds=worker.witness.awake_seconds if newest is None else None,
        clock_offset_seconds=worker.replica.intake.source_clock.offset_seconds,
        durable_lsn=facts.durable_lsn if has_stream else None,
        applied_lsn=facts.applied_lsn if has_stream else None,
        points=replica.points.count,
        newest_point=None if newest is None else point_of(newest),
        disks=[
            DiskStatus(name=name, size=size, earlier_sizes=earlier.get(name, []))
            for name, size in sorted(replica.known.disk_sizes().items())
        ],
        lag_bytes=replica.known.unapplied_bytes,
        history_bytes=replica.history.segment_set.used_bytes,
        fine_bytes=fine.used_bytes,
        fine_since=None if fine.oldest_ns is None else rfc3339(fine.oldest_ns),
        oldest_point=point_of(points[0]) if points else None,
        window_seconds=_seconds(kept.window_ns),
        window_wanted_seconds=_seconds(kept.wanted_ns),
        window_is_short=kept.is_short,
        history_capacity_bytes=kept.capacity_bytes,
        forecast_seconds=kept.forecast_seconds,
        lock_seconds=_seconds(kept.lock_ns),
        locked_until=None if kept.locked_until_ns is None else rfc3339(kept.locked_until_ns),
        scrub_ended=rfc3339(worker.scrubbing.ended_ns) if worker.scrubbing.ended_ns else None,
        scrub_progress=worker.scrubbing.progress,
        scrub_bad=worker.scrubbing.left,
        damaged_points=len(replica.known.damaged_points()),
        unverified_disks=sorted(unverified),
        unverified_points=sum(bool(of_point(unverified, point)) for point in points),
        scrub_rest_seconds=worker.scrubbing.rest_seconds,
    )


def _seconds(length_ns: int | None) -> float | None:
    return None if length_ns is None else length_ns / NS_PER_S


def group_snapshot(
    worker: GroupWorker, now_ns: int, *, views: int, oldest_view_ns: int | None = None
) -> GroupSnapshot:
    blank = GroupSnapshot(
        name=worker.name,
        state=group_state(worker),
        is_paused=worker.health.paused is not None,
        figures=worker.figures,
        views=views,
        oldest_view_seconds=(
            None if oldest_view_ns is None else max(now_ns - oldest_view_ns, 0) / NS_PER_S
        ),
        reconnects=worker.seat.fenced,
    )
    if not worker.health.is_recovered:
        return blank
    replica, facts, points = worker.replica, worker.replica.known.welcome(), worker.ordered.points()
    kept = replica.keeping.facts(worker.policy)
    has_stream = facts.stream is not None
    return replace(
        blank,
        points=len(points),
        rpo_seconds=lag_seconds(worker),
        clock_offset_seconds=worker.replica.intake.source_clock.offset_seconds,
        durable_lsn=facts.durable_lsn if has_stream else None,
        applied_lsn=facts.applied_lsn if has_stream else None,
        lag_bytes=replica.known.unapplied_bytes,
        oldest_point_ns=points[0].time_ns if points else None,
        newest_point_ns=points[-1].time_ns if points else None,
        history_bytes=replica.history.segment_set.used_bytes,
        inbox_bytes=replica.known.inbox_bytes,
        fine_bytes=replica.fine.log.used_bytes,
        window_seconds=_seconds(kept.window_ns),
        window_wanted_seconds=_seconds(kept.wanted_ns),
        is_window_short=kept.is_short,
        capacity_bytes=kept.capacity_bytes,
        forecast_seconds=kept.forecast_seconds,
        lock_seconds=_seconds(kept.lock_ns),
        scrub_good_ns=worker.scrubbing.good_ns or None,
        scrub_progress=worker.scrubbing.progress,
        damaged_points=len(replica.known.damaged_points()),
    )
