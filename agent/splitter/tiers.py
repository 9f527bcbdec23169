# SPDX-License-Identifier: Apache-2.0
"""Where the next segment of the spool goes: tmpfs first, then disk, then nowhere.

The budgets are for the whole splitter. What is used is counted from the files whenever a segment
is opened, since the agent frees segments by unlinking them and tells nobody. A segment that is
appended to counts as full, so tmpfs never takes more than `spool_memory` and the segments of other
groups never find it taken in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from journal.spool import used_bytes
from replicator.base.errors import NoSpaceError
from replicator.base.storage import Storage
from replicator.base.units import MIB, format_size

SEGMENT_BYTES_MAX = 32 * MIB
SEGMENT_BYTES_MIN = 1 * MIB
# So many segments make up the memory tier: freeing goes by whole segments.
SEGMENTS_IN_MEMORY = 16


@dataclass(frozen=True, slots=True)
class Tier:
    """One directory with its budget. `may_stick`: an append there can wait for a disk."""

    directory: Path
    budget_bytes: int
    may_stick: bool


class Tiers:
    """Chooses a tier for each new segment."""

    def __init__(self, storage: Storage, memory: Tier, disk: Tier, groups: Iterable[str]) -> None:
        self._storage = storage
        self.memory = memory
        self.disk = disk
        self._groups = tuple(groups)
        self._open: dict[str, Tier] = {}  # by group: where its segment of now lies
        wanted = memory.budget_bytes // SEGMENTS_IN_MEMORY
        self.segment_bytes = max(SEGMENT_BYTES_MIN, min(SEGMENT_BYTES_MAX, wanted))

    def place(self, group: str, first_bytes: int) -> Tier:
        """The tier for a new segment of `group` whose first append has `first_bytes`.

        Raises NoSpaceError when both are used up.
        """
        self._open.pop(group, None)
        needed = max(self.segment_bytes, first_bytes)
        for tier in (self.memory, self.disk):
            if self._taken(tier) + needed <= tier.budget_bytes:
                self._open[group] = tier
                return tier
        sizes = " and ".join(format_size(tier.budget_bytes) for tier in (self.memory, self.disk))
        raise NoSpaceError(f"the spool is full ({sizes} are used up)")

    def release(self, group: str) -> None:
        """The group has no segment open any more."""
        self._open.pop(group, None)

    def used(self, tier: Tier, group: str) -> int:
        """Bytes that the group's streams take in a tier now."""
        return used_bytes(self._storage, tier.directory / group)

    def directories(self, group: str) -> list[Path]:
        return [self.memory.directory / group, self.disk.directory / group]

    def _taken(self, tier: Tier) -> int:
        taken = sum(self.used(tier, group) for group in self._groups)
        growing = sum(self.segment_bytes for open_in in self._open.values() if open_in is tier)
        return taken + growing
