# SPDX-License-Identifier: Apache-2.0
"""Where before-images lie: the extent table of one batch, and the earliest image of many. No I/O.

A block is BLOCK_BYTES of a disk; its key is `slot << 48 | block number`, so one sorted array of
u64 orders all blocks of a group. An extent is up to EXTENT_BLOCKS neighbouring blocks in one
image record: large enough that headers do not matter, small enough that reading a single block
verifies no more than 64 KiB.

`ImageTable` belongs to a batch: its extents, sorted and disjoint, and the position of each image
record, which follows from the sizes before it. Loading it takes the batch's header alone.
`EarliestImages` answers a view's and a rollback's question, "which image of this block is the
earliest after point P?", for all batches after P at once: one sorted array of block keys, each
with the row of its extent. Built once in O(n log n); later batches only add keys it lacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from journal.record import HEADER_BYTES
from replicator.base.errors import DamageError

BLOCK_BYTES = 4096
EXTENT_BLOCKS = 16
SLOT_SHIFT = 48
_BLOCK_MASK = (1 << SLOT_SHIFT) - 1

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# disk slot, blocks in the extent, payload bytes (0: all zeroes) with the packed bit, first block
EXTENT = np.dtype([("slot", "<u2"), ("blocks", "<u2"), ("stored", "<u4"), ("block", "<u8")])
assert EXTENT.itemsize == 16
_PACKED_BIT = 1 << 31
assert EXTENT_BLOCKS * BLOCK_BYTES < _PACKED_BIT


def block_key(slot: int, block: int) -> int:
    return slot << SLOT_SHIFT | block


def block_keys(slot: int, start: int, stop: int) -> U64:
    """Of the blocks [start, stop)."""
    return np.arange(block_key(slot, start), block_key(slot, stop), dtype=np.uint64)


def key_parts(key: int) -> tuple[int, int]:
    """(slot, block)"""
    return key >> SLOT_SHIFT, key & _BLOCK_MASK


@dataclass(frozen=True, slots=True)
class Image:
    """One image record: `stored` payload bytes at history position `position`; 0 for zeroes.
    `packed`: they are compressed (receiver.history.packing)."""

    position: int
    slot: int
    block: int
    blocks: int
    stored: int
    packed: bool = False


@dataclass(frozen=True, slots=True)
class ImageFigures:
    """What an ImageTable comes to: what of it is kept in memory for each batch."""

    image_count: int
    block_count: int
    record_bytes: int


class ImageTable:
    """The extents of one batch. Immutable."""

    __slots__ = ("blocks", "packed", "positions", "starts", "stored")

    def __init__(
        self, starts: U64, blocks: U64, stored: U64, positions: U64, packed: Bools
    ) -> None:
        self.starts = starts
        self.blocks = blocks
        self.stored = stored
        self.positions = positions
        self.packed = packed

    @classmethod
    def parse(cls, packed: bytes, first_position: int, where: str) -> ImageTable:
        """`packed` as BATCH_BEGIN has it; the first image record lies at `first_position`.
        Raises DamageError."""
        if len(packed) % EXTENT.itemsize:
            raise DamageError(f"{where}: malformed extent table")
        rows = np.frombuffer(packed, dtype=EXTENT)
        starts = rows["slot"].astype(np.uint64) << np.uint64(SLOT_SHIFT) | rows["block"]
        blocks = rows["blocks"].astype(np.uint64)
        stored = (rows["stored"] & np.uint32(_PACKED_BIT - 1)).astype(np.uint64)
        is_packed = rows["stored"] >= _PACKED_BIT
        table = cls(starts, blocks, stored, _positions(stored, first_position), is_packed)
        if not table._sane(rows):
            raise DamageError(f"{where}: malformed extent table")
        return table

    def _sane(self, rows: npt.NDArray[np.void]) -> bool:
        if not len(self):
            return True
        ends = self.starts + self.blocks
        return bool(
            (rows["blocks"] > 0).all()
            and (rows["blocks"] <= EXTENT_BLOCKS).all()
            and (rows["block"] <= _BLOCK_MASK - EXTENT_BLOCKS).all()
            and (self.stored <= self.blocks * np.uint64(BLOCK_BYTES)).all()
            and (self.stored[self.packed] > 0).all()
            and (ends[:-1] <= self.starts[1:]).all()
        )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def figures(self) -> ImageFigures:
        return ImageFigures(len(self), self.block_count, self.record_bytes)

    @property
    def size_bytes(self) -> int:
        """Of memory."""
        return len(self) * 33

    @property
    def block_count(self) -> int:
        return int(self.blocks.sum())

    @property
    def record_bytes(self) -> int:
        return int(self.stored.sum()) + HEADER_BYTES * len(self)

    def image(self, row: int) -> Image:
        slot, block = key_parts(int(self.starts[row]))
        return Image(
            int(self.positions[row]),
            slot,
            block,
            int(self.blocks[row]),
            int(self.stored[row]),
            bool(self.packed[row]),
        )

    def slice(self, first: int, last: int) -> ImageTable:
        """The rows [first, last)."""
        rows = slice(first, last)
        return ImageTable(
            self.starts[rows],
            self.blocks[rows],
            self.stored[rows],
            self.positions[rows],
            self.packed[rows],
        )

    def rows_within(self, start: int, end: int) -> tuple[int, int]:
        """The rows [first, last) whose extents touch the keys [start, end)."""
        first = int(np.searchsorted(self.starts, np.uint64(start), "right"))
        if first and int(self.starts[first - 1] + self.blocks[first - 1]) > start:
            first -= 1
        return first, int(np.searchsorted(self.starts, np.uint64(end), "left"))

    def keys(self) -> tuple[U64, I64]:
        """(the key of each single block, the row it belongs to), sorted by key."""
        counts = self.blocks.astype(np.int64)
        rows = np.repeat(np.arange(len(self), dtype=np.int64), counts)
        firsts = np.cumsum(counts) - counts
        offsets = np.arange(len(rows), dtype=np.int64) - np.repeat(firsts, counts)
        return np.repeat(self.starts, counts) + offsets.astype(np.uint64), rows

    def covers(self, keys: U64) -> bool:
        """Whether every one of these blocks has an image here."""
        if not len(keys):
            return True
        rows = np.searchsorted(self.starts, keys, "right").astype(np.int64) - 1
        if len(self) == 0 or bool((rows < 0).any()):
            return False
        return bool((keys < self.starts[rows] + self.blocks[rows]).all())


def pack_extents(starts: U64, blocks: U64, stored: U64, packed: Bools) -> bytes:
    """The table as BATCH_BEGIN has it."""
    rows = np.empty(len(starts), dtype=EXTENT)
    rows["slot"] = starts >> np.uint64(SLOT_SHIFT)
    rows["block"] = starts & np.uint64(_BLOCK_MASK)
    rows["blocks"] = blocks
    rows["stored"] = stored | packed.astype(np.uint64) * np.uint64(_PACKED_BIT)
    return rows.tobytes()


def _positions(stored: U64, first_position: int) -> U64:
    sizes = stored + np.uint64(HEADER_BYTES)
    return np.uint64(first_position) + np.cumsum(sizes, dtype=np.uint64) - sizes


class EarliestImages:
    """The earliest image of each block in a run of batches, oldest first. Immutable."""

    __slots__ = ("_blocks", "_keys", "_packed", "_positions", "_rows", "_starts", "_stored")

    def __init__(self, tables: Sequence[ImageTable]) -> None:
        empty = np.empty(0, dtype=np.uint64)
        self._starts = np.concatenate([empty, *(table.starts for table in tables)])
        self._blocks = np.concatenate([empty, *(table.blocks for table in tables)])
        self._stored = np.concatenate([empty, *(table.stored for table in tables)])
        self._positions = np.concatenate([empty, *(table.positions for table in tables)])
        self._packed = np.concatenate([empty.astype(bool), *(table.packed for table in tables)])
        keys: list[U64] = [empty]
        rows: list[I64] = [np.empty(0, dtype=np.int64)]
        offset = 0
        for table in tables:
            table_keys, table_rows = table.keys()
            keys.append(table_keys)
            rows.append(table_rows + offset)
            offset += len(table)
        # unique keeps the first of equal keys, and the oldest batch comes first
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._rows = np.concatenate(rows)[first]

    def __len__(self) -> int:
        """Blocks that have an image."""
        return len(self._keys)

    @property
    def keys(self) -> U64:
        return self._keys

    def within(self, start: int, end: int) -> list[tuple[int, int, Image]]:
        """[(first key, end key, the image that holds these blocks)] for the keys in [start, end),
        in order; gaps are blocks without an image."""
        low = int(np.searchsorted(self._keys, np.uint64(start), "left"))
        high = int(np.searchsorted(self._keys, np.uint64(end), "left"))
        found: list[tuple[int, int, Image]] = []
        keys, rows = self._keys[low:high].tolist(), self._rows[low:high].tolist()
        at = 0
        while at < len(keys):
            stop = at + 1
            while stop < len(keys) and rows[stop] == rows[at] and keys[stop] == keys[stop - 1] + 1:
                stop += 1
            found.append((keys[at], keys[stop - 1] + 1, self._image(rows[at])))
            at = stop
        return found

    def _image(self, row: int) -> Image:
        slot, block = key_parts(int(self._starts[row]))
        return Image(
            int(self._positions[row]),
            slot,
            block,
            int(self._blocks[row]),
            int(self._stored[row]),
            bool(self._packed[row]),
        )
