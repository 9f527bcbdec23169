# SPDX-License-Identifier: Apache-2.0
"""Where the next segment goes: memory while there is room, then disk, then nowhere.

    SPOOL_MEMORY_DIR/GROUP/STREAM/…seg     SPOOL_DISK_DIR/GROUP/STREAM/…seg

A *claim* is the room of one segment: what it may grow to. A tier's use is what its files take, as
the filesystem counts them, plus what open claims may still grow by. It is counted anew for each
claim, since the agent unlinks and moves segments; nobody has to tell the splitter.

Invariant: files + outstanding claims ≤ limit, as long as each segment stays within its claim.
Records of the splitter's own (cuts, sync-begin …) may go beyond it: they are few and small, and
must not fail for want of a new segment. A segment gets less than the usual size when that is all
that is left and the batch fits.

Concurrency: a lock for each tier, since claims on disk are made in the groups' lanes. The event
loop makes claims on memory alone and so never waits for a disk here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from journal.segment import HEADER_BYTES
from journal.spool import used_bytes
from replicator.base.errors import NoSpaceError
from replicator.base.names import is_name
from replicator.base.storage import Storage
from replicator.base.units import KIB, MIB, format_size

SEGMENT_BYTES_MAX: Final = 64 * MIB
SEGMENT_BYTES_MIN: Final = 256 * KIB
SEGMENT_SHARE: Final = 16
"""A tier holds at least so many segments, so that room comes back in small steps."""

SEGMENT_BYTES_LEAST: Final = 64 * KIB
"""What is left of a tier is used for a last, short segment down to this."""


def segment_bytes(limit_bytes: int) -> int:
    """The usual size of a segment in a tier of that limit."""
    return max(SEGMENT_BYTES_MIN, min(SEGMENT_BYTES_MAX, limit_bytes // SEGMENT_SHARE))


@dataclass(slots=True)
class Claim:
    """Room for one segment, its header included. `used_bytes`, of records, is kept up by the
    stream that has it."""

    tier: Tier
    directory: Path
    bytes: int
    used_bytes: int = 0

    def fits(self, more: int) -> bool:
        return HEADER_BYTES + self.used_bytes + more <= self.bytes


class Tier:
    """One spool directory. `sticky`: an append there may wait for a device, so it is made in a
    lane, never in the event loop."""

    def __init__(
        self, storage: Storage, directory: Path, limit_bytes: int, *, sticky: bool
    ) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._open: dict[str, Claim] = {}  # by group: the segment it appends to
        self._counted: dict[str, int] = {}
        self.directory = directory
        self.limit_bytes = limit_bytes
        self.sticky = sticky

    def claim(self, group: str, batch_bytes: int) -> Claim | None:
        """Room for the group's next segment, its first batch being that large; None if there is
        too little. What is left of the claim before it is given back."""
        needed = HEADER_BYTES + batch_bytes
        with self._lock:
            self._count()
            others = sum(
                max(0, claim.bytes - claim.used_bytes)
                for name, claim in dict(self._open).items()
                if name != group
            )
            room = self.limit_bytes - sum(self._counted.values()) - others
            size = max(segment_bytes(self.limit_bytes), needed)
            if size > room:
                size = room
            if size < max(needed, SEGMENT_BYTES_LEAST):
                return None
            made = Claim(self, self.directory / group, size)
            self._open[group] = made
            return made

    def release(self, group: str) -> None:
        """The group appends to no segment here any more. Without the lock, since the event loop
        calls this also while a lane counts files on a device that does not answer."""
        self._open.pop(group, None)

    def count(self) -> None:
        """Looks again what the files take."""
        with self._lock:
            self._count()

    def group_bytes(self, group: str) -> int:
        """As counted last."""
        return self._counted.get(group, 0)

    def _count(self) -> None:
        self._counted = {
            name: used_bytes(self._storage, self.directory / name)
            for name in self._storage.names(self.directory)
            if is_name(name)
        }


class SpoolTiers:
    """All tiers of the host, fastest first."""

    def __init__(self, memory: Tier, disk: Tier) -> None:
        self.memory = memory
        self.disk = disk

    def directories(self, group: str) -> list[Path]:
        return [self.memory.directory / group, self.disk.directory / group]

    def claim_inline(self, group: str, batch_bytes: int) -> Claim | None:
        """Room that can be used without waiting for a device; None if there is none."""
        return None if self.memory.sticky else self._claim(self.memory, group, batch_bytes)

    def claim(self, group: str, batch_bytes: int, *, skip_memory: bool = False) -> Claim:
        """Room anywhere. May wait for a device. Raises NoSpaceError: the spool is full."""
        made = None
        if not skip_memory:
            made = self._claim(self.memory, group, batch_bytes)
        if made is None:
            made = self._claim(self.disk, group, batch_bytes)
        if made is None:
            limits = f"{format_size(self.memory.limit_bytes)} in memory and "
            limits += f"{format_size(self.disk.limit_bytes)} on disk"
            raise NoSpaceError(f"the spool is full ({limits})")
        return made

    def release(self, group: str) -> None:
        """The group's stream has ended."""
        self.memory.release(group)
        self.disk.release(group)

    def _claim(self, tier: Tier, group: str, batch_bytes: int) -> Claim | None:
        made = tier.claim(group, batch_bytes)
        if made is not None:
            (self.disk if tier is self.memory else self.memory).release(group)
        return made
