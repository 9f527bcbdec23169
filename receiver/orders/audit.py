# SPDX-License-Identifier: Apache-2.0
"""The audit of all orders: what it says, whether it is whole, and beginning it anew."""

from __future__ import annotations

import asyncio

from receiver.audit.chain import Fact
from receiver.orders.choosing import Chooser
from receiver.orders.lookout import Lookout
from receiver.orders.recorder import Recorder
from receiver.retention.dropping import check_reason
from replicator.control.orders import ACCEPT_AUDIT, AUDITED, VERIFY_AUDIT
from replicator.control.requests import AcceptAuditRequest, AuditRequest, NoRequest
from replicator.control.server import AuditEntry
from replicator.control.service import Binding, Call, answer
from replicator.control.types import AuditAccepted, AuditRecord, AuditVerdict


class AuditOrders:
    def __init__(self, chooser: Chooser, recorder: Recorder, lookout: Lookout) -> None:
        self._chooser = chooser
        self._recorder = recorder
        self._lookout = lookout

    def answers(self) -> list[Binding]:
        return [
            answer(AUDITED, self.audited),
            answer(VERIFY_AUDIT, self.verify),
            answer(ACCEPT_AUDIT, self.accept),
        ]

    async def audited(self, call: Call[AuditRequest]) -> list[AuditRecord]:
        asked = call.request
        since_ns = None
        if asked.since is not None:
            since_ns = self._chooser.time(asked.since, asked.zone).time_ns
        return await asyncio.to_thread(self._recorder.listed, since_ns, asked.limit)

    async def verify(self, _call: Call[NoRequest]) -> AuditVerdict:
        await self._lookout.complete()
        return await asyncio.to_thread(self._recorder.verify, self._recorder.stretches())

    async def accept(self, call: Call[AcceptAuditRequest]) -> AuditAccepted:
        check_reason(call.request.reason, breaks_lock=True)
        return AuditAccepted(lost_entries=self._recorder.accept())


def fact_of(entry: AuditEntry) -> Fact:
    """An order, as the audit keeps it."""
    return Fact(
        entry.order,
        entry.object,
        entry.argument,
        entry.uid,
        entry.pid,
        entry.outcome,
        entry.message,
    )
