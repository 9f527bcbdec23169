# SPDX-License-Identifier: Apache-2.0
"""What a batch writes and what it keeps, against byte arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.blocks.content import (
    DiskChange,
    Operation,
    change_of,
    merge_runs,
    punch_zeroes,
    write_again,
    write_changes,
)
from receiver.history.images import BLOCK_BYTES, EXTENT_BLOCKS, block_key, key_parts
from replicator.base.storage import File
from tests.world.storage import SimStorage

SIZE = 37 * BLOCK_BYTES + 1536  # ends inside a block
SLOT = 3


def disk_with(content: bytes) -> File:
    file = SimStorage().create(Path("/disk"))
    file.truncate(len(content))
    for at in range(0, len(content), BLOCK_BYTES):
        block = content[at : at + BLOCK_BYTES]
        if any(block):
            file.pwritev([block], at)
    return file


def content_of(blocks: list[tuple[int, int]]) -> bytes:
    content = bytearray(38 * BLOCK_BYTES)
    for block, value in blocks:
        content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes([value]) * BLOCK_BYTES
    return bytes(content[:SIZE])


operation = st.builds(
    lambda offset, length, value: Operation(
        offset,
        min(length, SIZE - offset),
        None if value == 0 else bytes([value]) * min(length, SIZE - offset),
    ),
    st.integers(0, SIZE - 1),
    st.one_of(st.integers(1, 600), st.integers(1, 40 * BLOCK_BYTES)),
    st.integers(0, 2),
)
old_content = st.lists(st.tuples(st.integers(0, 37), st.integers(0, 2)), max_size=20).map(
    content_of
)


def after(content: bytes, operations: list[Operation]) -> bytes:
    now = bytearray(content)
    for each in operations:
        now[each.offset : each.offset + each.length] = each.content or bytes(each.length)
    return bytes(now)


def images_undo(change: DiskChange, now: bytes) -> bytes:
    """What the before-images make of the new content."""
    undone = bytearray(now)
    for start, count, old in zip(
        change.starts.tolist(), change.blocks.tolist(), change.old, strict=True
    ):
        slot, block = key_parts(start)
        assert slot == SLOT
        assert 0 < count <= EXTENT_BLOCKS
        offset = block * BLOCK_BYTES
        length = min(count * BLOCK_BYTES, SIZE - offset)
        assert len(old) in (0, length)
        undone[offset : offset + length] = bytes(old) or bytes(length)
    return bytes(undone)


@given(old_content, st.lists(operation, max_size=12))
def test_writes_and_images(content: bytes, operations: list[Operation]) -> None:
    file = disk_with(content)
    change = change_of(file, "d", SLOT, SIZE, operations)
    expected = after(content, operations)
    differing = {
        block_key(SLOT, block)
        for block in range(38)
        if content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        != expected[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    }
    assert set(change.keys.tolist()) == differing, "exactly the blocks that change"
    assert file.pread(SIZE, 0) == content, "nothing is written yet"
    write_changes(file, change.writes)
    assert file.pread(SIZE + 1, 0) == expected
    assert images_undo(change, expected) == content
    assert not len(change_of(file, "d", SLOT, SIZE, operations).keys), "twice is once"


@given(old_content, st.lists(operation, min_size=1, max_size=6), st.integers(0, 5))
def test_a_redo_writes_every_block_of_its_batch(
    content: bytes, operations: list[Operation], done: int
) -> None:
    file = disk_with(content)
    first = change_of(file, "d", SLOT, SIZE, operations)
    write_changes(file, first.writes[:done])
    again = change_of(file, "d", SLOT, SIZE, operations, first.keys)
    assert again.keys.tolist() == first.keys.tolist()
    write_again(file, again.writes)
    assert file.pread(SIZE, 0) == after(content, operations)
    punch_zeroes(file, again.writes)
    assert file.pread(SIZE, 0) == after(content, operations)


def test_zeroes_become_holes_and_cost_nothing_over_holes() -> None:
    file = disk_with(content_of([(3, 1), (4, 1), (20, 2)]))
    change = change_of(file, "d", SLOT, SIZE, [Operation(0, SIZE, None)])
    assert [key_parts(key)[1] for key in change.keys.tolist()] == [3, 4, 20]
    write_changes(file, change.writes)
    assert file.data_ranges(0, SIZE) == []


def test_two_writes_in_one_block_are_both_kept() -> None:
    file = disk_with(bytes(SIZE))
    operations = [Operation(0, 512, b"a" * 512), Operation(1024, 512, b"b" * 512)]
    write_changes(file, change_of(file, "d", SLOT, SIZE, operations).writes)
    assert file.pread(2048, 0) == b"a" * 512 + bytes(512) + b"b" * 512 + bytes(512)


def test_a_short_write_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    file = disk_with(bytes(SIZE))
    pwritev = type(file).pwritev
    monkeypatch.setattr(
        type(file),
        "pwritev",
        lambda self, buffers, offset: pwritev(self, [memoryview(buffers[0])[:1000]], offset),
    )
    operations = [Operation(0, 9000, b"x" * 9000)]
    write_changes(file, change_of(file, "d", SLOT, SIZE, operations).writes)
    assert file.pread(9000, 0) == b"x" * 9000


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=20))
def test_merged_runs_are_the_union(ranges: list[tuple[int, int]]) -> None:
    first = np.array([start for start, _ in ranges], dtype=np.int64)
    last = np.array([start + length for start, length in ranges], dtype=np.int64)
    starts, ends = merge_runs(first, last)
    found = {n for low, high in zip(starts, ends, strict=True) for n in range(low, high)}
    assert found == {n for start, length in ranges for n in range(start, start + length)}
    assert all(one < other for one, other in zip(ends[:-1], starts[1:], strict=True))
