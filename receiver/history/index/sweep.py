# SPDX-License-Identifier: Apache-2.0
"""Going through several sorted sequences of runs at once, in the order of their keys.

What many index files come to, the oldest first, may be far more than should be in memory. `sweep`
yields it piece by piece: it takes from each sequence what it gives at a time, and settles all keys
below the lowest of those at which a sequence goes on. Memory: what each sequence gives at a time,
twice, and some 40 bytes for each block of that. A run that reaches over the end of a piece comes
as two.

`windows` makes such a sequence of what is in memory already: many small sorted lists of runs, as
the batches of a segment have them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from receiver.history.index.runs import KEY_MAX, NO_RUNS, Runs, earliest

Pieces = Iterator[tuple[Runs, int | None]]
"""Runs in order, and with each piece a key that the next one does not begin before; None: there
is none."""

WINDOW_RUNS = 1 << 14


class _Cursor:
    """What was taken of a sequence and is not settled yet."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._runs = NO_RUNS
        self.next_key: int | None = 0

    def fill(self, bound: int) -> None:
        """Takes the next piece, if that begins at or below `bound`."""
        if self.next_key is None or self.next_key > bound:
            return
        assert not len(self._runs), "what is settled was taken"
        self._runs, self.next_key = next(self._pieces, (NO_RUNS, None))

    def take(self, bound: int) -> Runs:
        """What lies below the key `bound`."""
        taken = self._runs.cut(0, bound)
        self._runs = self._runs.cut(bound, KEY_MAX)
        return taken


def sweep(sequences: Sequence[Pieces]) -> Pieces:
    """The earliest image of each block, the first sequence being the oldest. Raises what the
    sequences do."""
    cursors = [_Cursor(pieces) for pieces in sequences]
    bound = 0
    while bound < KEY_MAX:
        for cursor in cursors:
            cursor.fill(bound)
        bound = min((c.next_key for c in cursors if c.next_key is not None), default=KEY_MAX)
        found = earliest([cursor.take(bound) for cursor in cursors])
        if len(found):
            yield found, bound if bound < KEY_MAX else None


def windows(parts: Sequence[Runs], window_runs: int = WINDOW_RUNS) -> Pieces:
    """The earliest images of `parts`, the oldest first."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return
    starts = np.sort(np.concatenate([part.starts for part in parts]))
    bounds = np.unique(starts[window_runs::window_runs]).tolist()
    low = 0
    for high in bounds:
        yield earliest([part.cut(low, high) for part in parts]), high
        low = high
    yield earliest([part.cut(low, KEY_MAX) for part in parts]), None


def merged(parts: Sequence[Runs]) -> Runs:
    """The same as a whole, without ever having all blocks in memory at once."""
    found = [runs.rows for runs, _ in windows(parts)]
    return Runs(np.concatenate(found)) if found else NO_RUNS
