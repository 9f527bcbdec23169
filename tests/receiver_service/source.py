# SPDX-License-Identifier: Apache-2.0
"""A source in memory: the log that a splitter would write, and what each cut must look like."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID, uuid4

import msgspec

from journal.bodies import Cut, Member, SyncBegin, SyncEnd, encode_body
from journal.record import NO_DISK, RecordType, encode_header, first_chain
from replicator.wire.frames import Frame, FrameBuilder

START_NS = 1_780_000_000_000_000_000
TICK_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CutMade:
    """A cut, and the disks' content there."""

    end_lsn: int
    time_ns: int
    label: str | None
    disks: dict[str, bytes]


class Source:
    """One stream of a group with the given disks (name → size)."""

    def __init__(
        self,
        disks: dict[str, int],
        *,
        ordinal: int = 1,
        first_lsn: int = 0,
        contents: dict[str, bytes] | None = None,
        time_ns: int = START_NS,
    ) -> None:
        self.names = list(disks)
        self.sizes = disks
        self.instances = {name: str(uuid4()) for name in disks}
        self.stream: UUID = uuid4()
        self.ordinal = ordinal
        self.first_lsn = first_lsn
        self.first_chain = first_chain(self.stream, ordinal)
        self.contents = {
            name: bytearray((contents or {}).get(name, bytes(size))) for name, size in disks.items()
        }
        self.cuts: list[CutMade] = []
        self.complete = dict.fromkeys(disks, False)
        self._time_ns = time_ns
        self._log = bytearray()
        self._chain = self.first_chain
        self._chains = {first_lsn: self.first_chain}
        self._sequence = 0
        self._builder = FrameBuilder()

    @property
    def end_lsn(self) -> int:
        return self.first_lsn + len(self._log)

    def chain_at(self, lsn: int) -> int:
        return self._chains[lsn]

    def start_from_zero(self) -> None:
        """What an external group's first stream begins with."""
        for name in self.names:
            self.sync_begin(name, from_zero=True)
            self.sync_end(name)

    def sync_begin(self, name: str, *, from_zero: bool = False) -> int:
        """The LSN of the record."""
        lsn = self.end_lsn
        body = SyncBegin(name, self.instances[name], self.sizes[name], from_zero, "test")
        self._body(RecordType.SYNC_BEGIN, self.names.index(name), body)
        self.complete[name] = False
        return lsn

    def sync_end(self, name: str) -> None:
        body = SyncEnd(name, self.instances[name])
        self._body(RecordType.SYNC_END, self.names.index(name), body)
        self.complete[name] = True

    def write(self, name: str, offset: int, data: bytes) -> None:
        self.contents[name][offset : offset + len(data)] = data
        self._append(RecordType.WRITE, self.names.index(name), offset, len(data), data)

    def zero(self, name: str, offset: int, length: int) -> None:
        self.contents[name][offset : offset + length] = bytes(length)
        self._append(RecordType.ZERO, self.names.index(name), offset, length, b"")

    def same(self, name: str, offset: int, length: int) -> None:
        """Says that the replica has these blocks already."""
        self._append(RecordType.SAME, self.names.index(name), offset, length, b"")

    def cut(
        self,
        label: str | None = None,
        *,
        time_ns: int | None = None,
        step_ns: int = 0,
        monotonic_ns: int = 0,
    ) -> CutMade:
        """A second after the one before, unless `time_ns` says when."""
        members = [
            Member(index, name, self.instances[name], self.sizes[name], self.complete[name])
            for index, name in enumerate(self.names)
        ]
        self._time_ns = self._time_ns + TICK_NS if time_ns is None else time_ns
        body = Cut("crash", members, label, step_ns, monotonic_ns=monotonic_ns)
        self._body(RecordType.CUT, NO_DISK, body)
        disks = {name: bytes(content) for name, content in self.contents.items()}
        made = CutMade(self.end_lsn, self._time_ns, label, disks)
        self.cuts.append(made)
        return made

    def frames(self, start_lsn: int, *, end_lsn: int | None = None, step: int = 3) -> list[Frame]:
        """Plain frames of at most `step` records each, from a record's start on."""
        stops = [lsn for lsn in sorted(self._chains) if lsn > start_lsn]
        if end_lsn is not None:
            stops = [lsn for lsn in stops if lsn <= end_lsn]
        chosen = stops[step - 1 :: step]
        if stops and (not chosen or chosen[-1] != stops[-1]):
            chosen.append(stops[-1])
        frames = []
        for stop in chosen:
            raw = bytes(self._log[start_lsn - self.first_lsn : stop - self.first_lsn])
            frames.append(
                self._builder.build(
                    raw,
                    start_lsn=start_lsn,
                    end_lsn=stop,
                    chain_start=self._chains[start_lsn],
                    chain_end=self._chains[stop],
                )
            )
            start_lsn = stop
        return frames

    def _body(self, kind: RecordType, disk: int, body: msgspec.Struct) -> None:
        self._append(kind, disk, 0, 0, encode_body(body))

    def _append(
        self, kind: RecordType, disk: int, offset: int, length: int, payload: bytes
    ) -> None:
        header, self._chain = encode_header(
            kind,
            disk,
            offset,
            length,
            self._sequence,
            self._time_ns,
            payload,
            self.first_lsn,
            self._chain,
        )
        self._sequence += 1
        self._log += header + payload
        self._chains[self.end_lsn] = self._chain
