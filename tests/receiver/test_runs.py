# SPDX-License-Identifier: Apache-2.0
"""Runs of images against the index of single blocks, which is the model."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from receiver.history.images import EarliestImages, Image, ImageTable, block_key, key_parts
from receiver.history.index.runs import KEY_MAX, NO_RUNS, earliest, runs_of
from tests.receiver.test_images import Extents, extents, table


def tables_of(batches: list[Extents]) -> list[ImageTable]:
    return [table(of, number << 30) for number, of in enumerate(batches)]


def blocks_of(found: list[tuple[int, int, Image]]) -> dict[int, Image]:
    blocks: dict[int, Image] = {}
    for low, high, image in found:
        first = block_key(image.slot, image.block)
        assert first <= low < high <= first + image.blocks, "a run lies within its image"
        for key in range(low, high):
            assert key not in blocks
            blocks[key] = image
    return blocks


@given(st.lists(extents(), max_size=6))
def test_the_earliest_of_runs_is_the_earliest_of_blocks(batches: list[Extents]) -> None:
    tables = tables_of(batches)
    found = earliest([runs_of(each) for each in tables])
    expected = blocks_of(EarliestImages(tables).within(0, KEY_MAX))
    assert blocks_of(found.images()) == expected
    assert found.block_count == len(expected)
    starts = found.starts.tolist()
    assert starts == sorted(starts)


@given(st.lists(extents(), max_size=6), st.integers(0, 5))
def test_in_whatever_order_neighbours_are_joined(batches: list[Extents], split: int) -> None:
    runs = [runs_of(each) for each in tables_of(batches)]
    whole = earliest(runs)
    nested = earliest([earliest(runs[:split]), earliest(runs[split:])])
    assert blocks_of(nested.images()) == blocks_of(whole.images())


@given(extents(), st.integers(0, 60), st.integers(0, 60), st.integers(0, 2))
@example([(0, 0, 3, False)], 1, 0, 0)
def test_a_cut_holds_what_is_within(of: Extents, start: int, length: int, slot: int) -> None:
    runs = runs_of(table(of))
    low, high = block_key(slot, start), block_key(slot, start + length)
    expected = {k: image for k, image in blocks_of(runs.images()).items() if low <= k < high}
    assert blocks_of(runs.cut(low, high).images()) == expected


def test_packed_and_zero_images_stay_what_they_are() -> None:
    runs = runs_of(table([(3, 7, 2, True), (3, 9, 16, False)]))
    (_, _, zero), (_, _, full) = runs.images()
    assert (zero.stored, zero.packed, key_parts(block_key(zero.slot, zero.block))) == (
        0,
        False,
        (3, 7),
    )
    assert (full.stored, full.packed, full.blocks) == (16 * 4096, False, 16)
    runs.rows["stored"][1] = 100 | 1 << 31
    assert runs.images()[1][2] == Image(64, 3, 9, 16, 100, packed=True)


def test_nothing_has_no_images() -> None:
    assert earliest([]) is NO_RUNS
    assert NO_RUNS.images() == []
    assert len(NO_RUNS.cut(0, KEY_MAX)) == 0
