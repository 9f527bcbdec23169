# SPDX-License-Identifier: Apache-2.0
"""Sets of byte ranges of one disk: disjoint, sorted, merged where they touch. No I/O."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np


class ExtentSet:
    """Half-open ranges [start, end). Adding and clearing cost O(log n) plus a memory move."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, extents: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in extents:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ExtentSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ExtentSet({list(self)!r})"

    @property
    def total_bytes(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def copy(self) -> ExtentSet:
        same = ExtentSet()
        same._starts, same._ends = self._starts[:], self._ends[:]
        return same

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        low = bisect_left(self._ends, start)  # the first that touches
        high = bisect_right(self._starts, end)  # the first beyond
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def remove(self, start: int, end: int) -> None:
        if start >= end:
            return
        low = bisect_right(self._ends, start)  # the first that reaches beyond `start`
        high = bisect_left(self._starts, end)  # the first that begins at `end` or later
        if low >= high:
            return
        kept: list[tuple[int, int]] = []
        if self._starts[low] < start:
            kept.append((self._starts[low], start))
        if self._ends[high - 1] > end:
            kept.append((end, self._ends[high - 1]))
        self._starts[low:high] = [piece[0] for piece in kept]
        self._ends[low:high] = [piece[1] for piece in kept]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of the set that lie in [start, end)."""
        for at in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            yield max(self._starts[at], start), min(self._ends[at], end)

    def pack(self) -> bytes:
        """Pairs of little-endian u64."""
        return np.array([self._starts, self._ends], dtype="<u8").T.tobytes()

    @classmethod
    def unpack(cls, data: bytes) -> ExtentSet:
        """Raises ValueError for anything that `pack` does not give."""
        pairs = np.frombuffer(data, dtype="<u8")
        if len(pairs) % 2:
            raise ValueError("a range without an end")
        same = cls()
        same._starts, same._ends = pairs[::2].tolist(), pairs[1::2].tolist()
        flat = pairs.tolist()
        if any(low >= high for low, high in pairwise(flat)):
            raise ValueError("ranges are not sorted, disjoint and apart")
        return same
