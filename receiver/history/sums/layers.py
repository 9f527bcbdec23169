# SPDX-License-Identifier: Apache-2.0
"""What blocks hold behind one batch: a base, runs of our own over it, and memory on top.

    windows      what was looked up last, by place                receiver.history.sums.windows
    memory       the blocks that changed last                     receiver.history.sums.recent
    own runs     FOLDER/*.sums: what did not stay in memory       receiver.history.sums.base
    base         what batches say that the history let go of      the same, and not ours

A look-up asks them in this order. So it is an index into a window, or a few searches in sorted
arrays, however long the history is; and the memory is bounded: the windows, ROWS_MAX rows, and of
the runs a directory (16 bytes for 512 rows). Everything but the base is derived from the headers of
the history: whatever is wrong with it, it is dropped (`reset`) and gathered anew.

`upto` is the number of the batch behind which this is true. The own runs may outlive the process
(`open`), as long as what they say is all that changed since the base: batches of the history that
are merged share their blocks anew under their old numbers, so before numbers beyond the runs are
merged with some within, memory has to be written down (`settle`), or all is dropped.

Concurrency: one thread.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from receiver.history.bodies import UNKNOWN_SUM
from receiver.history.images import U64
from receiver.history.sums.base import SumBase
from receiver.history.sums.recent import RecentSums, Rows
from receiver.history.sums.runs import BadRange
from receiver.history.sums.windows import KnownSums, SumWindows

ROWS_MAX = 1 << 20
"""In memory: 16 MiB, the blocks of 4 GiB."""
BATCHES_MAX = 4096
"""In memory, as well: after a start that many headers are read, at most, before the next batch."""


class SumLayers:
    """See the head of this file."""

    def __init__(
        self, base: SumBase, own: SumBase, *, rows_max: int = ROWS_MAX, is_cached: bool = True
    ) -> None:
        """Without windows (`is_cached` false) for whoever asks for each block once."""
        self._base = base
        self._own = own
        self._recent = RecentSums()
        self._windows = SumWindows(self._below) if is_cached else None
        self._rows_max = rows_max
        self._end = 0
        self._upto = 0
        self.is_rotten = False
        """A run of our own could not be read: `reset` is due."""

    def open(self, newest: int, merged: Iterable[tuple[int, int]] = ()) -> None:
        """Takes up the own runs, if they can be of a history whose newest batch has that number,
        and where batches with numbers from the first to the last of `merged` were put together:
        runs that end in the midst of these are from before that. Raises OSError."""
        self._own.open()
        upto = self._own.upto
        is_older = any(first <= upto < last for first, last in merged)
        if self._own.damage or is_older or not self._base.upto < upto <= newest:
            self._own.give_up()
        self._upto = max(self._own.upto, self._base.upto)

    @property
    def upto(self) -> int:
        """Number of the batch behind which this is true."""
        return max(self._upto, self._base.upto)

    @property
    def own_upto(self) -> int:
        """Number of the last batch that the own runs tell of."""
        return self._own.upto

    def reaches(self, first: int) -> bool:
        """Whether what is not known to have changed never did; `first` is where the history
        begins."""
        return self._base.reaches(first)

    def put(self, keys: U64, sums: U64, *, upto: int, end: int) -> None:
        """What the batches behind `upto` changed, up to the new `upto`, which ends at position
        `end`. Raises OSError: nothing was lost but time."""
        self._follow_base()
        assert upto > self._upto
        self._recent.put(keys, sums)
        if self._windows is not None:
            self._windows.put(keys, sums)
        self._upto, self._end = upto, end
        known = max(self._own.upto, self._base.upto)
        if self._recent.count >= self._rows_max or upto - known >= BATCHES_MAX:
            self.write_down()

    def write_down(self) -> None:
        """Nothing is in memory any more. Durable. Raises OSError."""
        if self._recent.count:
            if not self._is_own_newer:
                self._own.give_up()
            self._own.absorb([self._recent.all()], upto=self._upto, first=0, end=self._end)
            self._recent.clear()

    def settle(self, first: int, last: int) -> None:
        """Before batches with the numbers from `first` to `last` are merged. Durable. Raises
        OSError."""
        self._follow_base()
        if first <= self._upto < last:
            self.reset()
        elif self._is_own_newer and first <= self._own.upto < last:
            try:
                self.write_down()
            except OSError:  # merging may be what makes room
                self.reset()

    def reset(self) -> None:
        """Only the base is believed. Raises OSError."""
        self._recent.clear()
        if self._windows is not None:
            self._windows.clear()
        self._own.give_up()
        self._upto = self._end = self._base.upto
        self.is_rotten = False

    def find(self, keys: U64) -> KnownSums:
        """`keys` are sorted. Raises OSError."""
        self._follow_base()
        return self._below(keys) if self._windows is None else self._windows.find(keys)

    def _below(self, keys: U64) -> KnownSums:
        sums = np.full(len(keys), UNKNOWN_SUM, dtype=np.uint64)
        is_found = np.zeros(len(keys), dtype=np.bool_)
        self._recent.find(keys, sums, is_found)
        if self._is_own_newer:
            self.is_rotten |= self._own.find(keys, sums, is_found)
        self._base.find(keys, sums, is_found)
        return KnownSums(sums, is_found)

    def within(self, start: int, end: int) -> tuple[list[Rows], list[BadRange]]:
        """What there is of the keys [start, end), later ones are right; and what could not be
        read. Raises OSError."""
        self._follow_base()
        found, bad = self._base.read(start, end)
        if self._is_own_newer:
            later, rotten = self._own.read(start, end)
            self.is_rotten |= bool(rotten)
            found, bad = found + later, bad + rotten
        return found + self._recent.within(start, end), bad

    def tidy(self) -> bool:
        """A step of putting runs together. False: there is nothing to do."""
        return self._own.merge_step()

    def close(self) -> None:
        self._own.close()

    @property
    def _is_own_newer(self) -> bool:
        """Else what the own runs say is older than what the base says."""
        return self._own.upto > self._base.upto

    def _follow_base(self) -> None:
        """What the base has taken in may be newer than all that is here."""
        if self._base.upto > self._upto:
            self.reset()
