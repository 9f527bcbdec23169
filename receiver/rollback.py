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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from receiver.apply_content import Operation
from receiver.history.bodies import RollbackIntent
from receiver.history.images import BLOCK_BYTES, SLOT_SHIFT, Image, ImageTable, block_key
from receiver.history.index_stack import ImageStack
from receiver.history.log import HistoryLog
from receiver.history.runs import KEY_MAX, NO_RUNS, Runs
from receiver.sync_state import Disk, GroupState
from receiver.values import Point, PointDisk
from replicator.base.errors import DamageError


@dataclass(frozen=True, slots=True)
class Part:
    """Some blocks of the rollback. `end` is how many of all have been looked at with it."""

    operations: dict[str, list[Operation]]
    end: int


class RollbackWork:
    """What taking the replica to `target` comes to, a part at a time: only the part under way and
    a piece of the index (receiver.history.sweep) are in memory."""

    def __init__(
        self,
        target: Point,
        disks: dict[int, PointDisk],
        stack: ImageStack,
        read_images: Callable[[Sequence[Image]], list[bytes]],
    ) -> None:
        self.target = target
        self._disks = disks
        self._stack = stack
        self._read_images = read_images
        self._walk: Iterator[Runs] | None = None
        self._ahead = NO_RUNS  # found, and not looked at yet
        self._next_key = 0
        self._part = NO_RUNS
        self.is_done = False
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
        disks = {disk.slot: disk for disk in batch.point.members}
        return cls(batch.point, disks, history.stack_behind(batch), history.read_images)

    @property
    def total_blocks(self) -> int:
        """At most; those that were written several times since then may count as often."""
        return self.done_blocks if self.is_done else self._stack.block_count_max

    def next_part(self, limit_bytes: int) -> Part:
        """The next blocks, about `limit_bytes` of them; the same until `advance`. Raises
        DamageError, OSError, and may be called again."""
        if not len(self._part):
            self._part = self._take(max(limit_bytes // BLOCK_BYTES, 1))
        operations = self._operations(self._part)
        return Part(operations, self.done_blocks + self._part.block_count)

    def advance(self, part: Part) -> None:
        self.done_blocks = part.end
        self.is_done = not len(self._part)
        self._part = NO_RUNS

    def _take(self, blocks: int) -> Runs:
        """The next runs, so many blocks at most. None: there are no more."""
        while not len(self._ahead):
            following = self._following()
            if following is None:
                return NO_RUNS
            self._ahead = following
        counts = np.cumsum(self._ahead.rows["blocks"], dtype=np.int64)
        last = min(int(np.searchsorted(counts, blocks)), len(counts) - 1)
        behind = int(counts[last])
        end = int(self._ahead.starts[last]) + int(self._ahead.rows[last]["blocks"])
        end -= max(behind - blocks, 0)
        taken, self._ahead = self._ahead.cut(0, end), self._ahead.cut(end, KEY_MAX)
        self._next_key = end
        return taken

    def _following(self) -> Runs | None:
        """The next piece of the index, as far as it is of the target's disks. None at its end."""
        if self._walk is None:
            self._walk = self._stack.walk(self._next_key)
        try:
            runs = next(self._walk, None)
        except (DamageError, OSError):
            self._walk = None  # one that failed would say that it is at its end
            raise
        if runs is None:
            return None
        slots = np.array(sorted(self._disks), dtype=np.uint64)
        return Runs(runs.rows[np.isin(runs.starts >> np.uint64(SLOT_SHIFT), slots)])

    def operations_of(self, table: ImageTable) -> dict[str, list[Operation]]:
        """What a part of this rollback, found in the history, was to do."""
        keys, _ = table.keys()
        if not len(keys):
            return {}
        breaks = np.flatnonzero(np.diff(keys) != 1) + 1
        found = [
            self._stack.runs_within(int(run[0]), int(run[-1]) + 1).rows
            for run in np.split(keys, breaks)
        ]
        return self._operations(Runs(np.concatenate(found)))

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

    def _operations(self, runs: Runs) -> dict[str, list[Operation]]:
        found = [each for each in runs.images() if each[2].slot in self._disks]
        images = {image.position: image for _, _, image in found}
        contents = dict(zip(images, self._read_images(list(images.values())), strict=True))
        operations: dict[str, list[Operation]] = {}
        for low, high, image in found:
            disk = self._disks[image.slot]
            operations.setdefault(disk.name, []).append(
                _operation(disk, low, high, image, contents[image.position])
            )
        return operations


def _operation(disk: PointDisk, low: int, high: int, image: Image, content: bytes) -> Operation:
    offset = (low - block_key(image.slot, 0)) * BLOCK_BYTES
    length = min((high - low) * BLOCK_BYTES, disk.size_bytes - offset)
    if not image.stored:
        return Operation(offset, length, None)
    at = offset - image.block * BLOCK_BYTES
    return Operation(offset, length, content[at : at + length])


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
