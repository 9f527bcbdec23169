# SPDX-License-Identifier: Apache-2.0
"""Sets of ranges, against sets of numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.history.extents import ExtentSet

Steps = list[tuple[bool, int, int]]
steps = st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(0, 20)), max_size=40)


def members(extents: ExtentSet) -> set[int]:
    return {number for start, end in extents for number in range(start, end)}


@given(steps)
def test_is_the_set_of_its_numbers(todo: Steps) -> None:
    extents, model = ExtentSet(), set[int]()
    for adds, start, length in todo:
        if adds:
            extents.add(start, start + length)
            model |= set(range(start, start + length))
        else:
            extents.remove(start, start + length)
            model -= set(range(start, start + length))
        assert members(extents) == model
        ranges = list(extents)
        assert all(start < end for start, end in ranges)
        assert all(one[1] < other[0] for one, other in pairwise(ranges))
    assert extents.total_bytes == len(model)
    assert ExtentSet.unpack(extents.pack()) == extents


@given(steps, st.integers(0, 60), st.integers(0, 40))
def test_within(todo: Steps, start: int, length: int) -> None:
    extents = ExtentSet()
    for _, low, size in todo:
        extents.add(low, low + size)
    found = {n for low, high in extents.within(start, start + length) for n in range(low, high)}
    assert found == members(extents) & set(range(start, start + length))


def test_a_copy_is_its_own() -> None:
    extents = ExtentSet([(0, 10)])
    other = extents.copy()
    other.remove(2, 4)
    assert list(extents) == [(0, 10)]
    assert list(other) == [(0, 2), (4, 10)]


@pytest.mark.parametrize("ranges", [[5, 5], [5, 4], [0, 10, 9, 12], [0, 10, 10, 12]], ids=str)
def test_ranges_that_are_none_are_refused(ranges: list[int]) -> None:
    packed = b"".join(number.to_bytes(8, "little") for number in ranges)
    with pytest.raises(ValueError, match="ranges"):
        ExtentSet.unpack(packed)
    with pytest.raises(ValueError, match="without an end"):
        ExtentSet.unpack(packed[:8])
