# SPDX-License-Identifier: Apache-2.0
"""Going back to a point: a rollback of the replica, or a restore into images elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from receiver.data_dir.keep_out import refuse_inside
from receiver.data_dir.layout import groups_dir
from receiver.history.images import BLOCK_BYTES
from receiver.orders.choosing import Chooser
from receiver.orders.describe import point_of, restore_result
from receiver.orders.groups import KnownGroups
from receiver.restore.restore import RestoreOrder
from replicator.control.orders import PLAN_ROLLBACK, RESTORE, ROLLBACK
from replicator.control.requests import RestoreRequest, RollbackRequest
from replicator.control.service import Binding, Call, answer
from replicator.control.types import Chosen, Point, RestoreResult, RollbackPlan, RollbackResult


class ReturnOrders:
    """Nothing is restored into `data_dir`."""

    def __init__(self, groups: KnownGroups, chooser: Chooser, data_dir: Path) -> None:
        self._groups = groups
        self._chooser = chooser
        self._data_dir = data_dir

    def answers(self) -> list[Binding]:
        return [
            answer(PLAN_ROLLBACK, self.plan_rollback),
            answer(ROLLBACK, self.rollback),
            answer(RESTORE, self.restore),
        ]

    async def plan_rollback(self, call: Call[RollbackRequest]) -> Chosen[RollbackPlan]:
        worker, asked = self._groups.worker(call.name), call.request
        chosen = await self._chooser.choose(worker, asked.to, asked.zone)
        plan = await worker.ordered.plan_rollback(chosen.point, chosen.writes)
        sitter = worker.seat.sitter
        result = RollbackPlan(
            **_fields(chosen.choice.point),
            changed_bytes=plan.changed_bytes,
            disks=plan.disks,
            points_after=plan.points_after,
            changed_blocks=plan.changed_bytes // BLOCK_BYTES,
            expected_seconds=plan.changed_bytes / worker.applying.rewrite_rate,
            fed_by=None if sitter is None else sitter.peer,
        )
        return Chosen(choice=chosen.choice, result=result)

    async def rollback(self, call: Call[RollbackRequest]) -> Chosen[RollbackResult]:
        worker, asked = self._groups.worker(call.name), call.request
        # that a point is unknown is said before who feeds the group
        await self._chooser.choose(worker, asked.to, asked.zone)
        async with worker.seat.kept_empty_for("rollback", detach=asked.force_detach):
            chosen = await self._chooser.choose(worker, asked.to, asked.zone)
            done = await worker.ordered.rollback(chosen.point, call.report, chosen.writes)
        result = RollbackResult(**_fields(point_of(done.point)), before=point_of(done.before))
        return Chosen(choice=chosen.choice, result=result)

    async def restore(self, call: Call[RestoreRequest]) -> Chosen[RestoreResult]:
        worker, asked = self._groups.worker(call.name), call.request
        target, own = Path(asked.to), groups_dir(self._data_dir) / call.name
        await worker.aside.run(refuse_inside, target, self._data_dir, own)
        chosen = await self._chooser.choose(worker, asked.at, asked.zone)
        order = RestoreOrder(
            call.name,
            chosen.writes,
            asked.format,
            resume=asked.resume,
            verify=asked.verify,
            unverified=asked.unverified and chosen.choice.point.unverified,
        )
        done = await worker.ordered.restore(chosen.point, target, call.report, order)
        result = restore_result(chosen.choice.point, done)
        return Chosen(choice=chosen.choice, result=result)


def _fields(point: Point) -> dict[str, Any]:
    """To build an answer that is a point and more."""
    return msgspec.structs.asdict(point)
