# SPDX-License-Identifier: Apache-2.0
"""The declared orders: what tools and audits rely on, and that a daemon answers each of its own."""

from __future__ import annotations

import msgspec
import pytest

from replicator.base.errors import NotFoundError, ReplicatorError, UsageError
from replicator.control.orders import (
    AUDITED,
    DROP_POINTS,
    MARK,
    OPEN_VIEW,
    ORDERS,
    POINTS,
    RESTORE,
    ROLLBACK,
    STATUS,
    WRITES,
    Order,
)
from replicator.control.requests import NoRequest, PointsRequest, Request, RollbackRequest
from replicator.control.service import Answers, Call, Incoming, answer, orders_of, requested
from replicator.control.types import Role, Status
from tests.control.services import CannedReceiver

# (method, path, word for the audit, "lines" or "document", goes on when its client has gone)
AGENT = {
    ("GET", "/v1/status", "", "document", False),
    ("POST", "/v1/reload", "reload", "document", True),
    ("POST", "/v1/groups/{group}/forget", "forget", "document", True),
    ("POST", "/v1/groups/{group}/mark", "mark", "lines", False),
    ("POST", "/v1/groups/{group}/resync", "resync", "document", True),
}
RECEIVER = {
    ("GET", "/v1/status", "", "document", False),
    ("POST", "/v1/reload", "reload", "document", True),
    ("POST", "/v1/groups/{group}/forget", "forget", "document", True),
    ("GET", "/v1/groups/{group}/points", "", "document", False),
    ("GET", "/v1/groups/{group}/points/page", "", "document", False),
    ("GET", "/v1/groups/{group}/writes", "", "document", False),
    ("GET", "/v1/views", "", "document", False),
    ("GET", "/v1/audit", "", "document", False),
    ("GET", "/v1/audit/verify", "", "lines", False),
    ("POST", "/v1/views", "view open", "lines", False),
    ("DELETE", "/v1/views/{view}", "view close", "document", True),
    ("POST", "/v1/groups/{group}/rollback", "rollback", "lines", True),
    ("GET", "/v1/groups/{group}/scrub", "", "document", False),
    ("POST", "/v1/groups/{group}/scrub", "scrub", "lines", False),
    ("DELETE", "/v1/groups/{group}/scrub", "scrub cancel", "document", True),
    ("POST", "/v1/groups/{group}/restore", "restore", "lines", True),
    ("POST", "/v1/groups/{group}/points/drop", "points drop", "document", True),
    ("POST", "/v1/groups/{group}/history/accept", "history accept", "lines", True),
    ("POST", "/v1/audit/accept", "audit accept", "document", True),
    ("POST", "/v1/clock/accept", "clock accept", "document", True),
    ("POST", "/v1/groups/{group}/history/unlock", "history unlock", "document", True),
}

QUERY_KINDS = {msgspec.inspect.StrType, msgspec.inspect.IntType, msgspec.inspect.NoneType}


@pytest.mark.parametrize(("role", "promised"), [("agent", AGENT), ("receiver", RECEIVER)])
def test_paths_methods_and_words_for_the_audit_stay_as_they_are(
    role: Role, promised: set[tuple[str, str, str, str, bool]]
) -> None:
    found = [
        (
            order.method,
            order.path,
            order.audit,
            "lines" if order.is_long else "document",
            order.is_finished_anyway,
        )
        for order in orders_of(role)
        if not order.is_plan
    ]
    assert sorted(found) == sorted(promised)


def test_a_name_stands_for_one_order_and_a_path_takes_one_request() -> None:
    assert len({order.name for order in ORDERS}) == len(ORDERS)
    routes: dict[tuple[str, str], set[type[Request]]] = {}
    for order in ORDERS:
        routes.setdefault((order.method, order.path), set()).add(order.request)
    assert all(len(requests) == 1 for requests in routes.values())
    plans = {order.plan for order in ORDERS if order.plan is not None}
    assert plans == {order for order in ORDERS if order.is_plan}
    for order in ORDERS:
        if order.plan is not None:
            assert (order.plan.method, order.plan.path) == (order.method, order.path)


