# SPDX-License-Identifier: Apache-2.0
"""Points and single writes: which there are, and giving some up.

A page costs what it shows: without a range its points are the end of a list, and how many lie in
front of them is a difference. Its cursor is a number, which stays right whatever comes or goes
meanwhile.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence

from receiver.damage import doubt
from receiver.damage.damage import describe
from receiver.group.worker import GroupWorker
from receiver.orders.choosing import Chooser
from receiver.orders.describe import point_of, write_of
from receiver.orders.groups import KnownGroups
from receiver.points.pointspec import begun, reaches, stamp_of
from receiver.points.values import Point as CorePoint
from receiver.retention.dropping import DropOrder, check_reason
from replicator.base.errors import UsageError
from replicator.base.units import parse_duration_ns
from replicator.control.orders import DROP_POINTS, POINT_PAGE, POINTS, WRITES
from replicator.control.requests import (
    DropRequest,
    PointPageRequest,
    PointsRequest,
    WritesRequest,
)
from replicator.control.service import Binding, Call, answer
from replicator.control.types import DropResult, Point, PointPage, Write

TOLD_TOGETHER = 1000


class PointOrders:
    def __init__(self, groups: KnownGroups, chooser: Chooser) -> None:
        self._groups = groups
        self._chooser = chooser

    def answers(self) -> list[Binding]:
        return [
            answer(POINTS, self.points),
            answer(POINT_PAGE, self.page),
            answer(WRITES, self.writes),
            answer(DROP_POINTS, self.drop),
        ]

    async def points(self, call: Call[PointsRequest]) -> list[Point]:
        worker = self._groups.worker(call.name)
        return await _told(worker, await self._within(worker, call.request))

    async def page(self, call: Call[PointPageRequest]) -> PointPage:
        worker, asked = self._groups.worker(call.name), call.request
        found = await self._within(worker, asked)
        end = len(found)
        if asked.before is not None:
            end = bisect_left(found, asked.before, key=lambda point: point.sequence)
        start = max(end - asked.limit, 0)
        return PointPage(points=await _told(worker, found[start:end]), earlier=start)

    async def _within(self, worker: GroupWorker, asked: PointsRequest) -> Sequence[CorePoint]:
        """Those of the range. Without one it is the list itself, which may grow at its end."""
        found, ages = worker.ordered.points(), worker.replica.known.ages()
        moment = self._chooser.moment
        first = None if asked.since is None else await moment(worker, asked.since, asked.zone)
        last = None if asked.until is None else await moment(worker, asked.until, asked.zone)
        if first is None and last is None:
            return found
        return [
            point
            for point in found
            if (first is None or reaches(point, first, ages))
            and (last is None or begun(point, last, ages))
        ]

    async def writes(self, call: Call[WritesRequest]) -> list[Write]:
        worker, asked = self._groups.worker(call.name), call.request
        moment = await self._chooser.moment(worker, asked.around, asked.zone)
        stamp_ns = stamp_of(moment, worker.ordered.points(), worker.replica.known.ages())
        found = await worker.ordered.writes_around(stamp_ns, asked.window_ns(), asked.limit)
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
        done = await worker.ordered.drop(order, dry_run=asked.dry_run)
        return DropResult(
            points=[point_of(point) for point in done.points],
            dry_run=asked.dry_run,
            freed_bytes=done.freed_bytes,
            to_come_bytes=done.to_come_bytes,
        )


async def _told(worker: GroupWorker, points: Sequence[CorePoint]) -> list[Point]:
    """In the API's words: a part at a time, so that nobody waits for a long list."""
    damage = worker.replica.known.damaged_points()
    unverified = worker.replica.opening.unverified
    told: list[Point] = []
    for start in range(0, len(points), TOLD_TOGETHER):
        told += [
            point_of(
                point,
                describe(damage.get(point.sequence, ()), point),
                unverified=bool(doubt.of_point(unverified, point)),
            )
            for point in points[start : start + TOLD_TOGETHER]
        ]
        await asyncio.sleep(0)
    return told


def _duration_ns(text: str) -> int:
    try:
        return parse_duration_ns(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
