# SPDX-License-Identifier: Apache-2.0
"""The log of one stream, as a splitter would write it, cut into frames as an agent would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from uuid import UUID

import msgspec

from journal.bodies import Cut, Detach, DomainXml, Member, SyncBegin, SyncEnd, encode_body
from journal.record import HEADER_BYTES, NO_DISK, RecordType, encode_header, first_chain
from replicator.wire.frames import Frame, FrameBuilder

START_NS = 1_780_000_000_000_000_000
STEP_NS = 100_000_000


def noise(seed: int, length: int) -> bytes:
    """Content that does not shrink, the same for the same seed; a longer one begins like a
    shorter one."""
    return Random(seed).randbytes(-(-length // 65_536) * 65_536)[:length]


@dataclass(frozen=True, slots=True)
class Logged:
    """A record of the log. `chain` is the one in front of it."""

    lsn: int
    end_lsn: int
    chain: int
    kind: int
    disk: int
    offset: int
    length: int
    payload: bytes
    data: bytes


class Source:
    """One stream of a group. `disks` are (name, size); their index is their place."""

    def __init__(
        self,
        disks: list[tuple[str, int]],
        *,
        ordinal: int = 1,
        first_lsn: int = 0,
        time_ns: int = START_NS,
        instance: int = 0,
    ) -> None:
        self.disks = list(disks)
        self.ordinal = ordinal
        self.stream = UUID(int=ordinal << 64 | 7)
        self.first_lsn = first_lsn
        self.first_chain = first_chain(self.stream, ordinal)
        self.time_ns = time_ns
        self.records: list[Logged] = []
        self.complete: dict[str, bool] = {}
        self._instance = instance
        self._chain = self.first_chain
        self._builder = FrameBuilder()

    @property
    def end_lsn(self) -> int:
        return self.records[-1].end_lsn if self.records else self.first_lsn

    def index(self, name: str) -> int:
        return [each[0] for each in self.disks].index(name)

    def size(self, name: str) -> int:
        return dict(self.disks)[name]

    def instance(self, name: str) -> str:
        return str(UUID(int=self._instance << 32 | self.index(name) + 1))

    def chain_at(self, lsn: int) -> int:
        for record in self.records:
            if record.lsn == lsn:
                return record.chain
        assert lsn == self.end_lsn, lsn
        return self._chain

    def write(self, name: str, offset: int, content: bytes) -> Logged:
        return self._append(RecordType.WRITE, self.index(name), offset, len(content), content)

    def zero(self, name: str, offset: int, length: int) -> Logged:
        return self._append(RecordType.ZERO, self.index(name), offset, length, b"")

    def same(self, name: str, offset: int, length: int) -> Logged:
        return self._append(RecordType.SAME, self.index(name), offset, length, b"")

    def sync_begin(self, name: str, *, from_zero: bool) -> Logged:
        body = SyncBegin(name, self.instance(name), self.size(name), from_zero, "test")
        self.complete[name] = False
        return self._body(RecordType.SYNC_BEGIN, self.index(name), body)

    def sync_end(self, name: str) -> Logged:
        self.complete[name] = True
        return self._body(RecordType.SYNC_END, self.index(name), SyncEnd(name, self.instance(name)))

    def resize(self, name: str, size: int) -> Logged:
        """The disk comes back with another size, within the stream: its sync has begun."""
        detached = self.detach(name)
        self.disks[self.index(name)] = (f"{name} before", 0)
        self.disks.append((name, size))
        return detached

    def detach(self, name: str) -> Logged:
        del self.complete[name]
        return self._body(RecordType.DETACH, self.index(name), Detach(name, self.instance(name)))

    def domain_xml(self, domain: str, xml: str) -> Logged:
        return self._body(RecordType.DOMAIN_XML, NO_DISK, DomainXml(domain, xml))

    def cut(
        self,
        label: str | None = None,
        *,
        step_ns: int = STEP_NS,
        kind: str = "crash",
        expire_ns: int = 0,
    ) -> Logged:
        self.time_ns += step_ns
        members = [
            Member(self.index(name), name, self.instance(name), self.size(name), complete)
            for name, complete in self.complete.items()
        ]
        assert kind in ("crash", "application")
        body = Cut(
            "application" if kind == "application" else "crash", members, label, 0, expire_ns
        )
        return self._body(RecordType.CUT, NO_DISK, body)

    def start_from_zero(self) -> None:
        """What an external group's first stream begins with."""
        for name, _ in self.disks:
            self.sync_begin(name, from_zero=True)
            self.sync_end(name)

    def frame(self, records: list[Logged]) -> Frame:
        """A plain frame of neighbouring records."""
        last = records[-1]
        return self._builder.build(
            b"".join(record.data for record in records),
            start_lsn=records[0].lsn,
            end_lsn=last.end_lsn,
            chain_start=records[0].chain,
            chain_end=self.chain_at(last.end_lsn),
        )

    def reduced_frame(
        self, covered: list[Logged], pieces: Sequence[tuple[int, int, int, int, bytes]]
    ) -> Frame:
        """A frame that stands for `covered`, holding (type, disk, offset, length, payload)."""
        chain = covered[0].chain
        parts: list[bytes] = []
        for kind, disk, offset, length, payload in pieces:
            header, chain = encode_header(
                kind, disk, offset, length, 1, self.time_ns, payload, 0, chain
            )
            parts += (header, payload)
        return self._builder.build(
            b"".join(parts),
            start_lsn=covered[0].lsn,
            end_lsn=covered[-1].end_lsn,
            chain_start=covered[0].chain,
            chain_end=self.chain_at(covered[-1].end_lsn),
            reduced=True,
        )

    def from_lsn(self, lsn: int) -> list[Logged]:
        return [record for record in self.records if record.lsn >= lsn]

    def _body(self, kind: RecordType, disk: int, body: msgspec.Struct) -> Logged:
        return self._append(kind, disk, 0, 0, encode_body(body))

    def _append(self, kind: int, disk: int, offset: int, length: int, payload: bytes) -> Logged:
        before, lsn = self._chain, self.end_lsn
        header, self._chain = encode_header(
            kind,
            disk,
            offset,
            length,
            len(self.records) + 1,
            self.time_ns,
            payload,
            self.first_lsn,
            before,
        )
        end_lsn = lsn + HEADER_BYTES + len(payload)
        record = Logged(lsn, end_lsn, before, kind, disk, offset, length, payload, header + payload)
        self.records.append(record)
        return record
