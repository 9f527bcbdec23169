# SPDX-License-Identifier: Apache-2.0
"""Images of disks that came back with another size: kept while a point shows them, then removed.

An image never changes its size, so a resized disk is a new instance with an image of its own
(receiver.history.state). The one before stays what it was when it was detached: nothing writes it
any more but healing. It is part of the past, as before-images are, and goes with the last point
that shows it:

    1  those points are given up durably, all of them: on a full disk that may be unsaid yet
    2  the group's state without the instance, and without damage of it       durable
    3  the file goes

A crash before 2 changes nothing; behind it a file is left that no state names, and the next
opening removes it (`look`). So is one that was made for an instance whose batch never became
durable. What a person put there for a disk that the group has never had is nobody's leftover.

Slots are never given twice, so what the history still holds of one that is gone says nothing of
another disk; nobody asks for it any more.

Concurrency: apply thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from receiver.apply.applier import Applier
from receiver.blocks.replica import Replica
from receiver.damage.damage import of_others
from receiver.history.log import HistoryLog
from receiver.history.state import INSTANCE_MARK, Disk, GroupState
from receiver.points.points import PointList
from receiver.points.telling import Telling
from receiver.points.values import Point

EARLIER_MAX = 64
"""Of a group, at a time. Each costs a look at every start, and some bytes in each statement of
what the replica holds, which has its bounds (receiver.fitting.applied)."""


class EarlierImages:
    """See the head of this file."""

    def __init__(
        self,
        applier: Applier,
        history: HistoryLog,
        replica: Replica,
        points: PointList,
        telling: Telling,
    ) -> None:
        self._applier = applier
        self._history = history
        self._replica = replica
        self._points = points
        self._telling = telling
        self._leftovers: list[str] = []
        self._looked_at: tuple[object, ...] = ()

    def look(self) -> None:
        """To be called when the group has been opened, before anything is applied: a batch may
        make an image of the same name. Raises OSError."""
        self._looked_at = ()
        self._leftovers = leftovers(self._replica.images(), self._applier.newest_state)
        self._remove_leftovers()

    def step(self) -> bool:
        """Removes what no point shows any more; no batch is half done. Whether there was
        anything. Raises OSError."""
        if self._leftovers:
            self._remove_leftovers()
            return True
        if self._applier.has_pending:
            return False
        state = self._applier.applied
        earlier = state.earlier
        look = tuple(disk.slot for disk in earlier), self._points.drops
        if not earlier or look == self._looked_at:
            return False
        gone = unshown(earlier, self._points.all)
        if gone:
            self._forget(state, gone)
        self._looked_at = look
        return bool(gone)

    def _forget(self, state: GroupState, gone: Sequence[Disk]) -> None:
        slots = {disk.slot for disk in gone}
        unsaid = [
            batch.point.sequence
            for batch in self._history.batch_list.all
            if batch.point is not None and any(each.slot in slots for each in batch.point.members)
        ]
        if unsaid:
            self._history.drop_points(unsaid, state)
        self._applier.restate(without(state, slots))
        self._leftovers += [disk.name for disk in gone]
        for disk in gone:
            self._telling.event(
                "disk.earlier_image_goes", disk=disk.source_name, size_bytes=disk.size_bytes
            )
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        while self._leftovers:
            self._replica.remove(self._leftovers[0])
            self._leftovers.pop(0)


def unshown(earlier: Sequence[Disk], points: Sequence[Point]) -> list[Disk]:
    """Those of the instances that no point shows."""
    shown = {member.slot for point in points for member in point.members}
    return [disk for disk in earlier if disk.slot not in shown]


def without(state: GroupState, slots: set[int]) -> GroupState:
    left = state.copy()
    left.disks = {name: disk for name, disk in left.disks.items() if disk.slot not in slots}
    left.damage = of_others(left.damage, slots)
    return left


def leftovers(images: Sequence[str], state: GroupState) -> list[str]:
    """Images that belong to no instance any more, or not yet: of a later instance than the state
    has, or of one in whose place another has come."""
    return [
        name
        for name in images
        if name not in state.disks
        and (INSTANCE_MARK in name or state.disk_called(name) is not None)
    ]
