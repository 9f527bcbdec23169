# SPDX-License-Identifier: Apache-2.0
"""What a group shows: its disks as of a point or a write, and digests of them for a sync.

A point that is shown stays, with all that lies behind it: it is *held* until the view is closed.
Nothing is shown of a point that is damaged, or, unless somebody insists, of images that are not
believed yet.

Concurrency: the apply thread, between two batches; views are read, and let go of, in any.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from receiver.apply.applier import Applier
from receiver.blocks.digests import digest_runs
from receiver.blocks.replica import Replica
from receiver.damage.damage import refuse
from receiver.damage.doubt import Unverified, nothing
from receiver.damage.doubt import refuse as refuse_doubted
from receiver.history.log import HistoryLog
from receiver.points.points import PointList
from receiver.points.values import DigestChunk, Point
from receiver.retention.reclaim import Pins
from receiver.views.fine_view import FineView
from receiver.views.point_view import PointView
from receiver.writes.history import FineHistory
from replicator.base.errors import NotFoundError, UnreachableError


class Showing:
    """See the head of this file. `unverified`: the disks whose images are not believed yet."""

    def __init__(
        self,
        name: str,
        history: HistoryLog,
        replica: Replica,
        points: PointList,
        applier: Applier,
        *,
        fine: FineHistory,
        unverified: Callable[[], Unverified],
    ) -> None:
        self._name = name
        self._history = history
        self._replica = replica
        self._points = points
        self._applier = applier
        self._fine = fine
        self._unverified = unverified
        self._held: Counter[int] = Counter()
        self._lock = threading.Lock()
        self.pause_reason = ""
        """Why nothing is applied, for whoever asks for a point that is not."""

    def pins(self) -> Pins:
        """What retention must not take: what a view shows, and the way back from the newest
        rollback. Any thread."""
        with self._lock:
            held = frozenset(self._held)
        present = {disk.slot for disk in self._applier.applied.present}
        rollbacks = [
            point.sequence
            for point in self._points.all
            if point.kind in ("before-rollback", "rollback")
            and all(member.slot in present for member in point.members)  # can be gone back to
        ]
        return Pins(held, frozenset(rollbacks[-2:]))

    def find(self, sequence: int) -> Point:
        """Raises NotFoundError."""
        point = self._points.find(sequence)
        if point is None:
            raise NotFoundError(f"group {self._name!r} has no point #{sequence}")
        return point

    def applied_point(self, sequence: int, *, unverified: bool | None = None) -> Point:
        """One that can be had. `unverified`: see `view`; None where nobody may insist on it. Raises
        NotFoundError, UnreachableError, DamageError."""
        point = self.find(sequence)
        if not self._applier.is_point_applied(sequence):
            raise UnreachableError(
                f"point {point} of group {self._name!r} is durable, but not applied yet"
                + (f": {self.pause_reason}" if self.pause_reason else ""),
                hint="try again in a moment",
            )
        batch = (
            self._history.batch_list.of_point(sequence)
            if self._applier.newest_state.damage
            else None
        )
        if batch is not None:
            refuse(self._applier.newest_state.damage, point, batch.number, self._name)
        if not unverified:
            may_insist = unverified is not None
            refuse_doubted(self._unverified(), point, self._name, may_insist=may_insist)
        return point

    def fine_view(self, sequence: int, writes: int, *, unverified: bool = False) -> FineView:
        """The disks as they were behind the first so many writes behind a point."""
        base = self.view(sequence, unverified=unverified)
        try:
            return FineView(base, self._fine.overlay(base.point, writes))
        except BaseException:
            base.close()
            raise

    def view(self, sequence: int, *, unverified: bool = False) -> PointView:
        """The disks as of a point. It stays good, and its point stays, until it is closed.
        `unverified`: also of images that are not believed yet."""
        point = self.applied_point(sequence, unverified=unverified)
        doubt: Callable[[], Unverified] = nothing if unverified else self._unverified
        batch = self._history.batch_list.of_point(sequence)
        assert batch is not None
        with self._lock:
            self._held[sequence] += 1
        domains = {name: self._history.texts[digest] for name, digest in point.domains.items()}
        return PointView(
            self._history,
            self._replica,
            point,
            batch,
            domains,
            lambda: self._release(sequence),
            lambda: self._applier.newest_state.damage,
            doubt,
        )

    def _release(self, sequence: int) -> None:
        with self._lock:
            self._held[sequence] -= 1
            self._held += Counter()  # drops what is at zero

    def digests(
        self, disk: int, sync_lsn: int, first_block: int, count: int, key: bytes
    ) -> DigestChunk | None:
        """Digests of replica blocks, as they are between two batches. None if that sync (by the
        stream's index of the disk and the LSN of its sync-begin) is not the one under way."""
        state = self._applier.applied
        found = state.by_index.get(disk)
        if found is None or not found.syncing or found.sync_lsn != sync_lsn:
            return None
        file = self._replica.file(found.name)
        runs = digest_runs(file, found.size_bytes, first_block, count, key)
        return DigestChunk(state.lsn, runs)
