# SPDX-License-Identifier: Apache-2.0
"""NBD and the wire: what a peer says is bounded and checked before it is used."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_NBD = ("tests/nbd/test_transmission.py", "tests/nbd/test_handshake.py")
_WIRE = ("tests/wire/test_frames.py", "tests/wire/test_protocol.py", "tests/wire/test_link.py")

MUTANTS = (
    Mutant(
        "a write past the end is refused",
        "replicator/nbd/transmission.py",
        "                and offset + length <= self._info.size_bytes",
        "                and offset <= self._info.size_bytes",
        _NBD,
    ),
    Mutant(
        "a read-only export takes no write",
        "replicator/nbd/transmission.py",
        "        self._write_limit = 0 if info.read_only else info.max_block_bytes",
        "        self._write_limit = info.max_block_bytes",
        _NBD,
    ),
    Mutant(
        "reads under way are bounded in bytes",
        "replicator/nbd/transmission.py",
        "            if self.outstanding_read_bytes and together > MAX_OUTSTANDING_READ_BYTES:",
        "            if not together:",
        _NBD,
    ),
    Mutant(
        "requests under way are bounded",
        "replicator/nbd/transmission.py",
        "            if room <= 0:",
        "            if room <= -1000:",
        _NBD,
    ),
    Mutant(
        "the payload of a refused write is skipped",
        "replicator/nbd/transmission.py",
        "            self._discard = request.length",
        "            self._discard = 0",
        _NBD,
    ),
    Mutant(
        "a message's body is checked by its sum",
        "replicator/wire/framing.py",
        "            if _sum(body, pending.seed) != pending.total:",
        "            if _sum(body, pending.seed) < 0:",
        _WIRE,
    ),
    Mutant(
        "a message's size is bounded",
        "replicator/wire/framing.py",
        "        if body_bytes > limit:",
        "        if body_bytes > 1000 * limit + 100:",
        _WIRE,
    ),
    Mutant(
        "a frame's content size is known before it is decompressed",
        "replicator/wire/frames.py",
        "            if stated != header.raw_bytes:",
        "            if stated < 0:",
        _WIRE,
    ),
    Mutant(
        "a plain frame ends in the chain that it states",
        "replicator/wire/frames.py",
        "        if scan.chain != header.chain_end:",
        "        if scan.chain < 0:",
        _WIRE,
    ),
    Mutant(
        "a reduced frame holds content alone",
        "replicator/wire/frames.py",
        "            if any(record.type not in _REDUCED_TYPES for _, record in scan.records):",
        "            if not scan.records:",
        _WIRE,
    ),
)
