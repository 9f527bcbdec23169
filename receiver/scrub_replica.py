# SPDX-License-Identifier: Apache-2.0
"""Checking blocks of the replica against the sums of what they must hold.

A block is bad if its sum is another; if it cannot be read; or if no batch ever wrote it, and it
holds something all the same, on an image that was made here; and if it still is when it is read
again past the page cache. One that has no sum, and may hold what
it did before the group was, is unverified.

Concurrency: apply thread, with no batch half done, so content and sums are of one moment. What is
found is on record, durable, before anything is healed; and off it only when it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from xxhash import xxh3_64_intdigest

from receiver import damage as rules
from receiver.healing import Healer, zero_sum
from receiver.history.bodies import UNKNOWN_SUM, DamagedBlocks
from receiver.history.images import BLOCK_BYTES, U64, Bools, block_key
from receiver.history.sums import LatestSums, SumWindow
from receiver.replica import Replica
from receiver.scrub_findings import Findings
from receiver.scrub_state import Bad
from receiver.sync_state import Disk
from replicator.base.storage import READ_ERRORS

WINDOW_BLOCKS = 1 << 18
"""Whose sums are in memory at once: 9 bytes each."""


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

    def forget(self) -> None:
        self._window = None

    def get_ready(self, disk: Disk, block: int) -> bool:
        """False: this was a step of its own, and there may be more. Raises OSError."""
        window, key = self._window, block_key(disk.slot, block)
        if window is not None and window.start <= key < window.end:
            return True
        return not self._sums.gather()

    def check(self, disk: Disk, start: int, stop: int) -> None:
        """Blocks [start, stop) of the disk. Raises OSError."""
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
        self._findings.state.unverified_bytes += int(unverified.sum()) * BLOCK_BYTES
        self._acquit(disk, start, is_good)
        places = np.flatnonzero(is_bad)
        if len(places):
            self._read_again(disk, start, wanted, changed, is_bad)
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
                if found not in self._findings.state.bad:
                    self._findings.add(found)
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

    def _read_again(
        self, disk: Disk, start: int, wanted: U64, changed: Bools, is_bad: Bools
    ) -> None:
        """Past the page cache: a good re-read is no damage."""
        for at in np.flatnonzero(is_bad).tolist():
            key = block_key(disk.slot, start + at)
            right = int(wanted[at]) if changed[at] else zero_sum(disk, key)
            content = self._healer.read_again(disk, start + at)
            is_right = right in (UNKNOWN_SUM, xxh3_64_intdigest(content or b""))
            is_bad[at] = content is None or not is_right

    def _acquit(self, disk: Disk, start: int, is_good: Bools) -> None:
        """What was on record as damaged in the replica, and is right."""
        damage = self._findings.damage
        if not rules.in_replica(damage):
            return
        keys = np.flatnonzero(is_good).astype(np.uint64) + np.uint64(block_key(disk.slot, start))
        self._findings.put_on_record(rules.healed(damage, keys, replaced=0))

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
