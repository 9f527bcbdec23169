# SPDX-License-Identifier: Apache-2.0
"""Every order of the control API, declared once. No I/O.

An order is a value: its path, what it is asked with, what it answers, who answers it, what the
audit calls it. The rest is made from these values, and says none of it again:

    server      a route for each, in front of the daemon's answers      server, answering
    client      `client.order(ROLLBACK, "web", RollbackRequest(to="#3"))`, typed by the value
    OpenAPI     docs/openapi.json                                       openapi

The contract: paths, methods and words for the audit are never changed or dropped. GET and DELETE
are asked by query parameters, POST by a JSON body; both are the fields of `request`, and one that
is not known refuses the order. A path names one thing at most: a group, or a view.

An order that changes something has a word for the audit, and is recorded before and after it is
carried out. A long one answers with lines: its progress, then its result. One that
`is_finished_anyway` is carried to its end if whoever ordered it goes away; others are cancelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

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
    Request,
    RestoreRequest,
    RollbackRequest,
    ScrubRequest,
    UnlockRequest,
    ViewRequest,
    WritesRequest,
)
from replicator.control.types import (
    AcceptResult,
    AuditAccepted,
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
    ReloadResult,
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

Method = Literal["GET", "POST", "DELETE"]
Q = TypeVar("Q", bound=Request)
A = TypeVar("A")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(Generic[Q, A]):
    """`about`: what it does, and when it answers. `audit`: "" for what only looks.

    `plan`: the order that is carried out instead where the request asks for a plan. Such an order
    `is_plan`; it has no path of its own.
    """

    name: str
    method: Method
    path: str
    about: str
    request: type[Q]
    answer: type[A]
    roles: tuple[Role, ...] = ("receiver",)
    audit: str = ""
    is_long: bool = False
    is_finished_anyway: bool = False
    plan: Order[Q, Any] | None = None
    is_plan: bool = False

    @property
    def names_group(self) -> bool:
        return "{group}" in self.path

    @property
    def takes_body(self) -> bool:
        return self.method == "POST" and self.request is not NoRequest

    @property
    def takes_query(self) -> bool:
        return self.method != "POST"


# -- both -----------------------------------------------------------------------------------------

STATUS = Order(
    name="status",
    method="GET",
    path="/v1/status",
    about="How the daemon and its groups are.",
    request=NoRequest,
    answer=Status,
    roles=("agent", "receiver"),
)

RELOAD = Order(
    name="reload",
    method="POST",
    path="/v1/reload",
    about="Takes the configuration over: as a whole, or not at all.",
    request=ReloadRequest,
    answer=ReloadResult,
    roles=("agent", "receiver"),
    audit="reload",
    is_finished_anyway=True,
)

FORGET = Order(
    name="forget",
    method="POST",
    path="/v1/groups/{group}/forget",
    about="Ends and deletes what is left of a group that the configuration does not name. Refused"
    " where points are locked, unless it breaks the lock.",
    request=ForgetRequest,
    answer=ForgetResult,
    roles=("agent", "receiver"),
    audit="forget",
    is_finished_anyway=True,
)

# -- the agent ------------------------------------------------------------------------------------

MARK = Order(
    name="mark",
    method="POST",
    path="/v1/groups/{group}/mark",
    about="Makes a point now. With `wait` it answers when the point is durable at the receiver,"
    " with its number.",
    request=MarkRequest,
    answer=MarkedPoint,
    roles=("agent",),
    audit="mark",
    is_long=True,
)

RESYNC = Order(
    name="resync",
    method="POST",
    path="/v1/groups/{group}/resync",
    about="Answers when the sync has begun (libvirt), or the group takes one in (external).",
    request=NoRequest,
    answer=GroupStatus,
    roles=("agent",),
    audit="resync",
    is_finished_anyway=True,
)

# -- the receiver: looking ------------------------------------------------------------------------

POINTS = Order(
    name="points",
    method="GET",
    path="/v1/groups/{group}/points",
    about="The recovery points of a range, oldest first.",
    request=PointsRequest,
    answer=list[Point],
)

POINT_PAGE = Order(
    name="point_page",
    method="GET",
    path="/v1/groups/{group}/points/page",
    about="Some of the newest recovery points of a range, oldest first, and how many lie in front.",
    request=PointPageRequest,
    answer=PointPage,
)

WRITES = Order(
    name="writes",
    method="GET",
    path="/v1/groups/{group}/writes",
    about="Single writes in order, around a time or a point; of too many the nearest to it.",
    request=WritesRequest,
    answer=list[Write],
)

VIEWS = Order(
    name="views",
    method="GET",
    path="/v1/views",
    about="The views that are open.",
    request=NoRequest,
    answer=list[View],
)

AUDITED = Order(
    name="audited",
    method="GET",
    path="/v1/audit",
    about="The newest entries of the audit, oldest first.",
    request=AuditRequest,
    answer=list[AuditRecord],
)

VERIFY_AUDIT = Order(
    name="verify_audit",
    method="GET",
    path="/v1/audit/verify",
    about="Checks the audit's chain, and the histories against what it saw of them.",
    request=NoRequest,
    answer=AuditVerdict,
    is_long=True,
)

SCRUBBED = Order(
    name="scrubbed",
    method="GET",
    path="/v1/groups/{group}/scrub",
    about="The scrub under way, or the last one.",
    request=NoRequest,
    answer=ScrubReport,
)

# -- the receiver: changing -----------------------------------------------------------------------

OPEN_VIEW = Order(
    name="open_view",
    method="POST",
    path="/v1/views",
    about="Serves a point's disks. Waits until the point is applied, and answers when the view can"
    " be connected to.",
    request=ViewRequest,
    answer=Chosen[View],
    audit="view open",
    is_long=True,
)

CLOSE_VIEW = Order(
    name="close_view",
    method="DELETE",
    path="/v1/views/{view}",
    about="Closes a view; whoever is connected to it is cut off.",
    request=NoRequest,
    answer=Nothing,
    audit="view close",
    is_finished_anyway=True,
)

PLAN_ROLLBACK = Order(
    name="plan_rollback",
    method="POST",
    path="/v1/groups/{group}/rollback",
    about="What a rollback would do now. Changes nothing.",
    request=RollbackRequest,
    answer=Chosen[RollbackPlan],
    is_plan=True,
)

ROLLBACK = Order(
    name="rollback",
    method="POST",
    path="/v1/groups/{group}/rollback",
    about="Takes the replica back to a point. Refused while a source feeds the group, unless that"
    " is to be detached. With `dry_run` it plans one.",
    request=RollbackRequest,
    answer=Chosen[RollbackResult],
    audit="rollback",
    is_long=True,
    is_finished_anyway=True,
    plan=PLAN_ROLLBACK,
)

RESTORE = Order(
    name="restore",
    method="POST",
    path="/v1/groups/{group}/restore",
    about="Writes a point into new images. Leaves no file behind if it fails.",
    request=RestoreRequest,
    answer=Chosen[RestoreResult],
    audit="restore",
    is_long=True,
    is_finished_anyway=True,
)

SCRUB = Order(
    name="scrub",
    method="POST",
    path="/v1/groups/{group}/scrub",
    about="Begins a scrub, or joins the one under way. It goes on when nobody waits for it.",
    request=ScrubRequest,
    answer=ScrubReport,
    audit="scrub",
    is_long=True,
)

CANCEL_SCRUB = Order(
    name="cancel_scrub",
    method="DELETE",
    path="/v1/groups/{group}/scrub",
    about="Gives up the scrub under way.",
    request=NoRequest,
    answer=ScrubReport,
    audit="scrub cancel",
    is_finished_anyway=True,
)

DROP_POINTS = Order(
    name="drop_points",
    method="POST",
    path="/v1/groups/{group}/points/drop",
    about="Gives points up for good: as a whole, or not at all. Durable when it answers.",
    request=DropRequest,
    answer=DropResult,
    audit="points drop",
    is_finished_anyway=True,
)

UNLOCK = Order(
    name="unlock",
    method="POST",
    path="/v1/groups/{group}/history/unlock",
    about="Takes the lock of a history down to what the configuration says.",
    request=UnlockRequest,
    answer=UnlockResult,
    audit="history unlock",
    is_finished_anyway=True,
)

ACCEPT = Order(
    name="accept",
    method="POST",
    path="/v1/groups/{group}/history/accept",
    about="Goes on without what a group has stopped for at its opening; refused where it has not.",
    request=AcceptRequest,
    answer=AcceptResult,
    audit="history accept",
    is_long=True,
    is_finished_anyway=True,
)

ACCEPT_AUDIT = Order(
    name="accept_audit",
    method="POST",
    path="/v1/audit/accept",
    about="Begins the audit anew where nothing is left of it, and is recorded in the new one.",
    request=AcceptAuditRequest,
    answer=AuditAccepted,
    audit="audit accept",
    is_finished_anyway=True,
)

ACCEPT_CLOCK = Order(
    name="accept_clock",
    method="POST",
    path="/v1/clock/accept",
    about="The receiver's machine has the right time: everything ages by it from now on.",
    request=AcceptClockRequest,
    answer=ClockAccepted,
    audit="clock accept",
    is_finished_anyway=True,
)

ORDERS: tuple[Order[Any, Any], ...] = tuple(
    value for value in dict(globals()).values() if isinstance(value, Order)
)
"""All of them, in the order of this file."""
