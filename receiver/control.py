# SPDX-License-Identifier: Apache-2.0
"""The orders of the control API, carried out on the groups' workers.

Nothing is decided here that the core or the seat does not decide: this finds the group, asks
pointspec which point is meant, waits for what has to be waited for, and says it in the API's types.
The audit of each changing order is written by the API's server, through `audit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from receiver import pointspec
from receiver.audit.chain import Fact
from receiver.audit.recorder import Recorder
from receiver.damage import describe
from receiver.describe import group_status, point_of
from receiver.dropping import DropOrder, check_reason
from receiver.figures import GroupFigures
from receiver.fine_view import GroupView
from receiver.history.images import BLOCK_BYTES
from receiver.values import Point as CorePoint
from receiver.view_options import view_options
from receiver.views import ViewDisk, Views
from receiver.worker import GroupWorker
from replicator import __version__
from replicator.base.clock import NS_PER_S, Clock
from replicator.base.errors import DamageError, NoPointError, NotFoundError, UsageError
from replicator.base.units import parse_duration_ns
from replicator.control.server import AuditEntry
from replicator.control.service import Report
from replicator.control.types import (
    AuditRecord,
    AuditVerdict,
    Choice,
    Chosen,
    DropRequest,
    DropResult,
    Point,
    RestoreRequest,
    RestoreResult,
    RollbackPlan,
    RollbackResult,
    ScrubReport,
    ScrubRequest,
    Status,
    UnlockRequest,
    UnlockResult,
    View,
    ViewRequest,
)


class ReceiverService:
    """What replicator.control serves (ReceiverControl)."""

    def __init__(
        self,
        name: str,
        workers: Mapping[str, GroupWorker],
        views: Views,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._name = name
        self._workers = workers
        self._views = views
        self._recorder = recorder
        self._clock = clock

    # Looking.

    async def status(self) -> Status:
        now_ns = self._clock.utc_ns()
        groups = [group_status(worker, now_ns) for worker in self._workers.values()]
        return Status(
            role="receiver",
            name=self._name,
            version=__version__,
            groups=groups,
            audit_head=self._recorder.link.digest,
            audit_breaks=len(self._recorder.breaks),
        )

    async def points(self, group: str, since: str | None, until: str | None) -> list[Point]:
        worker = self._worker(group)
        found = worker.points()
        since_ns = None if since is None else self._moment(since, found)
        until_ns = None if until is None else self._moment(until, found)
        damage = worker.replica.damaged_points()
        return [
            point_of(point, describe(damage.get(point.sequence, ()), point))
            for point in found
            if (since_ns is None or point.until_ns >= since_ns)
            and (until_ns is None or point.time_ns <= until_ns)
        ]

    async def views(self) -> list[View]:
        return self._views.listed()

    async def audited(self, since: str | None, limit: int) -> list[AuditRecord]:
        since_ns = None if since is None else self._moment(since, [])
        return await asyncio.to_thread(self._recorder.listed, since_ns, limit)

    async def verify_audit(self) -> AuditVerdict:
        return await asyncio.to_thread(self._recorder.verify, self._recorder.stretches())

    async def plan_rollback(self, group: str, to: str) -> Chosen[RollbackPlan]:
        worker = self._worker(group)
        choice, point = self._choose(worker, to)
        plan = await worker.plan_rollback(point)
        result = RollbackPlan(
            **_fields(choice.point),
            changed_bytes=plan.changed_bytes,
            disks=plan.disks,
            points_after=plan.points_after,
            changed_blocks=plan.changed_bytes // BLOCK_BYTES,
            expected_seconds=plan.changed_bytes / worker.rewrite_rate,
        )
        return Chosen(choice=choice, result=result)

    # Changing.

    async def open_view(self, request: ViewRequest, report: Report) -> Chosen[View]:
        worker = self._worker(request.group)
        options = view_options(request)
        if options.listen is None:
            self._views.check_room(request.group)
        choice, point = self._choose(worker, request.at)
        shown = await worker.open_view(point, report)
        disks = [
            ViewDisk(name, size, _DiskOf(shown, name, worker.figures)) for name, size in shown.disks
        ]
        view = await self._views.open(request.group, choice.point, disks, shown.close, options)
        return Chosen(choice=choice, result=view)

    async def close_view(self, view_id: str) -> None:
        await self._views.close(view_id)

    async def rollback(
        self, group: str, to: str, report: Report, *, force_detach: bool = False
    ) -> Chosen[RollbackResult]:
        worker = self._worker(group)
        self._choose(worker, to)  # that a point is unknown is said before who feeds the group
        async with worker.seat.kept_empty_for("rollback", detach=force_detach):
            choice, point = self._choose(worker, to)
            done = await worker.rollback(point, report)
        result = RollbackResult(**_fields(point_of(done.point)), before=point_of(done.before))
        return Chosen(choice=choice, result=result)

    async def restore(
        self, group: str, request: RestoreRequest, report: Report
    ) -> Chosen[RestoreResult]:
        worker = self._worker(group)
        choice, point = self._choose(worker, request.at)
        files = await worker.restore(point, Path(request.to), report)
        result = RestoreResult(point=choice.point, files=[str(path) for path in files])
        return Chosen(choice=choice, result=result)

    async def scrub(self, group: str, request: ScrubRequest, report: Report) -> ScrubReport:
        worker = self._worker(group)
        worker.check_alive()
        return await worker.scrubbing.order(report, waits=request.wait, rate=request.rate)

    async def scrubbed(self, group: str) -> ScrubReport:
        worker = self._worker(group)
        worker.check_recovered()
        return worker.scrubbing.report()

    async def drop_points(self, group: str, request: DropRequest) -> DropResult:
        worker = self._worker(group)
        reason = check_reason(request.reason, breaks_lock=request.break_lock)
        if not request.points and request.older_than is None:
            raise UsageError("says neither which points nor how old", hint="name points, or an age")
        order = DropOrder(
            frozenset(self._choose(worker, text)[1].sequence for text in request.points),
            None if request.older_than is None else _duration_ns(request.older_than),
            reason,
        )
        gone = await worker.drop(order, dry_run=request.dry_run)
        return DropResult(points=[point_of(point) for point in gone], dry_run=request.dry_run)

    async def unlock(self, group: str, request: UnlockRequest) -> UnlockResult:
        worker = self._worker(group)
        if not request.break_lock:
            raise UsageError("an unlock breaks the lock, and the order has to say so")
        before_ns = await worker.unlock(check_reason(request.reason, breaks_lock=True))
        return UnlockResult(
            group=group,
            lock_seconds_before=before_ns / NS_PER_S,
            lock_seconds=worker.replica.lock_ns / NS_PER_S,
        )

    def audit(self, entry: AuditEntry) -> None:
        """An order that cannot be recorded is not carried out: raises ReplicatorError."""
        self._recorder.record(
            Fact(
                entry.order,
                entry.object,
                entry.argument,
                entry.uid,
                entry.pid,
                entry.outcome,
                entry.message,
            )
        )

    # Inside.

    def _worker(self, group: str) -> GroupWorker:
        worker = self._workers.get(group)
        if worker is None:
            raise NotFoundError(
                f"this receiver has no group {group!r}", hint="`replicator status` lists its groups"
            )
        return worker

    def _choose(self, worker: GroupWorker, text: str) -> tuple[Choice, CorePoint]:
        chosen = pointspec.find(text, self._clock.utc_ns(), None, worker.points())
        if chosen.writes:
            raise NoPointError(f"group {worker.name!r} keeps no single writes")
        distance = None if chosen.distance_ns is None else chosen.distance_ns / NS_PER_S
        choice = Choice(asked=text, point=point_of(chosen.point), distance_seconds=distance)
        return choice, chosen.point

    def _moment(self, text: str, points: list[CorePoint]) -> int:
        """A time, or that of the point which the text names."""
        spec = pointspec.parse(text, self._clock.utc_ns())
        if spec.time_ns is not None:
            return spec.time_ns
        return pointspec.resolve(spec, points).point.time_ns


class _DiskOf:
    """One disk of a point, as an export reads it."""

    def __init__(self, view: GroupView, disk: str, figures: GroupFigures) -> None:
        self._view = view
        self._disk = disk
        self._figures = figures

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._view.read(self._disk, offset, length)
        except DamageError:
            self._figures.found_damage("view")
            raise


def _fields(point: Point) -> dict[str, Any]:
    """To build an answer that is a point and more."""
    return msgspec.structs.asdict(point)


def _duration_ns(text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
