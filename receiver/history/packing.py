# SPDX-License-Identifier: Apache-2.0
"""Before-images as stored, compressed where that gains. One decompressor a thread, no I/O.

An image is compressed by itself, as one zstd frame that states its size: a single block can be
read without its neighbours. One that would keep more than KEEPS of its size is stored as it is.
Data that does not shrink comes in runs (encrypted disks, media), and trying costs a microsecond
a KiB, so after TRIES_MAX vain tries in a row only every TRIES_MAX-th image is tried, until one
shrinks again.

An image is opened with suspicion: its stated size is compared with that of the extent before
anything is decompressed.

Concurrency: a Packer belongs to one thread; `unpack` may be called from any.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import zstandard

from receiver.history.images import BLOCK_BYTES
from replicator.base.errors import DamageError
from replicator.base.storage import Buffer

LEVEL = 1
KEEPS = 0.94
TRIES_MAX = 16


class Packer:
    """See the head of this file."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        self._vain = 0

    def pack_all(self, contents: Sequence[Buffer]) -> tuple[list[Buffer], list[bool]]:
        """(what to store, whether it is packed) of each. An empty content (zeroes) stays so."""
        stored: list[Buffer] = []
        packed: list[bool] = []
        for content in contents:
            payload = self._pack(content) if len(content) else None
            stored.append(content if payload is None else payload)
            packed.append(payload is not None)
        return stored, packed

    def _pack(self, content: Buffer) -> bytes | None:
        if self._vain >= TRIES_MAX and self._vain % TRIES_MAX:
            self._vain += 1
            return None
        payload = self._zstd.compress(content)
        if len(payload) > KEEPS * len(content):
            self._vain += 1
            return None
        self._vain = 0
        return payload


_of_thread = threading.local()


def unpack(payload: Buffer, blocks: int, where: str) -> bytes:
    """The content of a packed image of so many blocks, the last of which may be short. Raises
    DamageError."""
    zstd: zstandard.ZstdDecompressor | None = getattr(_of_thread, "zstd", None)
    if zstd is None:
        zstd = _of_thread.zstd = zstandard.ZstdDecompressor()
    try:
        size = zstandard.frame_content_size(payload)
        if not (blocks - 1) * BLOCK_BYTES < size <= blocks * BLOCK_BYTES:
            raise DamageError(f"{where}: a packed image of {blocks} blocks states {size} bytes")
        return zstd.decompress(payload, max_output_size=size)
    except zstandard.ZstdError as error:
        raise DamageError(f"{where}: a packed image cannot be opened: {error}") from error
