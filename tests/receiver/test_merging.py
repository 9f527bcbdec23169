# SPDX-License-Identifier: Apache-2.0
"""Merging batches, against dictionaries of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from receiver.history.batches import Batch
from receiver.history.bodies import BatchBegin, GroupBody
from receiver.history.images import BLOCK_BYTES, EXTENT_BLOCKS, U64, Image, ImageTable, block_key
from receiver.history.merging import Group, Sources, drafts, group_batches
from receiver.history.packing import Packer, unpack
from receiver.history.writer import BeforeImages, Draft, encode_batch
from receiver.points.values import Point
from replicator.base.storage import Buffer
from tests.receiver.source import noise

Blocks = dict[int, bytes]
BODY = GroupBody(bytes(16), 1, 0, 0, 0, 1, 0, 0, 0, 0, False, [], {})


@dataclass
class Written:
    """A batch, and what it says of each block: what was there, and what is."""

    batch: Batch
    before: Blocks
    after: Blocks


class Shelf:
    """Batches by position, as a history holds them."""

    def __init__(self) -> None:
        self.written: list[Written] = []
        self.begins: dict[int, BatchBegin] = {}
        self.payloads: dict[int, bytes] = {}
        self.tables: dict[int, ImageTable] = {}
        self.end = 0

    def add(self, draft: Draft) -> Batch:
        encoded = encode_batch(draft, self.end, 0, 0, 9)
        table = self.tables[draft.number] = encoded.table
        for row in range(len(table)):
            self.payloads[table.image(row).position] = bytes(draft.images.contents[row])
        sums = draft.sums.astype("<u8").tobytes()
        self.begins[draft.number] = BatchBegin(
            self.end, draft.number, draft.kind, 0, b"", draft.group, sums=sums
        )
        self.end += encoded.size_bytes
        return encoded.batch

    def read_stored(self, image: Image) -> bytes:
        return self.payloads[image.position] if image.stored else b""

    def table(self, batch: Batch) -> ImageTable:
        return self.tables[batch.number]

    def sources(self) -> Sources:
        return Sources(
            self.read_stored,
            lambda batch: self.begins[batch.number],
            self.table,
            {},
        )


def content(value: int) -> bytes:
    """Of a block: zeroes, something that shrinks, something that does not."""
    return bytes([value]) * BLOCK_BYTES if value < 3 else noise(value, BLOCK_BYTES)


def images_of(blocks: Blocks) -> tuple[BeforeImages, U64]:
    """As an apply makes them: neighbours together."""
    starts: list[int] = []
    counts: list[int] = []
    contents: list[Buffer] = []
    for key in sorted(blocks):
        is_zero = not any(blocks[key])
        if (
            starts
            and starts[-1] + counts[-1] == key
            and bool(contents[-1]) != is_zero
            and counts[-1] < EXTENT_BLOCKS
        ):
            counts[-1] += 1
            contents[-1] = bytes(contents[-1]) + (b"" if is_zero else blocks[key])
        else:
            starts.append(key)
            counts.append(1)
            contents.append(b"" if is_zero else blocks[key])
    stored, packed = Packer().pack_all(contents)
    keys = np.array(sorted(blocks), dtype=np.uint64)
    return BeforeImages(np.array(starts, np.uint64), np.array(counts, np.uint64), stored, packed), (
        keys
    )


def blocks_in(batches: list[Batch], shelf: Shelf) -> Blocks:
    """Each block of the batches once, with its content."""
    found: Blocks = {}
    for batch in batches:
        table = shelf.table(batch)
        for row in range(len(table)):
            image = table.image(row)
            data = shelf.read_stored(image)
            if image.packed:
                data = unpack(data, image.blocks, "test")
            for at in range(image.blocks):
                key = block_key(image.slot, image.block + at)
                assert key not in found, "a block is kept twice"
                part = data[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES]
                found[key] = part if image.stored else bytes(BLOCK_BYTES)
    return found


def point(sequence: int) -> Point:
    return Point(sequence, 5, 8, "crash")


changes = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(0, 40)), st.integers(0, 5), min_size=1, max_size=30
)


@given(st.lists(changes, min_size=1, max_size=6), st.integers(1, 9))
def test_the_earliest_image_and_the_latest_sum_of_each_block(
    lives: list[dict[tuple[int, int], int]], part_blocks: int
) -> None:
    shelf, state = Shelf(), dict[int, bytes]()
    batches: list[Batch] = []
    earliest: Blocks = {}
    for number, life in enumerate(lives, start=7):
        after = {block_key(*place): content(value) for place, value in life.items()}
        before = {key: state.get(key, bytes(BLOCK_BYTES)) for key in after}
        for key, old in before.items():
            earliest.setdefault(key, old)
        state.update(after)
        images, keys = images_of(before)
        sums = np.array([xxh3_64_intdigest(after[int(key)]) for key in keys], np.uint64)
        batches.append(shelf.add(Draft(number, "log", number, images, sums, BODY, None)))
    group = Group(batches, point(3), keep_images=True)
    new = Shelf()
    merged: list[Batch] = []
    sums_found: dict[int, int] = {}
    for draft in drafts(group, shelf.sources(), Packer(), part_blocks):
        merged.append(new.add(draft))
        table_keys, _ = new.table(merged[-1]).keys()
        sums_found.update(zip(table_keys.tolist(), draft.sums.tolist(), strict=True))
    assert blocks_in(merged, new) == earliest
    assert sums_found == {key: xxh3_64_intdigest(state[key]) for key in earliest}
    numbers = [batch.number for batch in merged]
    assert numbers == [batch.number for batch in batches][-len(numbers) :]
    assert [batch.point is not None for batch in merged] == [False] * (len(merged) - 1) + [True]
    wanted = -(-len(earliest) // part_blocks)
    assert len(merged) == min(wanted, len(batches)), "as many parts as needed, and possible"


def test_sums_that_are_not_known_stay_unknown_until_a_later_batch_knows_them() -> None:
    shelf = Shelf()
    one, keys = images_of({1: content(1), 2: content(2)})
    two, _ = images_of({2: content(3)})
    none = np.empty(0, dtype=np.uint64)
    batches = [
        shelf.add(Draft(1, "log", 0, one, none, BODY)),
        shelf.add(Draft(2, "log", 0, two, np.array([77], np.uint64), BODY)),
    ]
    (draft,) = drafts(Group(batches, None, keep_images=True), shelf.sources(), Packer())
    assert keys.tolist() == [1, 2]
    assert draft.sums.tolist() == [0, 77]


def test_an_image_that_is_taken_as_a_whole_is_not_packed_again() -> None:
    shelf = Shelf()
    images, _ = images_of({1: content(1), 2: content(1), 9: content(4)})
    sums = np.zeros(3, dtype=np.uint64)
    batch = shelf.add(Draft(1, "log", 0, images, sums, BODY))
    (draft,) = drafts(Group([batch], None, keep_images=True), shelf.sources(), Packer())
    assert draft.images.contents == images.contents
    assert draft.images.packed == [True, False]


def test_before_the_oldest_kept_point_nothing_is_kept() -> None:
    shelf = Shelf()
    images, _ = images_of({1: content(1)})
    sums = np.zeros(1, dtype=np.uint64)
    batches = [shelf.add(Draft(number, "log", 0, images, sums, BODY)) for number in (1, 2)]
    (draft,) = drafts(Group(batches, point(1), keep_images=False), shelf.sources(), Packer())
    assert (draft.number, draft.point is not None) == (2, True)
    assert not draft.images.contents


def test_groups_end_at_kept_points() -> None:
    shelf = Shelf()
    images, _ = images_of({1: content(1)})
    sums = np.zeros(1, dtype=np.uint64)
    batches = [
        shelf.add(Draft(number, "log", 0, images, sums, BODY, point(number)))
        for number in range(1, 7)
    ]
    groups = group_batches(batches, frozenset({2, 5}), 2)
    told = [([b.number for b in g.batches], g.point and g.point.sequence) for g in groups]
    assert told == [([1, 2], 2), ([3, 4, 5], 5), ([6], None)]
    assert [group.keep_images for group in groups] == [False, True, True]


def test_a_table_is_asked_for_and_not_held() -> None:
    """A sealed batch's table may be read from the disk each time."""
    shelf = Shelf()
    images, _ = images_of({1: content(1)})
    batch = shelf.add(Draft(1, "log", 0, images, np.zeros(1, np.uint64), BODY))
    asked: list[int] = []

    def table(batch: Batch) -> ImageTable:
        asked.append(batch.number)
        return shelf.table(batch)

    sources = Sources(shelf.read_stored, lambda each: shelf.begins[each.number], table, {})
    list(drafts(Group([batch], None, keep_images=True), sources, Packer()))
    assert asked
