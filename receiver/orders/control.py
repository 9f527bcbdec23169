# SPDX-License-Identifier: Apache-2.0
"""The orders of the control API, carried out on the groups' workers.

Nothing is decided here that the core or the seat does not decide: this finds the group, asks
pointspec which point is meant, waits for what has to be waited for, and says it in the API's types.
The audit of each changing order is written by the API's server, through `audit`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from receiver.audit.chain import Fact
from receiver.blocks.holes import Extents
from receiver.counted.keeper import CountedClock
from receiver.damage import doubt
from receiver.damage.damage import describe
from receiver.data_dir.keep_out import refuse_inside
from receiver.data_dir.layout import groups_dir
from receiver.data_dir.reserve import Reserve
from receiver.group.worker import GroupWorker
from receiver.history.images import BLOCK_BYTES
from receiver.orders.choosing import Chooser
from receiver.orders.describe import clock_status, group_status, point_of, restore_result, write_of
from receiver.orders.leftovers import Leftovers
from receiver.orders.lookout import Lookout
from receiver.orders.recorder import Recorder
from receiver.orders.reloading import Reloading
from receiver.points.figures import GroupFigures
from receiver.points.pointspec import begun, reaches, stamp_of
from receiver.restore.restore import RestoreOrder
from receiver.retention.dropping import DropOrder, check_reason
from receiver.views.files import ViewDisk
from receiver.views.fine_view import GroupView
from receiver.views.open_views import Views
from receiver.views.options import view_options
from replicator import __version__
from replicator.base.clock import NS_PER_S, Clock, rfc3339
from replicator.base.errors import DamageError, NotFoundError, UsageError
from replicator.base.trouble import words_of
from replicator.base.units import parse_duration_ns
from replicator.control.server import AuditEntry
from replicator.control.service import Report
from replicator.control.types import (
    AcceptAuditRequest,
    AcceptClockRequest,
    AcceptRequest,
    AcceptResult,
    AuditAccepted,
    AuditRecord,
    AuditVerdict,
    Chosen,
    ClockAccepted,
    DropRequest,
    DropResult,
    ForgetRequest,
    ForgetResult,
    Point,
    ReloadRequest,
    ReloadResult,
    RestoreRequest,
    RestoreResult,
    RollbackPlan,
    RollbackRequest,
    RollbackResult,
    ScrubReport,
    ScrubRequest,
    Status,
    UnlockRequest,
    UnlockResult,
    View,
    ViewRequest,
    Write,
)
from replicator.wire.credentials import Credentials


class ReceiverService:
    """What replicator.control serves (ReceiverControl)."""

    def __init__(
        self,
        name: str,
        workers: Mapping[str, GroupWorker],
        views: Views,
        recorder: Recorder,
        clock: Clock,
        counted: CountedClock,
        agents: Mapping[str, Sequence[str]],
        credentials: Credentials,
        lookout: Lookout,
        reloading: Reloading,
        leftovers: Leftovers,
        *,
        data_dir: Path,
        reserve: Reserve,
    ) -> None:
        """`agents`: who may feed each group. Nothing is restored into `data_dir`."""
        self._reloading = reloading
        self._leftovers = leftovers
        self._data_dir = data_dir
        self._reserve = reserve
        self._lookout = lookout
        self._agents = agents
        self._credentials = credentials
        self._name = name
        self._workers = workers
        self._views = views
        self._recorder = recorder
        self._clock = clock
        self._counted = counted
        self._chooser = Chooser(clock)

    async def reload(self, request: ReloadRequest) -> ReloadResult:
        return await self._reloading.reload(request)

    async def forget(self, group: str, request: ForgetRequest) -> ForgetResult:
        reason = check_reason(request.reason, breaks_lock=request.break_lock)
        try:
            given = msgspec.structs.replace(request, reason=reason)
            return await self._leftovers.forget(group, given)
        except OSError as error:
            raise words_of(error) from error

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
            certificate_not_after=rfc3339(self._credentials.not_after_ns),
            certificate_warning=self._credentials.warning,
            leftovers=self._leftovers.listed(),
            orders_refused=self._refused(),
            clock=clock_status(self._counted.facts()),
        )

    def _refused(self) -> str:
        """Why orders are, and what to do about it; empty if they are not."""
        refuses, remedy = self._recorder.refuses, self._recorder.remedy
        return f"{refuses}; {remedy}" if refuses else ""

    async def points(
        self, group: str, since: str | None, until: str | None, zone: str | None
    ) -> list[Point]:
        worker = self._worker(group)
        found, ages = worker.points(), worker.replica.ages()
        moment = self._chooser.moment
        first = None if since is None else await moment(worker, since, zone)
        last = None if until is None else await moment(worker, until, zone)
        damage = worker.replica.damaged_points()
        return [
            point_of(
                point,
                describe(damage.get(point.sequence, ()), point),
                unverified=bool(doubt.of_point(worker.replica.unverified, point)),
            )
            for point in found
            if (first is None or reaches(point, first, ages))
            and (last is None or begun(point, last, ages))
        ]

    async def writes(
        self, group: str, around: str, window_ns: int, limit: int, zone: str | None
    ) -> list[Write]:
        worker = self._worker(group)
        moment = await self._chooser.moment(worker, around, zone)
        stamp_ns = stamp_of(moment, worker.points(), worker.replica.ages())
        found = await worker.writes_around(stamp_ns, window_ns, limit)
        return [write_of(each) for each in found]

    async def views(self) -> list[View]:
        return self._views.listed()

    async def audited(self, since: str | None, limit: int, zone: str | None) -> list[AuditRecord]:
        since_ns = None if since is None else self._chooser.time(since, zone).time_ns
        return await asyncio.to_thread(self._recorder.listed, since_ns, limit)

    async def verify_audit(self) -> AuditVerdict:
        await self._lookout.complete()
        return await asyncio.to_thread(self._recorder.verify, self._recorder.stretches())

    async def plan_rollback(self, group: str, request: RollbackRequest) -> Chosen[RollbackPlan]:
        worker = self._worker(group)
        chosen = await self._chooser.choose(worker, request.to, request.zone)
        plan = await worker.plan_rollback(chosen.point, chosen.writes)
        sitter = worker.seat.sitter
        result = RollbackPlan(
            **_fields(chosen.choice.point),
            changed_bytes=plan.changed_bytes,
            disks=plan.disks,
            points_after=plan.points_after,
            changed_blocks=plan.changed_bytes // BLOCK_BYTES,
            expected_seconds=plan.changed_bytes / worker.rewrite_rate,
            fed_by=None if sitter is None else sitter.peer,
        )
        return Chosen(choice=chosen.choice, result=result)

    # Changing.

    async def open_view(self, request: ViewRequest, report: Report) -> Chosen[View]:
        worker = self._worker(request.group)
        options = view_options(request, self._agents.get(request.group, ()))
        if options.listen is None:
            self._views.check_room(request.group)
        await worker.aside.run(self._reserve.ready, "a view")
        chosen = await self._chooser.choose(worker, request.at, request.zone)
        options = replace(options, writes=chosen.writes)
        unverified = request.unverified and chosen.choice.point.unverified
        shown = await worker.open_view(chosen.point, report, chosen.writes, unverified=unverified)
        disks = [
            ViewDisk(name, size, _DiskOf(shown, name, worker.figures)) for name, size in shown.disks
        ]
        view = await self._views.open(
            request.group, chosen.choice.point, disks, shown.close, options
        )
        return Chosen(choice=chosen.choice, result=view)

    async def close_view(self, view_id: str) -> None:
        await self._views.close(view_id)

    async def rollback(
        self, group: str, request: RollbackRequest, report: Report
    ) -> Chosen[RollbackResult]:
        worker = self._worker(group)
        # that a point is unknown is said before who feeds the group
        await self._chooser.choose(worker, request.to, request.zone)
        async with worker.seat.kept_empty_for("rollback", detach=request.force_detach):
            chosen = await self._chooser.choose(worker, request.to, request.zone)
            done = await worker.rollback(chosen.point, report, chosen.writes)
        result = RollbackResult(**_fields(point_of(done.point)), before=point_of(done.before))
        return Chosen(choice=chosen.choice, result=result)

    async def restore(
        self, group: str, request: RestoreRequest, report: Report
    ) -> Chosen[RestoreResult]:
        worker = self._worker(group)
        own = groups_dir(self._data_dir) / group
        await worker.aside.run(refuse_inside, Path(request.to), self._data_dir, own)
        chosen = await self._chooser.choose(worker, request.at, request.zone)
        order = RestoreOrder(
            group,
            chosen.writes,
            request.format,
            resume=request.resume,
            verify=request.verify,
            unverified=request.unverified and chosen.choice.point.unverified,
        )
        done = await worker.restore(chosen.point, Path(request.to), report, order)
        result = restore_result(chosen.choice.point, done)
        return Chosen(choice=chosen.choice, result=result)

    async def scrub(self, group: str, request: ScrubRequest, report: Report) -> ScrubReport:
        worker = self._worker(group)
        worker.check_alive()
        return await worker.scrubbing.order(report, waits=request.wait, rate=request.rate)

    async def cancel_scrub(self, group: str) -> ScrubReport:
        return await self._worker(group).scrubbing.cancel()

    async def scrubbed(self, group: str) -> ScrubReport:
        worker = self._worker(group)
        worker.check_recovered()
        return worker.scrubbing.report()

    async def drop_points(self, group: str, request: DropRequest) -> DropResult:
        worker = self._worker(group)
        reason = check_reason(request.reason, breaks_lock=request.break_lock)
        request.require_choice()
        order = DropOrder(
            frozenset(
                self._chooser.point(worker, text, request.zone).sequence for text in request.points
            ),
            None if request.older_than is None else _duration_ns(request.older_than),
            reason,
        )
        done = await worker.drop(order, dry_run=request.dry_run)
        return DropResult(
            points=[point_of(point) for point in done.points],
            dry_run=request.dry_run,
            freed_bytes=done.freed_bytes,
            to_come_bytes=done.to_come_bytes,
        )

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

    async def accept(self, group: str, request: AcceptRequest, report: Report) -> AcceptResult:
        worker = self._worker(group)
        check_reason(request.reason, breaks_lock=True)
        gone = await worker.accept(report)
        points, damaged = worker.points(), worker.replica.damaged_points()
        return AcceptResult(
            group=group,
            gone=gone,
            points=len(points) - len(damaged),
            damaged_points=len(damaged),
            next_point=worker.facts().next_point,
            generation=worker.facts().generation,
        )

    async def accept_audit(self, request: AcceptAuditRequest) -> AuditAccepted:
        check_reason(request.reason, breaks_lock=True)
        return AuditAccepted(lost_entries=self._recorder.accept())

    async def accept_clock(self, request: AcceptClockRequest) -> ClockAccepted:
        """Where that ends locks sooner it takes a reason, as breaking them does."""
        planned = self._counted.accept(dry_run=True)
        moves_lock = planned.lock_by_ns > 0 and any(
            worker.replica.lock_ns for worker in self._workers.values() if worker.is_recovered
        )
        if not request.dry_run:
            check_reason(request.reason, breaks_lock=moves_lock or bool(request.reason.strip()))
        points = {
            name: worker.replica.ageing_out(worker.policy, planned.before, planned.after)
            for name, worker in self._workers.items()
            if worker.is_recovered
        }
        if not request.dry_run:
            self._counted.accept(dry_run=False)
            for worker in self._workers.values():
                worker.wake()
        return ClockAccepted(
            forward_seconds=planned.by_ns / NS_PER_S,
            lock_forward_seconds=planned.lock_by_ns / NS_PER_S,
            takes_reason=moves_lock,
            points={name: count for name, count in points.items() if count},
            dry_run=request.dry_run,
            clock=clock_status(self._counted.facts()),
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

    def extents(self, offset: int, length: int) -> Extents:
        return self._view.extents(self._disk, offset, length)


def _fields(point: Point) -> dict[str, Any]:
    """To build an answer that is a point and more."""
    return msgspec.structs.asdict(point)


def _duration_ns(text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
