# SPDX-License-Identifier: Apache-2.0
"""Rolling back: which blocks go back to which content, part by part. No I/O but reading images.

A rollback is three things in the history, each durable before the next: a "mark" batch, which
closes the stream for ever, raises the generation, states the intent, and makes the point of kind
`before-rollback` (so the exact state before can be had back); parts, which are batches like any
others, with before-images of their own; and a last batch without content, which clears the intent
and makes the point of kind `rollback`.

The content of a block at the target is its earliest before-image after the target. The parts lie
behind that in the history, so they change nothing about the answer: a rollback that was
interrupted is gone on with by starting over. Blocks that are back already come out unchanged.

Only the target's disks are touched: a disk that came later stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from receiver.apply_content import Operation
from receiver.history.batches import Batch
from receiver.history.bodies import RollbackIntent
from receiver.history.images import BLOCK_BYTES, SLOT_SHIFT, U64, EarliestImages, Image, block_key
from receiver.history.log import HistoryLog
from receiver.sync_state import Disk, GroupState
from receiver.values import Point, PointDisk
from replicator.base.errors import DamageError


@dataclass(frozen=True, slots=True)
class Part:
    """Some blocks of the rollback. `end` is how many of all have been looked at with it."""

    operations: dict[str, list[Operation]]
    end: int


class RollbackWork:
    """What taking the replica to `target` comes to. `keys` are the blocks that may differ."""

    def __init__(
        self,
        target: Point,
        disks: dict[int, PointDisk],
        earliest: EarliestImages,
        read_image: Callable[[Image], bytes],
    ) -> None:
        self.target = target
        self._disks = disks
        self._earliest = earliest
        self._read_image = read_image
        self._keys = _keys_of(earliest.keys, disks)
        self.done_blocks = 0

    @classmethod
    def of(cls, history: HistoryLog, state: GroupState) -> RollbackWork:
        """The one that `state` says is under way."""
        intent = state.rollback
        assert intent is not None
        return cls.to(history, intent.target)

    @classmethod
    def to(cls, history: HistoryLog, sequence: int) -> RollbackWork:
        """Raises DamageError where the point is gone."""
        batch = history.batch_of_point(sequence)
        if batch is None or batch.point is None:
            raise DamageError(f"{history.folder}: point #{sequence}, a rollback's target, is gone")
        earliest = EarliestImages([each.images for each in history.after(batch.number)])
        disks = {disk.slot: disk for disk in batch.point.members}
        return cls(batch.point, disks, earliest, history.read_image)

    @property
    def total_blocks(self) -> int:
        return len(self._keys)

    @property
    def is_done(self) -> bool:
        return self.done_blocks >= len(self._keys)

    def next_part(self, limit_bytes: int) -> Part:
        """The next blocks, about `limit_bytes` of them."""
        end = min(self.done_blocks + max(limit_bytes // BLOCK_BYTES, 1), len(self._keys))
        keys = self._keys[self.done_blocks : end]
        return Part(self._operations(keys), end)

    def advance(self, part: Part) -> None:
        self.done_blocks = part.end

    def operations_of(self, batch: Batch) -> dict[str, list[Operation]]:
        """What a part of this rollback, found in the history, was to do."""
        keys, _ = batch.images.keys()
        return self._operations(keys)

    def end(self, state: GroupState, now_ns: int) -> Point:
        """The rollback has ended: `state` becomes that behind it. The point it makes."""
        target = self.target
        state.rollback = None
        state.rolled_back = True
        state.domains = dict(target.domains)
        for member in target.members:
            state.disks[member.name].complete = target.consistent
        return state.number_point(
            Point(
                sequence=0,
                time_ns=now_ns,
                until_ns=now_ns,
                kind="rollback",
                ordinal=state.ordinal,
                consistent=target.consistent,
                members=target.members,
                domains=dict(target.domains),
            )
        )

    def _operations(self, keys: U64) -> dict[str, list[Operation]]:
        operations: dict[str, list[Operation]] = {}
        if not len(keys):
            return operations
        breaks = np.flatnonzero(np.diff(keys) != 1) + 1
        for run in np.split(keys, breaks):
            for low, high, image in self._earliest.within(int(run[0]), int(run[-1]) + 1):
                disk = self._disks.get(image.slot)
                if disk is not None:
                    operations.setdefault(disk.name, []).append(
                        self._operation(disk, low, high, image)
                    )
        return operations

    def _operation(self, disk: PointDisk, low: int, high: int, image: Image) -> Operation:
        first = block_key(image.slot, 0)
        offset = (low - first) * BLOCK_BYTES
        length = min((high - low) * BLOCK_BYTES, disk.size_bytes - offset)
        if not image.stored:
            return Operation(offset, length, None)
        at = offset - image.block * BLOCK_BYTES
        return Operation(offset, length, self._read_image(image)[at : at + length])


def begin(state: GroupState, target: Point, now_ns: int) -> Point:
    """Turns the applied `state` into that behind the mark: stream closed, generation raised, the
    intent stated. The point `before-rollback` that pins what was."""
    members = {disk.name: disk.as_member() for disk in _present(state)}
    for member in target.members:
        members.setdefault(member.name, state.disks[member.name].as_member())
    consistent = all(state.disks[name].complete for name in members)
    state.close_stream()
    state.generation += 1
    point = state.number_point(
        Point(
            sequence=0,
            time_ns=now_ns,
            until_ns=now_ns,
            kind="before-rollback",
            ordinal=state.ordinal,
            consistent=consistent,
            members=tuple(sorted(members.values(), key=lambda disk: disk.slot)),
            domains=dict(state.domains),
        )
    )
    state.rollback = RollbackIntent(target.sequence, point.sequence)
    return point


def _present(state: GroupState) -> list[Disk]:
    """The disks that the state before is about: those of the stream, or all where it has none."""
    attached = [disk for disk in state.disks.values() if disk.index is not None]
    return attached or list(state.disks.values())


def _keys_of(keys: U64, disks: dict[int, PointDisk]) -> U64:
    if not len(keys):
        return keys
    slots = np.array(sorted(disks), dtype=np.uint64)
    return keys[np.isin(keys >> np.uint64(SLOT_SHIFT), slots)]
