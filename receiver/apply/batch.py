# SPDX-License-Identifier: Apache-2.0
"""Which records make the next batch, and what they do to each disk.

A batch ends behind a cut, or where it would touch more than BATCH_BYTES (then it makes no point),
and never spans two streams. Frames that a sync reduced have no LSNs inside: each is one unit, and
is never split. The exact range is fixed when the batch is written to the history; a redo feeds
the same records again, with no limit of its own (`redo`).

In a sync, zeroes wait; at its end they become content. A long zero, or many that waited, may
replace more data than a batch should hold before-images of. Then part of it is done beforehand,
in batches of kind "zero" that hold no record: no point lies between, and zeroing early what the
next record zeroes anyway changes nothing (`early_zeroes`). Only of a sync that is at its end:
before, a `same` may still say that the replica's old content stands.

Reads the replica's map of data, writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from journal.bodies import SyncEnd, decode_body
from journal.record import Record, RecordType
from receiver.blocks.content import DataRanges, Operation
from receiver.history.bodies import DiskBody
from receiver.history.extents import ExtentSet
from receiver.history.images import BLOCK_BYTES
from receiver.history.state import Disk, GroupState, Outcome
from receiver.intake.units import Unit
from receiver.points.values import Point
from replicator.base.units import MIB

BATCH_BYTES = 48 * MIB
"""What a batch touches at most, in whole blocks; one unit may be more. Its content is in memory
twice while it is applied."""

_WRITE, _ZERO, _SAME = int(RecordType.WRITE), int(RecordType.ZERO), int(RecordType.SAME)
RangesOf = Callable[[Disk], DataRanges]


@dataclass(slots=True)
class _Zeroes:
    """How a batch changes the waiting zeroes of one disk."""

    cleared: ExtentSet = field(default_factory=ExtentSet)
    added: ExtentSet = field(default_factory=ExtentSet)

    def clear(self, start: int, end: int) -> None:
        self.cleared.add(start, end)
        self.added.remove(start, end)


class BatchBuilder:
    """Collects units into a batch. `state` is the builder's own, and runs ahead with them."""

    def __init__(self, state: GroupState, batch_bytes: int = BATCH_BYTES) -> None:
        self.state = state
        self.start_lsn = state.lsn
        self.operations: dict[str, list[Operation]] = {}
        self.created: list[Disk] = []
        self.texts: dict[str, str] = {}
        self.point: Point | None = None
        self.held_until_ns = 0
        self.relabelled = ""
        self.records = 0
        self.touched_bytes = 0
        self.same: dict[str, ExtentSet] = {}
        """Where the source says that it holds what the replica does."""
        self._zeroes: dict[str, _Zeroes] = {}
        self._batch_bytes = batch_bytes

    @property
    def is_empty(self) -> bool:
        return not self.records

    def has_room(self, unit: Unit) -> bool:
        return self.is_empty or self.touched_bytes + self._touch(unit) <= self._batch_bytes

    def feed(self, unit: Unit) -> bool:
        """Takes the unit in. True if the batch ends behind it."""
        ends = False
        self.touched_bytes += self._touch(unit)
        for lsn, record in unit.records:
            if record.type in (_WRITE, _ZERO, _SAME):
                self._content(record)
            else:
                ends = self._structural(lsn, record) or ends
        self.records += len(unit.records)
        self.state.lsn = unit.end_lsn
        return ends

    def disk_bodies(self) -> list[DiskBody]:
        """The disks behind the batch, with what became of their waiting zeroes."""
        bodies: list[DiskBody] = []
        for disk in self.state.disks.values():
            zeroes = self._zeroes.get(disk.name)
            if zeroes is None or not disk.syncing:
                bodies.append(disk.body())
            else:
                bodies.append(disk.body(cleared=zeroes.cleared.pack(), added=zeroes.added.pack()))
        return bodies

    def _content(self, record: Record) -> None:
        disk = self.state.check(record)
        self.state.point_holds = False
        start, length = record.offset, record.length
        if disk.syncing:
            zeroes = self._zeroes_of(disk)
            if record.type == _ZERO:
                disk.pending.add(start, start + length)
                zeroes.added.add(start, start + length)
                return
            disk.pending.remove(start, start + length)
            zeroes.clear(start, start + length)
        if record.type == _WRITE:
            self._operate(disk, Operation(start, length, record.payload))
        elif record.type == _ZERO:
            self._operate(disk, Operation(start, length, None))
        else:
            self.same.setdefault(disk.name, ExtentSet()).add(start, start + length)

    def _structural(self, lsn: int, record: Record) -> bool:
        known = set(self.state.disks)
        if record.type == RecordType.SYNC_END:
            self._settle(lsn, record)
        outcome = self.state.step(lsn, record)
        if record.type == RecordType.SYNC_BEGIN:
            disk = self.state.by_index[record.disk]
            zeroes = self._zeroes_of(disk)
            zeroes.clear(0, disk.size_bytes)
            for start, end in disk.pending:
                zeroes.added.add(start, end)
            if disk.name not in known:
                self.created.append(disk)
        if outcome is not None:
            self._note(outcome)
        return record.type == RecordType.CUT

    def _note(self, outcome: Outcome) -> None:
        self.point = outcome.point or self.point
        self.held_until_ns = max(self.held_until_ns, outcome.held_until_ns)
        self.relabelled = outcome.relabelled or self.relabelled
        if outcome.text is not None:
            digest, text = outcome.text
            self.texts[digest] = text

    def _settle(self, lsn: int, record: Record) -> None:
        """Waiting zeroes become content: before the state forgets them."""
        disk = self.state.by_index.get(record.disk)
        if disk is None or disk.source_name != decode_body(SyncEnd, record, lsn).name:
            return  # the state refuses it, in a moment
        for start, end in disk.pending:
            self._operate(disk, Operation(start, end - start, None))

    def _operate(self, disk: Disk, operation: Operation) -> None:
        operations = self.operations.get(disk.name)
        if operations is None:
            operations = self.operations[disk.name] = []
        operations.append(operation)

    def _touch(self, unit: Unit) -> int:
        """At most how many bytes, in whole blocks, the unit will touch, huge zeroes aside."""
        total = 0
        for _, record in unit.records:
            if record.type == _WRITE:
                total += (record.length + BLOCK_BYTES - 1) // BLOCK_BYTES * BLOCK_BYTES
            elif record.type == _SAME and self.state.damage:
                total += min(record.length, self._batch_bytes)
            elif record.type in (_ZERO, RecordType.SYNC_END):
                disk = self.state.by_index.get(record.disk)
                if disk is not None and disk.syncing == (record.type != _ZERO):
                    length = disk.pending.total_bytes if disk.syncing else record.length
                    total += min(length, self._batch_bytes)
        return total

    def _zeroes_of(self, disk: Disk) -> _Zeroes:
        zeroes = self._zeroes.get(disk.name)
        if zeroes is None:
            zeroes = self._zeroes[disk.name] = _Zeroes()
        return zeroes


