# SPDX-License-Identifier: Apache-2.0
"""What a block must hold where nobody ever wrote: zeroes, and so the sum of zeroes. No I/O.

That is known of an image that was made here, and only as long as no sum was lost: else "nobody
wrote" may be what was forgotten. The last block of a disk may be short, with a sum of its own.
"""

from __future__ import annotations

import numpy as np
from xxhash import xxh3_64_intdigest

from receiver.history.images import BLOCK_BYTES, U64, Bools, block_key
from receiver.history.state import Disk

ZERO_BLOCK_SUM = xxh3_64_intdigest(bytes(BLOCK_BYTES))


def zero_sums(disk: Disk, keys: U64) -> U64:
    """Of these blocks of the disk, were they all zeroes."""
    sums = np.full(len(keys), ZERO_BLOCK_SUM, dtype=np.uint64)
    if short := disk.size_bytes % BLOCK_BYTES:
        last = block_key(disk.slot, disk.size_bytes // BLOCK_BYTES)
        sums[keys == np.uint64(last)] = xxh3_64_intdigest(bytes(short))
    return sums


def with_zeroes(disk: Disk, keys: U64, sums: U64, is_changed: Bools, *, is_whole: bool) -> U64:
    """The `sums` on record of blocks of the disk, with those of zeroes where nothing was ever
    written. `is_whole`: no sum was lost."""
    wanted = sums.copy()
    if disk.is_made_here and is_whole:
        wanted[~is_changed] = zero_sums(disk, keys[~is_changed])
    return wanted
