# SPDX-License-Identifier: Apache-2.0
"""Digests of replica blocks, for a sync to compare with. Reads, never writes.

Blocks are 64 KiB; the last one of a disk counts at its real length. The digest is keyed BLAKE2b
with 16 bytes: the key is secret and new for each sync, so a guest cannot prepare colliding blocks.
Blocks of zeroes are stated as runs, and holes are not even read: an empty replica costs nothing.
What the zeroes waiting in a sync will do is left out: a digest is of what the image holds.
"""

from __future__ import annotations

from hashlib import blake2b

from receiver.points.values import DigestRun
from replicator.base.storage import File
from replicator.wire.limits import DIGEST_BLOCK_BYTES, DIGEST_BYTES

_READ_BLOCKS = 64


def digest_runs(
    file: File, size_bytes: int, first_block: int, count: int, key: bytes
) -> list[DigestRun]:
    """Digests of `count` blocks from `first_block` on, as far as the disk goes, in order."""
    block_count = -(-size_bytes // DIGEST_BLOCK_BYTES)
    end_block = min(first_block + count, block_count)
    runs = _Runs()
    at = first_block
    for low, high in _data_blocks(file, size_bytes, first_block, end_block):
        runs.zeroes(at, low - at)
        for start in range(low, high, _READ_BLOCKS):
            stop = min(start + _READ_BLOCKS, high)
            size = min(stop * DIGEST_BLOCK_BYTES, size_bytes) - start * DIGEST_BLOCK_BYTES
            data = memoryview(file.pread(size, start * DIGEST_BLOCK_BYTES))
            for number in range(start, stop):
                place = (number - start) * DIGEST_BLOCK_BYTES
                runs.block(number, data[place : place + DIGEST_BLOCK_BYTES], key)
        at = high
    runs.zeroes(at, end_block - at)
    return runs.finished()


def _data_blocks(
    file: File, size_bytes: int, first_block: int, end_block: int
) -> list[tuple[int, int]]:
    """Runs of blocks that may hold data, disjoint, in order."""
    found: list[tuple[int, int]] = []
    end = min(end_block * DIGEST_BLOCK_BYTES, size_bytes)
    for start, stop in file.data_ranges(first_block * DIGEST_BLOCK_BYTES, end):
        low, high = start // DIGEST_BLOCK_BYTES, -(-stop // DIGEST_BLOCK_BYTES)
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found


class _Runs:
    """Puts neighbouring blocks of one kind together."""

    def __init__(self) -> None:
        self._runs: list[DigestRun] = []
        self._first = 0
        self._digests = bytearray()
        self._zero_blocks = 0

    def zeroes(self, first: int, count: int) -> None:
        if count <= 0:
            return
        if not self._zero_blocks:
            self._close()
            self._first = first
        self._zero_blocks += count

    def block(self, number: int, content: memoryview, key: bytes) -> None:
        if not any_byte(content):
            self.zeroes(number, 1)
            return
        if self._zero_blocks or not self._digests:
            self._close()
            self._first = number
        self._digests += blake2b(content, digest_size=DIGEST_BYTES, key=key).digest()

    def finished(self) -> list[DigestRun]:
        self._close()
        return self._runs

    def _close(self) -> None:
        if self._zero_blocks or self._digests:
            run = DigestRun(self._first, bytes(self._digests), self._zero_blocks)
            self._runs.append(run)
        self._digests, self._zero_blocks = bytearray(), 0


_ZERO_BLOCK = bytes(DIGEST_BLOCK_BYTES)


def any_byte(content: memoryview) -> bool:
    """Whether anything but zeroes is in it."""
    return content != memoryview(_ZERO_BLOCK)[: len(content)]
