# SPDX-License-Identifier: Apache-2.0
"""Checking segments of the history, and what a bad one costs.

A sealed segment does not change, so it is read beside everything else (`read`); by the time it has
been, a compaction may have taken its place, and then what was found does not count (`take`). Of the
segment that is being written, what it holds so far is read in the apply thread.

A bad image costs the points between the batch that wrote what it holds and the batch whose image it
is. Any other record costs all points in front of it: the group cannot be opened without it.

Concurrency: `take` in the apply thread, with no batch half done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from journal.record import HEADER_BYTES
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.spool import SegmentFile
from receiver.check.places import HistoryPlace
from receiver.check.verify import HistoryVerification
from receiver.check.walk import Fault
from receiver.damage import damage as rules
from receiver.damage.healing import Healer
from receiver.history.batches import Batch, Segment
from receiver.history.bodies import DamagedBlocks
from receiver.history.images import BLOCK_BYTES, Image, block_key
from receiver.history.log import HistoryLog
from receiver.history.state import Disk
from receiver.history.sums.sums import LatestSums
from receiver.scrub.findings import Findings
from receiver.scrub.state import Bad
from replicator.base.errors import DamageError
from replicator.base.storage import READ_ERRORS, Storage


class HistoryCheck:
    """See the head of this file."""

    def __init__(
        self,
        storage: Storage,
        group: str,
        history: HistoryLog,
        sums: LatestSums,
        healer: Healer,
        findings: Findings,
        disks: Callable[[], Iterable[Disk]],
    ) -> None:
        self._storage = storage
        self._group = group
        self._history = history
        self._sums = sums
        self._healer = healer
        self._findings = findings
        self._disks = disks

    def read(self, segment: Segment) -> list[Fault]:
        """What is wrong with the file. Any thread for a sealed one."""
        place = _OneSegment(
            self._group, segment.path.parent.parent, self._history.segment_set.stream, None, segment
        )
        verification = HistoryVerification(self._storage, place)
        for _ in verification.run():
            pass
        return verification.faults

    def is_there(self, segment: Segment) -> bool:
        """Whether it is still part of the history."""
        return not segment.sealed or any(
            (each.first, each.seal_digest) == (segment.first, segment.seal_digest)
            for each in self._history.segment_set.sealed
        )

    def take(self, segment: Segment, faults: Sequence[Fault]) -> None:
        """What was found there. Raises OSError."""
        # what is lost explains what else does not fit: the digest, the order of what is left
        for fault in [fault for fault in faults if fault.lost_bytes] or faults:
            self._found_fault(segment, fault)

    def _found_fault(self, segment: Segment, fault: Fault) -> None:
        offset = fault.offset or 0
        position = segment.first + offset - SEGMENT_HEADER_BYTES
        if fault.offset is None:
            position = segment.end
        batch = next(
            (each for each in self._history.batch_list.all if each.begin <= position < each.end),
            None,
        )
        image = None if batch is None else self._image_at(batch, position)
        if batch is None or image is None:
            self._found_record(fault, offset, position)
            return
        disks = {disk.slot: disk.name for disk in self._disks()}
        bad = Bad(
            "image",
            str(fault.file),
            offset,
            disks.get(image.slot, str(image.slot)),
            image.block * BLOCK_BYTES,
            image.blocks * BLOCK_BYTES,
            problem=fault.problem,
        )
        lost = self._lost_with(batch, image)
        if lost:
            bad.points = self._findings.points_of(lost)
            self._findings.put_on_record(rules.added(self._findings.damage, lost))
            if self._healer.heal_image(batch, image):
                bad.healed = True
                first = block_key(image.slot, image.block)
                keys = np.arange(first, first + image.blocks, dtype=np.uint64)
                self._findings.put_on_record(
                    rules.healed(self._findings.damage, keys, replaced=batch.number)
                )
        self._findings.add(bad)

    def _lost_with(self, batch: Batch, image: Image) -> list[DamagedBlocks]:
        """What cannot be had without this image: nothing, if only its header is bad, which is not
        needed to read it."""
        try:
            self._history.reader.read_image(image)
        except DamageError:
            pass
        except OSError as error:
            if error.errno not in READ_ERRORS:
                raise
        else:
            return []
        return [
            DamagedBlocks(
                image.slot,
                block,
                1,
                self._sums.written_before(block_key(image.slot, block), batch.number),
                batch.number,
            )
            for block in range(image.block, image.block + image.blocks)
        ]

    def _image_at(self, batch: Batch, position: int) -> Image | None:
        table = self._history.reader.table(batch)
        row = int(np.searchsorted(table.positions, np.uint64(max(position, 0)), "right")) - 1
        if row < 0:
            return None
        image = table.image(row)
        is_last = row == len(table) - 1
        return (
            None if is_last and position >= image.position + HEADER_BYTES + image.stored else image
        )

    def _found_record(self, fault: Fault, offset: int, position: int) -> None:
        """Not an image: all points in front of it stand on it once the receiver starts anew. What
        is in memory serves them until then, so they are named, and not refused."""
        points = [
            batch.point.sequence
            for batch in self._history.batch_list.all
            if batch.point is not None and batch.begin < max(position, 1)
        ]
        self._findings.add(
            Bad("history", str(fault.file), offset, points=points, problem=fault.problem)
        )


@dataclass(frozen=True, slots=True)
class _OneSegment(HistoryPlace):
    """A history of which only this segment is looked at."""

    segment: Segment | None = None

    def segments(self, storage: Storage) -> list[SegmentFile]:
        assert self.segment is not None
        return [SegmentFile(self.segment.first, self.segment.path)]
