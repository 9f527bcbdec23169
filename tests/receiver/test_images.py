# SPDX-License-Identifier: Apache-2.0
"""Where before-images lie, against dictionaries of blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.history.images import (
    BLOCK_BYTES,
    EXTENT_BLOCKS,
    EarliestImages,
    Image,
    ImageTable,
    block_key,
    key_parts,
    pack_extents,
)
from replicator.base.errors import DamageError

Extents = list[tuple[int, int, int, bool]]  # slot, block, blocks, zero


@st.composite
def extents(draw: st.DrawFn) -> Extents:
    found: Extents = []
    for slot in range(draw(st.integers(1, 3))):
        at = 0
        for gap, count, zero in draw(
            st.lists(
                st.tuples(st.integers(0, 5), st.integers(1, EXTENT_BLOCKS), st.booleans()),
                max_size=8,
            )
        ):
            at += gap
            found.append((slot, at, count, zero))
            at += count
    return found


def table(of: Extents, first_position: int = 0) -> ImageTable:
    packed = pack_extents(
        np.array([block_key(slot, block) for slot, block, _, _ in of], dtype=np.uint64),
        np.array([count for _, _, count, _ in of], dtype=np.uint64),
        np.array([0 if zero else count * BLOCK_BYTES for _, _, count, zero in of], dtype=np.uint64),
        np.zeros(len(of), dtype=np.bool_),
    )
    return ImageTable.parse(packed, first_position, "test")


def blocks_of(of: Extents) -> dict[int, int]:
    """The row of each block."""
    return {
        block_key(slot, block + at): row
        for row, (slot, block, count, _) in enumerate(of)
        for at in range(count)
    }


@given(extents())
def test_a_table_knows_its_blocks(of: Extents) -> None:
    found = table(of)
    keys, rows = found.keys()
    assert dict(zip(keys.tolist(), rows.tolist(), strict=True)) == blocks_of(of)
    assert found.block_count == len(blocks_of(of))
    assert found.covers(keys)
    assert not found.covers(np.array([block_key(9, 1)], dtype=np.uint64))


@given(extents(), st.integers(0, 1 << 40))
def test_positions_follow_from_the_sizes(of: Extents, first: int) -> None:
    found = table(of, first)
    at = first
    for row, (slot, block, count, zero) in enumerate(of):
        stored = 0 if zero else count * BLOCK_BYTES
        assert found.image(row) == Image(at, slot, block, count, stored)
        at += 64 + stored
    assert found.record_bytes == at - first


@given(extents(), st.integers(0, 60), st.integers(0, 60), st.integers(0, 2))
def test_rows_within(of: Extents, start: int, length: int, slot: int) -> None:
    found = table(of)
    low, high = block_key(slot, start), block_key(slot, start + length)
    first, last = found.rows_within(low, high)
    expected = {row for key, row in blocks_of(of).items() if low <= key < high}
    assert expected <= set(range(first, last))
    for row in set(range(first, last)) - expected:
        assert length == 0, f"row {row} does not touch the range"


@given(st.lists(extents(), max_size=5))
def test_the_earliest_wins(batches: list[Extents]) -> None:
    tables = [table(of, number << 30) for number, of in enumerate(batches)]
    expected: dict[int, Image] = {}
    for of, each in zip(batches, tables, strict=True):
        for key, row in blocks_of(of).items():
            expected.setdefault(key, each.image(row))
    index = EarliestImages(tables)
    assert len(index) == len(expected)
    found: dict[int, Image] = {}
    for low, high, image in index.within(0, (1 << 64) - 1):
        assert key_parts(low)[0] == image.slot
        found.update(dict.fromkeys(range(low, high), image))
    assert found == expected


@pytest.mark.parametrize(
    "of",
    [
        [(0, 0, 0, False)],
        [(0, 0, EXTENT_BLOCKS + 1, False)],
        [(0, 5, 1, False), (0, 4, 1, False)],
        [(0, 0, 4, False), (0, 3, 1, True)],
    ],
    ids=["no blocks", "too many blocks", "not sorted", "overlapping"],
)
def test_a_table_that_cannot_be_is_damage(of: Extents) -> None:
    with pytest.raises(DamageError, match="malformed extent table"):
        table(of)


def test_half_a_row_is_damage() -> None:
    with pytest.raises(DamageError, match="malformed extent table"):
        ImageTable.parse(b"\0" * 15, 0, "test")
