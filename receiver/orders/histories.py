# SPDX-License-Identifier: Apache-2.0
"""Looking after what a group keeps: scrubs, its lock, and going on without what is gone."""

from __future__ import annotations

from receiver.orders.groups import KnownGroups
from receiver.retention.dropping import check_reason
from replicator.base.clock import NS_PER_S
from replicator.base.errors import UsageError
from replicator.control.orders import ACCEPT, CANCEL_SCRUB, SCRUB, SCRUBBED, UNLOCK
from replicator.control.requests import AcceptRequest, NoRequest, ScrubRequest, UnlockRequest
from replicator.control.service import Binding, Call, answer
from replicator.control.types import AcceptResult, ScrubReport, UnlockResult


class HistoryOrders:
    def __init__(self, groups: KnownGroups) -> None:
        self._groups = groups

    def answers(self) -> list[Binding]:
        return [
            answer(SCRUB, self.scrub),
            answer(CANCEL_SCRUB, self.cancel_scrub),
            answer(SCRUBBED, self.scrubbed),
            answer(UNLOCK, self.unlock),
            answer(ACCEPT, self.accept),
        ]

    async def scrub(self, call: Call[ScrubRequest]) -> ScrubReport:
        worker, asked = self._groups.worker(call.name), call.request
        worker.health.check_alive()
        return await worker.scrubbing.order(call.report, waits=asked.wait, rate=asked.rate)

    async def cancel_scrub(self, call: Call[NoRequest]) -> ScrubReport:
        return await self._groups.worker(call.name).scrubbing.cancel()

    async def scrubbed(self, call: Call[NoRequest]) -> ScrubReport:
        worker = self._groups.worker(call.name)
        worker.health.check_recovered()
        return worker.scrubbing.report()

    async def unlock(self, call: Call[UnlockRequest]) -> UnlockResult:
        worker, asked = self._groups.worker(call.name), call.request
        if not asked.break_lock:
            raise UsageError("an unlock breaks the lock, and the order has to say so")
        before_ns = await worker.ordered.unlock(check_reason(asked.reason, breaks_lock=True))
        return UnlockResult(
            group=call.name,
            lock_seconds_before=before_ns / NS_PER_S,
            lock_seconds=worker.replica.keeping.lock_ns / NS_PER_S,
        )

    async def accept(self, call: Call[AcceptRequest]) -> AcceptResult:
        worker = self._groups.worker(call.name)
        check_reason(call.request.reason, breaks_lock=True)
        gone = await worker.accept(call.report)
        points, damaged = worker.ordered.points(), worker.replica.known.damaged_points()
        return AcceptResult(
            group=call.name,
            gone=gone,
            points=len(points) - len(damaged),
            damaged_points=len(damaged),
            next_point=worker.replica.known.welcome().next_point,
            generation=worker.replica.known.welcome().generation,
        )
