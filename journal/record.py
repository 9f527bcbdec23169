# SPDX-License-Identifier: Apache-2.0
"""Records: the one format of a write in spool, wire, inbox and history. No I/O.

A record is a 64-byte header and its payload, back to back, little-endian:

    0  u8   type                 24 u64 sequence        number of the record, one counter per host
    1  u8   flags                32 u64 time_ns         UTC, when the splitter had it
    2  u16  disk  (0xFFFF none)  40 u64 payload_sum     xxh3-64 of the payload
    4  u32  payload_bytes        48 u64 known_durable   LSN known durable when this was written
    8  u64  offset               56 u64 chain           xxh3-64 of bytes 0..55, seeded with the
    16 u64  length                                      chain of the record before

Invariants
* chain(n) = xxh3_64(header(n)[0:56], seed=chain(n-1)). Since the header holds the payload's sum,
  "the chain at LSN x" names every byte of the log up to x: a missing, stale, misplaced or
  re-ordered record shows at once, and two logs that agree there agree everywhere before.
* A WRITE has payload_bytes == length; a PACKED_WRITE fewer (one zstd frame that states its size);
  ZERO and SAME have a length and no payload; every other type has offset == length == 0 and a
  msgpack body (journal.bodies) as payload.
* LSN counts record bytes alone: the LSN behind a record is its LSN + 64 + payload_bytes.

The sums find accidents: rot, torn and stale blocks, misdirected writes. Against a person who
edits the log on purpose stand the digests of sealed segments (journal.seal), not these.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

import msgspec
from xxhash import xxh3_64_intdigest

from replicator.base.errors import DamageError
from replicator.base.units import MIB

HEADER = struct.Struct("<BBHIQQQQQQQ")
HEADER_BYTES = 64
assert HEADER.size == HEADER_BYTES
_CHAINED = struct.Struct("<BBHIQQQQQQ")  # what the chain covers: all but itself
CHAINED_BYTES = 56
assert _CHAINED.size == CHAINED_BYTES == HEADER_BYTES - 8
_CHAIN = struct.Struct("<Q")

NO_DISK = 0xFFFF
# The largest NBD request (32 MiB) is one record; a body never needs more.
PAYLOAD_LIMIT_BYTES = 32 * MIB
EMPTY_SUM = xxh3_64_intdigest(b"")


class RecordType(IntEnum):
    """Types below 16 make up the log; those from 16 on are the receiver's, in its history."""

    WRITE = 1
    ZERO = 2
    CUT = 3
    SYNC_BEGIN = 4
    SYNC_END = 5
    SAME = 6
    DETACH = 7
    RESIZE = 8
    DOMAIN_XML = 9
    VERIFY = 10
    BATCH_BEGIN = 16
    BATCH_COMMIT = 17
    BATCH_APPLIED = 18
    STREAM_CLOSED = 19
    POINTS_DROPPED = 20
    STATE = 21
    PACKED_WRITE = 22


_TYPES = frozenset(RecordType)
# Where a record may begin, for a search behind a bad one: what `_well_formed` demands, as far as a
# pattern can say it. The stricter, the sooner a search through a guest's data ends.
_BODIES = _TYPES - {
    RecordType.WRITE,
    RecordType.ZERO,
    RecordType.SAME,
    RecordType.PACKED_WRITE,
}
LOOKS_LIKE_RECORD = re.compile(
    rb"(?=\x01.{3}(.{3}[\x00-\x02]).{7}[\x00-\x7f]\1\x00{4}"  # write: payload_bytes == length
    rb"|[\x02\x06].{3}\x00{4}.{7}[\x00-\x7f].{7}[\x00-\x7f]"  # zero, same: no payload
    rb"|\x16.{6}[\x00-\x02].{7}[\x00-\x7f].{3}[\x00-\x02]\x00{4}"  # packed write
    rb"|[" + bytes(_BODIES) + rb"].{6}[\x00-\x02]\x00{16})",  # a body: no offset, no length
    re.DOTALL,
)
assert (RecordType.WRITE, RecordType.ZERO, RecordType.SAME) == (1, 2, 6)
assert int(RecordType.PACKED_WRITE) == 0x16
# Plain integers: these are looked up for each record.
_WRITE = int(RecordType.WRITE)
_PACKED_WRITE = int(RecordType.PACKED_WRITE)
_RANGES = frozenset((int(RecordType.ZERO), int(RecordType.SAME)))


class Record(msgspec.Struct, frozen=True):
    """One record. `payload` may be a view into a larger buffer: copy it to keep it.

    (A Struct: one is made for each record that is read, in a ninth of a dataclass's time.)
    """

    type: int
    disk: int
    offset: int
    length: int
    sequence: int
    time_ns: int
    payload: bytes | memoryview = b""
    flags: int = 0
    known_durable: int = 0
    payload_sum: int = EMPTY_SUM

    @property
    def size(self) -> int:
        """Bytes in the log."""
        return HEADER_BYTES + len(self.payload)

    def __str__(self) -> str:
        name = RecordType(self.type).name if self.type in _TYPES else f"type {self.type}"
        where = "" if self.disk == NO_DISK else f" disk {self.disk}"
        span = f" [{self.offset}, +{self.length})" if self.length else ""
        return f"#{self.sequence} {name}{where}{span} {len(self.payload)} payload bytes"


