# SPDX-License-Identifier: Apache-2.0
"""A log that remembers what was put into it: records or inbox entries, on any storage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from journal.appender import LogWriter
from journal.entry import encode_entry
from journal.reader import LogReader
from journal.record import RecordType, encode_header, first_chain
from journal.reopen import Reopened
from journal.segment import SegmentKind
from journal.spool import SegmentFile, StreamName, list_segments
from replicator.base.storage import Buffer, Storage
from tests.world.storage import SimStorage

STREAM = StreamName(3, UUID(int=77))
CHAIN = first_chain(STREAM.stream, STREAM.ordinal)
DIRECTORY = Path("/spool/g")


class Log:
    """A writer of records, and the payloads that it was given, with the LSN behind each."""

    kind = SegmentKind.LOG

    def __init__(
        self,
        storage: Storage,
        *directories: Path,
        first_lsn: int = 0,
        segment_bytes: int = 1 << 20,
        synced: bool = True,
    ) -> None:
        self.storage = storage
        self.directories = list(directories) or [DIRECTORY]
        self.first_lsn = first_lsn
        self.segment_bytes = segment_bytes
        self.synced = synced
        self.payloads: list[bytes] = []
        self.ends: list[tuple[int, int]] = [(first_lsn, CHAIN)]
        self.durable = first_lsn
        self.writer = self._writer(first_lsn, CHAIN)

    def _writer(self, first_lsn: int, chain: int) -> LogWriter:
        return LogWriter(
            self.storage,
            lambda _bytes: self.directories[0],
            kind=self.kind,
            group="g",
            stream=STREAM.stream,
            ordinal=STREAM.ordinal,
            first_lsn=first_lsn,
            chain=chain,
            segment_bytes=self.segment_bytes,
            now_ns=lambda: 5,
            synced=self.synced,
        )

    def encode(self, number: int, payload: bytes, chain: int) -> tuple[bytes, int]:
        return encode_header(
            RecordType.WRITE,
            0,
            number * 4096,
            len(payload),
            number,
            9,
            payload,
            self.writer.known_durable,
            chain,
        )

    def append(self, *payloads: bytes) -> int:
        """One batch; returns the new end. Remembers it only if it went in."""
        buffers: list[Buffer] = []
        chain, end = self.writer.chain, self.writer.end_lsn
        ends = []
        for number, payload in enumerate(payloads, start=len(self.payloads)):
            header, chain = self.encode(number, payload, chain)
            buffers += (header, payload)
            end += len(header) + len(payload)
            ends.append((end, chain))
        self.writer.append(buffers, end - self.writer.end_lsn, chain)
        self.payloads += payloads
        self.ends += ends
        return end

    def sync(self) -> None:
        self.durable = self.writer.sync()

    def go_on(self, reopened: Reopened) -> None:
        """A new process goes on with what was found. Forgets what was cut."""
        self.writer = self._writer(reopened.end_lsn, reopened.chain)
        reopened.attach(self.writer)
        self.ends = [end for end in self.ends if end[0] <= reopened.end_lsn]
        del self.payloads[len(self.ends) - 1 :]
        self.durable = reopened.end_lsn

    @property
    def sim(self) -> SimStorage:
        """The storage of a log that was given a simulated one."""
        assert isinstance(self.storage, SimStorage)
        return self.storage

    @property
    def segments(self) -> list[SegmentFile]:
        return list_segments(self.storage, self.directories, STREAM)

    def read_all(self, max_bytes: int = 1 << 20) -> list[bytes]:
        reader = LogReader(self.storage, self.directories, STREAM)
        position, chain = self.first_lsn, CHAIN
        found: list[bytes] = []
        while position < self.writer.end_lsn:
            chunk = reader.read(position, chain, self.writer.end_lsn, max_bytes)
            found += [bytes(record.payload) for _, record in chunk.records]
            position, chain = chunk.end_lsn, chunk.chain
        reader.close()
        assert chain == self.writer.chain
        return found


class Inbox(Log):
    """The same with frames: here positions are what LSNs are in a log."""

    kind = SegmentKind.INBOX

    def encode(self, number: int, payload: bytes, chain: int) -> tuple[bytes, int]:
        return encode_entry(
            [payload], number * 100, number * 100 + 100, self.writer.known_durable, chain
        )


def payloads_of(sizes: Sequence[int]) -> list[bytes]:
    return [bytes([65 + number % 26]) * size for number, size in enumerate(sizes)]
