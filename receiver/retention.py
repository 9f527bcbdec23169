# SPDX-License-Identifier: Apache-2.0
"""Which points go when the history is larger than it may be.

Oldest unlabelled points go first. Labelled ones stay, and so do the newest point, points that a
view shows (`Pins.held`), and those that a rollback pinned (`Pins.kept`). What is counted is what
lies on the disk: history and inbox. How the room comes back: receiver.reclaim.

Deciding (`choose_prefix`, `choose_merges`) does no I/O; `Retention.retain` does what was decided,
points first: a point is given up durably before anything it needs goes. On a full disk, where
not even that can be written, whole old segments are removed without a word: points whose batches
are gone are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from receiver.history.batches import Batch, Segment
from receiver.history.log import HistoryLog, no_space
from receiver.points import PointList
from receiver.reclaim import Pins, Reclaim
from receiver.sync_state import GroupState
from receiver.values import Point, Retained

HEADROOM = 50
"""A fiftieth of the budget is freed beyond what must be, and where nothing could be freed the
history grows by as much before that is tried again: each attempt may rewrite segments."""


def droppable(points: Sequence[Point], pins: Pins) -> list[Point]:
    """The points that may go, oldest first. Nothing behind a point that a view shows: it would
    free no room."""
    found: list[Point] = []
    for point in points[:-1]:
        if point.sequence in pins.held:
            break
        if point.label is None and point.sequence not in pins.kept:
            found.append(point)
    return found


def choose_prefix(
    segments: Sequence[Segment],
    batches: Sequence[Batch],
    points: Sequence[Point],
    candidates: Sequence[Point],
    need_bytes: int,
) -> list[int]:
    """How many of the oldest points must go so that removing whole segments frees `need_bytes`,
    or as much as can be had that way. Empty if nothing can."""
    by_sequence = {
        batch.point.sequence: batch.begin for batch in batches if batch.point is not None
    }
    allowed = {point.sequence for point in candidates}
    best: list[int] = []
    best_count = 0
    gone: list[int] = []
    for at, point in enumerate(points[:-1]):
        if point.sequence not in allowed:
            break
        gone.append(point.sequence)
        limit = by_sequence.get(points[at + 1].sequence)
        if limit is None:
            break  # not applied yet
        count = best_count
        while count < len(segments) and segments[count].end <= limit:
            count += 1
        if count > best_count:
            best, best_count = list(gone), count
            if sum(segment.size_bytes for segment in segments[:count]) >= need_bytes:
                break
    return best


def choose_merges(
    batches: Sequence[Batch], candidates: Sequence[Point], need_bytes: int
) -> list[int]:
    """The oldest points whose batches hold `need_bytes` of images: merging them away frees at
    most that much, so a few more rounds may follow, but no point goes needlessly."""
    sizes = {
        batch.point.sequence: batch.images.record_bytes
        for batch in batches
        if batch.point is not None
    }
    chosen: list[int] = []
    total = 0
    for point in candidates:
        if total >= need_bytes:
            break
        if point.sequence in sizes:
            chosen.append(point.sequence)
            total += sizes[point.sequence]
    return chosen


class Retention:
    """See the head of this file. Apply thread."""

    def __init__(
        self,
        reclaim: Reclaim,
        history: HistoryLog,
        points: PointList,
        inbox_bytes: Callable[[], int],
    ) -> None:
        self._reclaim = reclaim
        self._history = history
        self._points = points
        self._inbox_bytes = inbox_bytes
        self._max_bytes = 0
        self._futile_below = 0

    @property
    def used_bytes(self) -> int:
        return self._history.used_bytes + self._inbox_bytes()

    def retain(self, max_bytes: int, state: GroupState, applied_point: int, pins: Pins) -> Retained:
        """Brings history and inbox under `max_bytes`, as far as points may go for it. Raises
        OSError, DamageError; what was done until then stays done."""
        dropped: list[Point] = []
        if self.used_bytes < self._futile_below and max_bytes == self._max_bytes:
            return Retained(dropped, self.used_bytes, self._why(pins))
        self._max_bytes, self._futile_below = max_bytes, 0
        while self.used_bytes > max_bytes:
            before = self.used_bytes
            need = before - max_bytes + max_bytes // HEADROOM
            if not self._round(need, state, applied_point, pins, dropped):
                break
            if self.used_bytes >= before and not self._candidates(applied_point, pins):
                break
        used = self.used_bytes
        if used <= max_bytes:
            return Retained(dropped, used)
        self._futile_below = used + max_bytes // HEADROOM
        return Retained(dropped, used, self._why(pins))

    def _candidates(self, applied_point: int, pins: Pins) -> list[Point]:
        applied = [point for point in self._points.all if point.sequence <= applied_point]
        return droppable(applied, pins)

    def _round(
        self,
        need_bytes: int,
        state: GroupState,
        applied_point: int,
        pins: Pins,
        dropped: list[Point],
    ) -> bool:
        """One attempt to free so much. False if nothing more can be done."""
        candidates = self._candidates(applied_point, pins)
        history = self._history
        if self._reclaim.reclaim(pins):
            return True
        if not candidates:
            return False
        points = [point for point in self._points.all if point.sequence <= applied_point]
        chosen = choose_prefix(
            history.segments, history.batches, points, candidates, need_bytes
        ) or choose_merges(history.batches, candidates, need_bytes)
        if not chosen:
            return False
        newest = history.batch_of_point(chosen[-1])
        if (
            newest is not None
            and newest.begin >= history.newest_first
            and history.unapplied is None
        ):
            history.seal_newest(state)  # what is to be reclaimed must lie in sealed segments
        self._drop(chosen, state)
        dropped += self._points.drop(chosen)
        self._reclaim.reclaim(pins)
        return True

    def _drop(self, sequences: list[int], state: GroupState) -> None:
        try:
            self._history.drop_points(sequences, state)
        except OSError as error:
            if not no_space(error):
                raise
            self._history.forget_points(sequences)

    def _why(self, pins: Pins) -> str:
        """Why no more points go."""
        if pins.held:
            return "an open view keeps what lies behind its point"
        labelled = [point.label for point in self._points.all if point.label is not None]
        if labelled:
            return f"the points that are left are needed: {len(labelled)} have labels"
        return "only what the newest point and a rollback need is left"
