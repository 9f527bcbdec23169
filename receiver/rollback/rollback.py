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

Only the target's disks are touched: a disk that came later stays as it is. A disk that came back
with another size is another one (receiver.history.state): there is no rollback to a point before
that.

The target may be a single write: a point with some writes behind it (receiver.writes.overlay). Then
a block gets its image with those writes laid over it, and at the end come the blocks that have no
image: they hold what they held at the point. Both are as repeatable as the rest, for what was
written meanwhile has an image by then. The intent names the writes, and their frames are kept until
the rollback has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from receiver.blocks.content import Operation
from receiver.history.bodies import RollbackIntent
from receiver.history.images import BLOCK_BYTES, SLOT_SHIFT, Image, ImageTable, block_key
from receiver.history.index.runs import KEY_MAX, NO_RUNS, Runs
from receiver.history.index.stack import ImageStack
from receiver.history.log import HistoryLog
from receiver.history.state import Disk, GroupState
from receiver.points.values import Point, PointDisk
from receiver.writes.overlay import FineOverlay
from replicator.base.errors import DamageError, UsageError

OverlayOf = Callable[[Point, int], FineOverlay]
"""The first so many writes behind a point. Raises DamageError, NoPointError."""
TAIL_WINDOW_BLOCKS = 1 << 14
"""Blocks without an image are looked for so many at a time."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some blocks of the rollback, by their images' names. `end` is how many of all have been
    looked at with it."""

    operations: dict[str, list[Operation]]
    end: int