def early_zeroes(
    state: GroupState, unit: Unit, ranges_of: RangesOf, limit_bytes: int, done: dict[str, int]
) -> tuple[str, ExtentSet] | None:
    """If the unit, as the next one, would zero more data than `limit_bytes`: the disk, and the
    next part of that data, to be zeroed in a batch of its own beforehand. `done` says up to
    where that has happened for this unit (not every filesystem gives zeroed blocks back)."""
    for _, record in unit.records:
        disk = state.by_index.get(record.disk)
        if disk is None:
            continue
        if record.type == RecordType.SYNC_END and disk.syncing:
            extents = list(disk.pending)
        elif record.type == _ZERO and not disk.syncing and record.length > limit_bytes:
            extents = [(record.offset, record.offset + record.length)]
        else:
            continue
        if sum(end - start for start, end in extents) <= limit_bytes:
            continue
        start = done.get(disk.name, 0)
        rest = [(max(low, start), high) for low, high in extents if high > start]
        part, is_all = _data_within(ranges_of(disk), rest, limit_bytes)
        if not is_all:
            return disk.name, part
    return None


def _data_within(
    ranges: DataRanges, extents: Sequence[tuple[int, int]], limit_bytes: int
) -> tuple[ExtentSet, bool]:
    """(the first `limit_bytes` of data in the extents, whether that is all of it)."""
    part, room = ExtentSet(), limit_bytes
    for start, end in extents:
        for low, high in ranges(start, end):
            if room <= 0:
                return part, False
            high = min(high, low + room)
            part.add(low, high)
            room -= high - low
    return part, room > 0
