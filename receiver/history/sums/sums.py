# SPDX-License-Identifier: Apache-2.0
"""What the replica must hold, block by block: the sums of the newest content.

The replica's content of a block is what the latest batch that changed it wrote, and each batch says
the sum of that. Newest first: the batches of the history, then the base of sums
(receiver.history.sums.base), where those of batches go that are removed. A block that none of them
knows was never written.

Each batch asks for the sums of the blocks that it is about to overwrite (`find`), so they are kept
sorted beside the history (receiver.history.sums.layers): each batch `note`s what it changed, and
what was not noted (after a start, an upgrade, a merge of batches that memory did not know) is
gathered from the headers, a bounded part a step (`gather`), before the next batch.

`window` puts the sums of a range of keys together, in one dense array; `follow` brings it up to
date with batches that were applied since. So going through a disk needs the memory of one window.

What a batch *found* in a block, its image must hold: `before` says its sum for a few blocks, `past`
(receiver.history.sums.past) for batch after batch.

Concurrency: apply thread; with no batch that is published and not applied, a window says what the
replica holds at this moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from receiver.history.batches import Batch
from receiver.history.bodies import UNKNOWN_SUM
from receiver.history.images import U64, Bools
from receiver.history.log import HistoryLog
from receiver.history.sums.base import SumBase
from receiver.history.sums.layers import SumLayers
from receiver.history.sums.past import PastSums
from receiver.history.sums.recent import Rows, joined
from receiver.history.sums.runs import BadRange
from receiver.history.sums.windows import KnownSums
from replicator.base.errors import DamageError
from replicator.base.mishaps import is_full

HITS_MAX = 16
GATHER_BLOCKS = 1 << 19
"""What one step of gathering has in memory, about: 16 bytes each, several times."""
GATHER_BATCHES = 1024
"""And so many headers it reads."""


@dataclass(slots=True)
class SumWindow:
    """Of the blocks [start, end), by their place in the window: whether a batch ever changed it
    (`changed`), the sum of what it holds (`sums`; UNKNOWN_SUM where that is not known).
    `is_whole`: what is not `changed` was never changed at all."""

    start: int
    end: int
    upto: int
    changed: Bools
    sums: U64
    is_whole: bool
    bad: list[BadRange]
    merges: int = 0
    """Of the history when the window was read: `upto` means something only until the next."""

    def put(self, keys: U64, sums: U64) -> None:
        within = (keys >= np.uint64(self.start)) & (keys < np.uint64(self.end))
        places = (keys[within] - np.uint64(self.start)).astype(np.int64)
        self.changed[places] = True
        self.sums[places] = sums[within]


def _nothing() -> None:
    """Nobody has to do anything first."""


class LatestSums:
    """See the head of this file."""

    def __init__(
        self,
        history: HistoryLog,
        base: SumBase,
        newest: SumLayers,
        past: SumLayers,
        lost: Callable[[], None],
        state_first: Callable[[], None] = _nothing,
    ) -> None:
        """`newest` and `past` have that base below them. `lost` is told when the base had to go for
        want of room; `state_first` is called before the base takes
        anything in, and behind it."""
        self._state_first = state_first
        self._newest = newest
        self._history = history
        self.past = PastSums(history, past, lambda batch: self._latest([batch]))
        self._base = base
        self._lost = lost

    def open(self) -> None:
        """When the history is. Raises OSError."""
        self._newest.open(
            self._history.batch_list.newest_number,
            self._history.batch_list.merged_numbers(self._history.opened.segments),
        )
        self.past.reset()

    def window(self, start: int, end: int) -> SumWindow:
        """Of the keys [start, end). Raises OSError."""
        count = end - start
        window = SumWindow(
            start,
            end,
            self._newest.upto,
            np.zeros(count, dtype=np.bool_),
            np.full(count, UNKNOWN_SUM, dtype=np.uint64),
            self.is_whole,
            [],
            self._history.segment_set.merges,
        )
        found, window.bad = self._newest.within(start, end)
        if self._newest.is_rotten:
            self._gather_all()
            return self.window(start, end)
        for bad in window.bad:
            window.changed[bad.start - start : bad.end - start] = True
        for keys, sums in found:
            window.put(keys, sums)
        for bad in window.bad:
            window.sums[bad.start - start : bad.end - start] = UNKNOWN_SUM
        self.follow(window)
        return window

    @property
    def is_whole(self) -> bool:
        """Whether what no batch is known to have changed was never changed at all."""
        segments = self._history.segment_set.sealed
        first = segments[0].first if segments else self._history.segment_set.newest_first
        return self._newest.reaches(first)

    def rows_within(self, start: int, end: int) -> tuple[U64, U64, list[BadRange]]:
        """(keys, sums) of the blocks within [start, end) that any batch ever changed, and what
        could not be read of that. `gather` comes first, to its end. Raises OSError."""
        found, bad = self._newest.within(start, end)
        if self._newest.is_rotten:
            self._gather_all()
            return self.rows_within(start, end)
        empty = np.empty(0, dtype=np.uint64)
        rows: Rows = empty, empty
        for part in found:
            rows = joined(rows, part)
        return *rows, bad

    def follow(self, window: SumWindow) -> None:
        """Takes in what was applied since. Raises OSError."""
        history = self._history
        if (
            window.merges != history.segment_set.merges
            and window.upto < history.segment_set.merged_upto
        ):
            fresh = self.window(window.start, window.end)
            window.upto, window.merges = fresh.upto, fresh.merges
            window.changed[:], window.sums[:] = fresh.changed, fresh.sums
            window.is_whole, window.bad = fresh.is_whole, fresh.bad
            return
        for batch in self._history.batch_list.after(window.upto):
            table = self._history.reader.table(batch)
            low, high = table.rows_within(window.start, window.end)
            if low < high:
                window.put(table.keys()[0], self._sums_of(batch))
            window.upto = batch.number

    @property
    def written(self) -> tuple[int, int]:
        """Numbers of the last batches that the base, and what is kept beside the history, tell of
        on the disk."""
        return self._base.upto, self._newest.own_upto

    def forget(self) -> None:
        """What is kept beside the history may be of another one. Raises OSError."""
        self._newest.reset()
        self.past.reset()

    # -- kept beside the history

    def find(self, keys: U64) -> KnownSums:
        """Of the blocks `keys`, sorted. `gather` comes first, to its end. Raises OSError."""
        found = self._newest.find(keys)
        if self._newest.is_rotten:
            self._gather_all()
            found = self._newest.find(keys)
        return found

    def note(self, batch: Batch, keys: U64, sums: U64) -> None:
        """The batch has just been published, and changes these blocks. Raises OSError; then it is
        gathered later, as any other."""
        if [each.number for each in self._history.batch_list.after(self._newest.upto)] == [
            batch.number
        ]:
            self._newest.put(keys, sums, upto=batch.number, end=batch.end)

    def gather(self) -> bool:
        """A step of taking in what was not noted. False: there is no more to do. Raises
        OSError."""
        newest = self._newest
        if newest.is_rotten:
            newest.reset()
        batches: list[Batch] = []
        blocks = 0
        for batch in self._history.batch_list.after(newest.upto):
            batches.append(batch)
            blocks += batch.images.block_count
            if blocks >= GATHER_BLOCKS or len(batches) >= GATHER_BATCHES:
                break
        if not batches:
            return False
        last = batches[-1]
        newest.put(*self._latest(batches), upto=last.number, end=last.end)
        return True

    def _gather_all(self) -> None:
        while self.gather():
            pass

    def before_merge(self, first: int, last: int) -> None:
        """Batches with the numbers from `first` to `last` are about to be merged. Durable. Raises
        OSError."""
        self._newest.settle(first, last)
        self.past.before_merge(first, last)

    def tidy(self) -> bool:
        """A step of getting ready, or of making look-ups cheaper. False: there is nothing to do.
        Raises OSError."""
        return self.gather() or self._newest.tidy()

    # -- by the headers

    def latest(self, keys: U64) -> tuple[U64, U64]:
        """(the sum of what each of these blocks holds, UNKNOWN_SUM where that is not known; the
        number of the batch that wrote it, 0 for one that the history no longer has). `keys` are
        sorted. For a few: all headers are read. Raises OSError."""
        sums = np.full(len(keys), UNKNOWN_SUM, dtype=np.uint64)
        writers = np.zeros(len(keys), dtype=np.uint64)
        is_found = np.zeros(len(keys), dtype=np.bool_)
        for batch in self._before(1 << 63):
            if is_found.all():
                break
            theirs = self._history.reader.table(batch).keys()[0]
            _, mine, other = np.intersect1d(keys, theirs, assume_unique=True, return_indices=True)
            new = ~is_found[mine]
            mine, other = mine[new], other[new]
            if len(mine):
                sums[mine] = self._sums_of(batch)[other]
                writers[mine], is_found[mine] = batch.number, True
        for place in np.flatnonzero(~is_found).tolist():
            sums[place] = self._in_base(int(keys[place]))
        return sums, writers

    def absorb(self, upto: int, end: int) -> None:
        """Puts into the base what the batches up to number `upto` say, which lie in front of
        position `end`: they are about to go, or lie behind it and are about to lose their images.
        Durable when it returns. Raises OSError."""
        batches = [
            batch
            for batch in self._history.batch_list.all
            if self._base.upto < batch.number <= upto
        ]
        segments = self._history.segment_set.sealed
        if not segments or (not batches and self._base.end >= end):
            return
        self._state_first()
        keys, sums = self._latest(batches)
        first = segments[0].first
        try:
            self._base.absorb(
                [(keys, sums)], upto=max(upto, self._base.upto), first=first, end=max(end, first)
            )
        except OSError as error:
            stays = any(batch.begin >= end for batch in batches)
            if not is_full(error) or (first == 0 and stays):
                raise  # an empty base says that nothing went in front of position 0, images too
            self._base.give_up()
            self._lost()
        self._state_first()

    def _latest(self, batches: Sequence[Batch]) -> Rows:
        empty = np.empty(0, dtype=np.uint64)
        newest_first = batches[::-1]
        every_key = [self._history.reader.table(batch).keys()[0] for batch in newest_first]
        every_sum = [self._sums_of(batch) for batch in newest_first]
        keys, at = np.unique(np.concatenate([empty, *every_key]), return_index=True)
        return keys, np.concatenate([empty, *every_sum])[at]

    def _sums_of(self, batch: Batch) -> U64:
        count = self._history.reader.table(batch).block_count
        try:
            packed = self._history.reader.read_begin(batch).sums
        except DamageError:
            packed = b""  # what is wrong with it is found by whoever reads the history
        if len(packed) != 8 * count:
            return np.full(count, UNKNOWN_SUM, dtype=np.uint64)
        return np.frombuffer(packed, dtype="<u8").astype(np.uint64)

    def written_before(self, key: int, number: int) -> int:
        """Number of the batch that wrote what batch `number` found in the block; 0 for one that
        the history no longer has."""
        for batch in self._before(number):
            low, high = self._history.reader.table(batch).rows_within(key, key + 1)
            if low < high:
                return batch.number
        return 0

    def blocks_with(self, wanted: U64) -> Iterator[tuple[int, int]]:
        """(key, sum) of blocks that some batch has written content of these sums to; they may hold
        something else by now. Of each batch the first few."""
        for batch in self._before(1 << 63):
            sums = self._sums_of(batch)
            hits = np.flatnonzero(np.isin(sums, wanted))[:HITS_MAX]
            if len(hits):
                keys = self._history.reader.table(batch).keys()[0]
                yield from zip(keys[hits].tolist(), sums[hits].tolist(), strict=True)

    def before(self, key: int, number: int) -> int:
        """The sum of what batch `number` found in the block; UNKNOWN_SUM where it is not known."""
        for batch in self._before(number):
            table = self._history.reader.table(batch)
            low, high = table.rows_within(key, key + 1)
            if low < high:
                place = int(np.searchsorted(table.keys()[0], np.uint64(key)))
                return int(self._sums_of(batch)[place])
        return self._in_base(key) if number > self._base.upto else UNKNOWN_SUM

    def _in_base(self, key: int) -> int:
        found, bad = self._base.read(key, key + 1)
        known = [int(sums[0]) for keys, sums in found if len(keys)]
        return known[-1] if known and not bad else UNKNOWN_SUM

    @property
    def base_damage(self) -> list[DamageError]:
        """What of the base cannot be used at all."""
        return self._base.damage

    def _before(self, number: int) -> Iterator[Batch]:
        """Newest first; those that the base tells of are not among them."""
        for batch in reversed(self._history.batch_list.all):
            if batch.number <= self._base.upto:
                return
            if batch.number < number:
                yield batch
