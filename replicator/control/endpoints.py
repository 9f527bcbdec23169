# SPDX-License-Identifier: Apache-2.0
"""The control API as two tables: which path does what, at which daemon. No I/O.

An endpoint decodes its own arguments; a wrong one raises UsageError before anything is done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from replicator.base.errors import NotFoundError, UsageError
from replicator.base.names import is_name
from replicator.base.units import parse_duration_ns
from replicator.control.service import AgentControl, ReceiverControl, Report
from replicator.control.types import (
    AcceptAuditRequest,
    AcceptClockRequest,
    AcceptRequest,
    Chosen,
    DropRequest,
    ForgetRequest,
    MarkRequest,
    ReloadRequest,
    Request,
    RestoreRequest,
    RollbackPlan,
    RollbackRequest,
    RollbackResult,
    ScrubRequest,
    UnlockRequest,
    ViewRequest,
)

AUDIT_LIMIT = 1000
AUDIT_LIMIT_MAX = 10_000
WRITES_WINDOW = "2s"
WRITES_LIMIT = 200
WRITES_LIMIT_MAX = 10_000

S = TypeVar("S")
R = TypeVar("R", bound=Request)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read whole: path variables, query, body, and where progress goes."""

    variables: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    report: Report

    def group(self) -> str:
        name = self.variables["group"]
        if not is_name(name):
            raise NotFoundError(f"no group {name[:80]!r}")
        return name

    def request(self, kind: type[R]) -> R:
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"not the body of this order: {error}") from None

    def number(self, name: str, default: int, most: int) -> int:
        """A query parameter from 1 to `most`."""
        text = self.query.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) <= most):
            raise UsageError(f"{name} is a number from 1 to {most}")
        return int(text)

    def query_only(self, *known: str) -> None:
        if unknown := sorted(set(self.query) - set(known)):
            raise UsageError(f"unknown query parameter {unknown[0][:80]!r}")


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[S]):
    """`order` names what changes something, for the audit; "" for what only looks.

    `is_long`: the answer is a stream of progress lines and a last line.
    `is_finished_anyway`: goes on to its end when the client goes away.
    """

    method: str
    path: str
    run: Callable[[S, Call], Awaitable[object]]
    order: str = ""
    is_long: bool = False
    is_finished_anyway: bool = False


async def _agent_status(agent: AgentControl, call: Call) -> object:
    call.query_only()
    return await agent.status()


async def _agent_reload(agent: AgentControl, call: Call) -> object:
    return await agent.reload(call.request(ReloadRequest))


async def _receiver_reload(receiver: ReceiverControl, call: Call) -> object:
    return await receiver.reload(call.request(ReloadRequest))


async def _agent_forget(agent: AgentControl, call: Call) -> object:
    return await agent.forget(call.group(), call.request(ForgetRequest))


async def _receiver_forget(receiver: ReceiverControl, call: Call) -> object:
    return await receiver.forget(call.group(), call.request(ForgetRequest))


async def _mark(agent: AgentControl, call: Call) -> object:
    group, request = call.group(), call.request(MarkRequest)
    if request.label is None and not request.quiesce:
        raise UsageError("a mark has a label, or quiesces, or both")
    return await agent.mark(group, request, call.report)


async def _resync(agent: AgentControl, call: Call) -> object:
    return await agent.resync(call.group())


async def _receiver_status(receiver: ReceiverControl, call: Call) -> object:
    call.query_only()
    return await receiver.status()


async def _points(receiver: ReceiverControl, call: Call) -> object:
    call.query_only("since", "until", "zone")
    query = call.query
    return await receiver.points(
        call.group(), query.get("since"), query.get("until"), query.get("zone")
    )


async def _writes(receiver: ReceiverControl, call: Call) -> object:
    call.query_only("around", "window", "limit", "zone")
    query = call.query
    if "around" not in query:
        raise UsageError("writes are listed around a moment: say which")
    try:
        window_ns = parse_duration_ns(query.get("window", WRITES_WINDOW))
    except ValueError as error:
        raise UsageError(f"window: {error}") from None
    limit = call.number("limit", WRITES_LIMIT, WRITES_LIMIT_MAX)
    return await receiver.writes(call.group(), query["around"], window_ns, limit, query.get("zone"))


async def _views(receiver: ReceiverControl, call: Call) -> object:
    call.query_only()
    return await receiver.views()


async def _audited(receiver: ReceiverControl, call: Call) -> object:
    call.query_only("since", "limit", "zone")
    limit = call.number("limit", AUDIT_LIMIT, AUDIT_LIMIT_MAX)
    return await receiver.audited(call.query.get("since"), limit, call.query.get("zone"))


async def _verify_audit(receiver: ReceiverControl, call: Call) -> object:
    call.query_only()
    return await receiver.verify_audit()


async def _open_view(receiver: ReceiverControl, call: Call) -> object:
    request = call.request(ViewRequest)
    if not is_name(request.group):
        raise NotFoundError(f"no group {request.group[:80]!r}")
    return await receiver.open_view(request, call.report)


async def _close_view(receiver: ReceiverControl, call: Call) -> object:
    await receiver.close_view(call.variables["view"])
    return {}


