# SPDX-License-Identifier: Apache-2.0
"""Entries: what an inbox is made of, a frame as it came with 48 bytes before it. No I/O.

    0  4s  magic `RPLE`            24 u64 known_durable   inbox position that was synced when
    4  u32 frame_bytes                                    this was written
    8  u64 start_lsn               32 u64 frame_sum       xxh3-64 of the frame
    16 u64 end_lsn   of the log    40 u64 chain           xxh3-64 of bytes 0..39, seeded with the
                     in the frame                         chain of the entry before

Positions in an inbox count entry bytes (a frame is compressed, so LSNs will not do) and play the
part there that LSNs play in a log: they name segments and the chain belongs to them. An inbox
starts at position 0 with the stream's first chain (journal.record).

`start_lsn` and `end_lsn` let an inbox be opened, searched and acknowledged without unpacking a
frame. They repeat what the frame's own header says; whoever unpacks the frame compares.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from xxhash import xxh3_64, xxh3_64_intdigest

from journal.record import PAYLOAD_LIMIT_BYTES
from replicator.base.storage import Buffer
from replicator.base.units import MIB

MAGIC = b"RPLE"
HEADER = struct.Struct("<4sIQQQQQ")
HEADER_BYTES = 48
assert HEADER.size == HEADER_BYTES
_CHAINED = struct.Struct("<4sIQQQQ")
assert _CHAINED.size == HEADER_BYTES - 8

# More than the largest frame that the wire lets in: one record of the largest size, with change.
FRAME_LIMIT_BYTES = PAYLOAD_LIMIT_BYTES + 8 * MIB


@dataclass(frozen=True, slots=True)
class Entry:
    """One frame in an inbox. `frame` may be a view into a larger buffer: copy it to keep it."""

    start_lsn: int
    end_lsn: int
    known_durable: int
    frame: bytes | memoryview
    frame_sum: int

    @property
    def size(self) -> int:
        """Bytes in the inbox."""
        return HEADER_BYTES + len(self.frame)

    def __str__(self) -> str:
        return f"frame of LSN {self.start_lsn} to {self.end_lsn}, {len(self.frame)} bytes"


@dataclass(frozen=True, slots=True)
class EntryScan:
    """What `scan_entries` found; the fields mean what those of journal.record.Scan do."""

    records: list[tuple[int, Entry]]
    end_lsn: int
    chain: int
    problem: str = ""
    torn: bool = False


def encode_entry(
    frame: Sequence[Buffer], start_lsn: int, end_lsn: int, known_durable: int, chain: int
) -> tuple[bytes, int]:
    """(header, chain behind it) of an entry; the caller writes the frame's buffers behind it."""
    total = xxh3_64()
    for buffer in frame:
        total.update(buffer)
    frame_bytes = sum(map(len, frame))
    assert 0 < frame_bytes <= FRAME_LIMIT_BYTES
    chained = _CHAINED.pack(
        MAGIC, frame_bytes, start_lsn, end_lsn, known_durable, total.intdigest()
    )
    chain = xxh3_64_intdigest(chained, chain)
    return chained + chain.to_bytes(8, "little"), chain


def scan_entries(
    data: bytes | bytearray | memoryview, start_lsn: int, chain: int, *, where: str = "inbox"
) -> EntryScan:
    """Splits `data`, the inbox from position `start_lsn` on, into entries, and verifies each as
    journal.record.scan does records. Never raises."""
    view = memoryview(data)
    size = len(view)
    entries: list[tuple[int, Entry]] = []
    at = 0
    problem, torn = "", False
    while at < size:
        if size - at < HEADER_BYTES:
            problem, torn = f"{where}: entry header cut short at {start_lsn + at}", True
            break
        magic, frame_bytes, start, end, known, total, link = HEADER.unpack_from(view, at)
        if xxh3_64_intdigest(view[at : at + HEADER_BYTES - 8], chain) != link:
            problem = f"{where}: entry does not follow its predecessor at {start_lsn + at}"
            break
        if magic != MAGIC or not 0 < frame_bytes <= FRAME_LIMIT_BYTES or start >= end:
            problem = f"{where}: malformed entry at {start_lsn + at}"
            break
        behind = at + HEADER_BYTES + frame_bytes
        if behind > size:
            problem, torn = f"{where}: frame cut short at {start_lsn + at}", True
            break
        frame = view[at + HEADER_BYTES : behind]
        if xxh3_64_intdigest(frame) != total:
            problem = f"{where}: frame fails its checksum at {start_lsn + at}"
            break
        entries.append((start_lsn + at, Entry(start, end, known, frame, total)))
        chain = link
        at = behind
    return EntryScan(entries, start_lsn + at, chain, problem, torn)


# Where an entry may begin, for a search behind a bad one.
LOOKS_LIKE_ENTRY = re.compile(b"(?=" + MAGIC + b")")
