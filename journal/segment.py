# SPDX-License-Identifier: Apache-2.0
"""Segments: the files that a log, an inbox or a history is made of. No I/O.

    header 192 bytes | entries, back to back | on sealing: index | trailer 128 bytes

    header   0 magic `RPLSEG1\\0`   8 u16 version   10 u16 kind   12 u32 header_bytes
            16 stream uuid         32 u64 ordinal  40 u64 first_lsn   48 u64 chain
            56 u64 created_ns      64 u64 known_durable
            72 group, 64 bytes UTF-8, NUL padded   136 zeroes   184 u64 xxh3-64 of 0..183
    index    16 bytes each: u64 lsn, u64 time_ns of what the owner wants found fast (cuts, batches)
    trailer  0 magic `RPLSEAL1`    8 u64 entries   16 u64 end_lsn   24 u64 chain at the end
            32 u64 index entries   40 previous segment's digest (32)   72 digest (32)
           104 zeroes             120 u64 xxh3-64 of 0..119

A segment is named by its first LSN, `%016x.seg`, and byte `lsn - first_lsn + 192` of the file is
byte `lsn` of the log: positions count entry bytes alone, so a log's LSNs run on from one segment
to the next without a gap. An entry never spans two segments. `chain` and `known_durable` in the
header are those at `first_lsn`, so a segment can be verified with nothing but itself.

A kind says what the entries are: records (log, history) or frames as they came (inbox).

Every later format keeps the first 12 bytes and the checksum at 184 over what is before it, so that
an older program can tell a newer segment (VersionError) from a damaged one (DamageError).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

from xxhash import xxh3_64_intdigest

from replicator.base.errors import DamageError, VersionError

SEGMENT_MAGIC = b"RPLSEG1\0"
SEAL_MAGIC = b"RPLSEAL1"
FORMAT_VERSION = 1

_HEADER = struct.Struct("<8sHHI16sQQQQQ64s48sQ")
HEADER_BYTES = 192
assert _HEADER.size == HEADER_BYTES
_TRAILER = struct.Struct("<8sQQQQ32s32s16sQ")
TRAILER_BYTES = 128
assert _TRAILER.size == TRAILER_BYTES
INDEX_ENTRY = struct.Struct("<QQ")
assert INDEX_ENTRY.size == 16
DIGEST_BYTES = 32
DIGEST_OFFSET = 72
"""In the trailer. The digest covers every byte of the file before it, and no other."""
GROUP_BYTES = 64

_NAME = re.compile(r"([0-9a-f]{16})\.seg")


class SegmentKind(IntEnum):
    LOG = 1
    INBOX = 2
    HISTORY = 3


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself. `chain` is the one at `first_lsn`."""

    kind: SegmentKind
    group: str
    stream: UUID
    ordinal: int
    first_lsn: int
    chain: int
    created_ns: int
    known_durable: int


@dataclass(frozen=True, slots=True)
class Seal:
    """The end of a segment that will never grow again."""

    entries: int
    end_lsn: int
    chain: int
    index_entries: int
    previous_digest: bytes
    digest: bytes


def segment_name(first_lsn: int) -> str:
    return f"{first_lsn:016x}.seg"


def first_lsn_of(name: str) -> int | None:
    """The first LSN that a file name states; None for a name that is no segment's."""
    found = _NAME.fullmatch(name)
    return int(found[1], 16) if found else None


def pack_header(header: SegmentHeader) -> bytes:
    group = header.group.encode()
    assert len(group) <= GROUP_BYTES
    packed = _HEADER.pack(
        SEGMENT_MAGIC,
        FORMAT_VERSION,
        header.kind,
        HEADER_BYTES,
        header.stream.bytes,
        header.ordinal,
        header.first_lsn,
        header.chain,
        header.created_ns,
        header.known_durable,
        group,
        b"",
        0,
    )
    return packed[:-8] + xxh3_64_intdigest(packed[:-8]).to_bytes(8, "little")


def parse_header(data: bytes, where: str) -> SegmentHeader:
    """Raises DamageError, or VersionError for a format that this program does not know."""
    if len(data) < HEADER_BYTES:
        raise DamageError(f"{where}: segment header is cut short")
    fields = _HEADER.unpack_from(data)
    magic, version, kind, header_bytes, stream, ordinal, first_lsn, chain, created, known = fields[
        :10
    ]
    if magic != SEGMENT_MAGIC:
        raise DamageError(f"{where}: not a segment")
    if xxh3_64_intdigest(data[: HEADER_BYTES - 8]) != fields[12]:
        raise DamageError(f"{where}: segment header fails its checksum")
    if version != FORMAT_VERSION:
        raise VersionError(
            f"{where}: segment format {version}, this program reads {FORMAT_VERSION}",
            hint="use the version of Replicator that wrote it, or a newer one",
        )
    if header_bytes != HEADER_BYTES or kind not in tuple(SegmentKind):
        raise DamageError(f"{where}: malformed segment header")
    return SegmentHeader(
        SegmentKind(kind),
        fields[10].rstrip(b"\0").decode(errors="replace"),
        UUID(bytes=stream),
        ordinal,
        first_lsn,
        chain,
        created,
        known,
    )


def pack_seal(seal: Seal) -> bytes:
    packed = _TRAILER.pack(
        SEAL_MAGIC,
        seal.entries,
        seal.end_lsn,
        seal.chain,
        seal.index_entries,
        seal.previous_digest,
        seal.digest,
        b"",
        0,
    )
    return packed[:-8] + xxh3_64_intdigest(packed[:-8]).to_bytes(8, "little")


def parse_seal(data: bytes) -> Seal | None:
    """The seal in the last TRAILER_BYTES of a file; None if these bytes are none."""
    if len(data) != TRAILER_BYTES or data[:8] != SEAL_MAGIC:
        return None
    fields = _TRAILER.unpack(data)
    if xxh3_64_intdigest(data[:-8]) != fields[8]:
        return None
    return Seal(*fields[1:7])
