# SPDX-License-Identifier: Apache-2.0
"""What it costs to know the sum of each block that a batch is about to overwrite.

A look-up is measured by itself, for batches of BATCH_BLOCKS blocks scattered over a disk whose
every block has a sum: `warm` when the guest has been at these blocks before, and `cold` when it
never was (then a chunk of sums is read for nearly each block, as the block itself is). Its peer is
the hash of the same blocks, which verifying them takes in any case. Written bytes are those below
`sums/newest/`, for as many changed blocks, all of them scattered.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from receiver.history.images import BLOCK_BYTES, U64
from receiver.history.sums.base import SumBase
from receiver.history.sums.layers import SumLayers
from tests.bench.history_feed import CountedStorage

BATCH_BLOCKS = 12_288
LOOKUPS = 20


@contextmanager
def layers(storage: CountedStorage) -> Iterator[SumLayers]:
    home = Path(tempfile.mkdtemp(prefix="rpl-bench-", dir="/var/tmp"))
    base = SumBase(storage, home / "sums")
    found = SumLayers(base, SumBase(storage, home / "sums" / "newest", in_steps=True))
    found.open(0)
    try:
        yield found
    finally:
        found.close()
        base.close()
        shutil.rmtree(home)


def scattered(rng: np.random.Generator, blocks: int) -> U64:
    """The blocks of a batch, sorted."""
    return np.unique(rng.integers(0, blocks, BATCH_BLOCKS, dtype=np.uint64))


def filled(found: SumLayers, disk_bytes: int) -> int:
    """Every block of the disk has a sum; the number of the last batch."""
    blocks, number = disk_bytes // BLOCK_BYTES, 0
    for low in range(0, blocks, 1 << 19):
        keys = np.arange(low, min(low + (1 << 19), blocks), dtype=np.uint64)
        number += 1
        found.put(keys, keys + np.uint64(1), upto=number, end=number)
        while found.tidy():
            pass
    return number


def lookup_microseconds(disk_bytes: int, *, is_warm: bool) -> float:
    """A block, by the median batch, in a steady state: batches also put in what they changed."""
    rng = np.random.default_rng(1)
    blocks = disk_bytes // BLOCK_BYTES
    with layers(CountedStorage(is_durable=False)) as found:
        number = filled(found, disk_bytes)
        if is_warm:
            for low in range(0, blocks, BATCH_BLOCKS):
                found.find(np.arange(low, min(low + BATCH_BLOCKS, blocks), dtype=np.uint64))
        taken: list[float] = []
        for _ in range(LOOKUPS):
            keys = scattered(rng, blocks)
            began = time.perf_counter()
            known = found.find(keys)
            taken.append((time.perf_counter() - began) / len(keys) * 1e6)
            assert known.is_changed.all()
            number += 1
            found.put(keys, known.sums, upto=number, end=number)
        return statistics.median(taken)


def hash_microseconds() -> float:
    arena = memoryview(np.random.default_rng(1).bytes(BATCH_BLOCKS * BLOCK_BYTES))
    began = time.perf_counter()
    for at in range(0, len(arena), BLOCK_BYTES):
        xxh3_64_intdigest(arena[at : at + BLOCK_BYTES])
    return (time.perf_counter() - began) / BATCH_BLOCKS * 1e6


def amplification(disk_bytes: int, batches: int) -> float:
    """Bytes written for the sums, for a byte changed."""
    rng = np.random.default_rng(1)
    storage = CountedStorage(is_durable=False)
    with layers(storage) as found:
        changed = 0
        for number in range(1, batches + 1):
            keys = scattered(rng, disk_bytes // BLOCK_BYTES)
            found.put(keys, keys + np.uint64(1), upto=number, end=number)
            changed += len(keys) * BLOCK_BYTES
            while found.tidy():
                pass
        return storage.written_bytes / changed
