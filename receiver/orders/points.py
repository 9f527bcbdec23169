# SPDX-License-Identifier: Apache-2.0
"""Points and single writes: which there are, and giving some up."""

from __future__ import annotations

from receiver.damage import doubt
from receiver.damage.damage import describe
from receiver.orders.choosing import Chooser
from receiver.orders.describe import point_of, write_of
from receiver.orders.groups import Groups
from receiver.points.pointspec import begun, reaches, stamp_of
from receiver.retention.dropping import DropOrder, check_reason
from replicator.base.errors import UsageError
from replicator.base.units import parse_duration_ns
from replicator.control.orders import DROP_POINTS, POINTS, WRITES
from replicator.control.requests import DropRequest, PointsRequest, WritesRequest
from replicator.control.service import Answer, Call, answer
from replicator.control.types import DropResult, Point, Write


class PointOrders:
    def __init__(self, groups: Groups, chooser: Chooser) -> None:
        self._groups = groups
        self._chooser = chooser

    def answers(self) -> list[Answer]:
        return [
            answer(POINTS, self.points),
            answer(WRITES, self.writes),
            answer(DROP_POINTS, self.drop),
        ]

    async def points(self, call: Call[PointsRequest]) -> list[Point]:
        worker, asked = self._groups.worker(call.name), call.request
        found, ages = worker.points(), worker.replica.known.ages()
        moment = self._chooser.moment
        first = None if asked.since is None else await moment(worker, asked.since, asked.zone)
        last = None if asked.until is None else await moment(worker, asked.until, asked.zone)
        damage = worker.replica.known.damaged_points()
        return [
            point_of(
                point,
                describe(damage.get(point.sequence, ()), point),
                unverified=bool(doubt.of_point(worker.replica.opening.unverified, point)),
            )
            for point in found
            if (first is None or reaches(point, first, ages))
            and (last is None or begun(point, last, ages))
        ]

    async def writes(self, call: Call[WritesRequest]) -> list[Write]:
        worker, asked = self._groups.worker(call.name), call.request
        moment = await self._chooser.moment(worker, asked.around, asked.zone)
        stamp_ns = stamp_of(moment, worker.points(), worker.replica.known.ages())
        found = await worker.writes_around(stamp_ns, asked.window_ns(), asked.limit)
        return [write_of(each) for each in found]

    async def drop(self, call: Call[DropRequest]) -> DropResult:
        worker, asked = self._groups.worker(call.name), call.request
        reason = check_reason(asked.reason, breaks_lock=asked.break_lock)
        asked.require_choice()
        order = DropOrder(
            frozenset(
                self._chooser.point(worker, text, asked.zone).sequence for text in asked.points
            ),
            None if asked.older_than is None else _duration_ns(asked.older_than),
            reason,
        )
        done = await worker.drop(order, dry_run=asked.dry_run)
        return DropResult(
            points=[point_of(point) for point in done.points],
            dry_run=asked.dry_run,
            freed_bytes=done.freed_bytes,
            to_come_bytes=done.to_come_bytes,
        )


def _duration_ns(text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
