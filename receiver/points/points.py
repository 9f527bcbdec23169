# SPDX-License-Identifier: Apache-2.0
"""The group's recovery points that are durable, in order. A lock, no I/O.

Written by the intake thread (new points, holds) and the apply thread (rollbacks, retention), read
by everybody without a lock. A list that was handed out changes in two ways only: new points are
added at its end, and a point is replaced by what is known of it since (how long it held, when it
was applied). Where points go, the list is another. So adding one costs the same however many there
are, and whoever goes through the list sees each point that was there when he began; whoever needs
its end to hold still takes a slice.

A point's span ends before the time of the next one, by what is printed of both: so the end that is
printed is a time that means the point. Where a source's clock has gone back while nobody knew of
the last stamp, the span is cut to that.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

from receiver.points.values import Point, received_at_ns


class PointList:
    """See the head of this file."""

    def __init__(self, counted_ns: Callable[[], int]) -> None:
        self._counted_ns = counted_ns
        self._points: list[Point] = []
        self._labels: set[str] = set()
        self.drops = 0
        """How often points went."""
        self._lock = threading.Lock()

    @property
    def all(self) -> list[Point]:
        """Oldest first. Not to be changed."""
        return self._points

    @property
    def count(self) -> int:
        return len(self._points)

    @property
    def newest(self) -> Point | None:
        points = self._points
        return points[-1] if points else None

    @property
    def labels(self) -> Container[str]:
        return self._labels

    def find(self, sequence: int) -> Point | None:
        points = self._points
        at = bisect_left(points, sequence, key=lambda point: point.sequence)
        return points[at] if at < len(points) and points[at].sequence == sequence else None

    def up_to(self, sequence: int) -> list[Point]:
        """Those with that sequence or a lower one, oldest first."""
        points = self._points
        return points[: bisect_left(points, sequence + 1, key=lambda point: point.sequence)]

    def reset(self, points: Iterable[Point]) -> None:
        with self._lock:
            self._set(list(points))

    def add(self, points: Iterable[Point]) -> None:
        with self._lock:
            for point in points:
                if self._points:
                    self._points[-1] = _ends_before(self._points[-1], point)
                self._points.append(point)
                if point.label is not None:
                    self._labels.add(point.label)

    def hold(self, sequence: int, until_ns: int) -> bool:
        """The point was still the newest then, by the source's clock. Of that no more than what the
        counted clock has counted makes the point younger. False if it is not the newest here."""
        now_ns = self._counted_ns()
        with self._lock:
            if not self._points or self._points[-1].sequence != sequence:
                return False
            last = self._points[-1]
            until_ns = max(until_ns, last.until_ns)
            counted_ns = now_ns - received_at_ns(last) if last.received_ns else 0
            stood_ns = max(last.stood_ns, min(until_ns - last.time_ns, counted_ns))
            if (until_ns, stood_ns) != (last.until_ns, last.stood_ns):
                self._points[-1] = replace(last, until_ns=until_ns, stood_ns=stood_ns)
            return True

    def received(self, sequence: int, received_ns: int) -> None:
        """The point was applied then. No matter if it is not here, or if that is known already."""
        with self._lock:
            at = bisect_left(self._points, sequence, key=lambda point: point.sequence)
            if at < len(self._points) and self._points[at].sequence == sequence:
                point = self._points[at]
                if not point.received_ns:
                    self._points[at] = replace(point, received_ns=received_ns)

    def change(self, changed: Callable[[list[Point]], list[Point]]) -> None:
        """What is known of them is known better: the same points, in a list of its own."""
        with self._lock:
            self._set(changed(self._points))

    def drop(self, sequences: Iterable[int]) -> list[Point]:
        gone = set(sequences)
        with self._lock:
            dropped = [point for point in self._points if point.sequence in gone]
            self._set([point for point in self._points if point.sequence not in gone])
            self.drops += 1
        return dropped

    def _set(self, points: list[Point]) -> None:
        self._points = apart(points)
        self._labels = {point.label for point in points if point.label is not None}


def apart(points: Sequence[Point]) -> list[Point]:
    """The same, in order, no span reaching into the next."""
    found = [_ends_before(point, following) for point, following in pairwise(points)]
    return [*found, *points[-1:]]


def _ends_before(point: Point, following: Point) -> Point:
    end_ns = max(following.time_ns // 1000 * 1000 - 1, point.time_ns)
    return point if point.until_ns <= end_ns else replace(point, until_ns=end_ns)
