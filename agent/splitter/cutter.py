# SPDX-License-Identifier: Apache-2.0
"""When a group is cut, and what is said of the time in between. No I/O.

Either a cut is made, or the group says that the last one still holds. Silence says nothing: a
group that neither cuts nor holds is one that could not be looked at. Both carry a stamp of the same
clock, so they rise together; a step of the wall clock seen at a hold is noted in the next cut. The
writes between get theirs from that clock too (`passing_ns`): each lies behind the cut, or the end
of the hold, that it follows, and in front of the next.

Whether a cut *may* be made is the group's to decide, in the step in which this is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.splitter.stream import StreamLog
from journal.bodies import Cut, CutKind, Member, encode_body
from journal.record import NO_DISK, RecordType
from replicator.base.clock import Clock, PointClock


@dataclass(frozen=True, slots=True)
class Stamp:
    """A moment: the time that a point of it bears, and the machine's monotonic clock."""

    time_ns: int
    monotonic_ns: int


class Cutter:
    """The cuts of one group over all its streams. `uncut`: something was recorded since the last
    cut. `last_cut_time_ns` is that of the last one that is in the log."""

    def __init__(
        self,
        clock: Clock,
        interval_ns: int,
        sequence: Iterator[int],
        stepped: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`stepped(nanoseconds)`: the wall clock was set."""
        self.uncut = False
        self.last_cut_time_ns = 0
        self.held_until_ns = 0
        self.next_due_ns = clock.monotonic_ns() + interval_ns
        self._interval_ns = interval_ns
        self._monotonic_ns = clock.monotonic_ns
        self._clock = PointClock(clock)
        self._stepped = stepped
        self._sequence = sequence
        self._step_ns = 0
        self._cut_lsn: int | None = None  # end of the last cut of this stream

    def begin_stream(self) -> None:
        self.uncut = False
        self.last_cut_time_ns = self.held_until_ns = 0
        self._cut_lsn = None

    def set_interval(self, interval_ns: int) -> None:
        """Counted from the last time that a cut was due."""
        self.next_due_ns += interval_ns - self._interval_ns
        self._interval_ns = interval_ns

    def is_due(self, now_ns: int) -> bool:
        """True once for each interval; intervals that were missed are passed over."""
        if now_ns < self.next_due_ns:
            return False
        missed = (now_ns - self.next_due_ns) // self._interval_ns
        self.next_due_ns += (missed + 1) * self._interval_ns
        return True

    def cut(
        self,
        stream: StreamLog,
        members: list[Member],
        kind: CutKind,
        label: str | None,
        *,
        expire_ns: int = 0,
        at: Stamp | None = None,
    ) -> tuple[int, int]:
        """Encodes a cut; (end of its record, time). It counts once `made` is called. `at`: what
        `stamp` gave for its moment, with no cut and no hold since; None: now."""
        at = at or self.stamp()
        time_ns = at.time_ns
        body = Cut(
            kind=kind,
            members=members,
            label=label,
            clock_step_ns=self._step_ns,
            expire_ns=expire_ns,
            monotonic_ns=at.monotonic_ns,
        )
        self._step_ns = 0
        payload = encode_body(body)
        stream.add(int(RecordType.CUT), NO_DISK, 0, 0, next(self._sequence), time_ns, payload)
        self.uncut = False
        self._cut_lsn = stream.record_lsn
        return self._cut_lsn, time_ns

    def made(self, time_ns: int) -> None:
        self.last_cut_time_ns = self.held_until_ns = time_ns

    def hold(self, stream: StreamLog) -> None:
        """Says that the last cut stands for now too, if it is the end of the log."""
        if not self.uncut and stream.end_lsn == self._cut_lsn:
            self.held_until_ns = self.stamp().time_ns

    def passing_ns(self) -> int:
        """The time of now, for what is written between two cuts."""
        return self._clock.passing_ns()

    def behind(self, stamp_ns: int) -> None:
        """See PointClock."""
        self._clock.behind(stamp_ns)

    def stamp(self) -> Stamp:
        """The time of now, as points have it."""
        time_ns, step_ns = self._clock.stamp()
        if step_ns:
            self._step_ns += step_ns
            self._stepped(step_ns)
        return Stamp(time_ns, self._monotonic_ns())
