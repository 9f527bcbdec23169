# SPDX-License-Identifier: Apache-2.0
"""What the records of a history must say of each other. No I/O.

Chain and checksums prove that the bytes are those that were written; this proves that they make
sense, by the rules of receiver.history.bodies: a segment begins with the group's state; a batch is
its header, exactly the images that its table names, and its commit; every image can be unpacked to
the size of its blocks; numbers of batches and points only rise, times of points never go back.

`take` is given each good record in order, `skip` what could not be read: the rules that need what
is missing are then left out until the next batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from journal.record import NO_DISK, Record, RecordType
from receiver.history import bodies
from receiver.history.images import BLOCK_BYTES, Image, ImageTable
from receiver.history.packing import unpack
from replicator.base.errors import DamageError

IMAGE_TYPES = frozenset((RecordType.WRITE, RecordType.PACKED_WRITE, RecordType.ZERO))


@dataclass(slots=True)
class _Open:
    """The batch whose images are being read."""

    begin: bodies.BatchBegin
    table: ImageTable
    row: int = 0
    is_whole: bool = True


@dataclass(slots=True)
class Checks:
    """See the head of this file. `problem` is told (position, what is wrong)."""

    problem: Callable[[int, str], None]
    batches: int = 0
    images: int = 0
    points: list[int] = field(default_factory=list)
    """Those of the segment."""
    dropped: set[int] = field(default_factory=set)
    applied: int = 0
    last_batch: int = 0
    last_point: int = 0
    last_time_ns: int = 0
    _segment_first: int = 0
    _open: _Open | None = None
    _is_lost: bool = False

    def begin_segment(self, first: int) -> None:
        if self._open is not None:
            self.problem(first, f"batch {self._open.begin.number} has no end")
        self._segment_first, self._open, self._is_lost = first, None, False
        self.points = []

    def end_segment(self, end: int) -> None:
        if self._open is not None and self._open.is_whole:
            self.problem(end, f"batch {self._open.begin.number} has no end")
        self._open = None

    def skip(self, next_position: int) -> None:
        """Nothing is known of the positions up to there."""
        if self._open is None:
            self._is_lost = True
            return
        opened = self._open
        opened.is_whole = False
        positions = opened.table.positions
        while opened.row < len(positions) and int(positions[opened.row]) < next_position:
            opened.row += 1

    def what_is_at(self, position: int) -> str:
        """Of which batch and disk a bad record at `position` is, where that is known."""
        opened = self._open
        if opened is None or opened.row >= len(opened.table):
            return ""
        image = opened.table.image(opened.row)
        if image.position != position:
            return ""
        first = image.block * BLOCK_BYTES
        disk = next((d.name for d in opened.begin.group.disks if d.slot == image.slot), image.slot)
        return (
            f"before-image of batch {opened.begin.number}: disk {disk},"
            f" {image.blocks * BLOCK_BYTES} bytes at {first};"
            f" points before #{opened.begin.group.next_point} may need it"
        )

    def take(self, position: int, record: Record) -> None:
        where = f"position {position}"
        try:
            self._take(position, record, where)
        except DamageError as error:
            self.problem(position, error.message.removeprefix(f"{where}: "))

    def _take(self, position: int, record: Record, where: str) -> None:
        if position == self._segment_first and record.type != RecordType.STATE:
            self.problem(position, "the segment does not begin with the group's state")
        if record.type in IMAGE_TYPES:
            self._image(position, record, where)
            return
        if record.disk != NO_DISK:
            self.problem(position, f"{record} has no place in a history")
        match record.type:
            case RecordType.STATE:
                self._state(position, bodies.decode(bodies.StateBody, record, where))
            case RecordType.BATCH_BEGIN:
                self._begin(position, record, where)
            case RecordType.BATCH_COMMIT:
                self._commit(position, bodies.decode(bodies.BatchCommit, record, where))
            case RecordType.BATCH_APPLIED:
                applied = bodies.decode(bodies.BatchApplied, record, where)
                self._stands_at(position, applied.position)
                self.applied = applied.number
                if self.last_batch and applied.number != self.last_batch:
                    self.problem(position, f"batch {applied.number} is said to be applied here")
            case RecordType.POINTS_DROPPED:
                dropped = bodies.decode(bodies.PointsDropped, record, where)
                self._stands_at(position, dropped.position)
                self.dropped.update(dropped.sequences)
            case _:
                self.problem(position, f"{record} has no place in a history")

    def _state(self, position: int, state: bodies.StateBody) -> None:
        self._stands_at(position, state.position)
        if position != self._segment_first:
            self.problem(position, "a state in the middle of a segment")
        if self.last_batch and state.next_batch != self.last_batch + 1:
            self.problem(
                position, f"batch {state.next_batch} is to follow batch {self.last_batch} here"
            )
        if state.group.next_point <= self.last_point:
            self.problem(position, f"point #{state.group.next_point} was given already")
        self.last_batch = max(self.last_batch, state.next_batch - 1)
        self.last_point = max(self.last_point, state.group.next_point - 1)
        self.last_time_ns = max(self.last_time_ns, state.group.last_time_ns)

    def _begin(self, position: int, record: Record, where: str) -> None:
        if self._open is not None:
            if self._open.is_whole:
                self.problem(position, f"batch {self._open.begin.number} has no end")
            self._open = None
        self._is_lost = True  # until the header has been understood
        begin = bodies.decode(bodies.BatchBegin, record, where)
        table = ImageTable.parse(begin.extents, position + record.size, where)
        self._is_lost = False
        self._open = _Open(begin, table)
        self._stands_at(position, begin.position)
        if begin.number <= self.last_batch:
            self.problem(position, f"batch {begin.number} stands behind batch {self.last_batch}")
        if begin.sums and len(begin.sums) != 8 * table.block_count:
            self.problem(position, f"batch {begin.number} has the sums of other blocks")
        self.last_batch = max(self.last_batch, begin.number)
        if begin.point is not None:
            self._point(position, begin.point, begin.group.next_point)

    def _point(self, position: int, point: bodies.PointBody, next_point: int) -> None:
        if point.sequence <= self.last_point:
            self.problem(position, f"point #{point.sequence} stands behind #{self.last_point}")
        if point.sequence >= next_point:
            self.problem(position, f"point #{point.sequence} is to be given later")
        if point.time_ns < self.last_time_ns:
            self.problem(position, f"the time of point #{point.sequence} goes back")
        self.last_point = max(self.last_point, point.sequence)
        self.last_time_ns = max(self.last_time_ns, point.time_ns)
        self.points.append(point.sequence)

    def _image(self, position: int, record: Record, where: str) -> None:
        self.images += 1
        opened = self._open
        if opened is None:
            if not self._is_lost:
                self.problem(position, "a before-image outside of a batch")
            return
        if opened.row >= len(opened.table):
            self.problem(position, f"batch {opened.begin.number} has more images than it names")
            return
        image = opened.table.image(opened.row)
        opened.row += 1
        if problem := _differs(image, position, record):
            self.problem(position, f"an image of batch {opened.begin.number} {problem}")
        elif image.packed:
            unpack(bytes(record.payload), image.blocks, where)

    def _commit(self, position: int, commit: bodies.BatchCommit) -> None:
        self._stands_at(position, commit.position)
        opened, self._open = self._open, None
        self.batches += 1
        if opened is None:
            if not self._is_lost:
                self.problem(position, f"batch {commit.number} ends, and has not begun")
            self._is_lost = False
            return
        if (commit.number, commit.begin) != (opened.begin.number, opened.begin.position):
            self.problem(position, f"the commit of batch {commit.number} is another batch's")
        if opened.row != len(opened.table):
            self.problem(position, f"batch {commit.number} lacks images")

    def _stands_at(self, position: int, stated: int) -> None:
        if stated != position:
            self.problem(position, f"belongs at position {stated}")


def _differs(image: Image, position: int, record: Record) -> str:
    """What of an image record is not as the batch's table says."""
    kind = RecordType.ZERO
    if image.stored:
        kind = RecordType.PACKED_WRITE if image.packed else RecordType.WRITE
    if (record.type, len(record.payload)) != (kind, image.stored) or position != image.position:
        return f"is of another kind or size than {kind.name} with {image.stored} bytes"
    if (record.disk, record.offset) != (image.slot, image.block * BLOCK_BYTES):
        return "belongs elsewhere on the disk"
    if not (image.blocks - 1) * BLOCK_BYTES < record.length <= image.blocks * BLOCK_BYTES:
        return "has another length"
    return ""
