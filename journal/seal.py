# SPDX-License-Identifier: Apache-2.0
"""Sealing a segment that will never grow again, and verifying a sealed one.

A seal is an index (where cuts and batches are) and a trailer with a cryptographic digest: BLAKE2b
with 32 bytes over the file from its first byte up to the digest itself, the digest of the segment
before it included. So a row of sealed segments is a chain that cannot be altered in the middle:

    head -c $(( $(stat -c %s FILE) - 56 )) FILE | b2sum -l 256

prints the digest, and the 32 bytes in front of it in the file are those of the segment before
(zeroes for the first). Anyone who can write the last segment can make a new chain; to be proof
against that, keep a digest elsewhere.

Failures. Sealing verifies every entry first: what is not good is never sealed. A crash leaves the
segment unsealed, at worst with part of a seal behind its last entry, which the next attempt
overwrites. The caller says where the entries end, so nothing else is taken for a part of a seal.
Whoever appends (the splitter, the receiver's apply) never calls this for a segment in use.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from journal.format import ENTRIES, RECORDS
from journal.record import Record, RecordType
from journal.segment import (
    DIGEST_BYTES,
    DIGEST_OFFSET,
    HEADER_BYTES,
    INDEX_ENTRY,
    Seal,
    SegmentHeader,
    SegmentKind,
    pack_seal,
    parse_header,
)
from journal.stream_files import read_seal
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage

FIRST_DIGEST = bytes(DIGEST_BYTES)
"""What the first segment of a log has for the digest of the one before it."""

INDEXED = frozenset((RecordType.CUT, RecordType.BATCH_BEGIN))
WALK_BYTES = 4 << 20


@dataclass(slots=True)
class _Content:
    """What a walk over a whole segment adds up to."""

    entries: int = 0
    end_lsn: int = 0
    chain: int = 0
    index: bytearray = field(default_factory=bytearray)


def seal_segment(storage: Storage, path: Path, *, end_lsn: int, previous_digest: bytes) -> Seal:
    """Seals a segment whose entries end at `end_lsn`; durable when this returns. Sealing again
    gives the same seal. Raises DamageError, and OSError with the segment left unsealed."""
    assert len(previous_digest) == DIGEST_BYTES
    file = storage.open(path, writable=True)
    try:
        header = parse_header(file.pread(HEADER_BYTES, 0), str(path))
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        content = _verify_entries(file, header, end_lsn, digest.update)
        seal = Seal(
            content.entries,
            content.end_lsn,
            content.chain,
            len(content.index) // INDEX_ENTRY.size,
            previous_digest,
            FIRST_DIGEST,
        )
        digest.update(content.index)
        digest.update(pack_seal(seal)[:DIGEST_OFFSET])
        sealed = Seal(*_but_digest(seal), digest.digest())
        _write_seal(file, HEADER_BYTES + end_lsn - header.first_lsn, content.index, sealed)
        return sealed
    finally:
        file.close()


def verify_segment(storage: Storage, path: Path, *, previous_digest: bytes | None = None) -> Seal:
    """The seal of a segment that is good to its last bit. Raises DamageError. With
    `previous_digest`, the segment must also be the one that follows that digest."""
    file = storage.open(path)
    try:
        header = parse_header(file.pread(HEADER_BYTES, 0), str(path))
        seal = read_seal(file, header.first_lsn)
        if seal is None:
            raise DamageError(f"{path}: has no seal, or one that fails its checksum")
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        content = _verify_entries(file, header, seal.end_lsn, digest.update)
        index = file.pread(len(content.index), HEADER_BYTES + seal.end_lsn - header.first_lsn)
        digest.update(content.index)
        digest.update(pack_seal(seal)[:DIGEST_OFFSET])
        if index != content.index:
            raise DamageError(f"{path}: the index is not that of the entries")
        if (seal.entries, seal.chain) != (content.entries, content.chain):
            raise DamageError(f"{path}: the seal is not that of the entries")
        if seal.digest != digest.digest():
            raise DamageError(f"{path}: the digest of the seal is wrong")
        if previous_digest is not None and seal.previous_digest != previous_digest:
            raise DamageError(f"{path}: does not follow the sealed segment before it")
        return seal
    finally:
        file.close()


def read_index(file: File, first_lsn: int, seal: Seal) -> Iterator[tuple[int, int]]:
    """(lsn, time_ns) of each entry that a sealed segment's index holds."""
    size = seal.index_entries * INDEX_ENTRY.size
    data = file.pread(size, HEADER_BYTES + seal.end_lsn - first_lsn)
    return INDEX_ENTRY.iter_unpack(data)


def _but_digest(seal: Seal) -> tuple[int, int, int, int, bytes]:
    return seal.entries, seal.end_lsn, seal.chain, seal.index_entries, seal.previous_digest


def _verify_entries(
    file: File, header: SegmentHeader, end_lsn: int, update: Callable[[bytes], None]
) -> _Content:
    """Walks all entries; hands header and entries to `update`. Raises DamageError."""
    form = ENTRIES if header.kind is SegmentKind.INBOX else RECORDS
    content = _Content(end_lsn=header.first_lsn, chain=header.chain)
    update(file.pread(HEADER_BYTES, 0))
    want = WALK_BYTES
    while content.end_lsn < end_lsn:
        size = min(want, end_lsn - content.end_lsn)
        is_all = size == end_lsn - content.end_lsn
        offset = HEADER_BYTES + content.end_lsn - header.first_lsn
        data = file.pread(size, offset)
        found = form.scan(data, content.end_lsn, content.chain, where=str(file.path))
        for lsn, entry in found.records:
            if isinstance(entry, Record) and entry.type in INDEXED:
                content.index += INDEX_ENTRY.pack(lsn, entry.time_ns)
        whole = found.end_lsn - content.end_lsn
        update(data[:whole])
        content.entries += len(found.records)
        content.end_lsn, content.chain = found.end_lsn, found.chain
        want = WALK_BYTES
        if found.torn and not is_all and len(data) == size:
            want = WALK_BYTES if found.records else form.stated_bytes(data)
        elif found.problem or len(data) < size:
            problem = found.problem or f"{file.path}: ends before LSN {end_lsn}"
            raise DamageError(f"{problem} (file offset {offset + whole})")
    return content


def _write_seal(file: File, offset: int, index: bytearray, seal: Seal) -> None:
    """Writes the seal behind the last entry, over whatever a crash has left there."""
    file.truncate(offset)
    data = bytes(index) + pack_seal(seal)
    if file.pwritev([data], offset) != len(data):
        file.truncate(offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.path))
    file.datasync()
