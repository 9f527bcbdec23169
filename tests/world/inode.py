# SPDX-License-Identifier: Apache-2.0
"""What a simulated file is made of, and what a power cut leaves of it. No I/O.

A file's content is pages; a page that is absent is a hole. Between two syncs the versions of each
page that was written are kept, the synced one first, and so are the file's sizes. `tear` makes
of these one state that a real disk may come back with (the fault model is in tests.world.storage).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

PAGE_BYTES = 4096
SECTOR_BYTES = 512
assert PAGE_BYTES % SECTOR_BYTES == 0

# Versions of a page that are kept between two syncs: the synced one and the latest few.
_VERSIONS_MAX = 4
_STALE_ONE_IN = 8
UNLIMITED_BYTES = 1 << 50


@dataclass(slots=True)
class Volume:
    """A filesystem of its own, mounted at `path`."""

    path: Path
    capacity_bytes: int = UNLIMITED_BYTES
    volatile: bool = False
    used_pages: int = field(default=0, init=False)

    def room_pages(self) -> int:
        return self.capacity_bytes // PAGE_BYTES - self.used_pages


_numbers = count(1)
_ticks = count(1)
"""What its clock shows: each change of a file comes at a time of its own."""


class Inode:
    """A file, whatever it is called. `pages` is what a reader sees; `unsynced` holds, for each
    page written since the last sync, its versions before now, the synced one first; `medium` what
    the disk holds of clean pages that rotted in the cache alone."""

    __slots__ = (
        "changed",
        "doomed",
        "handles",
        "links",
        "made",
        "medium",
        "number",
        "pages",
        "size",
        "sizes",
        "unsynced",
        "volume",
        "written",
    )

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.number = next(_numbers)
        self.written = self.changed = self.made = next(_ticks)
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self.sizes = [0]  # since the last sync, the synced one first
        self.unsynced: dict[int, list[bytes | None]] = {}
        self.doomed: dict[int, list[bytes | None]] = {}  # dropped by a datasync that failed
        self.medium: dict[int, bytes] = {}
        self.links = 0
        self.handles = 0

    def touch(self, number: int) -> None:
        """Before page `number` changes: remembers what it was."""
        self.medium.pop(number, None)
        self.written = self.changed = next(_ticks)
        if self.volume.volatile:
            return
        page = self.pages.get(number)
        content = None if page is None else bytes(page)
        versions = self.unsynced.get(number)
        if versions is None:
            self.unsynced[number] = self.doomed.pop(number, []) or [content]
        elif len(versions) < _VERSIONS_MAX:
            versions.append(content)
        else:
            versions[-1] = content

    def resize(self, size: int) -> None:
        if size != self.size:
            self.size = size
            self.sizes.append(size)
            if len(self.sizes) > _VERSIONS_MAX:
                del self.sizes[1]

    def drop_page(self, number: int) -> None:
        if number in self.pages:
            self.touch(number)
            del self.pages[number]
            self.volume.used_pages -= 1

    def zero(self, start: int, end: int) -> None:
        """Zeroes [start, end): whole pages vanish, parts are cleared."""
        first, last = start // PAGE_BYTES, (end - 1) // PAGE_BYTES
        wanted: Iterable[int] = range(first, last + 1)
        if last - first > len(self.pages):
            wanted = [number for number in self.pages if first <= number <= last]
        for number in list(wanted):
            page = self.pages.get(number)
            if page is None:
                continue
            at = number * PAGE_BYTES
            low, high = max(start - at, 0), min(end - at, PAGE_BYTES)
            if high - low == PAGE_BYTES:
                self.drop_page(number)
            else:
                self.touch(number)
                page[low:high] = bytes(high - low)

    def drop_cache(self, start: int, end: int) -> None:
        """Clean pages within are read from the disk again."""
        for number in range(start // PAGE_BYTES, -(-end // PAGE_BYTES)):
            if number in self.medium:
                self.pages[number] = bytearray(self.medium.pop(number))

    def settle(self) -> None:
        """The disk has it all."""
        self.unsynced.clear()
        self.sizes = [self.size]

    def condemn(self) -> None:
        """A sync failed: what was dirty is not on the disk, and no later sync will write it."""
        for number, versions in self.unsynced.items():
            self.doomed.setdefault(number, versions)
        self.unsynced.clear()

    def tear(self, rng: Random, stale: list[bytes]) -> None:
        """Lets any subset of what the file has not synced survive."""
        self.drop_cache(0, self.size)
        self.written = self.changed = self.made  # no sync of ours asks for them
        for lost in (self.doomed, self.unsynced):
            for number, versions in lost.items():
                grown = number * PAGE_BYTES >= self.sizes[0]
                old = stale if grown and versions[0] is None else []
                page = _mix([*versions, self.pages.get(number)], old, rng)
                if page is None:
                    self.pages.pop(number, None)
                else:
                    self.pages[number] = page
        low, high = min(self.sizes), max(self.sizes)
        self.size = rng.choice([*self.sizes, rng.randint(low, high)])
        for number in [number for number in self.pages if number * PAGE_BYTES >= self.size]:
            del self.pages[number]
        edge = self.pages.get(self.size // PAGE_BYTES)
        if edge is not None:
            keep = self.size % PAGE_BYTES
            edge[keep:] = bytes(PAGE_BYTES - keep)
        self.doomed.clear()
        self.settle()


def _mix(
    versions: Sequence[bytes | bytearray | None], stale: list[bytes], rng: Random
) -> bytearray | None:
    """A page whose sectors are each of one of the versions."""
    chosen = [rng.choice(versions) for _ in range(PAGE_BYTES // SECTOR_BYTES)]
    if all(version is None for version in chosen):
        return None
    nothing = bytes(PAGE_BYTES)
    if stale and rng.randrange(_STALE_ONE_IN) == 0:
        nothing = rng.choice(stale)
    mixed = bytearray()
    for at, version in zip(range(0, PAGE_BYTES, SECTOR_BYTES), chosen, strict=True):
        mixed += (nothing if version is None else version)[at : at + SECTOR_BYTES]
    return mixed
