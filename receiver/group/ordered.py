# SPDX-License-Identifier: Apache-2.0
"""What a person orders of a group: views, rollbacks, restores, points given up.

Everything is a step of the apply lane, but a restore: that reads a view, aside, while replication
goes on.

Failure: a failing disk is told to whoever ordered, in words; a fault of the program in an order
that changes something stops the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from receiver.group.group import GroupReplica
from receiver.group.health import Health
from receiver.group.lanes import Lanes
from receiver.history.images import BLOCK_BYTES
from receiver.points.policy import HistoryPolicy
from receiver.points.values import Dropped, Point, RollbackDone, RollbackPlan
from receiver.restore.restore import Restored, RestoreOrder, restore_view
from receiver.retention.dropping import DropOrder
from receiver.tasks.lane import Aside, T
from receiver.views.fine_view import GroupView
from receiver.writes.history import PointWrite
from receiver.writes.walk import FineWrite
from replicator.base.errors import UnreachableError
from replicator.base.trouble import is_bug, words_of
from replicator.control.service import Report
from replicator.control.types import Progress


class Ordered:
    """See the head of this file. `policy`: the one in force."""

    def __init__(
        self,
        replica: GroupReplica,
        health: Health,
        lanes: Lanes,
        aside: Aside,
        policy: Callable[[], HistoryPolicy],
    ) -> None:
        self._name = replica.name
        self._replica = replica
        self._health = health
        self._lanes = lanes
        self._aside = aside
        self._policy = policy

    async def accept_loss(self, report: Report) -> None:
        """See Opening.accept."""
        progress = in_bytes(report, f"comparing {self._name} with what is on record")
        with _mishaps():
            await self._lanes.apply.run(self._replica.accept_loss, progress)

    def points(self) -> list[Point]:
        """Oldest first; those that are durable and not yet applied are among them."""
        self._health.check_recovered()
        return self._replica.points.all

    async def open_view(
        self, point: Point, report: Report, writes: int = 0, *, unverified: bool = False
    ) -> GroupView:
        """As of the point, or behind that many of the writes behind it. Waits until the point is
        applied. `unverified`: also while its images are not believed. Whoever gets it closes it."""
        self._health.check_recovered()
        while not self._replica.applier.is_point_applied(point.sequence):
            self._health.check_alive()
            report(Progress(done=0, total=0, what=f"waiting until {point} is applied"))
            await self._lanes.changed.wait()
        opening = asyncio.ensure_future(self._open_view(point, writes, unverified=unverified))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    async def last_write(self, point: Point, until_ns: int) -> tuple[FineWrite | None, str]:
        """See FineHistory."""
        self._health.check_recovered()
        with _mishaps():
            return await self._lanes.apply.run(self._replica.fine.last_write, point, until_ns)

    async def write_at(self, point: Point, number: int) -> FineWrite:
        """See FineHistory."""
        self._health.check_recovered()
        with _mishaps():
            return await self._lanes.apply.run(self._replica.fine.write, point, number)

    async def writes_around(self, moment_ns: int, window_ns: int, limit: int) -> list[PointWrite]:
        """See FineHistory."""
        self._health.check_recovered()
        with _mishaps():
            return await self._lanes.apply.run(
                self._replica.fine.around, moment_ns, window_ns, limit
            )

    async def _open_view(self, point: Point, writes: int, *, unverified: bool) -> GroupView:
        opening: Callable[..., GroupView] = partial(self._replica.showing.view, point.sequence)
        if writes:
            opening = partial(self._replica.showing.fine_view, point.sequence, writes)
        opening = partial(opening, unverified=unverified)
        return await self._lanes.apply.run(self._lanes.room.with_room, opening, "a view")

    async def plan_rollback(self, point: Point, writes: int = 0) -> RollbackPlan:
        self._health.check_recovered()
        with _mishaps():
            return await self._lanes.apply.run(
                self._replica.rolling_back.plan, point.sequence, writes
            )

    async def rollback(self, point: Point, report: Report, writes: int = 0) -> RollbackDone:
        """The caller keeps the seat empty. What a shutdown or a crash interrupts is gone on with
        at the next start; what a full disk interrupts, by the pump."""
        self._health.check_alive()
        progress = in_bytes(report, f"rolling {self._name} back to {point}", BLOCK_BYTES)
        try:
            with _mishaps():
                order = partial(
                    self._replica.rolling_back.run, point.sequence, progress, writes=writes
                )
                return await self._changing(order, "rollback")
        finally:
            self._lanes.wake()
            self._lanes.changed.told()

    async def drop(self, order: DropOrder, *, dry_run: bool) -> Dropped:
        """Gives up points that a person named, and what room can be given back at once."""
        self._health.check_alive()
        dropping = partial(
            self._replica.keeping.drop,
            self._policy(),
            order,
            dry_run=dry_run,
            room=self._lanes.room,
        )
        try:
            with _mishaps():
                gone = await self._changing(dropping, "drop")
        finally:
            self._lanes.wake()
        if not dry_run:
            self._lanes.figures.points_dropped += len(gone.points)
        return gone

    async def unlock(self, reason: str) -> int:
        """The lock that was in force."""
        self._health.check_alive()
        with _mishaps():
            order = partial(self._replica.keeping.unlock, self._policy(), reason)
            return await self._changing(
                partial(self._lanes.room.with_room, order, "unlock"), "unlock"
            )

    async def _changing(self, order: Callable[[], T], what: str) -> T:
        """In the apply lane. A supervision: a fault of the program may have left it half done."""
        try:
            return await self._lanes.apply.run(order)
        except Exception as error:
            if is_bug(error):
                raise self._health.stop.because(error, what) from error
            raise

    async def restore(
        self, point: Point, directory: Path, report: Report, order: RestoreOrder
    ) -> Restored:
        """Outside of the lanes, from a view: replication goes on meanwhile."""
        view = await self.open_view(point, report, order.writes, unverified=order.unverified)
        told = in_bytes(report, f"restoring {point} of {self._name}")

        def progress(done: int, total: int) -> None:
            if self._health.is_closing:
                raise UnreachableError(
                    "the receiver is shutting down", hint="go on with it later, by restore --resume"
                )
            told(done, total)

        try:
            with _mishaps():
                return await self._aside.run(restore_view, view, directory, progress, order)
        finally:
            await self._aside.run(view.close)


def in_bytes(report: Report, what: str, unit: int = 1) -> Callable[[int, int], None]:
    """In bytes; it is told units of that many."""
    return lambda done, total: report(Progress(done=done * unit, total=total * unit, what=what))


def _close_unwanted(opening: asyncio.Future[GroupView]) -> None:
    """Who asked for the view has gone away."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


@contextmanager
def _mishaps() -> Iterator[None]:
    """For who ordered it: a failing disk, in words."""
    try:
        yield
    except OSError as error:
        raise words_of(error) from error
