# SPDX-License-Identifier: Apache-2.0
"""Single writes as points: which there are behind a point, and what they come to.

A point text `#N+Mw` stands for point #N with the first M writes behind it (receiver.writes.walk).
The frames are read where they lie, in the inbox or kept for it (receiver.writes.log), and each
record is verified once more. What is laid over a point is held in memory, with the frames it came
in: at most RAW_BYTES_MAX of records are unpacked for one answer, which is far more than the writes
between two checkpoints; where checkpoints are far apart, a later one is nearer.

Concurrency: the group's apply thread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from receiver.points.points import PointList
from receiver.points.policy import HistoryPolicy
from receiver.points.values import Point
from receiver.writes.log import FineLog
from receiver.writes.overlay import FineOverlay
from receiver.writes.walk import FineWrite, WritesEnd, walk
from replicator.base.errors import NoPointError
from replicator.base.units import MIB, format_size
from replicator.wire.frames import OpenedFrame

RAW_BYTES_MAX = 256 * MIB
GIVE_WAY_BYTES = 256 * MIB
"""Freed at once where the disk is full: some batches' worth."""


@dataclass(frozen=True, slots=True)
class PointWrite:
    """A write, with the point that it is numbered by."""

    point: Point
    write: FineWrite


class FineHistory:
    """See the head of this file."""

    def __init__(
        self, log: FineLog, points: PointList, shrunk: Callable[[int, int | None], None]
    ) -> None:
        """`shrunk` is told how many bytes had to go before their time, and when what is oldest now
        was left."""
        self.log = log
        self._points = points
        self._shrunk = shrunk

    # -- how much is kept

    def make_room(self, policy: HistoryPolicy, others_bytes: int) -> None:
        """Lets go what is too old by the counted clock, and of the rest, oldest first, what the
        budget has no room for beside the others: of all that is kept this is needed least. Raises
        OSError."""
        self.log.keep_ns = policy.fine_ns
        self.log.expire()
        over = others_bytes + self.log.used_bytes - policy.max_bytes
        if over > 0:
            self.shrink(over)

    def shrink(self, need_bytes: int) -> None:
        """Frees so many bytes, if there are as many. Raises OSError."""
        freed = self.log.shrink(need_bytes)
        if freed:
            self._shrunk(freed, self.log.oldest_ns)

    def give_way(self) -> None:
        """The disk is full: room for what was promised. Not while a rollback needs the frames."""
        if self.log.keep_ns is not None:
            self.shrink(GIVE_WAY_BYTES)

    # -- which writes there are

    def overlay(self, point: Point, writes: int) -> FineOverlay:
        """The first so many writes behind the point. Raises NoPointError where they cannot be had,
        DamageError, OSError."""
        return FineOverlay(self._first(point, writes))

    def _first(self, point: Point, writes: int) -> list[FineWrite]:
        found: list[FineWrite] = []
        for each in self._behind(point):
            if isinstance(each, WritesEnd):
                raise NoPointError(
                    f"there is no #{point.sequence}+{writes}w: {each.count} writes are kept behind"
                    f" point {point}, and {each.why}",
                    hint="`replicator points GROUP --writes POINT` lists those that can be had",
                )
            found.append(each)
            if each.number == writes:
                return found
        raise AssertionError("a walk ends with a WritesEnd")

    def write(self, point: Point, number: int) -> FineWrite:
        """That write. Raises as `overlay` does."""
        return self._first(point, number)[-1]

    def last_write(self, point: Point, until_ns: int) -> tuple[FineWrite | None, str]:
        """The last of the writes behind the point before the first that is younger, as far as they
        can be had; None where there is none, so the point itself. And why later ones cannot be had,
        where that is so. Raises DamageError, OSError, NoPointError."""
        last: FineWrite | None = None
        for each in self._behind(point):
            if isinstance(each, WritesEnd):
                return last, "" if each.is_natural else each.why
            if each.time_ns > until_ns:
                break
            last = each
        return last, ""

    def around(self, moment_ns: int, window_ns: int, limit: int) -> list[PointWrite]:
        """The writes within `window_ns` of that moment, in order; of more than `limit`, those
        nearest to it. Raises DamageError, OSError, NoPointError."""
        points = self._points.all
        first = bisect_right(points, moment_ns - window_ns, key=lambda each: each.time_ns) - 1
        before: deque[PointWrite] = deque(maxlen=limit)
        after: list[PointWrite] = []
        room = _Room()
        for point in points[max(first, 0) :]:
            if point.time_ns > moment_ns + window_ns or len(after) >= limit:
                break
            for each in self._behind(point, room):
                if isinstance(each, WritesEnd) or each.time_ns > moment_ns + window_ns:
                    break
                if each.time_ns >= moment_ns - window_ns:
                    bare = PointWrite(point, _without_content(each))
                    if each.time_ns <= moment_ns:
                        before.append(bare)
                    else:
                        after.append(bare)
                if len(after) >= limit:
                    break
        return _nearest(list(before), after, limit)

    def _following(self, point: Point) -> Point | None:
        """The next point of the same stream, if there is one: its cut ends the writes of this."""
        points = self._points.all
        at = bisect_right(points, point.sequence, key=lambda each: each.sequence)
        following = points[at] if at < len(points) else None
        same = following is not None and following.ordinal == point.ordinal and following.lsn > 0
        return following if same else None

    def _behind(self, point: Point, room: _Room | None = None) -> Iterator[FineWrite | WritesEnd]:
        if not point.lsn:
            yield WritesEnd(0, f"a point of kind {point.kind} is followed by none")
            return
        frames = (room or _Room()).bounded(self.log.frames_from(point.ordinal, point.lsn - 1))
        yield from walk(frames, point, self._following(point))


class _Room:
    """Bounds what is unpacked for one answer."""

    def __init__(self) -> None:
        self._raw_bytes = 0

    def bounded(self, frames: Iterator[OpenedFrame]) -> Iterator[OpenedFrame]:
        for frame in frames:
            self._raw_bytes += frame.header.raw_bytes
            if self._raw_bytes > RAW_BYTES_MAX:
                raise NoPointError(
                    f"more than {format_size(RAW_BYTES_MAX)} of the log would have to be read",
                    hint="choose a point nearer to the write, or a smaller window",
                )
            yield frame


def _without_content(write: FineWrite) -> FineWrite:
    """To keep no frame in memory."""
    content = None if write.content is None else b""
    return FineWrite(
        write.number, write.lsn, write.disk, write.offset, write.length, write.time_ns, content
    )


def _nearest(
    before: Sequence[PointWrite], after: Sequence[PointWrite], limit: int
) -> list[PointWrite]:
    """Half of them from either side, more from one where the other has fewer."""
    half = limit // 2
    take_before = min(len(before), max(limit - half, limit - len(after)))
    kept = list(before[len(before) - take_before :])
    return kept + list(after[: limit - len(kept)])
