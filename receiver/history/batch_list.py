# SPDX-License-Identifier: Apache-2.0
"""The batches of a history, as they are known in memory; and the points that they made. No I/O.

Concurrency: what changes it is called by the group's apply thread. Any thread may take `all` and go
through it: a new batch is added at its end, in place (so publishing costs the same however many
there are), and where batches go or are replaced, the list is another. Nobody else changes it, and
whoever needs it to hold still takes a slice.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from receiver.history import bodies
from receiver.history.batches import Batch, Segment
from receiver.history.index.file import Span
from receiver.points.values import Point


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """The newest batch: its number, where it ended when it was written, the chain there."""

    number: int = 0
    position: int = 0
    chain: int = 0


class BatchList:
    """See the head of this file."""

    def __init__(self) -> None:
        self.all: list[Batch] = []
        """Oldest first."""
        self.dropped: frozenset[int] = frozenset()
        """Points that retention has given up, and whose batch is there."""
        self.unapplied: Batch | None = None
        """The newest one, while the replica may not hold it."""
        self.next_number = 1
        self.last_end = BatchEnd()
        """Of the newest batch that is published."""

    @property
    def newest_number(self) -> int:
        """Of the batches that are published. Any thread."""
        batches = self.all
        return batches[-1].number if batches else 0

    def points(self) -> list[Point]:
        """Of all batches in the history, those that retention has not given up. `until_ns` and
        `stood_ns` are as far as later batches know them."""
        points: list[Point] = []
        for batch in self.all:
            held = batch.held
            if held is not None and points and points[-1].sequence == held.sequence:
                points[-1] = _held(points[-1], held, batch.point)
            if batch.point is not None and batch.point.sequence not in self.dropped:
                points.append(batch.point)
        return points

    def of_point(self, sequence: int) -> Batch | None:
        """Of a point that retention has not given up."""
        batches = self.all
        at = bisect_left(batches, sequence, key=lambda batch: batch.last_point)
        while at < len(batches) and batches[at].last_point == sequence:
            point = batches[at].point
            if point is not None and point.sequence == sequence:
                return batches[at] if sequence not in self.dropped else None
            at += 1
        return None

    def after(self, number: int) -> list[Batch]:
        """The batches behind the one with that number, oldest first. Any thread."""
        batches = self.all
        if not batches or batches[-1].number <= number:
            return []
        return batches[bisect_right(batches, number, key=lambda batch: batch.number) :]

    def within(self, span: Span) -> list[Batch]:
        """Those that begin in that stretch of the history. Any thread."""
        batches = self.all
        low = bisect_left(batches, span.first, key=lambda batch: batch.begin)
        high = bisect_left(batches, span.end, key=lambda batch: batch.begin)
        return batches[low:high]

    def merged_numbers(self, opened: Sequence[Segment]) -> Iterator[tuple[int, int]]:
        """(the first, the last) of the batches that compactions that an opening found in these
        segments may have put together."""
        begins = [batch.begin for batch in self.all]
        for segment in opened:
            low, high = bisect_left(begins, segment.first), bisect_left(begins, segment.end)
            if segment.data_end != segment.end and low < high:
                before = self.all[low - 1].number if low else 0
                yield before + 1, self.all[high - 1].number

    def publish(self, batch: Batch, end: BatchEnd) -> None:
        """From here on views take it into account."""
        self.unapplied = batch
        self.all.append(batch)
        self.last_end = end
        self.next_number = batch.number + 1

    def forget(self, sequences: Iterable[int]) -> None:
        """These points are given up."""
        self.dropped |= frozenset(sequences)

    def reset(self, batches: list[Batch]) -> None:
        """After some went. Of points given up, those count whose batch is still there."""
        self.all = batches
        there = {batch.point.sequence for batch in batches if batch.point is not None}
        self.dropped &= there


def _held(point: Point, held: bodies.Held, following: Point | None) -> Point:
    """Where nobody counted how long the point stood (earlier versions), it is what the source said,
    and no longer than until the next one came."""
    until_ns, stood_ns = max(point.until_ns, held.until_ns), held.stood_ns
    if stood_ns == bodies.NOT_COUNTED:
        stood_ns = until_ns - point.time_ns
        if following is not None and following.received_ns:
            stood_ns = min(stood_ns, max(following.received_ns - point.received_ns, 0))
    return replace(point, until_ns=until_ns, stood_ns=max(point.stood_ns, stood_ns))
