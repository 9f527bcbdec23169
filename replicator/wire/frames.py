# SPDX-License-Identifier: Apache-2.0
"""Frames: a run of whole records of the log, compressed once, opened with suspicion. No I/O.

A frame is a 72-byte little-endian header and its data; it crosses the wire and lies in the
receiver's inbox in the same bytes.

    0  u64 start_lsn        32 u64 raw_bytes       the records in it, uncompressed
    8  u64 end_lsn          40 u64 data_bytes      what follows the header
    16 u64 chain_start      48 u32 flags           REDUCED = 1, STORED = 2
    24 u64 chain_end        52 u32 0
                            56 u64 data_sum        xxh3-64 of the data
                            64 u64 header_sum      xxh3-64 of bytes 0..63

Two kinds
* A *plain* frame holds log[start_lsn:end_lsn] as it is: raw_bytes = end_lsn - start_lsn, and the
  records' own chain runs from chain_start to chain_end.
* A *reduced* frame holds what a sync left of log[start_lsn:end_lsn]: WRITE, ZERO and SAME records
  alone, chained anew from chain_start within the frame. chain_end is the log's chain at end_lsn,
  taken on the agent's word. Cuts, sync-begins and all other records never stand in one, so each
  of these keeps an LSN of its own that both ends agree on.

Data is one zstd frame that states its content size, or (STORED) the records themselves, where
they do not shrink. The stated size is compared with the header's and with the limit *before*
anything is decompressed: python-zstandard ignores `max_output_size` when the data states a size.

Concurrency: a FrameBuilder or FrameOpener belongs to one thread at a time; compressing and
decompressing release the GIL.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

import zstandard
from xxhash import xxh3_64_intdigest

from journal.record import HEADER_BYTES, Record, RecordType, scan_whole
from replicator.base.errors import DamageError
from replicator.base.units import KIB
from replicator.wire.limits import FRAME_HEADER_BYTES, RAW_LIMIT_BYTES

_HEADER = struct.Struct("<QQQQQQIIQQ")
assert _HEADER.size == FRAME_HEADER_BYTES
_SUMMED_BYTES = FRAME_HEADER_BYTES - 8
_SUMMED = struct.Struct("<QQQQQQIIQ")
assert _SUMMED.size == _SUMMED_BYTES

DEFAULT_LEVEL = 1
# A sample that keeps more than this share of its size is not worth the time of the rest.
_SAMPLE_BYTES = 4 * KIB
_SAMPLE_KEEPS = 0.94
_SAMPLED_FROM_BYTES = 8 * _SAMPLE_BYTES

_REDUCED_TYPES = frozenset((RecordType.WRITE, RecordType.ZERO, RecordType.SAME))


class FrameFlag(IntFlag):
    REDUCED = 1
    STORED = 2


_KNOWN_FLAGS = int(FrameFlag.REDUCED | FrameFlag.STORED)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """See the head of this file. A parsed one has sane sizes and a good header sum, no more."""

    start_lsn: int
    end_lsn: int
    chain_start: int
    chain_end: int
    raw_bytes: int
    data_bytes: int
    flags: int
    data_sum: int

    @property
    def reduced(self) -> bool:
        return bool(self.flags & FrameFlag.REDUCED)

    @property
    def stored(self) -> bool:
        return bool(self.flags & FrameFlag.STORED)

    @property
    def size(self) -> int:
        """Bytes of the whole frame, header and data."""
        return FRAME_HEADER_BYTES + self.data_bytes

    def pack(self) -> bytes:
        summed = _SUMMED.pack(
            self.start_lsn,
            self.end_lsn,
            self.chain_start,
            self.chain_end,
            self.raw_bytes,
            self.data_bytes,
            self.flags,
            0,
            self.data_sum,
        )
        return summed + xxh3_64_intdigest(summed).to_bytes(8, "little")

    @classmethod
    def parse(cls, buffer: bytes | bytearray | memoryview, at: int = 0) -> FrameHeader:
        """Reads and checks the header at `at`. Raises DamageError."""
        view = memoryview(buffer)[at : at + FRAME_HEADER_BYTES]
        if len(view) < FRAME_HEADER_BYTES:
            raise DamageError("frame header cut short")
        start, end, chain_start, chain_end, raw, data, flags, pad, data_sum, total = _HEADER.unpack(
            view
        )
        if xxh3_64_intdigest(view[:_SUMMED_BYTES]) != total:
            raise DamageError("frame header fails its checksum")
        header = cls(start, end, chain_start, chain_end, raw, data, flags, data_sum)
        if problem := header._problem(pad):
            raise DamageError(f"frame [{start}, {end}): {problem}")
        return header

    def _problem(self, pad: int) -> str:
        """What no honest sender writes; empty if all is well."""
        if self.flags & ~_KNOWN_FLAGS or pad:
            return f"unknown flags {self.flags:#x}"
        if not self.start_lsn < self.end_lsn < 1 << 63:
            return "covers no records"
        if not HEADER_BYTES <= self.raw_bytes <= RAW_LIMIT_BYTES:
            return f"{self.raw_bytes} bytes of records are out of bounds"
        if not self.reduced and self.raw_bytes != self.end_lsn - self.start_lsn:
            return f"{self.raw_bytes} bytes of records do not fill its range"
        if self.stored and self.data_bytes != self.raw_bytes:
            return "stored data has another size than the records"
        if not 0 < self.data_bytes <= self.raw_bytes:
            return f"{self.data_bytes} bytes of data are out of bounds"
        return ""


@dataclass(frozen=True, slots=True)
class Frame:
    """Header and data, not opened. `data` may be a view of a received message."""

    header: FrameHeader
    data: bytes | bytearray | memoryview

    @classmethod
    def parse(cls, buffer: bytes | bytearray | memoryview) -> Frame:
        """A frame that fills `buffer`. Raises DamageError. The data sum is not checked here."""
        header = FrameHeader.parse(buffer)
        data = memoryview(buffer)[FRAME_HEADER_BYTES:]
        if len(data) != header.data_bytes:
            raise DamageError(
                f"frame [{header.start_lsn}, {header.end_lsn}): {len(data)} bytes of data"
                f" where its header says {header.data_bytes}"
            )
        return cls(header, data)

    @property
    def size(self) -> int:
        return FRAME_HEADER_BYTES + len(self.data)

    def __str__(self) -> str:
        header = self.header
        kind = "reduced " if header.reduced else ""
        return (
            f"{kind}frame [{header.start_lsn}, {header.end_lsn}) {header.raw_bytes} bytes"
            f" in {header.data_bytes}{' stored' if header.stored else ''}"
        )


@dataclass(frozen=True, slots=True)
class OpenedFrame:
    """The records of a frame, each verified, payloads being views of one buffer.

    In a plain frame each comes with its own LSN. In a reduced one each comes with the frame's
    start_lsn: pieces of one record have no LSN of their own.
    """

    header: FrameHeader
    records: list[tuple[int, Record]]


class FrameBuilder:
    """Makes frames, with one compressor that is used again and again."""

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        self._zstd = zstandard.ZstdCompressor(level=level, write_content_size=True)

    def build(
        self,
        raw: bytes | bytearray | memoryview,
        *,
        start_lsn: int,
        end_lsn: int,
        chain_start: int,
        chain_end: int,
        reduced: bool = False,
    ) -> Frame:
        """`raw` are whole records, chained from chain_start (see the head of this file)."""
        flags = FrameFlag.REDUCED if reduced else FrameFlag(0)
        data: bytes | None = None
        if self._promising(raw):
            data = self._zstd.compress(raw)
        if data is None or len(data) >= len(raw):
            flags |= FrameFlag.STORED
            data = bytes(raw)
        header = FrameHeader(
            start_lsn,
            end_lsn,
            chain_start,
            chain_end,
            len(raw),
            len(data),
            int(flags),
            xxh3_64_intdigest(data),
        )
        assert not header._problem(0), header._problem(0)
        return Frame(header, data)

    def _promising(self, raw: bytes | bytearray | memoryview) -> bool:
        if len(raw) < _SAMPLED_FROM_BYTES:
            return True
        view = memoryview(raw)
        middle, last = len(raw) // 2, len(raw) - _SAMPLE_BYTES
        sample = b"".join((view[middle : middle + _SAMPLE_BYTES], view[last:]))
        return len(self._zstd.compress(sample)) < _SAMPLE_KEEPS * len(sample)


class FrameOpener:
    """Opens frames, with one decompressor that is used again and again."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def open(self, frame: Frame) -> OpenedFrame:
        """Every record verified: sums, chain, bounds, both ends of the range. Raises DamageError.

        Costs at most RAW_LIMIT_BYTES, whatever the data claims. Whether the frame continues what
        came before (start_lsn, chain_start) is for the caller to compare.
        """
        header = frame.header
        where = f"frame [{header.start_lsn}, {header.end_lsn})"
        raw = self._raw(frame, where)
        scan = scan_whole(raw, header.start_lsn, header.chain_start, where=where)
        if header.reduced:
            if any(record.type not in _REDUCED_TYPES for _, record in scan.records):
                raise DamageError(f"{where}: a reduced frame holds writes, zeroes and sames alone")
            return OpenedFrame(header, [(header.start_lsn, record) for _, record in scan.records])
        if scan.chain != header.chain_end:
            raise DamageError(f"{where}: its records do not end in the chain that it states")
        return OpenedFrame(header, scan.records)

    def _raw(self, frame: Frame, where: str) -> bytes | bytearray | memoryview:
        header = frame.header
        if xxh3_64_intdigest(frame.data) != header.data_sum:
            raise DamageError(f"{where}: data fails its checksum")
        if header.stored:
            return frame.data
        try:
            stated = zstandard.frame_content_size(frame.data)
            if stated != header.raw_bytes:
                raise DamageError(
                    f"{where}: data states {stated} bytes of content, the header {header.raw_bytes}"
                )
            raw = self._zstd.decompress(
                frame.data, max_output_size=header.raw_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise DamageError(f"{where}: data cannot be decompressed: {error}") from error
        if len(raw) != header.raw_bytes:
            raise DamageError(f"{where}: {len(raw)} bytes came out of {header.raw_bytes}")
        return raw
