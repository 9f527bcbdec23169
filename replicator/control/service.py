# SPDX-License-Identifier: Apache-2.0
"""What a daemon must be able to do to be served by the control API. No I/O.

Each method returns when the thing is done, or raises a ReplicatorError. `report` may be called
from any thread, as often as one likes; what comes too fast is thinned out. A `group` is a
well-formed name, not necessarily a known one: NotFoundError is for the service to raise.

An order that changes state for good (rollback, restore, resync, close_view) is carried to its end
even if the client goes away; the others are cancelled then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

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
    GroupStatus,
    MarkedPoint,
    MarkRequest,
    Point,
    Progress,
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

Report = Callable[[Progress], None]


class AgentControl(Protocol):
    async def status(self) -> Status: ...

    async def mark(self, group: str, request: MarkRequest, report: Report) -> MarkedPoint:
        """With `wait`: returns when the point is durable at the receiver, with its number."""
        ...

    async def reload(self, request: ReloadRequest) -> ReloadResult:
        """Returns when it is taken over; refused as a whole, or carried out as a whole."""
        ...

    async def forget(self, group: str, request: ForgetRequest) -> ForgetResult:
        """Ends and deletes what is left here of a group that the configuration does not name."""
        ...

    async def resync(self, group: str) -> GroupStatus:
        """Returns when the sync has begun (libvirt) or the group takes one in (external)."""
        ...


class ReceiverControl(Protocol):
    async def status(self) -> Status: ...

    async def reload(self, request: ReloadRequest) -> ReloadResult:
        """See AgentControl."""
        ...

    async def forget(self, group: str, request: ForgetRequest) -> ForgetResult:
        """See AgentControl. Refused where points are locked, unless the order breaks the lock."""
        ...

    async def points(
        self, group: str, since: str | None, until: str | None, zone: str | None
    ) -> list[Point]:
        """Oldest first. `since` and `until` are texts as people type them, both inclusive, `zone`
        is where they were typed: an IANA name, or an offset like +01:00."""
        ...

    async def writes(
        self, group: str, around: str, window_ns: int, limit: int, zone: str | None
    ) -> list[Write]:
        """Single writes in order, within the window on either side of a time or a point; of more
        than `limit`, those nearest to it."""
        ...

    async def views(self) -> list[View]: ...

    async def audited(self, since: str | None, limit: int, zone: str | None) -> list[AuditRecord]:
        """The newest `limit` entries of the audit, oldest first; `since` as for `points`."""
        ...

    async def verify_audit(self) -> AuditVerdict:
        """Checks the audit's chain, and the histories against what it saw of them."""
        ...

    async def open_view(self, request: ViewRequest, report: Report) -> Chosen[View]:
        """Returns when the view can be connected to; waits until its point is applied."""
        ...

    async def close_view(self, view_id: str) -> None: ...

    async def plan_rollback(self, group: str, request: RollbackRequest) -> Chosen[RollbackPlan]:
        """What `rollback` would do now. Changes nothing."""
        ...

    async def rollback(
        self, group: str, request: RollbackRequest, report: Report
    ) -> Chosen[RollbackResult]:
        """Refused while a source feeds the group, unless that is to be detached."""
        ...

    async def restore(
        self, group: str, request: RestoreRequest, report: Report
    ) -> Chosen[RestoreResult]:
        """`request.to` is absolute. Leaves no file behind if it fails."""
        ...

    async def scrub(self, group: str, request: ScrubRequest, report: Report) -> ScrubReport:
        """Begins one, or joins the one under way. It goes on when nobody waits for it any more."""
        ...

    async def cancel_scrub(self, group: str) -> ScrubReport:
        """Gives up the one under way."""
        ...

    async def scrubbed(self, group: str) -> ScrubReport:
        """The one under way, or the last one."""
        ...

    async def drop_points(self, group: str, request: DropRequest) -> DropResult:
        """Durable when it returns. Refused as a whole, or carried out as a whole."""
        ...

    async def unlock(self, group: str, request: UnlockRequest) -> UnlockResult: ...

    async def accept(self, group: str, request: AcceptRequest, report: Report) -> AcceptResult:
        """Refused where the group has not stopped for what lies beside what."""
        ...

    async def accept_audit(self, request: AcceptAuditRequest) -> AuditAccepted:
        """Refused where the audit is not gone. Recorded in the one that begins by it."""
        ...

    async def accept_clock(self, request: AcceptClockRequest) -> ClockAccepted:
        """The receiver's machine has the right time: everything ages by it from now on."""
        ...
