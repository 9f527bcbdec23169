# SPDX-License-Identifier: Apache-2.0
"""A batch again, after a restart: exactly its records, exactly its blocks. Writes nothing.

A crash between "the batch is durable in the history" and "it is applied" leaves a replica of which
nobody knows how much of the batch it holds. So the batch is done again, from what its header
fixed: whatever came into the inbox since then belongs to the next one. Blocks that look as they
should are written all the same: they may do so in the page cache alone, after a sync that failed.

A redo that would write a block which the batch has no before-image of is refused: then replica,
inbox and history do not belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from receiver.apply.batch import BatchBuilder
from receiver.blocks.content import Operation
from receiver.history.batches import Batch
from receiver.history.extents import ExtentSet
from receiver.history.images import U64
from receiver.history.log import HistoryLog
from receiver.history.state import Disk, GroupState
from receiver.intake.inbox import Inbox
from receiver.intake.units import units_of
from receiver.rollback.rollback import OverlayOf, RollbackWork
from replicator.base.errors import DamageError

Operations = dict[str, list[Operation]]


class Redo:
    """See the head of this file. `create` makes the images of disks that the batch declares."""

    def __init__(
        self,
        history: HistoryLog,
        inbox: Inbox,
        batch_bytes: int,
        create: Callable[[list[Disk]], None],
        overlay_of: OverlayOf,
    ) -> None:
        self._history = history
        self._inbox = inbox
        self._batch_bytes = batch_bytes
        self._create = create
        self._overlay_of = overlay_of

    def operations(self, batch: Batch, before: GroupState, behind: GroupState) -> Operations:
        """What the batch does, by disk; `before` and `behind` are the states around it. Raises
        DamageError, OSError."""
        if batch.kind == "log":
            return self._of_records(batch, before, behind)
        if batch.kind == "zero":
            return self._of_zeroes(batch, behind)
        if batch.kind == "rollback":
            work = RollbackWork.of(self._history, before, self._overlay_of)
            return work.operations_of(self._history.reader.table(batch))
        return {}

    def check(self, batch: Batch, keys: U64, path: Path) -> None:
        """Raises DamageError if the batch has no image of one of these blocks of the replica at
        `path`."""
        if not self._history.reader.table(batch).covers(keys):
            raise DamageError(
                f"{path}: batch {batch.number} would overwrite blocks that it has no before-image"
                " of: replica, inbox and history do not belong together",
                hint="set the group aside and let it sync anew",
            )

    def _of_records(self, batch: Batch, before: GroupState, behind: GroupState) -> Operations:
        state = before.copy()
        if state.ordinal != batch.ordinal:
            state.begin_stream(behind.stream, batch.ordinal, batch.start_lsn)
        builder = BatchBuilder(state, self._batch_bytes)
        for frame in self._inbox.frames_from(batch.ordinal, batch.start_lsn):
            if frame.start_lsn >= batch.end_lsn:
                break
            for unit in units_of(self._inbox.read(batch.ordinal, frame), batch.start_lsn):
                if unit.end_lsn > batch.end_lsn:
                    break
                builder.feed(unit)
                self._create(builder.created)
        if state.lsn != batch.end_lsn:
            raise DamageError(
                f"the inbox ends at LSN {state.lsn} of stream {batch.ordinal}, but a batch up to"
                f" LSN {batch.end_lsn} was begun from it",
                hint="restore the inbox from a copy, or set the group aside and let it sync anew",
            )
        return builder.operations

    def _of_zeroes(self, batch: Batch, state: GroupState) -> Operations:
        begin = self._history.reader.read_begin(batch)
        by_slot: dict[int, Disk] = {disk.slot: disk for disk in state.disks.values()}
        return {
            by_slot[slot].name: [
                Operation(low, high - low, None) for low, high in ExtentSet.unpack(packed)
            ]
            for slot, packed in begin.zeroes.items()
        }
