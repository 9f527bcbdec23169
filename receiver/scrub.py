# SPDX-License-Identifier: Apache-2.0
"""Reading everything back: the replica against the sums of what it must hold, the history against
its own checksums and digests. What is wrong is named, put on record, and healed where a copy is.

    replica     each block that has data or a sum, disk by disk, a few MiB a step
    history     each segment whole: records, chain, index, digest

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

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from xxhash import xxh3_64_intdigest

from journal.record import HEADER_BYTES
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.spool import SegmentFile
from receiver import damage as rules
from receiver.apply import Applier
from receiver.healing import Healer, zero_sum
from receiver.history.batches import Batch, Segment
from receiver.history.bodies import UNKNOWN_SUM, DamagedBlocks
from receiver.history.images import BLOCK_BYTES, U64, Bools, Image, block_key
from receiver.history.log import HistoryLog
from receiver.history.sums import LatestSums, SumWindow
from receiver.offline.places import HistoryPlace
from receiver.offline.verify import HistoryVerification
from receiver.offline.walk import Fault
from receiver.replica import Replica
from receiver.scrub_state import Bad, ScrubState, load_state, save_state
from receiver.sync_state import Disk
from receiver.telling import Telling
from replicator.base.errors import DamageError
from replicator.base.storage import Storage
from replicator.base.units import MIB

STEP_BLOCKS = 4 * MIB // BLOCK_BYTES
WINDOW_BLOCKS = 1 << 18
"""Whose sums are in memory at once: 17 bytes each."""
SAVED_EVERY_BYTES = 1024 * MIB
BAD_MAX = 1000
"""Findings kept; of more it is only said that there are some."""
READ_ERRORS = (errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ)


@dataclass(slots=True)
class _Chunk:
    """What was read of some blocks: the sum of each, and which could not be read, or were never
    written and hold something."""

    sums: U64
    has_content: Bools
    unreadable: set[int] = field(default_factory=set)


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
        telling: Telling,
        utc_ns: Callable[[], int],
    ) -> None:
        self._storage = storage
        self._path = path
        self._history = history
        self._sums = sums
        self._replica = replica
        self._applier = applier
        self._healer = healer
        self._telling = telling
        self._utc_ns = utc_ns
        self._window: SumWindow | None = None
        self._saved_at = 0
        self.state = ScrubState()

    def open(self) -> None:
        """What is known of earlier ones. A file that cannot be read is as good as none."""
        self.state = load_state(self._storage, self._path)

    # -- apply lane

    def begin(self) -> None:
        """A new one, or on with the one that was interrupted."""
        self._window = None
        if not self.state.is_running:
            self.state = self.state.anew(self._utc_ns())
            self._base_findings()
            self._save()

    @property
    def total_bytes(self) -> int:
        """About what there is to read. Any thread."""
        disks = list(self._applier.applied.disks.values())
        return sum(disk.size_bytes for disk in disks) + self._history.used_bytes

    @property
    def is_ready(self) -> bool:
        """Whether content and sums are of one moment. Else a batch has to be applied first."""
        return not self._applier.has_pending and not self._applier.is_rolling_back

    def step(self) -> Segment | None:
        """Some of what is left; or returns the segment that is to be read next. Raises OSError."""
        assert self.is_ready
        disk = self._disk_at(self.state.slot)
        if disk is not None and self._is_window_used_up(disk) and self._sums.gather():
            return None
        if disk is not None:
            self._step_replica(disk)
            return None
        segment = self._segment_from(self.state.position)
        if segment is None:
            self._finish()
        elif not segment.sealed:
            self.take_segment(segment, self.read_segment(segment))
        else:
            return segment
        return None

    def _is_window_used_up(self, disk: Disk) -> bool:
        window, key = self._window, block_key(disk.slot, self.state.block)
        return window is None or not window.start <= key < window.end

    def _disk_at(self, slot: int) -> Disk | None:
        disks = sorted(self._applier.applied.disks.values(), key=lambda each: each.slot)
        disk = next((each for each in disks if each.slot >= slot), None)
        if disk is not None and disk.slot > slot:
            self.state.slot, self.state.block = disk.slot, 0
        return disk

    def _step_replica(self, disk: Disk) -> None:
        state, end = self.state, -(-disk.size_bytes // BLOCK_BYTES)
        start = state.block
        stop = min(start + STEP_BLOCKS, end)
        if start < stop:
            self._check_blocks(disk, start, stop)
            done = min(stop * BLOCK_BYTES, disk.size_bytes) - start * BLOCK_BYTES
            state.replica_bytes += done
        state.block = stop
        if stop >= end:
            state.slot, state.block = disk.slot + 1, 0
        self._save_now_and_then()

    def _check_blocks(self, disk: Disk, start: int, stop: int) -> None:
        window = self._window_of(disk, start, stop)
        chunk = self._read(disk, start, stop)
        low = block_key(disk.slot, start) - window.start
        span = slice(low, low + stop - start)
        changed, wanted = window.changed[span], window.sums[span]
        is_known = changed & (wanted != np.uint64(UNKNOWN_SUM))
        is_bad = is_known & (chunk.sums != wanted)
        strange = ~changed & chunk.has_content
        is_good = is_known & ~is_bad
        if window.is_whole and disk.is_made_here:
            is_good |= ~changed & ~strange
            is_bad |= strange
            strange[:] = False
        for at in chunk.unreadable:
            is_bad[at], is_good[at] = True, False
        unverified = strange | (changed & ~is_known & ~is_bad)
        self.state.unverified_bytes += int(unverified.sum()) * BLOCK_BYTES
        self._acquit(disk, start, is_good)
        places = np.flatnonzero(is_bad)
        if len(places):
            self._found_blocks(disk, window, start, places.astype(np.uint64))

    def _window_of(self, disk: Disk, start: int, stop: int) -> SumWindow:
        low, high = block_key(disk.slot, start), block_key(disk.slot, stop)
        window = self._window
        if window is None or low < window.start or window.end < high:
            last = block_key(disk.slot, -(-disk.size_bytes // BLOCK_BYTES))
            window = self._sums.window(low, min(low + WINDOW_BLOCKS, last))
            self._window = window
            for bad in window.bad:
                found = Bad("sums", str(bad.path), bad.offset, problem="sums fail their checksum")
                if found not in self.state.bad:
                    self._add(found)
        self._sums.follow(window)
        return window

    def _read(self, disk: Disk, start: int, stop: int) -> _Chunk:
        length = min(stop * BLOCK_BYTES, disk.size_bytes) - start * BLOCK_BYTES
        unreadable: set[int] = set()
        try:
            data = self._replica.read(disk.name, start * BLOCK_BYTES, length)
        except OSError as error:
            if error.errno not in READ_ERRORS:
                raise
            data = self._read_singly(disk, start, stop, unreadable)
        blocks = [data[at : at + BLOCK_BYTES] for at in range(0, length, BLOCK_BYTES)]
        sums = np.array([xxh3_64_intdigest(block) for block in blocks], dtype=np.uint64)
        has_content = np.array([any(block) for block in blocks], dtype=np.bool_)
        return _Chunk(sums, has_content, unreadable)

    def _read_singly(self, disk: Disk, start: int, stop: int, unreadable: set[int]) -> bytes:
        parts: list[bytes] = []
        for block in range(start, stop):
            length = min(BLOCK_BYTES, disk.size_bytes - block * BLOCK_BYTES)
            try:
                parts.append(self._replica.read(disk.name, block * BLOCK_BYTES, length))
            except OSError as error:
                if error.errno not in READ_ERRORS:
                    raise
                parts.append(bytes(length))
                unreadable.add(block - start)
        return b"".join(parts)

    def _acquit(self, disk: Disk, start: int, is_good: Bools) -> None:
        """What was on record as damaged in the replica, and is right."""
        damage = self._applier.applied.damage
        if not rules.in_replica(damage):
            return
        keys = np.flatnonzero(is_good).astype(np.uint64) + np.uint64(block_key(disk.slot, start))
        self._put_on_record(rules.healed(damage, keys, replaced=0))

    def _found_blocks(self, disk: Disk, window: SumWindow, start: int, places: U64) -> None:
        first = np.uint64(block_key(disk.slot, start))
        keys = places + first
        at = (keys - np.uint64(window.start)).astype(np.int64)
        writers, sums = self._sums.latest(keys)[1], window.sums[at].copy()
        for place in np.flatnonzero(~window.changed[at]).tolist():
            sums[place] = zero_sum(disk, int(keys[place]))
        more = [
            DamagedBlocks(
                disk.slot, int(key - np.uint64(block_key(disk.slot, 0))), 1, int(writer), 0
            )
            for key, writer in zip(keys.tolist(), writers.tolist(), strict=True)
        ]
        self._put_on_record(rules.added(self._applier.applied.damage, more))
        healed = self._healer.heal_replica(disk, keys, sums)
        named = [
            (each, bool(is_healed)) for each, is_healed in zip(more, healed.tolist(), strict=True)
        ]
        for each, is_healed in _runs(named):
            self._add(
                Bad(
                    "replica",
                    str(self._replica.path(disk.name)),
                    each.block * BLOCK_BYTES,
                    disk.name,
                    each.block * BLOCK_BYTES,
                    each.blocks * BLOCK_BYTES,
                    self._points_of([each]),
                    is_healed,
                    "content is not what was written last",
                )
            )
        if healed.any():
            self._put_on_record(
                rules.healed(self._applier.applied.damage, keys[healed], replaced=0)
            )

    # -- the history

    def _segment_from(self, position: int) -> Segment | None:
        """The next one to be read, in the order of their positions."""
        for segment in self._history.segments:
            if segment.first >= position:
                return segment
        newest = self._history.newest_segment
        return newest if newest is not None and newest.first >= position else None

    def read_segment(self, segment: Segment) -> list[Fault]:
        """What is wrong with the file. Any thread for a sealed one."""
        place = _OneSegment(
            self._telling.group, segment.path.parent.parent, self._history.stream, None, segment
        )
        verification = HistoryVerification(self._storage, place)
        for _ in verification.run():
            pass
        return verification.faults

    def take_segment(self, segment: Segment, faults: Sequence[Fault]) -> None:
        """In the apply lane."""
        self.state.position = segment.first + 1
        self.state.history_bytes += segment.size_bytes
        is_there = any(
            (each.first, each.digest, each.data_end)
            == (segment.first, segment.digest, segment.data_end)
            for each in self._history.segments
        )
        if is_there or not segment.sealed:
            # what is lost explains what else does not fit: the digest, the order of what is left
            for fault in [fault for fault in faults if fault.lost_bytes] or faults:
                self._found_fault(segment, fault)
        self._save_now_and_then()

    def _found_fault(self, segment: Segment, fault: Fault) -> None:
        offset = fault.offset or 0
        position = segment.first + offset - SEGMENT_HEADER_BYTES
        if fault.offset is None:
            position = segment.end
        batch = next(
            (each for each in self._history.batches if each.begin <= position < each.end), None
        )
        image = None if batch is None else self._image_at(batch, position)
        if batch is None or image is None:
            self._found_record(fault, offset, position)
            return
        disks = {disk.slot: disk.name for disk in self._applier.applied.disks.values()}
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
            bad.points = self._points_of(lost)
            self._put_on_record(rules.added(self._applier.applied.damage, lost))
            if self._healer.heal_image(batch, image):
                bad.healed = True
                first = block_key(image.slot, image.block)
                keys = np.arange(first, first + image.blocks, dtype=np.uint64)
                self._put_on_record(
                    rules.healed(self._applier.applied.damage, keys, replaced=batch.number)
                )
        self._add(bad)

    def _lost_with(self, batch: Batch, image: Image) -> list[DamagedBlocks]:
        """What cannot be had without this image: nothing, if only its header is bad, which is not
        needed to read it."""
        try:
            self._history.read_image(image)
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
        table = self._history.table(batch)
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
            for batch in self._history.batches
            if batch.point is not None and batch.begin < max(position, 1)
        ]
        self._add(Bad("history", str(fault.file), offset, points=points, problem=fault.problem))

    # -- findings

    def _base_findings(self) -> None:
        for error in self._sums.base_damage:
            self._add(Bad("sums", error.message.split(":")[0], 0, problem=error.message))

    def _points_of(self, blocks: Iterable[DamagedBlocks]) -> list[int]:
        dropped = self._history.dropped
        found = rules.damaged_points(tuple(blocks), self._history.batches)
        return [sequence for sequence in found if sequence not in dropped]

    def _put_on_record(self, damage: rules.Damage) -> None:
        if damage != self._applier.applied.damage:
            self._applier.state_damage(damage)

    def _add(self, bad: Bad) -> None:
        self._telling.event(
            "scrub.healed" if bad.healed else "scrub.bad",
            where=bad.where,
            file=bad.file,
            offset=bad.offset,
            length=bad.length,
            points=len(bad.points),
        )
        self.state.errors += 1
        if len(self.state.bad) < BAD_MAX:
            self.state.bad.append(bad)

    def _finish(self) -> None:
        damage = self._applier.applied.damage
        self._put_on_record(self._healer.without_readable(damage))
        self.state.end(self._utc_ns())
        self._sums.drop_gathered()
        self._save()
        self._telling.event(
            "scrub.done", bad=len(self.state.bad), left=self.state.left, bytes=self.state.done_bytes
        )

    def _save_now_and_then(self) -> None:
        if self.state.done_bytes - self._saved_at >= SAVED_EVERY_BYTES:
            self._save()

    def _save(self) -> None:
        save_state(self._storage, self._path, self.state)
        self._saved_at = self.state.done_bytes


@dataclass(frozen=True, slots=True)
class _OneSegment(HistoryPlace):
    """A history of which only this segment is looked at."""

    segment: Segment | None = None

    def segments(self, storage: Storage) -> list[SegmentFile]:
        assert self.segment is not None
        return [SegmentFile(self.segment.first, self.segment.path)]


def _runs(
    blocks: Iterable[tuple[DamagedBlocks, bool]],
) -> Iterator[tuple[DamagedBlocks, bool]]:
    """Neighbours of one writer and one outcome together."""
    waiting: tuple[DamagedBlocks, bool] | None = None
    for each, is_healed in blocks:
        if waiting is not None:
            last, was_healed = waiting
            if last.block + last.blocks == each.block and (last.written, was_healed) == (
                each.written,
                is_healed,
            ):
                more = last.blocks + each.blocks
                last = DamagedBlocks(last.slot, last.block, more, last.written, last.replaced)
                waiting = last, was_healed
                continue
            yield waiting
        waiting = each, is_healed
    if waiting is not None:
        yield waiting
