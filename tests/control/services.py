# SPDX-License-Identifier: Apache-2.0
"""Daemons' services with canned answers, and a thread that serves one on a real socket.

They answer for group "web" with points #1 and #2 and refuse every other group; what they were
ordered to do is kept in `orders`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from replicator.base.errors import (
    DamageError,
    NoSpaceError,
    NotFoundError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.control.orders import (
    ACCEPT,
    ACCEPT_AUDIT,
    ACCEPT_CLOCK,
    AUDITED,
    CANCEL_SCRUB,
    CLOSE_VIEW,
    DROP_POINTS,
    FORGET,
    MARK,
    OPEN_VIEW,
    PLAN_ROLLBACK,
    POINT_PAGE,
    POINTS,
    RELOAD,
    RESTORE,
    RESYNC,
    ROLLBACK,
    SCRUB,
    SCRUBBED,
    STATUS,
    UNLOCK,
    VERIFY_AUDIT,
    VIEWS,
    WRITES,
)
from replicator.control.requests import (
    AcceptAuditRequest,
    AcceptClockRequest,
    AcceptRequest,
    AuditRequest,
    DropRequest,
    ForgetRequest,
    MarkRequest,
    NoRequest,
    PointPageRequest,
    PointsRequest,
    ReloadRequest,
    RestoreRequest,
    RollbackRequest,
    ScrubRequest,
    UnlockRequest,
    ViewRequest,
    WritesRequest,
)
from replicator.control.server import (
    AuditEntry,
    Server,
    serve_control,
)
from replicator.control.service import Answers, Call, answer
from replicator.control.types import (
    AcceptResult,
    AuditAccepted,
    AuditFault,
    AuditRecord,
    AuditVerdict,
    Chosen,
    ClockAccepted,
    DropResult,
    ForgetResult,
    GroupStatus,
    MarkedPoint,
    Nothing,
    Point,
    PointPage,
    Progress,
    ReloadResult,
    RestoredImage,
    RestoreResult,
    Role,
    RollbackPlan,
    RollbackResult,
    ScrubReport,
    Status,
    UnlockResult,
    View,
    Write,
)
from tests.control.canned import (
    CHANGES,
    FIRST,
    GROUP,
    RECORD,
    SCRUB_REPORT,
    SECOND,
    STEPPED,
    VIEW,
    WRITE,
    choose,
    known,
)


def _reloaded(orders: list[tuple[str, ...]], role: Role, request: ReloadRequest) -> ReloadResult:
    """Takes something away, so it has to be confirmed."""
    orders.append(("reload", role, f"{request.dry_run}", f"{request.removes_too}"))
    if not request.dry_run and not request.removes_too:
        raise UsageError("the configuration takes away: group old")
    return ReloadResult(role=role, name="here", changes=CHANGES)


class CannedAgent:
    def __init__(self) -> None:
        self.orders: list[tuple[str, ...]] = []
        self.mark_waits = asyncio.Event()
        self.mark_was_cancelled = asyncio.Event()

    def answers(self) -> Answers:
        return Answers(
            "agent",
            (
                answer(STATUS, self.status),
                answer(MARK, self.mark),
                answer(FORGET, self.forget),
                answer(RELOAD, self.reload),
                answer(RESYNC, self.resync),
            ),
        )

    async def status(self, _call: Call[NoRequest]) -> Status:
        return Status(role="agent", name="kvm1", version="1", groups=[GROUP])

    async def mark(self, call: Call[MarkRequest]) -> MarkedPoint:
        group, request = call.name, call.request
        known(group)
        if request.label == "forever":
            self.mark_waits.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.mark_was_cancelled.set()
                raise
        words: tuple[str, ...] = ("mark", group, request.label or "", str(request.wait))
        if request.quiesce or request.expire_seconds:
            words += (str(request.quiesce), str(request.expire_seconds))
        self.orders.append(words)
        if not request.wait:
            return MarkedPoint(
                sequence=None,
                time=SECOND.time,
                until=SECOND.time,
                kind="crash",
                label=request.label,
            )
        return MarkedPoint(
            sequence=SECOND.sequence,
            time=SECOND.time,
            until=SECOND.until,
            kind=SECOND.kind,
            label=SECOND.label,
            frozen_seconds=0.0125 if request.quiesce else None,
            notice="the moon was full" if request.quiesce else None,
        )

    async def forget(self, call: Call[ForgetRequest]) -> ForgetResult:
        group, request = call.name, call.request
        if group != "old":
            raise NotFoundError(f"nothing is left over of a group {group!r}")
        if not request.dry_run and request.confirm != group:
            raise UsageError("to forget a group for good its name has to be given twice")
        self.orders.append(("forget", group, str(request.dry_run), request.reason))
        return ForgetResult(
            group=group,
            bytes=3 << 20,
            points=7,
            places=["/spool/old"],
            copies=[] if request.dry_run else ["vm1/vda"],
            dry_run=request.dry_run,
        )

    async def reload(self, call: Call[ReloadRequest]) -> ReloadResult:
        return _reloaded(self.orders, "agent", call.request)

    async def resync(self, call: Call[NoRequest]) -> GroupStatus:
        known(call.name)
        self.orders.append(("resync", call.name))
        return GROUP


class CannedReceiver:
    def __init__(self) -> None:
        self.orders: list[tuple[str, ...]] = []
        self.audit_faults: list[AuditFault] = []
        self.locks_need_reason = False
        self.clock = msgspec.structs.replace(STEPPED, state="good", behind_seconds=0, why="")
        self.rollback_started = threading.Event()
        self.rollback_may_end: asyncio.Event | None = None
        self.rollback_ended = asyncio.Event()

    def answers(self) -> Answers:
        return Answers(
            "receiver",
            (
                answer(STATUS, self.status),
                answer(FORGET, self.forget),
                answer(RELOAD, self.reload),
                answer(POINTS, self.points),
                answer(POINT_PAGE, self.point_page),
                answer(WRITES, self.writes),
                answer(VIEWS, self.views),
                answer(AUDITED, self.audited),
                answer(VERIFY_AUDIT, self.verify_audit),
                answer(OPEN_VIEW, self.open_view),
                answer(CLOSE_VIEW, self.close_view),
                answer(PLAN_ROLLBACK, self.plan_rollback),
                answer(ROLLBACK, self.rollback),
                answer(RESTORE, self.restore),
                answer(SCRUB, self.scrub),
                answer(CANCEL_SCRUB, self.cancel_scrub),
                answer(SCRUBBED, self.scrubbed),
                answer(DROP_POINTS, self.drop_points),
                answer(UNLOCK, self.unlock),
                answer(ACCEPT, self.accept),
                answer(ACCEPT_AUDIT, self.accept_audit),
                answer(ACCEPT_CLOCK, self.accept_clock),
            ),
        )

    async def status(self, _call: Call[NoRequest]) -> Status:
        return Status(role="receiver", name="dr1", version="1", groups=[GROUP], clock=self.clock)

    async def forget(self, call: Call[ForgetRequest]) -> ForgetResult:
        group, request = call.name, call.request
        if group != "old":
            raise NotFoundError(f"nothing is left over of a group {group!r}")
        if not request.dry_run and request.confirm != group:
            raise UsageError("to forget a group for good its name has to be given twice")
        self.orders.append(("forget", group, str(request.dry_run), request.reason))
        return ForgetResult(
            group=group,
            bytes=3 << 20,
            points=7,
            places=["/spool/old"],
            copies=[] if request.dry_run else ["vm1/vda"],
            dry_run=request.dry_run,
        )

    async def reload(self, call: Call[ReloadRequest]) -> ReloadResult:
        return _reloaded(self.orders, "receiver", call.request)

    async def points(self, call: Call[PointsRequest]) -> list[Point]:
        asked = call.request
        known(call.name)
        self.orders.append(("points", call.name, str(asked.since), str(asked.until)))
        return [] if asked.since == "1s ago" else [FIRST, SECOND]

    async def point_page(self, call: Call[PointPageRequest]) -> PointPage:
        asked = call.request
        words = (str(each) for each in (asked.since, asked.until, asked.limit, asked.before))
        self.orders.append(("point page", call.name, *words))
        found = [] if asked.since == "1s ago" else [FIRST, SECOND][: (asked.before or 3) - 1]
        shown = found[-asked.limit :]
        return PointPage(points=shown, earlier=len(found) - len(shown))

    async def writes(self, call: Call[WritesRequest]) -> list[Write]:
        asked, window = call.request, str(call.request.window_ns())
        known(call.name)
        words = ("writes", call.name, asked.around, window, str(asked.limit), str(asked.zone))
        self.orders.append(words)
        return [] if asked.around == "1s ago" else [WRITE]

    async def views(self, _call: Call[NoRequest]) -> list[View]:
        return [VIEW]

    async def audited(self, call: Call[AuditRequest]) -> list[AuditRecord]:
        asked = call.request
        self.orders.append(("audited", str(asked.since), str(asked.limit), str(asked.zone)))
        return [RECORD]

    async def verify_audit(self, _call: Call[NoRequest]) -> AuditVerdict:
        return AuditVerdict(entries=1, head="ab" * 32, faults=self.audit_faults)

    async def open_view(self, call: Call[ViewRequest]) -> Chosen[View]:
        request = call.request
        known(request.group)
        point = msgspec.structs.replace(VIEW.point, unverified=request.unverified)
        return Chosen(
            choice=choose(request.at, unverified=request.unverified),
            result=msgspec.structs.replace(VIEW, point=point),
        )

    async def close_view(self, call: Call[NoRequest]) -> Nothing:
        if call.name != "v1":
            raise NotFoundError(f"no view {call.name!r}")
        self.orders.append(("close_view", call.name))
        return Nothing()

    async def plan_rollback(self, call: Call[RollbackRequest]) -> Chosen[RollbackPlan]:
        known(call.name)
        choice = choose(call.request.to)
        point = choice.point
        plan = RollbackPlan(
            sequence=point.sequence,
            time=point.time,
            until=point.until,
            kind=point.kind,
            label=point.label,
            changed_bytes=3 << 20,
            disks=["web-vda"],
            points_after=1,
            changed_blocks=768,
            expected_seconds=1.5,
            fed_by="kvm1 (10.0.0.1)",
        )
        return Chosen(choice=choice, result=plan)

    async def rollback(self, call: Call[RollbackRequest]) -> Chosen[RollbackResult]:
        group, request = call.name, call.request
        known(group)
        to = request.to
        if to == "connected" and request.force_detach:
            to = "latest"
        if to == "connected":
            raise OwnedError("agent kvm1 feeds group web", hint="stop it first")
        choice = choose(to)
        self.rollback_started.set()
        for done in range(3):
            call.report(Progress(done=done, total=3, what="writing"))
            await asyncio.sleep(0)
        if self.rollback_may_end is not None:
            await self.rollback_may_end.wait()
        if to == "#2" and self.rollback_may_end is not None:
            raise DamageError("history/0.seg: offset 192: checksum differs")
        self.orders.append(("rollback", group, to))
        self.rollback_ended.set()
        before = Point(sequence=3, time=SECOND.time, until=SECOND.time, kind="before-rollback")
        made = RollbackResult(
            sequence=4, time=SECOND.time, until=SECOND.time, kind="rollback", before=before
        )
        return Chosen(choice=choice, result=made)

    async def restore(self, call: Call[RestoreRequest]) -> Chosen[RestoreResult]:
        group, request = call.name, call.request
        known(group)
        choice = choose(request.at, unverified=request.unverified)
        self.orders.append(("restore", group, request.at, request.to))
        files = [f"{request.to}/web-vda.raw", f"{request.to}/web.xml"]
        image = RestoredImage(
            disk="web-vda",
            path=files[0],
            format=request.format,
            size=1 << 30,
            checksum="0f" * 16,
            verified=request.verify and not request.resume,
        )
        return Chosen(
            choice=choice, result=RestoreResult(point=choice.point, files=files, images=[image])
        )

    async def scrub(self, call: Call[ScrubRequest]) -> ScrubReport:
        group, request = call.name, call.request
        known(group)
        call.report(Progress(done=1, total=2, what="scrubbing"))
        self.orders.append(("scrub", group, str(request.wait), str(request.rate)))
        return SCRUB_REPORT

    async def cancel_scrub(self, call: Call[NoRequest]) -> ScrubReport:
        known(call.name)
        self.orders.append(("cancel scrub", call.name))
        return msgspec.structs.replace(SCRUB_REPORT, cancelled=FIRST.time)

    async def scrubbed(self, call: Call[NoRequest]) -> ScrubReport:
        known(call.name)
        return msgspec.structs.replace(SCRUB_REPORT, bad=[SCRUB_REPORT.bad[1]])

    async def drop_points(self, call: Call[DropRequest]) -> DropResult:
        group, request = call.name, call.request
        known(group)
        if "latest" in request.points:
            raise OwnedError("point #2 of group 'web' cannot be given up: it is the newest one")
        words = (*request.points, str(request.older_than), request.reason)
        self.orders.append(("plan drop" if request.dry_run else "drop", group, *words))
        if request.dry_run:
            return DropResult(points=[FIRST], dry_run=True)
        return DropResult(points=[FIRST], dry_run=False, freed_bytes=9 << 20, to_come_bytes=2 << 20)

    async def unlock(self, call: Call[UnlockRequest]) -> UnlockResult:
        group, request = call.name, call.request
        known(group)
        self.orders.append(("unlock", group, request.reason))
        return UnlockResult(group=group, lock_seconds_before=604_800, lock_seconds=3600)

    async def accept(self, call: Call[AcceptRequest]) -> AcceptResult:
        group, request = call.name, call.request
        known(group)
        call.report(Progress(done=1, total=2, what="comparing"))
        self.orders.append(("accept", group, request.reason))
        return AcceptResult(
            group=group, gone="a history", points=12, damaged_points=3, next_point=42, generation=2
        )

    async def accept_audit(self, call: Call[AcceptAuditRequest]) -> AuditAccepted:
        self.orders.append(("accept audit", call.request.reason))
        return AuditAccepted(lost_entries=7)

    async def accept_clock(self, call: Call[AcceptClockRequest]) -> ClockAccepted:
        request = call.request
        if self.locks_need_reason and not request.dry_run and not request.reason:
            raise UsageError("breaking a lock takes a reason", hint="say why: --reason TEXT")
        self.orders.append(("plan clock" if request.dry_run else "accept clock", request.reason))
        return ClockAccepted(
            forward_seconds=604_800,
            lock_forward_seconds=604_860,
            takes_reason=self.locks_need_reason,
            points={"web": 31, "db": 1},
            dry_run=request.dry_run,
            clock=STEPPED if request.dry_run else self.clock,
        )


class FailingReceiver(CannedReceiver):
    """Fails every listing with `error`; a plain exception stands for a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def points(self, _call: Call[PointsRequest]) -> list[Point]:
        raise self.error


