# SPDX-License-Identifier: Apache-2.0
"""Marks under way: from the cut in the log to the point at the receiver. No I/O.

A mark is known by the LSN at the end of its cut, and by its label. Its point comes in an ACK; if
that ACK was lost with its connection, the next WELCOME shows it as the newest point, or the label
is asked for by name once the receiver holds the log that far. Nobody can be asked for a point
without a label: it is durable then, and its number stays unknown (None).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from replicator.base.errors import ReplicatorError
from replicator.wire.messages import Point

# A guest is thawed between the cut and `add`: so many points may come meanwhile, at ten a second.
RECENT_MAX = 2000


@dataclass(eq=False, slots=True)
class PendingMark:
    """One that somebody waits for."""

    label: str | None
    lsn: int
    point: asyncio.Future[Point | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Marks:
    """Those of one group. `labels` are in use by marks that may not be points yet."""

    def __init__(self) -> None:
        self.labels: set[str] = set()
        self._pending: set[PendingMark] = set()
        self._recent: dict[int, Point] = {}  # by LSN, oldest first

    def add(self, label: str | None, lsn: int) -> PendingMark:
        """`lsn` is the end of its cut. The point may have come before this is called."""
        mark = PendingMark(label, lsn)
        self._pending.add(mark)
        known = self._recent.get(lsn)
        if known is not None and known.label == label:
            mark.point.set_result(known)
        return mark

    def forget(self, mark: PendingMark) -> None:
        self._pending.discard(mark)

    def settle(self, points: Sequence[Point]) -> None:
        """Points that the receiver has made."""
        for point in points:
            self._recent[point.lsn] = point
            if len(self._recent) > RECENT_MAX:
                del self._recent[next(iter(self._recent))]
            if point.label is not None:
                self.labels.discard(point.label)
            for mark in self._pending:
                if not mark.point.done() and (point.lsn, point.label) == (mark.lsn, mark.label):
                    mark.point.set_result(point)

    def unanswered(self, durable_lsn: int) -> list[PendingMark]:
        """Marks whose point must exist by now, if it ever will."""
        return [mark for mark in self._pending if not mark.point.done() and mark.lsn <= durable_lsn]

    def fail(self, error: ReplicatorError) -> None:
        """None of those under way will become a point at this receiver."""
        self.labels.clear()
        for mark in self._pending:
            if not mark.point.done():
                mark.point.set_exception(error)
