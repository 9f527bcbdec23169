# SPDX-License-Identifier: Apache-2.0
"""How the room of points that are gone comes back.

Before the oldest point that stays, nothing is needed: whole segments are removed (cheap). Behind
one that stays, batches between kept points are merged (receiver.history.compaction), which
rewrites what is left of a run of segments, so it is done only where it gains enough. Nothing behind
a point that a view shows is touched.

Deciding (`removable`, `choose_runs`) does no I/O; `Reclaim.reclaim` does what was decided. Which
points go is not decided here, and they are gone durably before this begins. Apply thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from receiver.history.batches import Batch, Segment
from receiver.history.compaction import Group, Sources, compact, group_batches, merged_bytes
from receiver.history.log import HistoryLog, no_space
from receiver.points import PointList
from replicator.base.storage import Storage
from replicator.base.units import MIB

RUN_BYTES_MAX = 512 * MIB
"""Segments that one compaction takes together."""
GAIN_SHARE = 0.2
GAIN_BYTES_MIN = 4096


@dataclass(frozen=True, slots=True)
class Pins:
    """Sequences of points that must stay. Behind the `held` ones nothing may be rewritten."""

    held: frozenset[int]
    kept: frozenset[int]


def oldest_kept(batches: Iterable[Batch], kept: frozenset[int]) -> Batch | None:
    """The batch of the oldest point that stays."""
    for batch in batches:
        if batch.point is not None and batch.point.sequence in kept:
            return batch
    return None


def removable(segments: Sequence[Segment], batches: Sequence[Batch], kept: frozenset[int]) -> int:
    """How many of the oldest segments no kept point needs, nor the newest batch."""
    oldest = oldest_kept(batches, kept)
    limit = oldest.begin if oldest is not None else (batches[-1].begin if batches else 0)
    count = 0
    while count < len(segments) and segments[count].end <= limit:
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class Run:
    """Sealed segments [first, last] and what becomes of their batches."""

    first: int
    last: int
    groups: list[Group]


def choose_runs(
    segments: Sequence[Segment],
    batches: Sequence[Batch],
    kept: frozenset[int],
    frozen_from: int,
) -> list[Run]:
    """Runs of segments that are worth rewriting, newest first (so that indexes stay good while
    they are done one after the other). Those that reach beyond position `frozen_from` stay."""
    oldest = oldest_kept(batches, kept)
    oldest_number = oldest.number if oldest is not None else batches[-1].number if batches else 0
    runs: list[Run] = []
    first = 0
    while first < len(segments) and segments[first].end <= frozen_from:
        last, size = first, segments[first].size_bytes
        while (
            last + 1 < len(segments)
            and segments[last + 1].end <= frozen_from
            and size + segments[last + 1].size_bytes <= RUN_BYTES_MAX
        ):
            last += 1
            size += segments[last].size_bytes
        low, high = segments[first].first, segments[last].end
        inside = [batch for batch in batches if low <= batch.begin < high]
        groups = group_batches(inside, kept, oldest_number)
        gain = sum(batch.images.record_bytes for batch in inside)
        gain -= sum(merged_bytes(group) for group in groups)
        if gain >= max(GAIN_BYTES_MIN, size * GAIN_SHARE):
            runs.append(Run(first, last, groups))
        first = last + 1
    return runs[::-1]


class Reclaim:
    """See the head of this file."""

    def __init__(
        self,
        storage: Storage,
        history: HistoryLog,
        points: PointList,
        utc_ns: Callable[[], int],
    ) -> None:
        self._storage = storage
        self._history = history
        self._points = points
        self._utc_ns = utc_ns

    def reclaim(self, pins: Pins) -> bool:
        """Frees what the points that are left do not need. Whether there was anything."""
        history = self._history
        before = history.used_bytes
        kept = frozenset(point.sequence for point in self._points.all)
        history.remove_oldest(removable(history.segments, history.batches, kept))
        if not history.is_state_safe:
            return history.used_bytes < before
        for run in choose_runs(history.segments, history.batches, kept, self._frozen_from(pins)):
            self._compact(run)
        return history.used_bytes < before

    def _frozen_from(self, pins: Pins) -> int:
        """Nothing from this position on may be rewritten: views, and a rollback under way, read
        it. The segment being written never is."""
        begins = [
            batch.begin
            for batch in self._history.batches
            if batch.point is not None and batch.point.sequence in pins.held
        ]
        return min([*begins, self._history.newest_first])

    def _compact(self, run: Run) -> None:
        history = self._history
        segments = history.segments[run.first : run.last + 1]
        sources = Sources(history.read_image, history.read_begin, history.texts)
        earlier = [
            batch.point.sequence
            for batch in history.batches
            if batch.begin < segments[0].first
            and batch.point is not None
            and batch.point.sequence in history.dropped
        ]
        try:
            compacted = compact(
                self._storage, segments, run.groups, sources, earlier, self._utc_ns()
            )
        except OSError as error:
            if not no_space(error):
                raise
            return
        if compacted is not None:
            history.replace_run(run.first, run.last, compacted)
