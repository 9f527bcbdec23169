# SPDX-License-Identifier: Apache-2.0
"""What each batch found in the blocks that it overwrote: the sums that its images must have.

An image holds what the batch before it in that block wrote, and that batch says the sum. Going
through the batches from the oldest on, `found` answers for one after the other, for all blocks of a
batch at once: what is known stands in layers of its own (receiver.history.sums.layers) behind the
batch that was asked about last. Batches in between are taken in from their headers (`gather`, a
bounded part a step). Of batches that the base of sums tells of nothing can be said any more; no
point that is left needs their images.

Concurrency: apply thread.
"""

from __future__ import annotations

from collections.abc import Callable

from receiver.history.batches import Batch
from receiver.history.images import U64
from receiver.history.log import HistoryLog
from receiver.history.sums.layers import SumLayers
from receiver.history.sums.recent import Rows
from receiver.history.sums.windows import KnownSums

GATHER_BLOCKS = 1 << 18


class PastSums:
    """See the head of this file. `rows_of` says what a batch wrote."""

    def __init__(
        self, history: HistoryLog, layers: SumLayers, rows_of: Callable[[Batch], Rows]
    ) -> None:
        self._history = history
        self._layers = layers
        self._rows_of = rows_of

    def reset(self) -> None:
        """The next batch is an older one, or none. Raises OSError."""
        self._layers.reset()

    def gather(self, number: int) -> bool:
        """A step of getting ready for the batch with that number. False: all is. Raises
        OSError."""
        if self._layers.is_rotten:
            self._layers.reset()
        blocks = 0
        for batch in self._history.batch_list.after(self._layers.upto):
            if batch.number >= number:
                return False
            self._take_in(batch)
            blocks += batch.images.block_count
            if blocks >= GATHER_BLOCKS:
                return True
        return False

    def found(self, batch: Batch, keys: U64) -> KnownSums | None:
        """What it found in its blocks `keys`; None where that is not known of any. Then it is taken
        in. Raises OSError."""
        if self._layers.upto >= batch.number:
            return None
        found = self._layers.find(keys)
        is_rotten = self._layers.is_rotten
        self._take_in(batch)
        return None if is_rotten else found

    def before_merge(self, first: int, last: int) -> None:
        """Batches with these numbers are about to be merged. Raises OSError."""
        self._layers.settle(first, last)

    def _take_in(self, batch: Batch) -> None:
        self._layers.put(*self._rows_of(batch), upto=batch.number, end=batch.end)