async def _rollback(
    receiver: ReceiverControl, call: Call
) -> Chosen[RollbackPlan] | Chosen[RollbackResult]:
    group, request = call.group(), call.request(RollbackRequest)
    if request.dry_run:
        return await receiver.plan_rollback(group, request)
    return await receiver.rollback(group, request, call.report)


async def _restore(receiver: ReceiverControl, call: Call) -> object:
    group, request = call.group(), call.request(RestoreRequest)
    if not request.to.startswith("/") or "\0" in request.to:
        raise UsageError("a restore goes to an absolute path")
    return await receiver.restore(group, request, call.report)


async def _scrub(receiver: ReceiverControl, call: Call) -> object:
    group, request = call.group(), call.request(ScrubRequest)
    return await receiver.scrub(group, request, call.report)


async def _cancel_scrub(receiver: ReceiverControl, call: Call) -> object:
    call.query_only()
    return await receiver.cancel_scrub(call.group())


async def _scrubbed(receiver: ReceiverControl, call: Call) -> object:
    call.query_only()
    return await receiver.scrubbed(call.group())


async def _drop_points(receiver: ReceiverControl, call: Call) -> object:
    return await receiver.drop_points(call.group(), call.request(DropRequest))


async def _unlock(receiver: ReceiverControl, call: Call) -> object:
    return await receiver.unlock(call.group(), call.request(UnlockRequest))


async def _accept(receiver: ReceiverControl, call: Call) -> object:
    return await receiver.accept(call.group(), call.request(AcceptRequest), call.report)


async def _accept_audit(receiver: ReceiverControl, call: Call) -> object:
    return await receiver.accept_audit(call.request(AcceptAuditRequest))


async def _accept_clock(receiver: ReceiverControl, call: Call) -> object:
    return await receiver.accept_clock(call.request(AcceptClockRequest))


STATUS = "/v1/status"
RELOAD = "/v1/reload"
FORGET = "/v1/groups/{group}/forget"
POINTS = "/v1/groups/{group}/points"
DROP_POINTS = "/v1/groups/{group}/points/drop"
ACCEPT = "/v1/groups/{group}/history/accept"
UNLOCK = "/v1/groups/{group}/history/unlock"
MARK = "/v1/groups/{group}/mark"
WRITES = "/v1/groups/{group}/writes"
RESYNC = "/v1/groups/{group}/resync"
ROLLBACK = "/v1/groups/{group}/rollback"
RESTORE = "/v1/groups/{group}/restore"
SCRUB = "/v1/groups/{group}/scrub"
VIEWS = "/v1/views"
VIEW = "/v1/views/{view}"
CLOCK = "/v1/clock/accept"
AUDIT = "/v1/audit"
AUDIT_VERIFY = "/v1/audit/verify"
AUDIT_ACCEPT = "/v1/audit/accept"

AGENT: tuple[Endpoint[AgentControl], ...] = (
    Endpoint("GET", STATUS, _agent_status),
    Endpoint("POST", RELOAD, _agent_reload, "reload", is_finished_anyway=True),
    Endpoint("POST", FORGET, _agent_forget, "forget", is_finished_anyway=True),
    Endpoint("POST", MARK, _mark, "mark", is_long=True),
    Endpoint("POST", RESYNC, _resync, "resync", is_finished_anyway=True),
)

RECEIVER: tuple[Endpoint[ReceiverControl], ...] = (
    Endpoint("GET", STATUS, _receiver_status),
    Endpoint("POST", RELOAD, _receiver_reload, "reload", is_finished_anyway=True),
    Endpoint("POST", FORGET, _receiver_forget, "forget", is_finished_anyway=True),
    Endpoint("GET", POINTS, _points),
    Endpoint("GET", WRITES, _writes),
    Endpoint("GET", VIEWS, _views),
    Endpoint("GET", AUDIT, _audited),
    Endpoint("GET", AUDIT_VERIFY, _verify_audit, is_long=True),
    Endpoint("POST", VIEWS, _open_view, "view open", is_long=True),
    Endpoint("DELETE", VIEW, _close_view, "view close", is_finished_anyway=True),
    Endpoint("POST", ROLLBACK, _rollback, "rollback", is_long=True, is_finished_anyway=True),
    Endpoint("GET", SCRUB, _scrubbed),
    Endpoint("POST", SCRUB, _scrub, "scrub", is_long=True),
    Endpoint("DELETE", SCRUB, _cancel_scrub, "scrub cancel", is_finished_anyway=True),
    Endpoint("POST", RESTORE, _restore, "restore", is_long=True, is_finished_anyway=True),
    Endpoint("POST", DROP_POINTS, _drop_points, "points drop", is_finished_anyway=True),
    Endpoint("POST", ACCEPT, _accept, "history accept", is_long=True, is_finished_anyway=True),
    Endpoint("POST", AUDIT_ACCEPT, _accept_audit, "audit accept", is_finished_anyway=True),
    Endpoint("POST", CLOCK, _accept_clock, "clock accept", is_finished_anyway=True),
    Endpoint("POST", UNLOCK, _unlock, "history unlock", is_finished_anyway=True),
)
