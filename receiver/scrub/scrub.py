# SPDX-License-Identifier: Apache-2.0
"""Reading everything back: the replica against the sums of what it must hold, the history against
its own checksums and digests. What is wrong is named, put on record, and healed where a copy is.

    replica     each block that has data or a sum, disk by disk, a few MiB a step; holes are judged
                by their sums and not read
    history     each segment whole: records, chain, index, digest; and each block of its images
                against the sum of what was there

A step of the replica runs in the apply lane with no batch half done, so content and sums are of the
same moment; its findings are on record, durable, before the step ends. A segment is read outside of
the lane (`read_segment`): sealed ones do not change, and what was found counts only if that very
segment is still part of the history (`take_segment`); of the one being written what it holds so far
is read.

How far it has come stands in GROUP/scrub.json now and then, so a scrub goes on after a restart; and
how the last one ended. What a kill loses of that is done again.

What a block holds is told by the filesystem: where the page cache has it, that is what is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from receiver.apply.applier import Applier
from receiver.blocks.replica import Replica
from receiver.check.walk import Fault
from receiver.damage.healing import Healer
from receiver.history.batches import Segment
from receiver.history.images import BLOCK_BYTES
from receiver.history.log import HistoryLog
from receiver.history.state import Disk
from receiver.history.sums.sums import LatestSums
from receiver.points.telling import Telling
from receiver.retention.reclaim import Pins, Reclaim
from receiver.scrub.findings import Findings
from receiver.scrub.history import HistoryCheck
from receiver.scrub.images import Hashes, ImageCheck
from receiver.scrub.replica import ReplicaCheck
from receiver.scrub.state import Bad, ScrubState, load_state, save_state
from replicator.base.errors import OwnedError
from replicator.base.storage import Storage
from replicator.base.units import MIB

SAVED_EVERY_BYTES = 1024 * MIB


@dataclass(frozen=True, slots=True)
class SegmentReading:
    """What was read of a segment."""

    faults: Sequence[Fault]
    hashes: Hashes


class Scrub:
    """See the head of this file. `begin`, then `step` while `state.is_running`; a segment that it
    returns is given to `read_segment`, and the outcome to `take_segment`."""

    def __init__(
        self,
        storage: Storage,
        path: Path,
        history: HistoryLog,
        sums: LatestSums,
        replica: Replica,
        applier: Applier,
        healer: Healer,
        reclaim: Reclaim,
        pins: Callable[[], Pins],
        telling: Telling,
        utc_ns: Callable[[], int],
        read_back: Callable[[str], None],
        ended: Callable[[], None],
    ) -> None:
        """`read_back` is told of each disk of which a scrub that `start_over` has begun read all
        of the image, and `ended` when a whole one has; with what was found on record."""
        self._read_back = read_back
        self._ended = ended
        self._storage = storage
        self._path = path
        self._history = history
        self._sums = sums
        self._applier = applier
        self._healer = healer
        self._telling = telling
        self._utc_ns = utc_ns
        self._saved_at = 0
        self._segment_bytes = 0
        self.is_due = False
        """A whole one is to be made before images are believed, and has not ended."""
        self._findings = Findings(history, applier, telling)
        self._of_replica = ReplicaCheck(sums, replica, healer, self._findings)
        self._of_history = HistoryCheck(
            storage,
            telling.group,
            history,
            sums,
            healer,
            self._findings,
            self._disks,
        )
        self._of_images = ImageCheck(
            history, sums, sums.past, healer, self._findings, reclaim, self._disks, pins
        )

    def _disks(self) -> list[Disk]:
        return list(self._applier.applied.disks.values())

    @property
    def state(self) -> ScrubState:
        return self._findings.state

    def open(self) -> None:
        """What is known of earlier ones. A file that cannot be read is as good as none."""
        self._findings.state = load_state(self._storage, self._path)

    def start_over(self) -> None:
        """From the first block, whatever was under way. It counts as running from here on."""
        self._findings.state = self.state.anew(self._utc_ns())
        self.is_due = True

    # -- apply lane

    def begin(self) -> None:
        """A new one, or on with the one that was interrupted."""
        self._of_replica.forget()
        self._of_images.start()
        if not self.state.is_running:
            self._findings.state = self.state.anew(self._utc_ns())
            self._base_findings()
            self._save()

    def check_may_be_cancelled(self) -> None:
        """Raises OwnedError for one that has to come to its end. Any thread."""
        if self.is_due:
            raise OwnedError(
                f"the scrub of group {self._telling.group!r} cannot be cancelled: what its images"
                " hold is not believed before it has ended",
                hint="`replicator scrub --rate` makes it slower, or faster",
            )

    def cancel(self) -> None:
        """Gives up the one under way."""
        if self.state.is_running:
            self.state.cancel(self._utc_ns())
            self._of_images.end()
            self._save()

    @property
    def read_bytes(self) -> int:
        """What was really read, since this process started: holes are gone over without."""
        return self._of_replica.read_bytes + self._segment_bytes

    @property
    def total_bytes(self) -> int:
        """About what there is to read. Any thread."""
        disks = list(self._applier.applied.disks.values())
        return sum(disk.size_bytes for disk in disks) + self._history.segment_set.used_bytes

    @property
    def is_ready(self) -> bool:
        """Whether content and sums are of one moment. Else a batch has to be applied first."""
        return not self._applier.has_pending and not self._applier.is_rolling_back

    def step(self) -> Segment | None:
        """Some of what is left; or returns the segment that is to be read next. Raises OSError."""
        assert self.is_ready
        disk = self._disk_at(self.state.slot)
        if disk is not None:
            if self._of_replica.get_ready(disk, self.state.block):
                self._step_replica(disk)
            return None
        segment = self._segment_from(self.state.position)
        if segment is None:
            self._finish()
        elif not self._of_images.get_ready(segment):
            return None
        elif not segment.sealed:
            self.take_segment(segment, self.read_segment(segment))
        else:
            return segment
        return None

    def _disk_at(self, slot: int) -> Disk | None:
        disks = sorted(self._applier.applied.disks.values(), key=lambda each: each.slot)
        disk = next((each for each in disks if each.slot >= slot), None)
        if disk is not None and disk.slot > slot:
            self.state.slot, self.state.block = disk.slot, 0
        return disk

    def _step_replica(self, disk: Disk) -> None:
        state, end = self.state, -(-disk.size_bytes // BLOCK_BYTES)
        start = state.block
        stop = start
        if start < end:
            stretch = self._of_replica.stretch(disk, start, end)
            stop = stretch.stop
            look = self._of_replica.judge if stretch.is_hole else self._of_replica.check
            look(disk, start, stop)
            done = min(stop * BLOCK_BYTES, disk.size_bytes) - start * BLOCK_BYTES
            state.replica_bytes += done
        state.block = stop
        if stop >= end:
            state.slot, state.block = disk.slot + 1, 0
            if self.is_due:
                self._read_back(disk.name)
        self._save_now_and_then()

    # -- the history

    def _segment_from(self, position: int) -> Segment | None:
        """The next one to be read, in the order of their positions."""
        for segment in self._history.segment_set.sealed:
            if segment.first >= position:
                return segment
        newest = self._history.segment_set.newest
        return newest if newest is not None and newest.first >= position else None

    def read_segment(self, segment: Segment) -> SegmentReading:
        """What is wrong with the file, and what its images hold. Any thread for a sealed one."""
        return SegmentReading(self._of_history.read(segment), self._of_images.hashes(segment))

    def take_segment(self, segment: Segment, reading: SegmentReading) -> None:
        """In the apply lane. Raises OSError."""
        assert self.is_ready
        if self._of_history.is_there(segment):
            self._of_history.take(segment, reading.faults)
            self._of_images.take(segment, reading.hashes)
        self.state.position = segment.first + 1
        self.state.history_bytes += segment.size_bytes
        self._segment_bytes += segment.size_bytes
        self._save_now_and_then()

    # -- findings

    def _base_findings(self) -> None:
        for error in self._sums.base_damage:
            self._findings.add(Bad("sums", error.message.split(":")[0], 0, problem=error.message))

    def _finish(self) -> None:
        damage = self._findings.damage
        self._findings.put_on_record(self._healer.without_readable(damage))
        self.state.end(self._utc_ns())
        self._of_images.end()
        self.is_due = False
        self._ended()
        self._save()
        self._telling.event(
            "scrub.done", bad=self.state.errors, left=self.state.left, bytes=self.state.done_bytes
        )

    def _save_now_and_then(self) -> None:
        if self.read_bytes - self._saved_at >= SAVED_EVERY_BYTES:
            self._save()

    def _save(self) -> None:
        save_state(self._storage, self._path, self.state)
        self._saved_at = self.read_bytes
