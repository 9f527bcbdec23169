# SPDX-License-Identifier: Apache-2.0
"""What a daemon answers to the orders of its role, and the border that its callers cross. No I/O.

A daemon's part takes a `Call` and answers when the thing is done, or raises a ReplicatorError:

    answer(ROLLBACK, self.rollback)      mypy holds the part to what the order declares

`Answers` of a role has each of its orders once; which is looked at when a daemon starts. What comes
over HTTP is checked here, once, against the declaration, and then trusted: the name of a group is
well formed, though not necessarily known (NotFoundError is for the daemon to raise).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from replicator.base.errors import UsageError
from replicator.control.orders import ORDERS, A, Order, Q
from replicator.control.requests import Request, require_group
from replicator.control.types import Progress, Role

Report = Callable[[Progress], None]
"""May be called from any thread, as often as one likes; what comes too fast is thinned out."""

R = TypeVar("R", bound=Request)


@dataclass(frozen=True, slots=True)
class Call(Generic[Q]):
    """`name`: of the group, or of the view; "" where the order names none."""

    name: str
    request: Q
    report: Report


Answering = Callable[[Call[Q]], Awaitable[A]]


@dataclass(frozen=True, slots=True)
class Binding:
    """Made by `answer`."""

    order: Order[Any, Any]
    by: Answering[Any, Any]


def answer(order: Order[Q, A], by: Answering[Q, A]) -> Binding:
    return Binding(order, by)


class Answers:
    """Of one daemon."""

    def __init__(self, role: Role, answers: Iterable[Binding]) -> None:
        """ValueError: an order of `role` has no answer, or two; or it is another's."""
        self.role = role
        self._by: dict[Order[Any, Any], Answering[Any, Any]] = {}
        for each in answers:
            if each.order in self._by or role not in each.order.roles:
                raise ValueError(f"{each.order.name} is answered twice, or not by the {role}")
            self._by[each.order] = each.by
        if missing := [order.name for order in orders_of(role) if order not in self._by]:
            raise ValueError(f"the {role} does not answer: {', '.join(missing)}")

    async def to(self, order: Order[Any, Any], asked: Incoming, report: Report) -> object:
        """Raises UsageError, NotFoundError for what was asked wrongly."""
        if order.names_group:
            require_group(asked.name)
        request = requested(order, asked)
        if order.plan is not None and request.is_plan:
            order = order.plan
        return await self._by[order](Call(asked.name, request, report))


def orders_of(role: Role) -> list[Order[Any, Any]]:
    return [order for order in ORDERS if role in order.roles]


@dataclass(frozen=True, slots=True)
class Incoming:
    """An order as it came over HTTP, read whole."""

    name: str
    query: Mapping[str, str]
    body: bytes


def requested(order: Order[R, Any], asked: Incoming) -> R:
    """Raises UsageError, NotFoundError."""
    try:
        if order.takes_body:
            request = msgspec.json.decode(asked.body, type=order.request)
        else:
            query = asked.query if order.takes_query else {}
            request = msgspec.convert(dict(query), order.request, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = "body" if order.takes_body else "query"
        raise UsageError(f"not the {what} of this order: {error}") from None
    request.check()
    return request
