# SPDX-License-Identifier: Apache-2.0
"""A source that writes a real spool without a splitter process: streams, records, statuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from uuid import UUID, uuid4

from journal.appender import LogWriter
from journal.bodies import Cut, Member, SyncBegin, SyncEnd, encode_body
from journal.record import NO_DISK, RecordType, encode_header, first_chain
from journal.segment import SegmentKind
from replicator.base.storage import Storage
from replicator.control.splitter import (
    GroupState,
    LatencyStatus,
    SplitterDiskStatus,
    SplitterGroupStatus,
)

NO_LATENCY = LatencyStatus(bounds_us=[100], counts=[0, 0], sum_us=0, count=0)
INSTANCES = [f"0000000{n}-0000-0000-0000-000000000000" for n in range(8)]
MS = 1_000_000


@dataclass
class Source:
    """One group. `directories` as the shipper sees them; segments go to the first."""

    storage: Storage
    directories: list[Path]
    disks: list[tuple[str, int]]
    segment_bytes: int = 1 << 20
    ordinal: int = 0
    next_lsn: int = 0
    state: GroupState = "closed"
    time_ns: int = 1_000_000_000
    held_until_ns: int = 0
    last_cut_ns: int = 0
    stream: UUID | None = None
    content: dict[int, bytearray] = field(default_factory=dict)
    complete: set[int] = field(default_factory=set)
    images: dict[int, dict[int, bytes]] = field(default_factory=dict)  # by end of cut
    writer: LogWriter | None = None
    chain: int = 0
    first_lsn: int = 0
    sequence: int = 0

    def open_stream(self, *, above_ordinal: int = 0, next_lsn: int | None = None) -> None:
        self.close()
        self.ordinal = max(self.ordinal, above_ordinal) + 1
        self.stream = uuid4()
        self.first_lsn = self.next_lsn if next_lsn is None else next_lsn
        self.next_lsn = self.first_lsn
        self.chain = first_chain(self.stream, self.ordinal)
        self.complete.clear()
        self.writer = LogWriter(
            self.storage,
            lambda _bytes: self.directories[0],
            kind=SegmentKind.LOG,
            group="g",
            stream=self.stream,
            ordinal=self.ordinal,
            first_lsn=self.first_lsn,
            chain=self.chain,
            segment_bytes=self.segment_bytes,
            now_ns=lambda: self.time_ns,
            synced=False,
        )
        self.state = "syncing"

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
            self.state = "lost"

    def append(
        self,
        kind: RecordType,
        payload: bytes = b"",
        *,
        disk: int = NO_DISK,
        offset: int = 0,
        length: int = 0,
    ) -> int:
        assert self.writer is not None
        self.time_ns += MS
        header, self.chain = encode_header(
            kind, disk, offset, length, self.sequence, self.time_ns, payload, self.first_lsn,
            self.chain,
        )  # fmt: skip
        self.sequence += 1
        total = len(header) + len(payload)
        self.next_lsn = self.writer.append([header, payload], total, self.chain)
        return self.next_lsn

    def sync_begin(self, disk: int, *, from_zero: bool = False) -> None:
        name, size = self.disks[disk]
        body = SyncBegin(name, INSTANCES[disk], size, from_zero, "test")
        self.complete.discard(disk)
        self.append(RecordType.SYNC_BEGIN, encode_body(body), disk=disk)
        if from_zero or disk not in self.content:
            self.content[disk] = bytearray(size)

    def sync_end(self, disk: int) -> None:
        body = SyncEnd(self.disks[disk][0], INSTANCES[disk])
        self.append(RecordType.SYNC_END, encode_body(body), disk=disk)
        self.complete.add(disk)
        if len(self.complete) == len(self.disks):
            self.state = "ready"

    def begin_from_zero(self) -> None:
        """The very first stream of an external group."""
        self.open_stream()
        for disk in range(len(self.disks)):
            self.sync_begin(disk, from_zero=True)
        for disk in range(len(self.disks)):
            self.sync_end(disk)
        self.cut()

    def write(self, disk: int, offset: int, payload: bytes) -> None:
        self.content[disk][offset : offset + len(payload)] = payload
        self.append(RecordType.WRITE, payload, disk=disk, offset=offset, length=len(payload))

    def zero(self, disk: int, offset: int, length: int, *, counts: bool = True) -> None:
        """Not `counts`: a mirror job that zeroes its target before it copies."""
        if counts:
            self.content[disk][offset : offset + length] = bytes(length)
        self.append(RecordType.ZERO, disk=disk, offset=offset, length=length)

    def copy(self, disk: int, offset: int, length: int) -> None:
        """A mirror job's background copy of what the disk holds now."""
        self.write(disk, offset, bytes(self.content[disk][offset : offset + length]))

    def cut(self, label: str | None = None) -> int:
        members = [
            Member(index, name, INSTANCES[index], size, index in self.complete)
            for index, (name, size) in enumerate(self.disks)
        ]
        end = self.append(RecordType.CUT, encode_body(Cut("crash", members, label)))
        self.last_cut_ns = self.held_until_ns = self.time_ns
        self.images[end] = {disk: bytes(self.content[disk]) for disk in self.content}
        return end

    def idle(self) -> None:
        self.time_ns += MS
        self.held_until_ns = self.time_ns

    def status(self) -> SplitterGroupStatus:
        state: Literal["complete", "syncing"]
        disks = []
        for index, (name, size) in enumerate(self.disks):
            state = "complete" if index in self.complete else "syncing"
            disks.append(
                SplitterDiskStatus(
                    name=name,
                    index=index,
                    instance=INSTANCES[index],
                    size=size,
                    connected=1,
                    state=state,
                )
            )
        return SplitterGroupStatus(
            name="g",
            state=self.state,
            reason="",
            stream=None if self.stream is None else str(self.stream),
            ordinal=self.ordinal,
            first_lsn=self.first_lsn,
            end_lsn=self.next_lsn,
            last_cut_time_ns=self.last_cut_ns,
            held_until_ns=self.held_until_ns,
            disks=disks,
            memory_bytes=0,
            disk_bytes=0,
            latency=NO_LATENCY,
            requests=0,
            bytes=0,
        )
