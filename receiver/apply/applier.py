# SPDX-License-Identifier: Apache-2.0
"""Applying: batches into the replica, each undoable before it touches a byte.

One step is one batch, and its order is the promise:

    1  draft: which records, which blocks change, their old content      (nothing written,
       verified against the sums on record (damage.old_content)              but what that heals)
    2  state.json says "not consistent"                                  durable
    3  header, before-images, commit, in the history; beside it, in
       disks/applied, that the replica holds the batch before            durable
    4  published in the index                                            views see it
    5  the replica is overwritten                                        durable
    6  "applied", in the history                                         durable with the next 3
    7  the inbox below it may go                                         after that

A crash before 3 is durable leaves a replica that was not touched; after it, the batch is done again
from exactly the range and blocks that its header says (`_redo`), which is idempotent. An error at
any step leaves the group where it was before that step; the next call goes on there. A disk that
is full never lets 5 happen without 3.

Kinds of batches: "log" (records), "zero" (part of a very large zero, ahead of its record), "mark"
(a point without content: the state before a rollback), "rollback" (part of one).

Concurrency: the group's apply thread. `applied`, `is_point_applied` are read by others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from receiver.apply.batch import BatchBuilder, early_zeroes
from receiver.apply.redo import Redo
from receiver.blocks.content import (
    DiskChange,
    Operation,
    change_of,
    punch_zeroes,
    write_again,
    write_changes,
)
from receiver.blocks.replica import Replica
from receiver.counted.ages import AgeClock
from receiver.damage.damage import Damage, in_replica, overlaps
from receiver.damage.old_content import OldContent
from receiver.fitting.voucher import NOT_OF_THE_LOG, Upto, Voucher
from receiver.history.batches import Batch
from receiver.history.bodies import BatchKind, DamagedBlocks, GroupBody, Held, Mend
from receiver.history.extents import ExtentSet
from receiver.history.images import U64
from receiver.history.log import HistoryLog
from receiver.history.packing import Packer
from receiver.history.state import Disk, GroupState
from receiver.history.writer import BeforeImages, Draft
from receiver.intake.inbox import Inbox
from receiver.intake.units import units_of
from receiver.points.points import PointList
from receiver.points.values import Point
from receiver.rollback.rollback import OverlayOf, RollbackWork


@dataclass(slots=True)
class _Pending:
    """A batch that is in the history, durable and published, and not yet known as applied.
    `changes` is None after a restart: they are found again. `before` is the state in front of
    it, `state` the one behind it. `again`: it was tried before, so the page cache is not to be
    believed. `written`: the replica has it, durably."""

    batch: Batch
    before: GroupState
    state: GroupState
    changes: list[DiskChange] | None = None
    again: bool = False
    written: bool = False


class Applier:
    """See the head of this file."""

    def __init__(
        self,
        history: HistoryLog,
        replica: Replica,
        inbox: Inbox,
        points: PointList,
        utc_ns: Callable[[], int],
        clock: AgeClock,
        batch_bytes: int,
        old: OldContent,
        overlay_of: OverlayOf,
        voucher: Voucher,
    ) -> None:
        self.applied = GroupState()
        self.applied_batches = 0
        self.rewritten_bytes = 0
        self._history = history
        self._replica = replica
        self._inbox = inbox
        self._points = points
        self._utc_ns = utc_ns
        self._clock = clock
        self._batch_bytes = batch_bytes
        self._old = old
        self._voucher = voucher
        self._packer = Packer()
        self._redoing = Redo(history, inbox, batch_bytes, self._create, overlay_of)
        self._overlay_of = overlay_of
        self._pending: _Pending | None = None
        self._damaged_before: list[DamagedBlocks] = []
        """In the replica, when the stream began that is being applied."""
        self._applied_point = 0
        self._early: tuple[int, dict[str, int]] = (-1, {})
        self._rollback: RollbackWork | None = None
        self._progress = (0, 0)
        self._idle = False

    # -- opening

    def start(self, before: GroupState, state: GroupState) -> None:
        """`state` is behind the last batch of the history, `before` in front of it if that one
        is not known as applied."""
        self._pending, self._damaged_before, self._idle = None, [], False
        batch = self._history.batch_list.unapplied
        if batch is not None:
            self._pending = _Pending(batch, before, state, again=True)
            self.applied = before
        else:
            self.applied = state
        done = [
            each.point.sequence
            for each in self._history.batch_list.all
            if each.point is not None and each is not batch
        ]
        self._applied_point = done[-1] if done else 0

    # -- what others ask

    @property
    def newest_state(self) -> GroupState:
        """Behind everything that is in the history."""
        return self._pending.state if self._pending is not None else self.applied

    @property
    def is_rolling_back(self) -> bool:
        """From the mark to the moment when the last part is applied."""
        return self.applied.rollback is not None or self.newest_state.rollback is not None

    def is_point_applied(self, sequence: int) -> bool:
        return sequence <= self._applied_point

    @property
    def applied_point(self) -> int:
        """The newest point whose batch is applied."""
        return self._applied_point

    @property
    def rollback_progress(self) -> tuple[int, int]:
        """(blocks looked at, blocks in all) of the rollback under way, or the last one."""
        return self._progress

    def last_point(self) -> Point | None:
        """The point of the newest batch."""
        batches = self._history.batch_list.all
        return batches[-1].point if batches else None

    def changed_bytes(self, operations: dict[str, list[Operation]]) -> int:
        """How much of the replica these would change, in whole blocks."""
        return sum(change.changed_bytes for change in self._changes(self.applied, operations))

    # -- steps

    def step(self) -> bool:
        """One batch. False if there is nothing to do. Raises OSError (go on with the next call),
        DamageError."""
        if self._pending is not None:
            self._finish(self._pending)
        elif self.applied.rollback is not None:
            self._roll_back()
        elif not self._apply_log():
            self._rest()
            return False
        self._idle = False
        return True

    def _apply_log(self) -> bool:
        state = self.applied.copy()
        frames = self._inbox.frames_from(state.ordinal, state.lsn)
        if not frames:
            following = self._inbox.stream_after(state.ordinal)
            if following is None:
                return False
            name, start_lsn = following
            state.begin_stream(name.stream, name.ordinal, start_lsn)
            self._damaged_before = in_replica(state.damage)
            frames = self._inbox.frames_from(state.ordinal, start_lsn)
        if self._old.gather():
            return True
        builder = BatchBuilder(state, self._batch_bytes)
        for frame in frames:
            opened = self._inbox.read(state.ordinal, frame)
            for unit in units_of(opened, state.lsn):
                early = early_zeroes(
                    state, unit, self._old.ranges, self._batch_bytes, self._early_of(unit.end_lsn)
                )
                if builder.is_empty and early is not None:
                    self._zero_early(unit.end_lsn, *early)
                    return True
                if early is not None or not builder.has_room(unit):
                    return self._apply_built(builder)
                ends = builder.feed(unit)
                self._create(builder.created)
                if ends:
                    return self._apply_built(builder)
        return self._apply_built(builder)

    def _apply_built(self, builder: BatchBuilder) -> bool:
        self._history.texts.update(builder.texts)
        point = builder.point
        if point is not None:
            announced = self._points.find(point.sequence)
            assert announced is None or announced.time_ns == point.time_ns, (announced, point)
        operations = self._with_same(builder)
        changes = self._verified_changes(builder.state, operations)
        if self._heal_with(builder.state, changes):
            changes = self._verified_changes(builder.state, operations)
        self._note_overwritten(builder.state, changes)
        body = builder.state.body(builder.disk_bodies())
        draft = self._draft("log", builder.start_lsn, changes, body=body, point=point)
        self._commit(draft, changes, builder.state)
        if builder.held_until_ns:
            self._points.hold(self.applied.last_point, builder.held_until_ns)
        return True

    def _zero_early(self, end_lsn: int, name: str, part: ExtentSet) -> None:
        """Zeroes some of what the record that ends at `end_lsn` will zero."""
        state = self.applied.copy()
        disk = state.disks[name]
        operations = {name: [Operation(low, high - low, None) for low, high in part]}
        changes = self._verified_changes(state, operations)
        self._early_of(end_lsn)[name] = max(high for _, high in part)
        if not changes:
            return
        self._note_overwritten(state, changes)
        body = state.body([each.body() for each in state.disks.values()])
        draft = self._draft("zero", state.lsn, changes, body=body)
        self._commit(replace(draft, zeroes={disk.slot: part.pack()}), changes, state)

    def _early_of(self, end_lsn: int) -> dict[str, int]:
        if self._early[0] != end_lsn:
            self._early = end_lsn, {}
        return self._early[1]

    def mark(self, state: GroupState, point: Point) -> None:
        """A point without content; `state` has it already."""
        assert self._pending is None
        body = state.body([each.body() for each in state.disks.values()])
        self._commit(self._draft("mark", state.lsn, [], body=body, point=point), [], state)

    @property
    def has_pending(self) -> bool:
        """Whether a batch that is in the history has yet to be done."""
        return self._pending is not None

    def restate(self, state: GroupState) -> None:
        """Puts the group's state on record, by a batch without content; `state` is what it is from
        there on. Raises OSError."""
        assert self._pending is None
        body = state.body([each.body() for each in state.disks.values()])
        self._commit(self._draft("mark", state.lsn, [], body=body), [], state)

    def state_lock(self, lock_ns: int) -> None:
        """Puts the group's lock on record. Raises OSError."""
        state = self.applied.copy()
        state.lock_ns = lock_ns
        self.restate(state)

    def state_mends(self, mends: tuple[Mend, ...]) -> None:
        """Puts on record how stamps were mended. Raises OSError."""
        state = self.applied.copy()
        state.mends = mends
        self.restate(state)

    def state_damage(self, damage: Damage) -> None:
        """Puts what is known to be damaged on record. Raises OSError."""
        state = self.applied.copy()
        state.damage = damage
        self.restate(state)

    def take_as_applied(self) -> None:
        """A batch that was begun counts as applied, whatever the replica holds of it: what that is
        has been compared, and is on record, or is about to be."""
        if self._pending is not None:
            self._applied(self._pending)

    def _heal_with(self, state: GroupState, changes: list[DiskChange]) -> bool:
        """Whether what is about to be written has healed some of the replica instead."""
        before, state.damage = state.damage, self._old.healed_by(state.damage, changes)
        return state.damage != before

    def _with_same(self, builder: BatchBuilder) -> dict[str, list[Operation]]:
        """What the batch does; and where the source says that it holds the same as the replica in a
        block that was damaged on record when its stream began, that content counts as written: it
        is right for the points to come, and wrong for those before it all the same. What became
        damaged later may have been something else when its digest was made."""
        operations = dict(builder.operations)
        damage = [each for each in in_replica(builder.state.damage) if self._was_damaged(each)]
        for name, extents in builder.same.items() if damage else ():
            disk = builder.state.disks[name]
            for start, end in overlaps(damage, disk.slot, disk.size_bytes, extents):
                content = self._replica.read(name, start, end - start)
                said = Operation(start, end - start, content)
                operations[name] = [said, *operations.get(name, ())]
        return operations

    def _was_damaged(self, each: DamagedBlocks) -> bool:
        """When the stream began."""
        end = each.block + each.blocks
        return any(
            (old.slot, old.written) == (each.slot, each.written)
            and old.block <= each.block
            and end <= old.block + old.blocks
            for old in self._damaged_before
        )

    def _note_overwritten(self, state: GroupState, changes: list[DiskChange]) -> None:
        """Before-images of what is damaged are damaged."""
        if state.damage:
            state.damage = self._old.overwritten(
                state.damage, changes, self._history.batch_list.next_number
            )

    def _roll_back(self) -> None:
        """The next part of the rollback under way; the last one makes its point."""
        work = self._rollback
        if work is None:
            work = self._rollback = RollbackWork.of(self._history, self.applied, self._overlay_of)
        if self._old.gather():
            return
        while not work.is_done:
            part = work.next_part(self._batch_bytes)
            state = self.applied.copy()
            changes = self._verified_changes(state, part.operations)
            if not changes:
                work.advance(part)
                continue
            self._note_overwritten(state, changes)
            body = state.body([each.body() for each in state.disks.values()])
            self._commit(self._draft("rollback", state.lsn, changes, body=body), changes, state)
            work.advance(part)
            self._progress = (work.done_blocks, work.total_blocks)
            return
        state = self.applied.copy()
        point = work.end(state, self._utc_ns())
        body = state.body([each.body() for each in state.disks.values()])
        self._commit(self._draft("rollback", state.lsn, [], body=body, point=point), [], state)

    # -- a batch

    def _verified_changes(
        self, state: GroupState, operations: dict[str, list[Operation]]
    ) -> list[DiskChange]:
        """Of old content that was verified first. What is found is damaged in `state`."""
        changes = self._changes(state, operations, is_verified=True)
        for change in changes:
            state.damage = self._old.with_found(state.damage, change)
        return changes

    def _changes(
        self,
        state: GroupState,
        operations: dict[str, list[Operation]],
        always: U64 | None = None,
        *,
        is_verified: bool = False,
    ) -> list[DiskChange]:
        """`always`: keys of blocks that are written even if they look as they should."""
        changes = []
        for disk in sorted(state.disks.values(), key=lambda each: each.slot):
            if disk.name in operations:
                verify = partial(self._old.verify, disk, damage=state.damage)
                change = change_of(
                    self._replica.file(disk.name),
                    disk.name,
                    disk.slot,
                    disk.size_bytes,
                    operations[disk.name],
                    always,
                    verify if is_verified else None,
                    ranges=self._old.ranges(disk) if is_verified else None,
                )
                if len(change.keys):
                    changes.append(change)
        return changes

    def _draft(
        self,
        kind: BatchKind,
        start_lsn: int,
        changes: Sequence[DiskChange],
        *,
        body: GroupBody,
        point: Point | None = None,
    ) -> Draft:
        empty = np.empty(0, dtype=np.uint64)
        contents, packed = self._packer.pack_all(
            [content for change in changes for content in change.old]
        )
        images = BeforeImages(
            np.concatenate([empty, *(change.starts for change in changes)]),
            np.concatenate([empty, *(change.blocks for change in changes)]),
            contents,
            packed,
        )
        sums = np.concatenate([empty, *(change.sums for change in changes)])
        held = None
        last = self._points.find(self.applied.last_point)
        if last is not None and last.until_ns > last.time_ns:
            held = Held(last.sequence, last.until_ns, last.stood_ns)
        number = self._history.batch_list.next_number
        if point is not None:
            announced = self._points.find(point.sequence)
            made_ns, stamp_ns = (
                0 if announced is None else announced.made_ns,
                self._clock.stamp_ns(),
            )
            if not point.lsn:
                made_ns = stamp_ns  # a rollback makes it, here and now
            point = replace(point, received_ns=stamp_ns, made_ns=made_ns)
        return Draft(number, kind, start_lsn, images, sums, body, point, held)

    def _commit(self, draft: Draft, changes: list[DiskChange], state: GroupState) -> None:
        """Steps 2 to 6."""
        if changes or state.rollback is not None:
            self._replica.say_inconsistent(_reason(state, draft.kind))
        upto = _upto(draft.kind, state) if changes else None
        batch = self._history.append(draft, self.applied)
        self._voucher.begin(self.applied, upto)
        try:
            self._history.sync()
        finally:
            self._voucher.settle()
        self._voucher.begun(self.applied, upto)
        self._history.publish(batch)
        self._pending = _Pending(batch, self.applied, state, changes)
        self._old.note(batch, changes)
        self._finish(self._pending)

    def _finish(self, pending: _Pending) -> None:
        """Steps 5 and 6, for a batch that has come that far."""
        self._free_inbox(pending.before)
        if not pending.written:
            self._voucher.ensure()
            self._overwrite(pending)
        self._applied(pending)

    def _applied(self, pending: _Pending) -> None:
        self._history.applied(pending.batch)
        self._pending = None
        self.applied = pending.state
        self.applied_batches += 1
        if self._rollback is not None and self.applied.rollback is None:
            total, self._rollback = self._rollback.total_blocks, None  # it has ended
            self._progress = (total, total)
        if pending.batch.point is not None:
            self._applied_point = pending.batch.point.sequence
            self._points.received(self._applied_point, pending.batch.point.received_ns)

    def _overwrite(self, pending: _Pending) -> None:
        """Step 5."""
        if pending.changes is None:
            pending.changes = self._redo(pending)
        write = write_again if pending.again else write_changes
        pending.again = True
        for change in pending.changes:
            write(self._replica.file(change.name), change.writes)
        self._replica.sync(change.name for change in pending.changes)
        pending.written = True
        self.rewritten_bytes += sum(change.changed_bytes for change in pending.changes)
        if write is write_again:
            for change in pending.changes:
                punch_zeroes(self._replica.file(change.name), change.writes)
        pending.changes = []

    def _redo(self, pending: _Pending) -> list[DiskChange]:
        """See receiver.apply.redo."""
        batch, state = pending.batch, pending.state
        self._replica.say_inconsistent(_reason(state, batch.kind))
        operations = self._redoing.operations(batch, pending.before, state)
        changes = self._changes(
            state, operations, always=self._history.reader.table(batch).keys()[0]
        )
        for change in changes:
            self._redoing.check(batch, change.keys, self._replica.path(change.name))
        return changes

    def _create(self, disks: list[Disk]) -> None:
        """Images of disks that the stream has just declared."""
        while disks:
            disk = disks[-1]
            disk.is_made_here |= self._replica.create(disk.name, disk.size_bytes)
            disks.pop()

    # -- when there is nothing to do

    def _rest(self) -> None:
        """Makes the last "applied" durable, lets the inbox go, says how the replica stands."""
        if self._idle:
            return
        if not self._history.is_durable:
            self._history.sync()
        self._free_inbox(self.applied)
        state = self.applied
        point = self._points.find(state.last_point)
        if point is not None and point.consistent and state.point_holds and not state.is_syncing:
            self._replica.say_consistent(point)
        elif state.disks:
            self._replica.say_inconsistent(_reason(state, "log"))
        self._idle = True

    def _free_inbox(self, state: GroupState) -> None:
        """Everything up to `state` is applied, and durably so."""
        self._inbox.free(state.ordinal, state.lsn)


def _reason(state: GroupState, kind: BatchKind) -> str:
    if state.rollback is not None or kind == "rollback":
        return "a rollback is under way"
    if state.is_syncing:
        return "a sync is under way"
    return "records are being applied"


def _upto(kind: BatchKind, state: GroupState) -> Upto:
    """How far a batch with that state behind it takes the log."""
    return (state.ordinal, state.lsn) if kind == "log" else NOT_OF_THE_LOG
