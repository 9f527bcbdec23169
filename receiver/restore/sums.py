# SPDX-License-Identifier: Apache-2.0
"""Sums of a restored image that cost nothing where it holds nothing. No I/O.

The sum of a piece is the XXH3-128 of what it holds: of each run of neighbouring 4-KiB blocks that
are not all zero, the offset on the disk (u64, little-endian) and the content. So it does not matter
what of the zeroes is a hole, and a hole need not be read. A piece without such a run has no sum:
NOTHING. The checksum of an image is the XXH3-128 of the sums of its pieces, 16 bytes each, NOTHING
being zeroes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from struct import Struct

import numpy as np
from xxhash import xxh3_128

from receiver.history.images import BLOCK_BYTES

NOTHING = ""
SUM_BYTES = 16
_OFFSET = Struct("<Q")
_WORDS = BLOCK_BYTES // 8

Ranges = list[tuple[int, int]]
"""[(start, end)] in order, disjoint."""


class PieceSum:
    """See the head of this file."""

    def __init__(self) -> None:
        self._hash = xxh3_128()
        self._end = -1

    def update(self, offset: int, content: bytes) -> None:
        """What lies at `offset`, a multiple of a block; what is left out are zeroes. In order."""
        whole = content + bytes(-len(content) % BLOCK_BYTES)
        is_data = np.frombuffer(whole, dtype=np.uint64).reshape(-1, _WORDS).any(axis=1)
        edges = np.flatnonzero(np.diff(is_data, prepend=False, append=False)).tolist()
        for low, high in zip(edges[::2], edges[1::2], strict=True):
            if offset + low * BLOCK_BYTES != self._end:
                self._hash.update(_OFFSET.pack(offset + low * BLOCK_BYTES))
            self._hash.update(memoryview(content)[low * BLOCK_BYTES : high * BLOCK_BYTES])
            self._end = offset + high * BLOCK_BYTES

    @property
    def text(self) -> str:
        return NOTHING if self._end < 0 else self._hash.hexdigest()


def checksum_of(pieces: Iterable[str]) -> str:
    """Of the image whose pieces have these sums."""
    sums = (bytes.fromhex(piece) if piece else bytes(SUM_BYTES) for piece in pieces)
    return xxh3_128(b"".join(sums)).hexdigest()


def by_piece(
    size_bytes: int, piece_bytes: int, data_within: Callable[[int, int], Ranges]
) -> Iterator[tuple[int, int, Ranges]]:
    """(start, end, what of it may hold anything) of each piece of a disk, in order; ranges begin
    and end with a block or the disk. `data_within` answers for many pieces at once."""
    together = max(_SPAN_BYTES // piece_bytes, 1) * piece_bytes
    for low in range(0, size_bytes, together):
        high = min(low + together, size_bytes)
        ranges = _in_blocks(data_within(low, high), high)
        at = 0
        for start in range(low, high, piece_bytes):
            end = min(start + piece_bytes, high)
            found: Ranges = []
            while at < len(ranges) and ranges[at][0] < end:
                first, last = ranges[at]
                found.append((max(first, start), min(last, end)))
                if last > end:
                    break
                at += 1
            yield start, end, found


_SPAN_BYTES = 1 << 34


def _in_blocks(ranges: Iterable[tuple[int, int]], end: int) -> Ranges:
    """Rounded out to whole blocks; what then touches is one."""
    found: Ranges = []
    for start, stop in ranges:
        start = start // BLOCK_BYTES * BLOCK_BYTES
        stop = min(-(-stop // BLOCK_BYTES) * BLOCK_BYTES, end)
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], stop)
        else:
            found.append((start, stop))
    return found
