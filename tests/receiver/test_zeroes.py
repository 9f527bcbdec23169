# SPDX-License-Identifier: Apache-2.0
"""The sums of blocks that nobody ever wrote, beside the content itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from receiver.blocks.zeroes import with_zeroes, zero_sums
from receiver.history.images import BLOCK_BYTES, block_keys
from receiver.history.state import Disk


@pytest.mark.parametrize("size", [BLOCK_BYTES, 5 * BLOCK_BYTES, 4 * BLOCK_BYTES + 512, 512])
def test_each_is_the_sum_of_its_own_length_of_zeroes(size: int) -> None:
    disk = Disk(3, "a", "i", size, 0, is_made_here=True)
    content = bytes(size)
    blocks = [content[at : at + BLOCK_BYTES] for at in range(0, size, BLOCK_BYTES)]
    keys = block_keys(3, 0, len(blocks))
    assert zero_sums(disk, keys).tolist() == [xxh3_64_intdigest(block) for block in blocks]
    sums, changed = np.full(len(keys), 7, dtype=np.uint64), keys == keys[0]
    told = with_zeroes(disk, keys, sums, changed, is_whole=True).tolist()
    assert told == [7, *zero_sums(disk, keys).tolist()[1:]]
    for known in (
        with_zeroes(disk, keys, sums, changed, is_whole=False),
        with_zeroes(replace(disk, is_made_here=False), keys, sums, changed, is_whole=True),
    ):
        assert known.tolist() == sums.tolist(), "it is not known that nobody wrote"