@dataclass(frozen=True, slots=True)
class Scan:
    """What `scan` found: `records` with the LSN of each, then why it stopped.

    `end_lsn` and `chain` are those behind the last good record. `problem` is empty when the data
    ended right there; `torn` says that the data ended inside a record whose header is good, or
    inside a header, so that more bytes could have made it whole.
    """

    records: list[tuple[int, Record]]
    end_lsn: int
    chain: int
    problem: str = ""
    torn: bool = False


def first_chain(stream: UUID, ordinal: int) -> int:
    """The chain that a stream starts from: no two streams share one."""
    return xxh3_64_intdigest(stream.bytes + ordinal.to_bytes(8, "little"))


def encode_header(
    kind: int,
    disk: int,
    offset: int,
    length: int,
    sequence: int,
    time_ns: int,
    payload: bytes | bytearray | memoryview,
    known_durable: int,
    chain: int,
    flags: int = 0,
) -> tuple[bytes, int]:
    """(header, chain behind it). Positional, since the splitter calls it for each write."""
    chained = _CHAINED.pack(
        kind,
        flags,
        disk,
        len(payload),
        offset,
        length,
        sequence,
        time_ns,
        xxh3_64_intdigest(payload),
        known_durable,
    )
    chain = xxh3_64_intdigest(chained, chain)
    return chained + _CHAIN.pack(chain), chain


def encode(record: Record, chain: int) -> tuple[bytes, int]:
    """(header, chain behind it) of a record whose payload the caller writes behind it."""
    return encode_header(
        record.type,
        record.disk,
        record.offset,
        record.length,
        record.sequence,
        record.time_ns,
        record.payload,
        record.known_durable,
        chain,
        record.flags,
    )


def scan(
    data: bytes | bytearray | memoryview, start_lsn: int, chain: int, *, where: str = "log"
) -> Scan:
    """Splits `data`, the log from `start_lsn` on, into records, and verifies each: header by the
    chain, payload by its sum, shape by its type. Stops at the first that fails; never raises.

    `chain` is the chain at `start_lsn`. Payloads are views into `data`.
    """
    view = memoryview(data)
    size = len(view)
    records: list[tuple[int, Record]] = []
    append = records.append
    at = 0
    problem, torn = "", False
    while at < size:
        if size - at < HEADER_BYTES:
            problem, torn = f"{where}: header cut short at LSN {start_lsn + at}", True
            break
        fields = HEADER.unpack_from(view, at)
        kind, flags, disk, payload_bytes, offset, length, sequence, time_ns, total, known, link = (
            fields
        )
        if xxh3_64_intdigest(view[at : at + CHAINED_BYTES], chain) != link:
            problem = f"{where}: header does not follow its predecessor at LSN {start_lsn + at}"
            break
        if payload_bytes > PAYLOAD_LIMIT_BYTES or not _well_formed(
            kind, payload_bytes, offset, length
        ):
            problem = f"{where}: malformed record at LSN {start_lsn + at}"
            break
        end = at + HEADER_BYTES + payload_bytes
        if end > size:
            problem, torn = f"{where}: payload cut short at LSN {start_lsn + at}", True
            break
        payload = view[at + HEADER_BYTES : end]
        if xxh3_64_intdigest(payload) != total:
            problem = f"{where}: payload fails its checksum at LSN {start_lsn + at}"
            break
        append(
            (
                start_lsn + at,
                Record(kind, disk, offset, length, sequence, time_ns, payload, flags, known, total),
            )
        )
        chain = link
        at = end
    return Scan(records, start_lsn + at, chain, problem, torn)


def scan_whole(
    data: bytes | bytearray | memoryview, start_lsn: int, chain: int, *, where: str = "log"
) -> Scan:
    """As `scan`, for data that must be whole records to its last byte. Raises DamageError."""
    found = scan(data, start_lsn, chain, where=where)
    if found.problem:
        raise DamageError(found.problem)
    return found


def _well_formed(kind: int, payload_bytes: int, offset: int, length: int) -> bool:
    if kind == _WRITE:
        return payload_bytes == length > 0 and offset + length < 1 << 63
    if kind in _RANGES:
        return payload_bytes == 0 and length > 0 and offset + length < 1 << 63
    if kind == _PACKED_WRITE:
        return 0 < payload_bytes < length <= PAYLOAD_LIMIT_BYTES and offset < 1 << 62
    return kind in _TYPES and offset == 0 and length == 0