class Audited(list[AuditEntry]):
    """An audit that keeps what it hears and can be told to refuse."""

    refusal: ReplicatorError | None = None
    refusal_behind: int | None = None
    """It takes so many entries more, then the disk is full."""

    def __call__(self, entry: AuditEntry) -> None:
        if self.refusal_behind is not None and len(self) >= self.refusal_behind:
            raise NoSpaceError("the disk is full")
        if self.refusal is not None:
            raise self.refusal
        self.append(entry)


async def serve(path: Path, service: CannedAgent | CannedReceiver, audit: Audited) -> Server:
    name = "kvm1" if isinstance(service, CannedAgent) else "dr1"
    return await serve_control(path, service.answers(), name=name, audit=audit)


@contextmanager
def served_in_thread(
    path: Path, make: type[CannedAgent] | type[CannedReceiver], audit: Audited
) -> Iterator[CannedAgent | CannedReceiver]:
    """A daemon for blocking clients: serves at `path` until the block ends."""
    started = threading.Event()
    made: list[CannedAgent | CannedReceiver] = []
    end: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def life() -> None:
        made.append(make())
        server = await serve(path, made[0], audit)
        stop = asyncio.Event()
        end.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=asyncio.run, args=(life(),))
    thread.start()
    try:
        if not started.wait(20):
            raise UnreachableError("the canned daemon did not start")
        yield made[0]
    finally:
        loop, stop = end[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        assert not thread.is_alive()
