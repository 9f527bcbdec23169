# SPDX-License-Identifier: Apache-2.0
"""The receiver as a whole: how it is, its configuration, its clock, what is left over in it."""

from __future__ import annotations

import msgspec

from receiver.counted.keeper import CountedClock
from receiver.orders.describe import clock_status, group_status
from receiver.orders.groups import KnownGroups
from receiver.orders.leftovers import Leftovers
from receiver.orders.recorder import Recorder
from receiver.orders.reloading import Reloading
from receiver.retention.dropping import check_reason
from replicator import __version__
from replicator.base.clock import NS_PER_S, Clock, rfc3339
from replicator.control.orders import ACCEPT_CLOCK, FORGET, RELOAD, STATUS
from replicator.control.requests import (
    AcceptClockRequest,
    ForgetRequest,
    NoRequest,
    ReloadRequest,
)
from replicator.control.service import Binding, Call, answer
from replicator.control.types import ClockAccepted, ForgetResult, ReloadResult, Status
from replicator.wire.credentials import Credentials


class StatusOrder:
    """`name` is the receiver's."""

    def __init__(
        self,
        name: str,
        groups: KnownGroups,
        *,
        clock: Clock,
        counted: CountedClock,
        recorder: Recorder,
        credentials: Credentials,
        leftovers: Leftovers,
    ) -> None:
        self._name = name
        self._groups = groups
        self._clock = clock
        self._counted = counted
        self._recorder = recorder
        self._credentials = credentials
        self._leftovers = leftovers

    def answers(self) -> list[Binding]:
        return [answer(STATUS, self.status)]

    async def status(self, _call: Call[NoRequest]) -> Status:
        now_ns = self._clock.utc_ns()
        return Status(
            role="receiver",
            name=self._name,
            version=__version__,
            groups=[group_status(worker, now_ns) for worker in self._groups.all()],
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


class ConfigOrders:
    """What the configuration says by now, and what it does not name any more."""

    def __init__(self, reloading: Reloading, leftovers: Leftovers) -> None:
        self._reloading = reloading
        self._leftovers = leftovers

    def answers(self) -> list[Binding]:
        return [answer(RELOAD, self.reload), answer(FORGET, self.forget)]

    async def reload(self, call: Call[ReloadRequest]) -> ReloadResult:
        return await self._reloading.reload(call.request)

    async def forget(self, call: Call[ForgetRequest]) -> ForgetResult:
        asked = call.request
        reason = check_reason(asked.reason, breaks_lock=asked.break_lock)
        given = msgspec.structs.replace(asked, reason=reason)
        return await self._leftovers.forget(call.name, given)


class ClockOrders:
    def __init__(self, groups: KnownGroups, counted: CountedClock) -> None:
        self._groups = groups
        self._counted = counted

    def answers(self) -> list[Binding]:
        return [answer(ACCEPT_CLOCK, self.accept)]

    async def accept(self, call: Call[AcceptClockRequest]) -> ClockAccepted:
        """Where that ends locks sooner it takes a reason, as breaking them does."""
        asked, recovered = call.request, self._groups.recovered()
        planned = self._counted.accept(dry_run=True)
        moves_lock = planned.lock_by_ns > 0 and any(
            worker.replica.keeping.lock_ns for worker in recovered.values()
        )
        if not asked.dry_run:
            check_reason(asked.reason, breaks_lock=moves_lock or bool(asked.reason.strip()))
        points = {
            name: worker.replica.keeping.ageing_out(worker.policy, planned.before, planned.after)
            for name, worker in recovered.items()
        }
        if not asked.dry_run:
            self._counted.accept(dry_run=False)
            for worker in self._groups.all():
                worker.wake()
        return ClockAccepted(
            forward_seconds=planned.by_ns / NS_PER_S,
            lock_forward_seconds=planned.lock_by_ns / NS_PER_S,
            takes_reason=moves_lock,
            points={name: count for name, count in points.items() if count},
            dry_run=asked.dry_run,
            clock=clock_status(self._counted.facts()),
        )
