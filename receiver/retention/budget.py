# SPDX-License-Identifier: Apache-2.0
"""Which points go: those that `keep` does not keep, and those that the budget has no room for.

*Thinning* (receiver.retention.thinning) comes first and costs little: what it gives up is freed
later, in steps, by receiver.retention.reclaim. The *budget* is what history and inbox may take.
Above it the oldest points go, but never these: the newest, what a view shows (`Pins.held`) or a
rollback pinned (`Pins.kept`), labelled points and those with an expiry ahead of them, and whatever
is younger than the window and the lock. If that is not enough, or the policy is to pause, it is
said (`Retained.over_budget`), and whoever applies has to wait: nothing is overwritten that could
not be undone.

Deciding (`droppable`, `choose_prefix`, `choose_merges`) does no I/O; `Retention` does what was
decided, points first: a point is given up durably before anything it needs goes. On a full disk,
where not even that can be written, it goes without a word: whole old segments are removed then, and
a point that was given up like that and is still there after a restart is decided about again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from receiver.counted.ages import Ages
from receiver.history.batches import Batch, Segment
from receiver.history.log import HistoryLog
from receiver.history.state import GroupState
from receiver.points.points import PointList
from receiver.points.policy import HistoryPolicy, Rule
from receiver.points.values import Point, Retained
from receiver.retention.reclaim import GAIN_BYTES_MIN, GAIN_SHARE, Pins, Reclaim, oldest_kept
from receiver.retention.thinning import NEVER_NS, Protection, end_ns, is_promised, thinned
from replicator.base.clock import NS_PER_S
from replicator.base.mishaps import is_full

HEADROOM = 50
"""A fiftieth of the budget is freed beyond what must be, and where nothing could be freed the
history grows by as much before that is tried again: each attempt may rewrite segments."""

THIN_INTERVAL_NS = 60 * NS_PER_S
FUTILE_NS = 5 * NS_PER_S
"""Where nothing could be freed it is tried again after that, for points have grown older."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is asked of the group each time: `state` is behind the last batch of the history,
    `applied_point` the newest point that is applied, `lock_ns` the lock in force."""

    ages: Ages
    state: GroupState
    applied_point: int
    pins: Pins
    lock_ns: int = 0

    @property
    def now_ns(self) -> int:
        """What deletion goes by."""
        return self.ages.now_ns

    @property
    def locked_after_ns(self) -> int:
        """What ends after that is locked."""
        return self.ages.locked_after_ns(self.lock_ns)

    def spared_after_ns(self, min_window_ns: int) -> int:
        """What ends after that the budget spares: for the window or the lock."""
        return min(self.now_ns - min_window_ns, self.locked_after_ns)


def droppable(
    points: Sequence[Point], pins: Pins, now_ns: int, spared_after_ns: int = NEVER_NS
) -> list[Point]:
    """The points that may go for the budget, oldest first. Nothing behind a point that a view
    shows: it would free no room."""
    found: list[Point] = []
    for point in points[:-1]:
        if point.sequence in pins.held:
            break
        if point.sequence in pins.kept or end_ns(point) > spared_after_ns:
            continue
        asked_for = point.label is not None or point.expire_ns > 0
        if not (asked_for and is_promised(point, now_ns)):
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
        self._thinned_by: tuple[Rule, ...] = ()
        self._thinned_at_ns = 0
        self._fitted = HistoryPolicy(0)
        self._futile_below = 0
        self._futile_at_ns = 0

    @property
    def used_bytes(self) -> int:
        return self._history.segment_set.used_bytes + self._inbox_bytes()

    def applied_points(self, situation: Situation) -> list[Point]:
        return self._points.up_to(situation.applied_point)

    # -- keep

    def thin(self, policy: HistoryPolicy, situation: Situation) -> list[Point]:
        """Gives up, durably and all at once, what the rules do not keep; at most every
        THIN_INTERVAL_NS. Raises OSError."""
        if not policy.rules or not self._is_thinning_due(policy, situation.now_ns):
            return []
        pins = situation.pins
        gone = thinned(
            self.applied_points(situation),
            policy.rules,
            situation.now_ns,
            Protection(pins.held | pins.kept, situation.locked_after_ns),
        )
        sequences = [point.sequence for point in gone]
        if sequences:
            self._drop(sequences, situation.state)
        self._thinned_by, self._thinned_at_ns = policy.rules, situation.now_ns
        return self._points.drop(sequences)

    def _is_thinning_due(self, policy: HistoryPolicy, now_ns: int) -> bool:
        interval_ns = min(THIN_INTERVAL_NS, policy.rules[0].span_ns // 4)
        last_ns = self._thinned_at_ns
        return policy.rules != self._thinned_by or not last_ns <= now_ns < last_ns + interval_ns

    # -- budget

    def fit(self, policy: HistoryPolicy, situation: Situation) -> Retained:
        """Brings history and inbox under the budget, as far as points may go for it. Raises
        OSError; what was done until then stays done."""
        dropped: list[Point] = []
        now_ns, max_bytes = situation.now_ns, policy.max_bytes
        if self.used_bytes <= max_bytes:
            return Retained(dropped, self.used_bytes)
        if policy == self._fitted and self._is_futile(now_ns):
            return Retained(dropped, self.used_bytes, self._why(policy, situation))
        self._fitted, self._futile_below = policy, 0
        while self.used_bytes > max_bytes:
            before = self.used_bytes
            need = before - max_bytes + max_bytes // HEADROOM
            if not self._round(need, policy, situation, dropped):
                break
            if self.used_bytes >= before and not self._candidates(policy, situation):
                break
        used = self.used_bytes
        if used <= max_bytes:
            return Retained(dropped, used)
        self._futile_below, self._futile_at_ns = used + max_bytes // HEADROOM, now_ns
        return Retained(dropped, used, self._why(policy, situation))

    def _is_futile(self, now_ns: int) -> bool:
        is_recent = self._futile_at_ns <= now_ns < self._futile_at_ns + FUTILE_NS
        return is_recent and self.used_bytes < self._futile_below

    def _candidates(self, policy: HistoryPolicy, situation: Situation) -> list[Point]:
        if policy.when_full == "pause":
            return []
        points = self.applied_points(situation)
        spared_after_ns = situation.spared_after_ns(policy.min_window_ns)
        return droppable(points, situation.pins, situation.now_ns, spared_after_ns)

    def _round(
        self, need_bytes: int, policy: HistoryPolicy, situation: Situation, dropped: list[Point]
    ) -> bool:
        """One attempt to free so much. False if nothing more can be done."""
        history, pins = self._history, situation.pins
        if self._reclaim.reclaim(pins):
            return True
        candidates = self._candidates(policy, situation)
        chosen = choose_prefix(
            history.segment_set.sealed,
            history.batch_list.all,
            self.applied_points(situation),
            candidates,
            need_bytes,
        ) or choose_merges(history.batch_list.all, candidates, need_bytes)
        if not chosen:
            return self._seal_what_is_idle(situation)
        newest = history.batch_list.of_point(chosen[-1])
        if newest is not None and newest.begin >= history.segment_set.newest_first:
            self._seal(situation)  # what is to be reclaimed must lie in sealed segments
        self._drop(chosen, situation.state)
        dropped += self._points.drop(chosen)
        self._reclaim.reclaim(pins)
        return True

    def _seal_what_is_idle(self, situation: Situation) -> bool:
        """The segment being written may hold images that no point needs: then it is sealed, so
        that they can go. Whether that freed anything."""
        history = self._history
        kept = frozenset(point.sequence for point in self._points.all)
        oldest = oldest_kept(history.batch_list.all, kept)
        idle_bytes = sum(
            batch.images.record_bytes
            for batch in history.batch_list.all
            if batch.begin >= history.segment_set.newest_first
            and (oldest is None or batch.number <= oldest.number)
        )
        newest_bytes = history.segment_set.used_bytes - sum(
            each.size_bytes for each in history.segment_set.sealed
        )
        if idle_bytes < max(GAIN_BYTES_MIN, newest_bytes * GAIN_SHARE):
            return False
        return self._seal(situation) and self._reclaim.reclaim(situation.pins)

    def _seal(self, situation: Situation) -> bool:
        if self._history.batch_list.unapplied is not None:
            return False
        self._history.seal_newest(situation.state)
        return True

    # -- both

    def drop(self, sequences: list[int], situation: Situation) -> list[Point]:
        """Gives up these points, durably: whoever asks has seen to it that they may go. Raises
        OSError."""
        if sequences:
            self._history.drop_points(sequences, situation.state)
        return self._points.drop(sequences)

    def give_back(self, dropped: Sequence[int], situation: Situation) -> tuple[int, int]:
        """The room of points that were given up, as far as it can be had at once: (bytes freed,
        bytes that will be). What lies in the segment being written is sealed for that. May be done
        again where it failed. Raises DamageError, OSError."""
        before = self._history.segment_set.used_bytes
        newest = max(
            (
                batch.begin
                for batch in self._history.batch_list.all
                if batch.point is not None and batch.point.sequence in dropped
            ),
            default=-1,
        )
        if newest >= self._history.segment_set.newest_first:
            self._seal(situation)
        self._reclaim.remove_whole()
        freed = max(before - self._history.segment_set.used_bytes, 0)
        return freed, self._reclaim.gain_bytes(situation.pins)

    def _drop(self, sequences: list[int], state: GroupState) -> None:
        try:
            self._history.drop_points(sequences, state)
        except OSError as error:
            if not is_full(error):
                raise
            self._history.batch_list.forget(sequences)

    def _why(self, policy: HistoryPolicy, situation: Situation) -> str:
        """Why no more points go."""
        if policy.when_full == "pause":
            return "no points are given up for the budget (when_full)"
        if situation.pins.held:
            return "an open view keeps what lies behind its point"
        points = self.applied_points(situation)
        spared_after_ns = situation.spared_after_ns(policy.min_window_ns)
        young = sum(end_ns(each) > spared_after_ns for each in points[:-1])
        if young:
            is_window = spared_after_ns == situation.now_ns - policy.min_window_ns
            name = "min_window" if is_window else "the lock"
            hint = situation.ages.hint
            return f"the points that are left are needed: {young} are younger than {name}" + (
                f"; {hint}" if hint else ""
            )
        labelled = sum(point.label is not None for point in points)
        if labelled:
            return f"the points that are left are needed: {labelled} have labels"
        return "only what the newest point and a rollback need is left"