def test_a_request_that_names_a_time_can_say_where_it_was_typed() -> None:
    """The client states its zone where there is such a field."""
    texts = {"since", "until", "around", "at", "to", "older_than"}
    for request in {order.request for order in ORDERS}:
        fields = set(request.__struct_fields__)
        assert "zone" in fields or not fields & texts, request


def test_what_a_query_carries_is_texts_and_numbers() -> None:
    for order in ORDERS:
        if order.takes_query:
            for field in msgspec.structs.fields(order.request):
                found = msgspec.inspect.type_info(field.type)
                kinds = found.types if isinstance(found, msgspec.inspect.UnionType) else (found,)
                assert {type(kind) for kind in kinds} <= QUERY_KINDS, (order.name, field.name)


async def _status(_call: Call[NoRequest]) -> Status:
    return Status(role="agent", name="kvm1", groups=[])


def test_a_daemon_that_leaves_an_order_unanswered_does_not_start() -> None:
    with pytest.raises(ValueError, match="does not answer: reload, forget, mark, resync"):
        Answers("agent", [answer(STATUS, _status)])


def test_an_order_is_answered_once_and_by_its_own_daemon() -> None:
    with pytest.raises(ValueError, match="status is answered twice"):
        Answers("agent", [answer(STATUS, _status), answer(STATUS, _status)])
    with pytest.raises(ValueError, match="points is answered twice, or not by the agent"):
        Answers("agent", [answer(POINTS, CannedReceiver().points)])


@pytest.mark.parametrize(
    ("order", "asked", "kind", "said"),
    [
        (POINTS, Incoming("web", {"sinze": "1"}, b""), UsageError, "unknown field `sinze`"),
        (WRITES, Incoming("web", {}, b""), UsageError, "missing required field `around`"),
        (WRITES, Incoming("web", {"around": "#1", "limit": "0"}, b""), UsageError, ">= 1"),
        (WRITES, Incoming("web", {"around": "#1", "limit": "10001"}, b""), UsageError, "<= 10000"),
        (WRITES, Incoming("web", {"around": "#1", "window": "far"}, b""), UsageError, "window: "),
        (AUDITED, Incoming("", {"limit": "many"}, b""), UsageError, "Expected `int`"),
        (STATUS, Incoming("", {"group": "web"}, b""), UsageError, "unknown field `group`"),
        (MARK, Incoming("web", {}, b"{}"), UsageError, "a label, or quiesces"),
        (RESTORE, Incoming("web", {}, b'{"at": "#1", "to": "out"}'), UsageError, "absolute"),
        (OPEN_VIEW, Incoming("", {}, b'{"group": "../x", "at": "#1"}'), NotFoundError, "no group"),
        (DROP_POINTS, Incoming("web", {}, b'{"point": "#1"}'), UsageError, "unknown field `point`"),
        (ROLLBACK, Incoming("web", {}, b""), UsageError, "not the body of this order"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_words(
    order: Order[Request, object], asked: Incoming, kind: type[ReplicatorError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        requested(order, asked)


def test_a_query_says_the_same_as_its_request() -> None:
    asked = Incoming("web", {"since": "1h ago", "zone": "Europe/Berlin"}, b"")
    assert requested(POINTS, asked) == PointsRequest(since="1h ago", zone="Europe/Berlin")
    limited = requested(WRITES, Incoming("web", {"around": "null", "limit": "7"}, b""))
    assert (limited.around, limited.window, limited.limit) == ("null", "2s", 7)


@pytest.mark.parametrize(("dry_run", "done"), [(True, []), (False, [("rollback", "web", "#2")])])
async def test_a_plan_is_made_where_the_request_says_so(
    dry_run: bool, done: list[tuple[str, ...]]
) -> None:
    receiver = CannedReceiver()
    body = msgspec.json.encode(RollbackRequest(to="#2", dry_run=dry_run))
    await receiver.answers().to(ROLLBACK, Incoming("web", {}, body), lambda _progress: None)
    assert receiver.orders == done
