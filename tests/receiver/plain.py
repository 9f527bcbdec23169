# SPDX-License-Identifier: Apache-2.0
"""What a replica must hold after each record: byte arrays, no blocks, no batches, no files."""

from __future__ import annotations

from journal.bodies import SyncBegin, SyncEnd
from journal.record import RecordType
from tests.receiver.source import Logged, Source

Contents = dict[str, bytes]


class PlainDisk:
    """A disk of the replica, and which of its bytes wait to become zero."""

    def __init__(self, size: int) -> None:
        self.content = bytearray(size)
        self.waiting = bytearray(size)
        self.syncing = False

    def take(self, record: Logged) -> None:
        span = slice(record.offset, record.offset + record.length)
        if record.kind == RecordType.WRITE:
            self.content[span] = record.payload
            self.waiting[span] = bytes(record.length)
        elif record.kind == RecordType.SAME:
            self.waiting[span] = bytes(record.length)
        elif record.kind == RecordType.ZERO and self.syncing:
            self.waiting[span] = b"\1" * record.length
        elif record.kind == RecordType.ZERO:
            self.content[span] = bytes(record.length)

    def begin(self, *, from_zero: bool) -> None:
        self.syncing = True
        self.waiting = bytearray((b"\1" if from_zero else b"\0") * len(self.content))

    def end(self) -> None:
        at = self.waiting.find(1)
        while at >= 0:
            behind = self.waiting.find(0, at)
            end = len(self.waiting) if behind < 0 else behind
            self.content[at:end] = bytes(end - at)
            at = self.waiting.find(1, end)
        self.waiting = bytearray(len(self.content))
        self.syncing = False


class PlainReplica:
    """All disks of a group, and what they held at each place of each stream: `at[ordinal, lsn]`."""

    def __init__(self) -> None:
        self.disks: dict[str, PlainDisk] = {}
        self.at: dict[tuple[int, int], Contents] = {}
        self.behind: dict[tuple[int, int], Contents] = {}
        """As `at`, but what the source had in mind, whatever a rollback made of its end."""
        self._last: Contents = {}

    def take(self, source: Source, record: Logged, body: object = None) -> None:
        """`record` is the next one of `source`, `body` its body if it is a sync's."""
        if isinstance(body, SyncBegin):
            known = self.disks.get(body.name)
            if known is None or len(known.content) != body.size:
                self.disks[body.name] = PlainDisk(body.size)
            self.disks[body.name].begin(from_zero=body.from_zero)
        elif isinstance(body, SyncEnd):
            self.disks[body.name].end()
        elif record.length:
            name, _ = source.disks[record.disk]
            self.disks[name].take(record)
            self._last = {**self._last, name: b""}
        self.remember(source.ordinal, record.end_lsn)
        self.behind[source.ordinal, record.end_lsn] = self.at[source.ordinal, record.end_lsn]

    def remember(self, ordinal: int, lsn: int) -> None:
        self.at[ordinal, lsn] = self.contents()

    def contents(self) -> Contents:
        now = {name: bytes(disk.content) for name, disk in self.disks.items()}
        # equal contents share memory, so that many snapshots stay small
        self._last = {
            name: self._last[name] if self._last.get(name) == content else content
            for name, content in now.items()
        }
        return self._last

    def end_stream(self) -> None:
        """A sync that was under way will be begun anew."""
        for disk in self.disks.values():
            disk.syncing = False
            disk.waiting = bytearray(len(disk.content))

    def put(self, contents: Contents) -> None:
        """What a rollback does: those disks, and no others."""
        for name, content in contents.items():
            self.disks[name].content = bytearray(content)
