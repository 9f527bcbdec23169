# SPDX-License-Identifier: Apache-2.0
"""The catalog of one group in memory. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from receiver.catalog import SegmentFact
from receiver.points.evidence import Reached
from receiver.points.values import Point


class MemoryCatalog:
    """See receiver.catalog.GroupCatalog."""

    def __init__(self) -> None:
        self.points: dict[int, Point] = {}
        self.untils: dict[int, int] = {}
        self.segments: list[SegmentFact] = []
        self.generation = 0

    def rebuild(
        self, points: Sequence[Point], segments: Sequence[SegmentFact], generation: int
    ) -> None:
        self.points = {point.sequence: point for point in points}
        for point in points:
            self.hold(point.sequence, point.until_ns)
        self.segments, self.generation = list(segments), generation

    def add_points(self, points: Sequence[Point]) -> None:
        self.points.update((point.sequence, point) for point in points)

    def hold(self, sequence: int, until_ns: int) -> None:
        self.untils[sequence] = max(self.untils.get(sequence, 0), until_ns)

    def held(self, sequence: int) -> int:
        return self.untils.get(sequence, 0)

    def reached(self) -> Reached:
        return Reached(max(self.points, default=0), self.generation)

    def below(self, sequence: int) -> list[int]:
        return [each for each in sorted(self.points) if each < sequence]

    def drop_points(self, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            self.points.pop(sequence, None)
            self.untils.pop(sequence, None)

    def set_segments(self, segments: Sequence[SegmentFact]) -> None:
        self.segments = list(segments)

    def set_generation(self, generation: int, time_ns: int, reason: str) -> None:
        self.generation = generation
