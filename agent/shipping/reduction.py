# SPDX-License-Identifier: Apache-2.0
"""From a run of the log to what crosses the wire: plain as it is, or reduced by the syncs. No I/O.

While no disk is in a sync a run is shipped as it is, with no work per record. During a sync the
writes and zeroes pass the disk's filter and stand in *reduced* frames, while every other record
(cut, sync-begin, sync-end, …) stands in a plain frame of its own kind, so that both ends agree on
its LSN. Order is never changed.

Invariants
* The drafts that `reduce` returns cover the run without gap or overlap, from its start up to where
  it stopped, and each begins with the chain at its start.
* A filter exists from the end of its sync-begin to its sync-end (or a detach of its disk, or
  another sync-begin), or from the LSN at which the session resumed inside that sync.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.shipping.sync_filter import PieceKind, SyncFilter, WaitFor
from journal.bodies import SyncBegin, decode_body
from journal.reader import Chunk
from journal.record import HEADER_BYTES, Record, RecordType, encode_header
from replicator.wire.messages import SyncingDisk

_REDUCIBLE = frozenset((RecordType.WRITE, RecordType.ZERO))


@dataclass(frozen=True, slots=True)
class Draft:
    """A frame before it is compressed."""

    raw: bytes | memoryview
    start_lsn: int
    end_lsn: int
    chain_start: int
    chain_end: int
    reduced: bool


@dataclass(frozen=True, slots=True)
class Reduction:
    """`waits_for`: (disk, block) whose digest must come before the log goes on at `end_lsn`."""

    drafts: list[Draft]
    end_lsn: int
    chain: int
    waits_for: tuple[int, int] | None


@dataclass(slots=True)
class Syncs:
    """The filters of the disks that are in a sync, by disk index."""

    filters: dict[int, SyncFilter] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)

    def resume(self, syncing: Iterable[SyncingDisk], base_lsn: int) -> None:
        """Starts over at the LSN of an OPENED."""
        self.filters.clear()
        for disk in syncing:
            self._begin(disk.disk, disk.size, disk.sync_lsn, base_lsn)

    def _begin(self, disk: int, size: int, sync_lsn: int, base_lsn: int) -> None:
        self.sizes[disk] = size
        self.filters[disk] = SyncFilter(size=size, sync_lsn=sync_lsn, base_lsn=base_lsn)

    def note(self, lsn: int, record: Record) -> None:
        """A record that is neither write nor zero goes out: syncs begin and end by these."""
        if record.type == RecordType.SYNC_BEGIN:
            body = decode_body(SyncBegin, record, lsn)
            self.filters.pop(record.disk, None)
            if not body.from_zero:
                self._begin(record.disk, body.size, lsn, lsn + record.size)
        elif record.type in (RecordType.SYNC_END, RecordType.DETACH):
            self.filters.pop(record.disk, None)


def reduce(
    chunk: Chunk, start_lsn: int, chain_start: int, syncs: Syncs, *, patient: bool
) -> Reduction:
    """Cuts a chunk of the log, which begins at `start_lsn`, into drafts."""
    out = _Drafting(chunk, start_lsn, chain_start)
    for lsn, record in chunk.records:
        sync = syncs.filters.get(record.disk)
        if record.type not in _REDUCIBLE or not syncs.filters:
            if record.type not in _REDUCIBLE:
                syncs.note(lsn, record)
            out.take_plain(lsn, record)
        elif record.type == RecordType.ZERO or sync is None:
            out.take_reducible(lsn, record, None)
        else:
            verdict = sync.judge(record.offset, record.payload, patient=patient)
            if isinstance(verdict, WaitFor):
                return out.finish((record.disk, verdict.block))
            parts = None
            if any(piece.kind is PieceKind.SAME for piece in verdict):
                parts = [
                    (piece.kind is PieceKind.SAME, piece.offset, piece.length) for piece in verdict
                ]
            out.take_reducible(lsn, record, parts)
    return out.finish(None)


class _Drafting:
    """Gathers records into runs of one kind."""

    def __init__(self, chunk: Chunk, start_lsn: int, chain_start: int) -> None:
        self._log = memoryview(chunk.data)
        self._log_start = start_lsn
        self._drafts: list[Draft] = []
        self._run_start = self._run_end = start_lsn
        self._chain_start = self._chain_end = chain_start
        self._reducible = False
        self._reduced = False  # whether the run differs from the log
        self._run: list[tuple[Record, list[tuple[bool, int, int]] | None]] = []

    def take_plain(self, lsn: int, record: Record) -> None:
        self._turn_to(reducible=False)
        self._advance(lsn, record)

    def take_reducible(
        self, lsn: int, record: Record, parts: list[tuple[bool, int, int]] | None
    ) -> None:
        self._turn_to(reducible=True)
        self._run.append((record, parts))
        self._reduced = self._reduced or parts is not None
        self._advance(lsn, record)

    def finish(self, waits_for: tuple[int, int] | None) -> Reduction:
        self._close_run()
        return Reduction(self._drafts, self._run_end, self._chain_end, waits_for)

    def _turn_to(self, *, reducible: bool) -> None:
        if self._reducible != reducible:
            self._close_run()
            self._reducible = reducible

    def _advance(self, lsn: int, record: Record) -> None:
        assert lsn == self._run_end
        self._run_end = lsn + record.size
        at = lsn - self._log_start
        link = self._log[at + HEADER_BYTES - 8 : at + HEADER_BYTES]
        self._chain_end = int.from_bytes(link, "little")

    def _close_run(self) -> None:
        if self._run_end > self._run_start:
            self._drafts.append(
                Draft(
                    self._rechained() if self._reduced else self._as_it_is(),
                    self._run_start,
                    self._run_end,
                    self._chain_start,
                    self._chain_end,
                    self._reduced,
                )
            )
        self._run_start, self._chain_start = self._run_end, self._chain_end
        self._run = []
        self._reduced = False

    def _as_it_is(self) -> memoryview:
        return self._log[self._run_start - self._log_start : self._run_end - self._log_start]

    def _rechained(self) -> bytes:
        chain = self._chain_start
        out: list[bytes | memoryview] = []
        for record, parts in self._run:
            payload = memoryview(record.payload)
            if parts is None:
                parts = [(False, record.offset, record.length)]
            for same, offset, length in parts:
                at = offset - record.offset
                content = payload[:0] if same else payload[at : at + length]
                header, chain = encode_header(
                    RecordType.SAME if same else record.type,
                    record.disk,
                    offset,
                    length,
                    record.sequence,
                    record.time_ns,
                    content,
                    record.known_durable,
                    chain,
                    record.flags,
                )
                out += (header, content)
        return b"".join(out)
