# SPDX-License-Identifier: Apache-2.0
"""The group's recovery points that are durable, in order. No I/O.

Written by the intake thread (new points, holds) and the apply thread (rollbacks, retention), read
by everybody: the list is replaced, never changed, so a reader takes it without a lock.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import replace

from receiver.values import Point


class PointList:
    """See the head of this file."""

    def __init__(self) -> None:
        self._points: list[Point] = []
        self._labels: frozenset[str] = frozenset()
        self.drops = 0
        """How often points went."""
        self._lock = threading.Lock()

    @property
    def all(self) -> list[Point]:
        """Oldest first. Not to be changed."""
        return self._points

    @property
    def newest(self) -> Point | None:
        points = self._points
        return points[-1] if points else None

    @property
    def labels(self) -> frozenset[str]:
        return self._labels

    def find(self, sequence: int) -> Point | None:
        points = self._points
        at = bisect_left(points, sequence, key=lambda point: point.sequence)
        return points[at] if at < len(points) and points[at].sequence == sequence else None

    def newest_up_to(self, sequence: int) -> Point | None:
        points = self._points
        at = bisect_left(points, sequence + 1, key=lambda point: point.sequence)
        return points[at - 1] if at else None

    def up_to(self, sequence: int) -> list[Point]:
        """Those with that sequence or a lower one, oldest first."""
        points = self._points
        return points[: bisect_left(points, sequence + 1, key=lambda point: point.sequence)]

    def reset(self, points: Iterable[Point]) -> None:
        with self._lock:
            self._set(list(points))

    def add(self, points: Iterable[Point]) -> None:
        with self._lock:
            self._set([*self._points, *points])

    def hold(self, sequence: int, until_ns: int) -> bool:
        """The point was still the newest then. False if it is not the newest here."""
        with self._lock:
            if not self._points or self._points[-1].sequence != sequence:
                return False
            last = self._points[-1]
            if until_ns > last.until_ns:
                self._points = [*self._points[:-1], replace(last, until_ns=until_ns)]
            return True

    def received(self, sequence: int, received_ns: int) -> None:
        """The point was applied then. No matter if it is not here."""
        with self._lock:
            at = bisect_left(self._points, sequence, key=lambda point: point.sequence)
            if at < len(self._points) and self._points[at].sequence == sequence:
                points = list(self._points)
                points[at] = replace(points[at], received_ns=received_ns)
                self._points = points

    def drop(self, sequences: Iterable[int]) -> list[Point]:
        gone = set(sequences)
        with self._lock:
            dropped = [point for point in self._points if point.sequence in gone]
            self._set([point for point in self._points if point.sequence not in gone])
            self.drops += 1
        return dropped

    def _set(self, points: list[Point]) -> None:
        self._points = points
        self._labels = frozenset(point.label for point in points if point.label is not None)
