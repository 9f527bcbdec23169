# SPDX-License-Identifier: Apache-2.0
"""Marks under way: from the cut in the log to the point at the receiver. No socket.

A mark is a promise about one cut: in the stream of that `ordinal`, its record ends at that `lsn`.
It is bound to that stream and ends with it; what becomes of it is what the receiver says of it:

    it tells of a point of that cut      made; under another label, if its own was taken there
                                         meanwhile
    it tells of a later point of the     no point was made of it
    stream, or acknowledges the stream
    beyond it
    it opens a stream of a higher        the stream ended before the mark was shipped, and is
    ordinal                              closed for ever
    the stream has ended before the cut  the same, known before another stream is opened
    the stream cannot be shipped         the same

The second rests on an order that the receiver keeps: an ACK that covers an LSN brings every point
up to it, or comes behind one that did; what is told again when a stream is resumed (`known_lsn`
asks for it) comes before any other ACK, and OPENED says how many points that are.

A label is in use from the order on until its mark is decided: the receiver knows of it then, or
nobody ever will.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from replicator.base.errors import NoPointError, ReplicatorError
from replicator.wire.limits import POINTS_PER_ACK
from replicator.wire.messages import Ack, Opened, Point

# A guest is thawed between the cut and `add`: so many points may come meanwhile, at ten a second.
RECENT_MAX = 2000
PENDING_MAX = 10_000
"""What nobody waits for need not be known for ever, while a receiver is away for days."""


@dataclass(eq=False, slots=True)
class PendingMark:
    """One that is not decided. `ordinal` is 0 where it is not known: then any stream may be its."""

    label: str | None
    ordinal: int
    lsn: int
    point: asyncio.Future[Point] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def is_of(self, ordinal: int) -> bool:
        return not self.ordinal or not ordinal or self.ordinal == ordinal

    def is_cut_of(self, point: Point) -> bool:
        return self.lsn == point.lsn and self.is_of(point.ordinal)


class Marks:
    """Those of one group."""

    def __init__(self) -> None:
        self._reserved: set[str] = set()
        self._pending: list[PendingMark] = []  # in the order of their cuts
        self._recent: dict[int, Point] = {}  # by LSN, oldest first
        self._ordinal = 0  # of the stream that is open at the receiver
        self._resent = 0  # points that are told again before anything else

    # -- orders

    @property
    def labels(self) -> set[str]:
        """In use by what may not be a point yet."""
        return self._reserved | {mark.label for mark in self._pending if mark.label is not None}

    def reserve(self, label: str) -> None:
        self._reserved.add(label)

    def release(self, label: str) -> None:
        self._reserved.discard(label)

    def add(self, label: str | None, ordinal: int, lsn: int) -> PendingMark:
        """Its cut is in the log. The point may have come before this is called."""
        mark = PendingMark(label, ordinal, lsn)
        known = self._recent.get(lsn)
        if known is not None and mark.is_cut_of(known):
            mark.point.set_result(known)
            return mark
        self._pending.append(mark)
        if len(self._pending) > PENDING_MAX:
            del self._pending[0]
        return mark

    # -- what the receiver says

    def known_lsn(self, ordinal: int) -> int | None:
        """Every point of that stream up to here is known, or of no interest; None: no mark of it
        waits, so nothing need be told again."""
        waiting = [mark.lsn for mark in self._pending if mark.is_of(ordinal)]
        return min(waiting) - 1 if waiting else None

    def opened(self, ordinal: int, message: Opened) -> None:
        """The receiver has opened that stream: each before it is over."""
        self._ordinal, self._resent = ordinal, message.resent
        self._fail(
            lambda mark: 0 < mark.ordinal < ordinal,
            "its stream ended before the receiver had it",
        )
        if not self._resent:
            self._covered(message.durable_lsn)

    def acknowledged(self, ack: Ack) -> None:
        self.told(ack.points)
        self._resent = max(self._resent - len(ack.points), 0)
        if not self._resent and len(ack.points) < POINTS_PER_ACK:
            self._covered(ack.durable_lsn)

    def told(self, points: Sequence[Point]) -> None:
        """Points that the receiver has made."""
        for point in points:
            self._recent[point.lsn] = point
            if len(self._recent) > RECENT_MAX:
                del self._recent[next(iter(self._recent))]
        if not self._pending or not points:
            return
        made = {point.lsn: point for point in points}
        for mark in list(self._pending):
            cut = made.get(mark.lsn)
            if cut is not None and mark.is_cut_of(cut):
                self._pending.remove(mark)
                if not mark.point.done():
                    mark.point.set_result(cut)

    def session_ended(self) -> None:
        """What was about to be told again is told in the next one."""
        self._ordinal = self._resent = 0

    # -- what the source's side knows

    def stream_over(self, ordinal: int, end_lsn: int, why: str) -> None:
        """Nothing of that stream beyond `end_lsn` will ever be shipped."""
        self._fail(lambda mark: mark.is_of(ordinal) and mark.lsn > end_lsn, why)

    def _covered(self, durable_lsn: int) -> None:
        """The receiver has told all points of the open stream up to there."""
        ordinal = self._ordinal
        if ordinal:
            self._fail(
                lambda mark: mark.is_of(ordinal) and mark.lsn <= durable_lsn,
                "the receiver has it, and there is no point of it, or no longer",
            )

    def _fail(self, over: Callable[[PendingMark], bool], why: str) -> None:
        for mark in [mark for mark in self._pending if over(mark)]:
            self._pending.remove(mark)
            if not mark.point.done():
                mark.point.set_exception(_failure(mark, why))
                mark.point.exception()  # perhaps nobody waits


def _failure(mark: PendingMark, why: str) -> ReplicatorError:
    named = f"the mark {mark.label!r}" if mark.label is not None else "the mark"
    return NoPointError(f"{named} did not become a point: {why}", hint="mark again")
