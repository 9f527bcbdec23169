# SPDX-License-Identifier: Apache-2.0
"""How the room of points that are gone comes back.

Before the oldest point that stays, nothing is needed: whole segments are removed (cheap). Behind
one that stays, batches between kept points are merged (receiver.history.compaction), which
rewrites what is left of a run of segments, so it is done only where it gains enough. Nothing behind
a point that a view shows is touched.

Deciding (`removable`, `choose_run`) does no I/O but reading tables; `Reclaim` does what was
decided. Which points go is not decided here, and they are gone durably before this begins.

A compaction is done in steps, with batches applied between them (`step`); only when the budget
is exceeded is it carried to its end at once (`reclaim`). What is not worth while, did not fit on
the disk, or cannot be read is left as it is, until its points change or room was freed. Damage that
is met is told, and stops nothing else.

Concurrency: apply thread. What a compaction under way reads is removed or replaced here alone, and
it is discarded first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from receiver.history.batches import Batch, Segment
from receiver.history.compaction import Compaction
from receiver.history.images import ImageTable
from receiver.history.log import HistoryLog
from receiver.history.merging import PART_BLOCKS, Group, Sources, group_batches, merged_bytes
from receiver.history.sums.sums import LatestSums
from receiver.points.points import PointList
from receiver.points.values import Point
from replicator.base.errors import DamageError
from replicator.base.mishaps import is_full
from replicator.base.storage import Storage
from replicator.base.units import MIB

RUN_BYTES_MAX = 512 * MIB
RUN_BLOCKS_MAX = 1 << 20
"""Segments that one compaction takes together: what a crash makes it do again, and (40 bytes a
block) what it needs in memory."""
REMOVED_TOGETHER = 8
BATCHES_REMOVED_TOGETHER = 2048
"""Segments removed in one step, as long as they have no more batches than that: the sums of what
these wrote are read, and in memory, meanwhile."""
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


def removed_together(segments: Sequence[Segment], batches: Sequence[Batch], count: int) -> int:
    """Of the `count` oldest segments those that go in one step: one at least, if there is one."""
    count = min(count, REMOVED_TOGETHER)
    while count > 1 and _batches_before(batches, segments[count - 1]) > BATCHES_REMOVED_TOGETHER:
        count -= 1
    return count


def _batches_before(batches: Sequence[Batch], end_of: Segment) -> int:
    return bisect_left(batches, end_of.end, key=lambda batch: batch.begin)


@dataclass(frozen=True, slots=True)
class Run:
    """Sealed segments [first, last] and what becomes of their batches."""

    first: int
    last: int
    groups: list[Group]

    @property
    def name(self) -> tuple[int, ...]:
        """The same for the same batches in the same groups."""
        return tuple(number for group in self.groups for number in _ends(group))

    @property
    def gain_bytes_max(self) -> int:
        """What it gains at most: all but the largest batch of each group."""
        gain = 0
        for group in self.groups:
            sizes = [batch.images.record_bytes for batch in group.batches]
            gain += sum(sizes) - (max(sizes) if group.keep_images else 0)
        return gain

    def gain_bytes(self, table: Callable[[Batch], ImageTable]) -> int:
        """About what it gains."""
        before = sum(batch.images.record_bytes for group in self.groups for batch in group.batches)
        return before - sum(merged_bytes(group, table) for group in self.groups)


def _ends(group: Group) -> tuple[int, int]:
    return group.batches[0].number, group.batches[-1].number


def runs_of(
    segments: Sequence[Segment],
    batches: Sequence[Batch],
    kept: frozenset[int],
    frozen_from: int,
) -> list[Run]:
    """All of them, newest first: neighbouring segments as far as one compaction goes. Those that
    reach beyond position `frozen_from` stay."""
    oldest = oldest_kept(batches, kept)
    oldest_number = oldest.number if oldest is not None else batches[-1].number if batches else 0
    runs: list[Run] = []
    first = 0
    while first < len(segments) and segments[first].end <= frozen_from:
        inside = _inside(batches, segments[first])
        size, blocks = segments[first].size_bytes, _blocks(inside)
        last = first
        while last + 1 < len(segments) and segments[last + 1].end <= frozen_from:
            following = _inside(batches, segments[last + 1])
            size += segments[last + 1].size_bytes
            blocks += _blocks(following)
            if size > RUN_BYTES_MAX or blocks > RUN_BLOCKS_MAX:
                break
            inside += following
            last += 1
        runs.append(Run(first, last, group_batches(inside, kept, oldest_number)))
        first = last + 1
    return runs[::-1]


def _inside(batches: Sequence[Batch], segment: Segment) -> list[Batch]:
    low = bisect_left(batches, segment.first, key=lambda batch: batch.begin)
    high = bisect_left(batches, segment.end, key=lambda batch: batch.begin)
    return list(batches[low:high])


def _blocks(batches: Iterable[Batch]) -> int:
    return sum(batch.images.block_count for batch in batches)


class Reclaim:
    """See the head of this file."""

    def __init__(
        self,
        storage: Storage,
        history: HistoryLog,
        points: PointList,
        utc_ns: Callable[[], int],
        failed: Callable[[DamageError | OSError], None],
        sums: LatestSums,
        *,
        step_blocks: int = PART_BLOCKS,
    ) -> None:
        """`step_blocks`: what a step of a compaction writes at most, about. `sums` are told of
        batches before they go, lose their images, or become others."""
        self._sums = sums
        self._numbers = (0, 0)
        self._imageless = 0
        self._step_blocks = step_blocks
        self._storage = storage
        self._failed = failed
        self._history = history
        self._points = points
        self._utc_ns = utc_ns
        self._compaction: Compaction | None = None
        self._run: tuple[int, ...] = ()
        self._futile: set[tuple[int, ...]] = set()
        self._looked_at: tuple[object, ...] = ()
        self.compacted_bytes = 0
        """Read by compactions that ended, since this process started."""

    def reclaim(self, pins: Pins) -> bool:
        """Frees what the points that are left do not need, all of it. Whether there was anything.
        Raises OSError."""
        before = self._history.segment_set.used_bytes
        while self.step(pins):
            pass
        return self._history.segment_set.used_bytes < before

    def remove_whole(self) -> int:
        """Whole segments that no point needs any more, at once; the bytes freed. Raises OSError."""
        self.close()
        before = self._history.segment_set.used_bytes
        kept = frozenset(point.sequence for point in self._points.all)
        while self._remove_oldest(kept):
            pass
        return before - self._history.segment_set.used_bytes

    def gain_bytes(self, pins: Pins) -> int:
        """About what compactions will free. Raises DamageError, OSError."""
        history = self._history
        kept = frozenset(point.sequence for point in self._points.all)
        segments = history.segment_set.sealed
        runs = runs_of(segments, history.batch_list.all, kept, self._frozen_from(pins))
        return sum(
            run.gain_bytes(history.reader.table)
            for run in runs
            if run.gain_bytes_max >= self._least_gain(run, segments)
        )

    def step(self, pins: Pins) -> bool:
        """Some of that. False if there is nothing to do. Raises OSError."""
        self._check(pins)
        if self._compaction is None:
            look = self._look(pins)
            if look == self._looked_at:
                return False
            kept = frozenset(point.sequence for point in self._points.all)
            if self._remove_oldest(kept):
                self._futile.clear()
            elif not self._begin(kept, pins):
                self._looked_at = look
                return False
            return True
        try:
            if self._compaction.step():
                return True
            if self._imageless:
                self._sums.absorb(self._imageless, self._compaction.run[0].first)
            run = self._compaction.run
            self._sums.before_merge(*self._numbers)
            self._history.segment_set.index.forget(run[0].first, run[-1].end)
            compacted = self._compaction.finish()
        except (DamageError, OSError) as error:
            self._leave(error)
            return True
        compaction, self._compaction = self._compaction, None
        if compacted is None:
            self._futile.add(self._run)
        else:
            self._history.segment_set.replace_run(compaction.run, compacted)
            self.compacted_bytes += compaction.read_bytes
        return True

    def rewrite(self, segment: Segment, healed: Mapping[int, bytes], pins: Pins) -> bool:
        """Writes a sealed segment anew, with the right content of images that are wrong there (by
        their positions). False, and nothing has changed, if something reads it now, or it has
        become too large. Raises DamageError, OSError; nothing has changed then either."""
        history = self._history
        if segment.end > self._frozen_from(pins) or not history.segment_set.is_state_safe:
            return False
        self.close()
        batches = _inside(history.batch_list.all, segment)
        groups = [Group([batch], self._point_of(batch), keep_images=True) for batch in batches]
        compaction = self._begun([segment], groups, healed)
        while compaction.step():
            pass
        self._sums.before_merge(batches[0].number, batches[-1].number)
        history.segment_set.index.forget(segment.first, segment.end)
        compacted = compaction.finish()
        if compacted is not None:
            history.segment_set.replace_run([segment], compacted)
        return compacted is not None

    def _point_of(self, batch: Batch) -> Point | None:
        point = batch.point
        return (
            None if point is None or point.sequence in self._history.batch_list.dropped else point
        )

    def close(self) -> None:
        """What is under way is given up."""
        if self._compaction is not None:
            self._compaction.discard()
            self._compaction = None

    # -- inside

    def _look(self, pins: Pins) -> tuple[object, ...]:
        """What it depends on whether there is something to do."""
        history = self._history
        return (
            history.segment_set.version,
            history.segment_set.is_state_safe,
            self._points.drops,
            pins,
        )

    def _check(self, pins: Pins) -> None:
        """A view that was opened meanwhile may read what the compaction under way would
        replace."""
        if self._compaction is not None and (
            self._compaction.run[-1].end > self._frozen_from(pins)
        ):
            self.close()

    def _remove_oldest(self, kept: frozenset[int]) -> bool:
        """What lies before the oldest point that stays."""
        history = self._history
        count = removed_together(
            history.segment_set.sealed,
            history.batch_list.all,
            removable(history.segment_set.sealed, history.batch_list.all, kept),
        )
        if not count:
            return False
        if not history.is_durable:
            history.sync()  # a batch that may have to be done again may need what would go
        end = history.segment_set.sealed[count - 1].end
        gone = [batch.number for batch in history.batch_list.all if batch.begin < end]
        self._sums.absorb(gone[-1] if gone else 0, end)
        return history.segment_set.remove_oldest(count) > 0

    def _begin(self, kept: frozenset[int], pins: Pins) -> bool:
        """The next compaction that is worth while."""
        history = self._history
        if not history.segment_set.is_state_safe:
            return False
        segments, frozen_from = history.segment_set.sealed, self._frozen_from(pins)
        runs = runs_of(segments, history.batch_list.all, kept, frozen_from)
        self._futile &= {run.name for run in runs}
        for run in runs:
            self._run = run.name
            try:
                if self._is_worth_while(run, segments):
                    self._compaction = self._compaction_of(run)
                    return True
            except (DamageError, OSError) as error:
                self._leave(error)
        return False

    def _leave(self, error: DamageError | OSError) -> None:
        """The compaction of `_run` has ended by an error, and changed nothing. It is left alone."""
        self._compaction = None
        self._futile.add(self._run)
        if isinstance(error, DamageError) or not is_full(error):
            self._failed(error)

    def _least_gain(self, run: Run, segments: Sequence[Segment]) -> float:
        size = sum(segment.size_bytes for segment in segments[run.first : run.last + 1])
        return max(GAIN_BYTES_MIN, size * GAIN_SHARE)

    def _is_worth_while(self, run: Run, segments: Sequence[Segment]) -> bool:
        least = self._least_gain(run, segments)
        if run.gain_bytes_max < least or run.name in self._futile:
            return False
        if run.gain_bytes(self._history.reader.table) < least:
            self._futile.add(run.name)
            return False
        return True

    def _compaction_of(self, run: Run) -> Compaction:
        history = self._history
        self._imageless = max(
            (group.batches[-1].number for group in run.groups if not group.keep_images), default=0
        )
        batches = [each for group in run.groups for each in group.batches]
        self._numbers = (batches[0].number, batches[-1].number) if batches else (0, 0)
        segments = history.segment_set.sealed[run.first : run.last + 1]
        return self._begun(segments, run.groups, {}, imageless=self._imageless)

    def _begun(
        self,
        segments: Sequence[Segment],
        groups: Sequence[Group],
        healed: Mapping[int, bytes],
        *,
        imageless: int = 0,
    ) -> Compaction:
        history = self._history
        sources = Sources(
            history.reader.read_stored,
            history.reader.read_begin,
            history.reader.table,
            history.texts,
            healed,
        )
        earlier = [
            batch.point.sequence
            for batch in history.batch_list.all
            if batch.begin < segments[0].first
            and batch.point is not None
            and batch.point.sequence in history.batch_list.dropped
        ]
        return Compaction(
            self._storage,
            segments,
            groups,
            sources,
            earlier,
            self._utc_ns(),
            imageless=imageless,
            step_blocks=self._step_blocks,
        )

    def _frozen_from(self, pins: Pins) -> int:
        """Nothing from this position on may be rewritten: views, and a rollback under way, read
        it. The segment being written never is."""
        begins = [
            batch.begin
            for batch in self._history.batch_list.all
            if batch.point is not None and batch.point.sequence in pins.held
        ]
        return min([*begins, self._history.segment_set.newest_first])