class RollbackWork:
    """What taking the replica to `target` comes to, a part at a time: only the part under way and
    a piece of the index (receiver.history.index.sweep) are in memory."""

    def __init__(
        self,
        target: Point,
        disks: dict[int, PointDisk],
        stack: ImageStack,
        read_images: Callable[[Sequence[Image]], list[bytes]],
        overlay: FineOverlay | None = None,
    ) -> None:
        self.target = target
        self._disks = disks
        self._stack = stack
        self._read_images = read_images
        self._overlay = overlay or FineOverlay([])
        self._tail: Iterator[list[tuple[int, int, int]]] | None = None
        self._tail_part: list[tuple[int, int, int]] = []
        self._walk: Iterator[Runs] | None = None
        self._ahead = NO_RUNS  # found, and not looked at yet
        self._next_key = 0
        self._part = NO_RUNS
        self.is_done = False
        self.done_blocks = 0

    @classmethod
    def of(cls, history: HistoryLog, state: GroupState, overlay_of: OverlayOf) -> RollbackWork:
        """The one that `state` says is under way."""
        intent = state.rollback
        assert intent is not None
        batch = history.batch_list.of_point(intent.target)
        if intent.writes and batch is not None and batch.point is not None:
            return cls.to(history, intent.target, overlay_of(batch.point, intent.writes))
        return cls.to(history, intent.target)

    @classmethod
    def to(
        cls, history: HistoryLog, sequence: int, overlay: FineOverlay | None = None
    ) -> RollbackWork:
        """Raises DamageError where the point is gone."""
        batch = history.batch_list.of_point(sequence)
        if batch is None or batch.point is None:
            raise DamageError(
                f"{history.segment_set.folder}: point #{sequence}, a rollback's target, is gone"
            )
        disks = {disk.slot: disk for disk in batch.point.members}
        return cls(
            batch.point,
            disks,
            history.segment_set.stack_behind(batch),
            history.reader.read_images,
            overlay,
        )

    @property
    def total_blocks(self) -> int:
        """At most; those that were written several times since then may count as often."""
        if self.is_done:
            return self.done_blocks
        return self._stack.block_count_max + self._overlay.block_count

    def next_part(self, limit_bytes: int) -> Part:
        """The next blocks, about `limit_bytes` of them; the same until `advance`. Raises
        DamageError, OSError, and may be called again."""
        if not len(self._part) and not self._tail_part:
            limit = max(limit_bytes // BLOCK_BYTES, 1)
            self._part = self._take(limit)
            if not len(self._part):
                self._tail_part = self._take_tail(limit)
        if self._tail_part:
            blocks = sum(end - first for _, first, end in self._tail_part)
            return Part(self._tail_operations(self._tail_part), self.done_blocks + blocks)
        operations = self._operations(self._part)
        return Part(operations, self.done_blocks + self._part.block_count)

    def advance(self, part: Part) -> None:
        self.done_blocks = part.end
        self.is_done = not len(self._part) and not self._tail_part
        self._part, self._tail_part = NO_RUNS, []

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

    # -- blocks that only the writes behind the target touch

    def _take_tail(self, blocks: int) -> list[tuple[int, int, int]]:
        """(slot, first block, end) of the next ones, so many blocks at most."""
        if self._tail is None:
            self._tail = self._bare_runs(blocks)
        taken: list[tuple[int, int, int]] = []
        try:
            while not taken:
                following = next(self._tail, None)
                if following is None:
                    return []
                taken = following
        except (DamageError, OSError):
            self._tail = None
            raise
        return taken

    def _bare_runs(self, blocks: int) -> Iterator[list[tuple[int, int, int]]]:
        """The overlay's blocks that have no image, in lists of at most so many blocks."""
        slots = {disk.name: slot for slot, disk in self._disks.items()}
        for name in self._overlay.disks:
            slot, first = slots[name], 0
            runs = self._overlay.block_runs(name)
            while first < len(runs):
                last, start = first, runs[first][0]
                while last < len(runs) and runs[last][1] - start <= TAIL_WINDOW_BLOCKS:
                    last += 1
                window, first = runs[first : max(last, first + 1)], max(last, first + 1)
                yield from _chunks(self._without_images(slot, window), blocks)

    def _without_images(
        self, slot: int, runs: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int, int]]:
        base = block_key(slot, 0)
        imaged = self._stack.runs_within(base + runs[0][0], base + runs[-1][1])
        bare: list[tuple[int, int, int]] = []
        for first, end in runs:
            at = first
            for row in imaged.cut(base + first, base + end).rows:
                low = int(row["start"]) - base
                if at < low:
                    bare.append((slot, at, low))
                at = low + int(row["blocks"])
            if at < end:
                bare.append((slot, at, end))
        return bare

    def _tail_operations(self, part: Sequence[tuple[int, int, int]]) -> dict[str, list[Operation]]:
        operations: dict[str, list[Operation]] = {}
        for slot, first, end in part:
            disk = self._disks[slot]
            operations.setdefault(disk.image, []).extend(
                self._overlay.within(disk.name, first * BLOCK_BYTES, end * BLOCK_BYTES)
            )
        return operations

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
            state.disks[member.image].complete = target.consistent
        return state.number_point(
            Point(
                sequence=0,
                time_ns=_whole_us(now_ns),
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
            there = _operation(disk, low, high, image, contents[image.position])
            over = self._overlay.within(disk.name, there.offset, there.offset + there.length)
            operations.setdefault(disk.image, []).extend([there, *over])
        return operations


def _operation(disk: PointDisk, low: int, high: int, image: Image, content: bytes) -> Operation:
    offset = (low - block_key(image.slot, 0)) * BLOCK_BYTES
    length = min((high - low) * BLOCK_BYTES, disk.size_bytes - offset)
    if not image.stored:
        return Operation(offset, length, None)
    at = offset - image.block * BLOCK_BYTES
    return Operation(offset, length, content[at : at + length])


def _chunks(
    runs: Sequence[tuple[int, int, int]], blocks: int
) -> Iterator[list[tuple[int, int, int]]]:
    """The same blocks in lists of at most so many."""
    chunk: list[tuple[int, int, int]] = []
    room = blocks
    for slot, first, end in runs:
        at = first
        while at < end:
            count = min(end - at, room)
            chunk.append((slot, at, at + count))
            at, room = at + count, room - count
            if not room:
                yield chunk
                chunk, room = [], blocks
    if chunk:
        yield chunk


def check_target(state: GroupState, target: Point, group: str) -> None:
    """Raises UsageError where a disk has come back with another size since then: its image of that
    time lies beside the one that follows the source, which no rollback makes shorter or longer."""
    present = {disk.slot: disk for disk in state.present}
    for member in target.members:
        if member.slot not in present:
            now = state.disk_called(member.name)
            assert now is not None
            raise UsageError(
                f"disk {member.name!r} of group {group!r} had {member.size_bytes} bytes at point"
                f" {target}, and has {now.size_bytes} now: there is no rollback across that",
                hint=f"`replicator restore {group} --at '#{target.sequence}' --to DIRECTORY` writes"
                " that point into new images, of the size that the disk had; `replicator view open`"
                " shows it",
            )


def begin(state: GroupState, target: Point, now_ns: int, writes: int = 0) -> Point:
    """Turns the applied `state` into that behind the mark: stream closed, generation raised, the
    intent stated. The point `before-rollback` that pins what was."""
    members = {disk.name: disk.as_member() for disk in _present(state)}
    for member in target.members:
        members.setdefault(member.image, state.disks[member.image].as_member())
    consistent = all(state.disks[name].complete for name in members)
    state.close_stream()
    state.generation += 1
    point = state.number_point(
        Point(
            sequence=0,
            time_ns=_whole_us(now_ns),
            until_ns=now_ns,
            kind="before-rollback",
            ordinal=state.ordinal,
            consistent=consistent,
            members=tuple(sorted(members.values(), key=lambda disk: disk.slot)),
            domains=dict(state.domains),
        )
    )
    state.rollback = RollbackIntent(target.sequence, point.sequence, writes)
    return point


def _whole_us(time_ns: int) -> int:
    """As points are printed."""
    return -(-time_ns // 1000) * 1000


def _present(state: GroupState) -> list[Disk]:
    """The disks that the state before is about: those of the stream, or all where it has none."""
    attached = [disk for disk in state.disks.values() if disk.index is not None]
    return attached or state.present
