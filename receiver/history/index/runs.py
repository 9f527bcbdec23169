# SPDX-License-Identifier: Apache-2.0
"""Runs: which blocks are held by which image, sorted and disjoint. No I/O.

A run is neighbouring blocks that lie in one image record, side by side: its first key, how many
blocks, which block of the image the first one is (`into`), and the image itself (where its record
lies, of how many blocks it is, its stored bytes with the packed bit). An extent of a batch is one
run; where a part of it is hidden by an older image, what is left of it are shorter ones.

`Runs` is what everything about looking up is made of: an index file holds one sorted run after the
other, a window of a view is one, and `earliest` makes one of several, the oldest first: of each
block the earliest image wins, as a point needs it. It works block by block (some 40 bytes a block
while it does), so whoever has many bounds what is put in at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from receiver.history.images import (
    EXTENT_BLOCKS,
    I64,
    U64,
    Image,
    ImageTable,
    key_parts,
)

# first key, position of the image record, payload bytes with the packed bit, blocks, the block of
# the image that the first one is, blocks of the image, nothing
RUN = np.dtype(
    [
        ("start", "<u8"),
        ("position", "<u8"),
        ("stored", "<u4"),
        ("blocks", "u1"),
        ("into", "u1"),
        ("of", "u1"),
        ("reserved", "u1"),
    ]
)
assert RUN.itemsize == 24
assert EXTENT_BLOCKS < 256
PACKED_BIT = 1 << 31
KEY_MAX = (1 << 64) - 1

Rows = npt.NDArray[np.void]


class Runs:
    """See the head of this file. Immutable."""

    __slots__ = ("rows", "starts")

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.starts: U64 = np.ascontiguousarray(rows["start"])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def block_count(self) -> int:
        return int(self.rows["blocks"].sum(dtype=np.int64))

    @property
    def size_bytes(self) -> int:
        """Of memory."""
        return len(self.rows) * (RUN.itemsize + 8)

    def keys(self) -> tuple[U64, I64]:
        """(the key of each block, the row it belongs to), sorted by key."""
        counts = self.rows["blocks"].astype(np.int64)
        rows = np.repeat(np.arange(len(self), dtype=np.int64), counts)
        offsets = np.arange(len(rows), dtype=np.int64) - np.repeat(
            np.cumsum(counts) - counts, counts
        )
        return np.repeat(self.starts, counts) + offsets.astype(np.uint64), rows

    def cut(self, start: int, end: int) -> Runs:
        """Those of the keys [start, end), and of a run that reaches beyond only what is within."""
        if start >= end:
            return NO_RUNS
        first = int(np.searchsorted(self.starts, np.uint64(start), "right"))
        if first and start < int(self.starts[first - 1]) + int(self.rows[first - 1]["blocks"]):
            first -= 1
        last = int(np.searchsorted(self.starts, np.uint64(end), "left"))
        if first >= last:
            return NO_RUNS
        rows = self.rows[first:last]
        over_low = start - int(rows[0]["start"])
        over_high = int(rows[-1]["start"]) + int(rows[-1]["blocks"]) - end
        if over_low > 0 or over_high > 0:
            rows = rows.copy()
            if over_high > 0:
                rows[-1]["blocks"] -= over_high
            if over_low > 0:
                rows[0]["start"] = start
                rows[0]["into"] += over_low
                rows[0]["blocks"] -= over_low
        return Runs(rows)

    def images(self) -> list[tuple[int, int, Image]]:
        """[(first key, end key, the image that holds these blocks)], in order."""
        found: list[tuple[int, int, Image]] = []
        for start, position, stored, blocks, into, of, _ in self.rows.tolist():
            slot, block = key_parts(start - into)
            image = Image(
                position, slot, block, of, stored & (PACKED_BIT - 1), stored >= PACKED_BIT
            )
            found.append((start, start + blocks, image))
        return found


NO_RUNS = Runs(np.empty(0, dtype=RUN))


def runs_of(table: ImageTable) -> Runs:
    """Those of a batch: its extents."""
    rows = np.zeros(len(table), dtype=RUN)
    rows["start"] = table.starts
    rows["position"] = table.positions
    rows["stored"] = table.stored | table.packed.astype(np.uint64) << np.uint64(31)
    rows["blocks"] = table.blocks
    rows["of"] = table.blocks
    return Runs(rows)


def earliest(parts: Sequence[Runs]) -> Runs:
    """Of each block the image of the first part that has one."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return NO_RUNS
    if len(parts) == 1:
        return parts[0]
    whole = Runs(np.concatenate([part.rows for part in parts]))
    keys, rows = whole.keys()
    # unique keeps the first of equal keys, and the oldest part comes first
    keys, first = np.unique(keys, return_index=True)
    return _joined(whole, keys, rows[first])


def _joined(source: Runs, keys: U64, rows: I64) -> Runs:
    """The runs of these blocks, each with the row of `source` that it is taken from."""
    is_first = np.ones(len(keys), dtype=np.bool_)
    is_first[1:] = (np.diff(keys) != 1) | (np.diff(rows) != 0)
    firsts = np.flatnonzero(is_first)
    found = source.rows[rows[firsts]]
    starts = keys[firsts]
    found["into"] += (starts - found["start"]).astype(np.uint8)
    found["start"] = starts
    found["blocks"] = np.diff(firsts, append=len(keys))
    return Runs(found)
