# SPDX-License-Identifier: Apache-2.0
"""The sums of the blocks that changed last, in memory. No I/O.

Sorted arrays, the oldest first, each at least twice as long as the next: so there are few to
search, and a row is moved a logarithmic number of times. Memory: 16 bytes a row, and while two
arrays become one as much again; whoever puts rows in takes them out (`drain`) when there are many.
"""

from __future__ import annotations

import numpy as np

from receiver.history.images import U64, Bools

_RATIO = 2
_EMPTY = np.empty(0, dtype=np.uint64)
Rows = tuple[U64, U64]
"""(keys, sums), sorted by key."""


class RecentSums:
    """See the head of this file."""

    def __init__(self) -> None:
        self._parts: list[Rows] = []
        self.count = 0
        """Rows, a block that changed again counted again until the arrays are merged."""

    def put(self, keys: U64, sums: U64) -> None:
        """What these blocks hold from now on. `keys` are sorted."""
        if not len(keys):
            return
        newer: Rows = keys, sums
        while self._parts and len(self._parts[-1][0]) < _RATIO * len(newer[0]):
            newer = joined(self._parts.pop(), newer)
        self._parts.append(newer)
        self.count = sum(len(keys) for keys, _ in self._parts)

    def find(self, keys: U64, sums: U64, is_found: Bools) -> None:
        """Fills in what is known of the keys (sorted) that are not found yet."""
        for there, theirs in reversed(self._parts):
            places = np.minimum(np.searchsorted(there, keys), len(there) - 1)
            hits = (there[places] == keys) & ~is_found
            sums[hits] = theirs[places[hits]]
            is_found |= hits

    def within(self, start: int, end: int) -> list[Rows]:
        """What there is of the keys [start, end); later ones are right."""
        found: list[Rows] = []
        for keys, sums in self._parts:
            low, high = np.searchsorted(keys, np.array([start, end], dtype=np.uint64)).tolist()
            if low < high:
                found.append((keys[low:high], sums[low:high]))
        return found

    def all(self) -> Rows:
        rows: Rows = _EMPTY, _EMPTY
        for newer in self._parts:
            rows = joined(rows, newer)
        return rows

    def clear(self) -> None:
        self._parts, self.count = [], 0


def joined(older: Rows, newer: Rows) -> Rows:
    """Both; where both know a block, the newer is right."""
    keys = np.concatenate([older[0], newer[0]])
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    is_last = np.ones(len(keys), dtype=np.bool_)
    is_last[:-1] = keys[1:] != keys[:-1]
    return keys[is_last], np.concatenate([older[1], newer[1]])[order[is_last]]
