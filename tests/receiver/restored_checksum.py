# SPDX-License-Identifier: Apache-2.0
"""The checksum of a restored image, from its content alone, as docs/formats.md has it."""

from __future__ import annotations

from xxhash import xxh3_128

from receiver.restore.progress import PIECE_BYTES

BLOCK = 4096


def checksum_by_hand(content: bytes, piece_bytes: int = PIECE_BYTES) -> str:
    whole = xxh3_128()
    for start in range(0, len(content), piece_bytes):
        end = min(start + piece_bytes, len(content))
        piece, before = xxh3_128(), True
        found = False
        for at in range(start, end, BLOCK):
            block = content[at : min(at + BLOCK, end)]
            if any(block):
                piece.update((at.to_bytes(8, "little") if before else b"") + block)
                found = True
            before = not any(block)
        whole.update(piece.digest() if found else bytes(16))
    return whole.hexdigest()
