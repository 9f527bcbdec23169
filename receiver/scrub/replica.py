# SPDX-License-Identifier: Apache-2.0
"""Checking blocks of the replica against the sums of what they must hold.

A block is bad if its sum is another; if it cannot be read; or if no batch ever wrote it, and it
holds something all the same, on an image that was made here; and if it still is when it is read
again past the page cache. Holes are not read, but judged: a hole, or a place behind the end of a
file that has become short, is bad where its sum on record is not that of zeroes. One that has no
sum, and may hold what it did before the group was, is unverified.

Concurrency: apply thread, with no batch half done, so content and sums are of one moment. What is
found is on record, durable, before anything is healed; and off it only when it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from xxhash import xxh3_64_intdigest

from receiver.blocks.replica import Replica
from receiver.blocks.zeroes import zero_sums
from receiver.damage import damage as rules
from receiver.damage.healing import Healer
from receiver.history.bodies import UNKNOWN_SUM, DamagedBlocks
from receiver.history.images import BLOCK_BYTES, U64, Bools, block_key, block_keys
from receiver.history.state import Disk
from receiver.history.sums.runs import BadRange
from receiver.history.sums.sums import LatestSums, SumWindow
from receiver.scrub.findings import Findings
from receiver.scrub.state import Bad
from replicator.base.storage import READ_ERRORS
from replicator.base.units import GIB, MIB

WINDOW_BLOCKS = 1 << 18
"""Whose sums are in memory at once: 9 bytes each."""
STEP_BLOCKS = 4 * MIB // BLOCK_BYTES
HOLE_BLOCKS = 4 * GIB // BLOCK_BYTES
"""What a step reads, and what it judges without reading, at most."""
GAP_BLOCKS = 16
"""Holes up to this are read with what lies around them: a step of its own costs more."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks up to `stop` that are of one kind."""

    stop: int
    is_hole: bool


@dataclass(slots=True)
class _Chunk:
    """What was read of some blocks: the sum of each, and which could not be read, or were never
    written and hold something."""

    sums: U64
    has_content: Bools
    unreadable: set[int] = field(default_factory=set)


