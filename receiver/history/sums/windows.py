# SPDX-License-Identifier: Apache-2.0
"""The sums that were looked up last, each at a place that its block names. No I/O of its own.

A window is WINDOW_BLOCKS neighbouring blocks: their sums, and whether they ever changed. It has one
place, by its number; another window that has the same place takes it. So looking up a block is an
index and a comparison, whatever the size of the history, and a disk of up to PLACES windows (16
GiB) has them all. A window that is not here is searched for whole (`below`). What changes is
written through (`put`), so a window is right for as long as it is here.

Memory: 10 bytes a block, 40 MiB, of which only what was ever used is taken from the system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from receiver.history.images import I64, SLOT_SHIFT, U64, Bools

_WINDOW_BITS = 3
WINDOW_BLOCKS = 1 << _WINDOW_BITS
_PLACE_BITS = 19
PLACES = 1 << _PLACE_BITS
_SPREAD = np.uint64(PLACES // 16 * 5 + 1)
"""How far the windows of two disks lie apart that have the same numbers."""
_INSIDE = np.arange(WINDOW_BLOCKS, dtype=np.uint64)
_TOGETHER = 1 << 14
"""Keys that are looked up at once."""


@dataclass(frozen=True, slots=True)
class KnownSums:
    """Of blocks: whether a batch ever changed it (`is_changed`), and the sum of what it holds;
    UNKNOWN_SUM where that is not known."""

    sums: U64
    is_changed: Bools


Below = Callable[[U64], KnownSums]


class SumWindows:
    """See the head of this file."""

    def __init__(self, below: Below) -> None:
        """`below` knows the sums of sorted keys."""
        self._below = below
        self._is_empty = True
        self._names = np.zeros(0, dtype=np.uint64)  # of the window at each place, and one
        self._sums = np.zeros((0, WINDOW_BLOCKS), dtype=np.uint64)
        self._is_changed = np.zeros((0, WINDOW_BLOCKS), dtype=np.bool_)

    def find(self, keys: U64) -> KnownSums:
        """`keys` are sorted. Raises what `below` does."""
        sums = np.zeros(len(keys), dtype=np.uint64)
        is_changed = np.zeros(len(keys), dtype=np.bool_)
        for low in range(0, len(keys), _TOGETHER):
            part = slice(low, low + _TOGETHER)
            self._find(keys[part], sums[part], is_changed[part])
        return KnownSums(sums, is_changed)

    def put(self, keys: U64, sums: U64) -> None:
        """What these blocks hold from now on."""
        if not self._is_empty:
            names, places, inside = _place(keys)
            is_here = self._names[places] == names
            places, inside = places[is_here], inside[is_here]
            self._sums[places, inside] = sums[is_here]
            self._is_changed[places, inside] = True

    def clear(self) -> None:
        self._is_empty = True
        self._names = self._names[:0]

    def _find(self, keys: U64, sums: U64, is_changed: Bools) -> None:
        if self._is_empty:
            self._begin()
        names, places, inside = _place(keys)
        is_here = self._names[places] == names
        sums[:] = self._sums[places, inside]
        is_changed[:] = self._is_changed[places, inside]
        missing = np.flatnonzero(~is_here)
        if len(missing):
            found = self._take_in(keys[missing])
            sums[missing], is_changed[missing] = found.sums, found.is_changed

    def _begin(self) -> None:
        self._is_empty = False
        self._names = np.zeros(PLACES, dtype=np.uint64)
        if not len(self._sums):
            self._sums = np.zeros((PLACES, WINDOW_BLOCKS), dtype=np.uint64)
            self._is_changed = np.zeros((PLACES, WINDOW_BLOCKS), dtype=np.bool_)

    def _take_in(self, keys: U64) -> KnownSums:
        """Their windows. What is known of the keys is returned: of two windows that have one place
        only the last stays here."""
        firsts, which = np.unique(keys >> np.uint64(_WINDOW_BITS), return_inverse=True)
        firsts <<= np.uint64(_WINDOW_BITS)
        found = self._below((firsts[:, None] + _INSIDE).ravel())
        sums = found.sums.reshape(-1, WINDOW_BLOCKS)
        is_changed = found.is_changed.reshape(-1, WINDOW_BLOCKS)
        names, places, _ = _place(firsts)
        self._names[places] = names
        self._sums[places] = sums
        self._is_changed[places] = is_changed
        inside = (keys & np.uint64(WINDOW_BLOCKS - 1)).astype(np.int64)
        return KnownSums(sums[which, inside], is_changed[which, inside])


def _place(keys: U64) -> tuple[U64, I64, I64]:
    """(the name of each key's window, its place, the key's place in it)."""
    numbers = keys >> np.uint64(_WINDOW_BITS)
    spread = numbers + (keys >> np.uint64(SLOT_SHIFT)) * _SPREAD
    places = (spread & np.uint64(PLACES - 1)).astype(np.int64)
    return numbers + np.uint64(1), places, (keys & np.uint64(WINDOW_BLOCKS - 1)).astype(np.int64)
