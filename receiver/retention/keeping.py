# SPDX-License-Identifier: Apache-2.0
"""What becomes of a group's past, step by step: thinning, budget, lock, and what is said of them.

`keep` is called before each batch, and from time to time when there is none. In this order: the
lock that the policy wants is put on record, if it is longer than the one there; what the rules do
not keep goes (receiver.retention.thinning); what the budget has no room for goes
(receiver.retention.budget). What it returns says whether apply has to wait.

The lock stands in the state of the group, in each batch's header, so it is as durable as the
history, and it only rises: a shorter `min_lock` in the configuration changes nothing about it. It
is put on record by a batch that holds nothing else, before anything is given up under the new
policy. `unlock` takes it down to what the policy says, by another such batch.

All of it goes by the counted clock (receiver.counted). Points whose stamps are ahead of it, which a
group may have been opened with, are mended before anything else is looked at, and the mend is put
on record as the lock is: from then on such a point ages from the same moment in every life.

The window is how far back the oldest point reaches. Where the budget makes
it shorter than the rules want it, that is an event: the first time, and again whenever it has lost
another tenth. It is over when the window reaches nine tenths as far as the rules want.

Concurrency: apply thread, but for what is marked "any thread". Failure: each step is durable or
has not happened; nothing here has to be made up for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from receiver.apply.applier import Applier
from receiver.catalog import GroupCatalog, SegmentFact
from receiver.counted.ages import AgeClock, Ages, Lag
from receiver.data_dir.reserve import UNRESERVED, Room
from receiver.history.bodies import Mend
from receiver.history.log import HistoryLog, as_mishap
from receiver.points.points import PointList
from receiver.points.policy import HistoryPolicy
from receiver.points.telling import Telling
from receiver.points.values import Dropped, Point, Retained
from receiver.retention.budget import Retention, Situation
from receiver.retention.dropping import DropOrder, chosen, locked_points
from receiver.retention.forecast import Growth, forecast_seconds
from receiver.retention.reclaim import Pins
from receiver.retention.stamps import mended, mends_for, moved
from receiver.retention.thinning import Protection, end_ns, span_ns, thinned, window_ns
from replicator.base.clock import NS_PER_S
from replicator.base.errors import OwnedError, UnreachableError

TELL_SHARE = 0.9
"""Rules with long steps let the window stand a little short of their span at all times."""


@dataclass(frozen=True, slots=True)
class HistoryFacts:
    """The past of a group as it is kept now. `window_ns` is None without points, `forecast` None
    while it is not known. `is_short`: the budget has made the window shorter than is wanted."""

    window_ns: int | None
    wanted_ns: int
    is_short: bool
    capacity_bytes: int
    forecast_seconds: float | None
    lock_ns: int
    locked_until_ns: int | None


def segment_facts(history: HistoryLog) -> list[SegmentFact]:
    return [
        SegmentFact(each.first, each.end, each.size_bytes, each.digest)
        for each in history.segment_set.sealed
    ]


class Keeping:
    """See the head of this file."""

    def __init__(
        self,
        group: str,
        applier: Applier,
        history: HistoryLog,
        points: PointList,
        retention: Retention,
        telling: Telling,
        catalog: GroupCatalog,
        pins: Callable[[], Pins],
        clock: AgeClock,
    ) -> None:
        self._group = group
        self._applier = applier
        self._history = history
        self._points = points
        self._retention = retention
        self._telling = telling
        self._catalog = catalog
        self._pins = pins
        self._clock = clock
        self._growth = Growth()
        self._are_stamps_seen = False
        self._mends: tuple[Mend, ...] = ()
        self._moved_to_ns = 0
        self._told_ns: int | None = None

    def keep(self, policy: HistoryPolicy) -> Retained:
        """See the head of this file. Raises NoSpaceError, OSError, DamageError."""
        if self._applier.is_rolling_back:  # it needs what is there until it is done
            return Retained([], self._retention.used_bytes)
        try:
            self._mend_stamps()
            if self._is_lock_wanted(policy):
                self._set_lock(policy.min_lock_ns)
            situation = self.situation(policy)
            now_ns = situation.now_ns
            self._growth.note(situation.ages.counted_ns, self._history.log.end)
            aged_out = self._retention.thin(policy, situation)
            self._tell_dropped(aged_out)
            before_ns = window_ns(self._retention.applied_points(situation), now_ns)
            retained = self._retention.fit(policy, situation)
        except OSError as error:
            raise as_mishap(error, "the history", self._group) from error
        self._tell_dropped(retained.dropped)
        after_ns = window_ns(self._retention.applied_points(situation), now_ns)
        self._tell_window(before_ns, after_ns, span_ns(policy.rules))
        if retained.over_budget:
            self._telling.event(
                "retention.over_budget", used_bytes=retained.used_bytes, why=retained.over_budget
            )
        is_too_large = self._history.segment_set.used_bytes > policy.max_bytes
        return replace(
            retained,
            dropped=[*aged_out, *retained.dropped],
            must_wait=bool(retained.over_budget) and is_too_large,
        )

    def situation(self, policy: HistoryPolicy, ages: Ages | None = None) -> Situation:
        """Apply thread; with `ages`, which may be of another time than now, any."""
        if ages is None:
            ages = self._clock.ages()
            self._move_stamps(ages)
        return Situation(
            ages,
            self._applier.newest_state,
            self._applier.applied_point,
            self._pins(),
            max(self.lock_ns, policy.min_lock_ns),
        )

    def ageing_out(self, policy: HistoryPolicy, before: Ages, after: Ages) -> int:
        """How many points the rules keep at the first of two times, and not at the second. Any
        thread."""
        first, second = (
            {point.sequence for point in self._thinned(policy, ages)} for ages in (before, after)
        )
        return len(second - first)

    def _thinned(self, policy: HistoryPolicy, ages: Ages) -> list[Point]:
        if not policy.rules:
            return []
        situation = self.situation(policy, ages)
        pins = situation.pins
        protection = Protection(pins.held | pins.kept, situation.locked_after_ns)
        points = self._retention.applied_points(situation)
        points = moved(points, self._new_lags(ages))
        return thinned(points, policy.rules, situation.now_ns, protection)

    # -- stamps

    def _move_stamps(self, ages: Ages) -> None:
        """By what the clock has found to have lagged since it was looked at last."""
        news = self._new_lags(ages)
        if news:
            self._points.change(lambda points: moved(points, news))
            self._moved_to_ns = news[-1].at_ns

    def _new_lags(self, ages: Ages) -> tuple[Lag, ...]:
        return tuple(lag for lag in ages.lags if lag.at_ns > self._moved_to_ns)

    def see_stamps(self) -> None:
        """To be called when the group has been opened, before a jump of the clock is accepted: what
        is stamped ahead of it ages from now."""
        known = self._mends or self._applier.newest_state.mends
        applied = [point for point in self._points.all if point.received_ns]
        self._mends = mends_for(applied, known, self._clock.ages().counted_ns)
        if self._mends != known:
            self._points.change(lambda points: mended(points, self._mends))
            self._telling.event("history.restamped", upto=self._mends[-1].upto)

    def _mend_stamps(self) -> None:
        """Puts on record what was seen; once more from the first call on, since a clock that was
        not kept began only when all groups had been opened."""
        if not self._are_stamps_seen:
            self.see_stamps()
            self._are_stamps_seen = True
        if self._mends != self._applier.newest_state.mends and not self._applier.has_pending:
            self._applier.state_mends(self._mends)

    # -- the lock

    @property
    def lock_ns(self) -> int:
        """The one on record. Any thread."""
        return self._applier.newest_state.lock_ns

    def _is_lock_wanted(self, policy: HistoryPolicy) -> bool:
        """A batch that is to be done again comes first; the policy's lock holds meanwhile."""
        is_ready = self._applier.applied_point > 0 and not self._applier.has_pending
        return policy.min_lock_ns > self.lock_ns and is_ready

    def _set_lock(self, lock_ns: int) -> None:
        """Durable when this returns."""
        before_ns = self.lock_ns
        self._applier.state_lock(lock_ns)
        self._telling.event(
            "history.locked" if lock_ns > before_ns else "history.unlocked",
            seconds=lock_ns // NS_PER_S,
            before_seconds=before_ns // NS_PER_S,
        )

    def unlock(self, policy: HistoryPolicy, reason: str) -> int:
        """Takes the lock down to what the policy says, durably; the one before. Raises
        OwnedError, UnreachableError, NoSpaceError, OSError."""
        self._check_orderly()
        before_ns = self.lock_ns
        if before_ns > policy.min_lock_ns:
            self._telling.event("history.lock_broken", what="unlock", reason=reason)
            try:
                self._set_lock(policy.min_lock_ns)
            except OSError as error:
                raise as_mishap(error, "the history", self._group) from error
        return before_ns

    def drop(
        self,
        policy: HistoryPolicy,
        order: DropOrder,
        *,
        dry_run: bool,
        room: Room = UNRESERVED,
    ) -> Dropped:
        """Gives up what a person ordered, durably, and gives back at once what can be. Raises what
        receiver.retention.dropping does, and NoSpaceError, OSError."""
        self._check_orderly()
        situation = self.situation(policy)
        gone = chosen(self._group, self._points.all, order, situation)
        if dry_run or not gone:
            return Dropped(gone)
        if locked_points(gone, situation):
            self._telling.event(
                "history.lock_broken", what=f"drop of {len(gone)} points", reason=order.reason
            )
        sequences = [point.sequence for point in gone]
        try:
            room.with_room(lambda: self._retention.drop(sequences, situation), "points drop")
            self._tell_dropped(gone)
            freed, to_come = room.with_room(
                lambda: self._retention.give_back(sequences, situation), "points drop"
            )
        except OSError as error:
            raise as_mishap(error, "the history", self._group) from error
        return Dropped(gone, freed, to_come)

    def _check_orderly(self) -> None:
        if self._applier.is_rolling_back:
            raise OwnedError(f"group {self._group!r} is being rolled back")
        if self._applier.has_pending:
            raise UnreachableError(
                f"a batch of group {self._group!r} is being done again after a mishap",
                hint="try again in a moment",
            )

    # -- telling

    def _tell_dropped(self, dropped: Sequence[Point]) -> None:
        if not dropped:
            return
        self._telling.event(
            "points.dropped",
            count=len(dropped),
            oldest=dropped[0].sequence,
            newest=dropped[-1].sequence,
            used_bytes=self._retention.used_bytes,
        )
        sequences = [point.sequence for point in dropped]
        self._telling.index(lambda: self._catalog.drop_points(sequences))
        self._telling.index(lambda: self._catalog.set_segments(segment_facts(self._history)))

    def _tell_window(self, before_ns: int | None, after_ns: int | None, wanted_ns: int) -> None:
        if after_ns is None or after_ns >= wanted_ns * TELL_SHARE:
            self._told_ns = None
            return
        if before_ns is None or after_ns >= before_ns:
            return
        if self._told_ns is None or after_ns < self._told_ns * TELL_SHARE:
            self._told_ns = after_ns
            self._telling.event(
                "history.window_shrunk",
                seconds=after_ns // NS_PER_S,
                before_seconds=before_ns // NS_PER_S,
                wanted_seconds=wanted_ns // NS_PER_S,
            )

    def facts(self, policy: HistoryPolicy) -> HistoryFacts:
        """Any thread."""
        points = self._points.all
        lock_ns, ages = max(self.lock_ns, policy.min_lock_ns), self._clock.ages()
        is_locked = bool(points) and lock_ns > 0
        return HistoryFacts(
            window_ns=window_ns(points, ages.now_ns),
            wanted_ns=span_ns(policy.rules),
            is_short=self._told_ns is not None,
            capacity_bytes=policy.max_bytes,
            forecast_seconds=forecast_seconds(self._growth.samples, policy.max_bytes),
            lock_ns=lock_ns,
            locked_until_ns=(ages.lock_ends_ns(end_ns(points[-1]), lock_ns) if is_locked else None),
        )