class ReplicaCheck:
    """See the head of this file. `get_ready` until it says that all is ready, before each `check`;
    `forget` when others may have changed the base of sums."""

    def __init__(
        self, sums: LatestSums, replica: Replica, healer: Healer, findings: Findings
    ) -> None:
        self._sums = sums
        self._replica = replica
        self._healer = healer
        self._findings = findings
        self._window: SumWindow | None = None
        self.read_bytes = 0
        """Of replicas, since this process started."""

    def forget(self) -> None:
        self._window = None

    def get_ready(self, disk: Disk, block: int) -> bool:
        """False: this was a step of its own, and there may be more. Raises OSError."""
        return not self._sums.gather()

    def stretch(self, disk: Disk, start: int, end: int) -> Stretch:
        """What comes next of the blocks [start, end): some that hold something, or neighbours that
        do not. Raises OSError."""
        file = self._replica.file(disk.name)
        limit = min(start + HOLE_BLOCKS, end)
        stop_byte = min(limit * BLOCK_BYTES, disk.size_bytes)
        ranges = file.data_ranges(start * BLOCK_BYTES, stop_byte)
        if not ranges:
            return Stretch(limit, is_hole=True)
        first, last = ranges[0][0] // BLOCK_BYTES, -(-ranges[0][1] // BLOCK_BYTES)
        if first > start:
            return Stretch(first, is_hole=True)
        for low, high in ranges[1:]:
            if low // BLOCK_BYTES > last + GAP_BLOCKS:
                break
            last = -(-high // BLOCK_BYTES)
        return Stretch(min(last, start + STEP_BLOCKS, limit), is_hole=False)

    def judge(self, disk: Disk, start: int, stop: int) -> None:
        """Blocks [start, stop) of the disk, which are a hole: what their sums say of that. Raises
        OSError."""
        low, high = block_key(disk.slot, start), block_key(disk.slot, stop)
        keys, sums, bad_ranges = self._sums.rows_within(low, high)
        self._tell_bad_sums(bad_ranges)
        is_known = sums != np.uint64(UNKNOWN_SUM)
        is_bad = is_known & (sums != zero_sums(disk, keys))
        self._findings.state.unverified_bytes += int((~is_known).sum()) * BLOCK_BYTES
        if any(rules.touched(self._findings.damage, low, high)):
            is_good = np.full(stop - start, self._sums.is_whole and disk.is_made_here)
            is_good[(keys - np.uint64(low)).astype(np.int64)] = is_known & ~is_bad
            for each in bad_ranges:
                is_good[each.start - low : each.end - low] = False
            self._acquit(disk, start, is_good)
        if is_bad.any():
            self._found_blocks(disk, keys[is_bad], sums[is_bad])

    def check(self, disk: Disk, start: int, stop: int) -> None:
        """Blocks [start, stop) of the disk, which are read. Raises OSError."""
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
        if not window.is_whole:
            strange = ~changed  # zeroes as well: what is not known to have changed may have
        unverified = strange | (changed & ~is_known & ~is_bad)
        self._findings.state.unverified_bytes += int(unverified.sum()) * BLOCK_BYTES
        self._acquit(disk, start, is_good)
        if is_bad.any():
            keys = block_keys(disk.slot, start, stop)
            right = np.where(changed, wanted, zero_sums(disk, keys))
            self._read_again(disk, start, right, is_bad)
            if is_bad.any():
                self._found_blocks(disk, keys[is_bad], right[is_bad])

    def _window_of(self, disk: Disk, start: int, stop: int) -> SumWindow:
        low, high = block_key(disk.slot, start), block_key(disk.slot, stop)
        window = self._window
        if window is None or low < window.start or window.end < high:
            last = block_key(disk.slot, -(-disk.size_bytes // BLOCK_BYTES))
            window = self._sums.window(low, min(low + WINDOW_BLOCKS, last))
            self._window = window
            self._tell_bad_sums(window.bad)
        self._sums.follow(window)
        return window

    def _tell_bad_sums(self, ranges: Iterable[BadRange]) -> None:
        for bad in ranges:
            found = Bad("sums", str(bad.path), bad.offset, problem="sums fail their checksum")
            if found not in self._findings.state.bad:
                self._findings.add(found)

    def _read(self, disk: Disk, start: int, stop: int) -> _Chunk:
        length = min(stop * BLOCK_BYTES, disk.size_bytes) - start * BLOCK_BYTES
        unreadable: set[int] = set()
        try:
            data = self._replica.file(disk.name).pread(length, start * BLOCK_BYTES)
        except OSError as error:
            if error.errno not in READ_ERRORS:
                raise
            data = self._read_singly(disk, start, stop, unreadable)
        self.read_bytes += len(data)
        data += bytes(length - len(data))  # the file may have become short
        blocks = [data[at : at + BLOCK_BYTES] for at in range(0, length, BLOCK_BYTES)]
        sums = np.array([xxh3_64_intdigest(block) for block in blocks], dtype=np.uint64)
        has_content = np.array([any(block) for block in blocks], dtype=np.bool_)
        return _Chunk(sums, has_content, unreadable)

    def _read_singly(self, disk: Disk, start: int, stop: int, unreadable: set[int]) -> bytes:
        parts: list[bytes] = []
        for block in range(start, stop):
            length = min(BLOCK_BYTES, disk.size_bytes - block * BLOCK_BYTES)
            try:
                parts.append(self._replica.file(disk.name).pread(length, block * BLOCK_BYTES))
            except OSError as error:
                if error.errno not in READ_ERRORS:
                    raise
                parts.append(bytes(length))
                unreadable.add(block - start)
        return b"".join(parts)

    def _read_again(self, disk: Disk, start: int, right: U64, is_bad: Bools) -> None:
        """Past the page cache: a good re-read is no damage."""
        for at in np.flatnonzero(is_bad).tolist():
            content = self._healer.read_again(disk, start + at)
            is_right = int(right[at]) in (UNKNOWN_SUM, xxh3_64_intdigest(content or b""))
            is_bad[at] = content is None or not is_right

    def _acquit(self, disk: Disk, start: int, is_good: Bools) -> None:
        """What was on record as damaged in the replica, and is right."""
        damage = self._findings.damage
        if not rules.in_replica(damage):
            return
        keys = np.flatnonzero(is_good).astype(np.uint64) + np.uint64(block_key(disk.slot, start))
        self._findings.put_on_record(rules.healed(damage, keys, replaced=0))

    def _found_blocks(self, disk: Disk, keys: U64, sums: U64) -> None:
        """Blocks that are bad, and the sums that they should have."""
        writers = self._sums.latest(keys)[1]
        more = [
            DamagedBlocks(
                disk.slot, int(key - np.uint64(block_key(disk.slot, 0))), 1, int(writer), 0
            )
            for key, writer in zip(keys.tolist(), writers.tolist(), strict=True)
        ]
        self._findings.put_on_record(rules.added(self._findings.damage, more))
        healed = self._healer.heal_replica(disk, keys, sums)
        named = [
            (each, bool(is_healed)) for each, is_healed in zip(more, healed.tolist(), strict=True)
        ]
        for each, is_healed in _runs(named):
            self._findings.add(
                Bad(
                    "replica",
                    str(self._replica.path(disk.name)),
                    each.block * BLOCK_BYTES,
                    disk.name,
                    each.block * BLOCK_BYTES,
                    each.blocks * BLOCK_BYTES,
                    self._findings.points_of([each]),
                    is_healed,
                    "content is not what was written last",
                )
            )
        if healed.any():
            self._findings.put_on_record(
                rules.healed(self._findings.damage, keys[healed], replaced=0)
            )


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
