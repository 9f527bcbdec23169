# SPDX-License-Identifier: Apache-2.0
"""A source that remembers: every write that was answered, in order, and the disks they make.

It is the oracle of the process tests. The writes go one after another over all disks, so the order
of answers is the order of receipt, and every recovery point must equal the disks after some prefix
of them: `prefixes_equal` finds it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.peers.nbd_client import NbdClient

SECTOR = 512


@dataclass
class Source:
    """Random writes and zeroes to all disks of a group through the splitter."""

    uris: Mapping[str, str]
    disk_bytes: int
    seed: int = 1
    writes: list[tuple[str, int, bytes]] = field(default_factory=list)
    clients: dict[str, NbdClient] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def connect(self) -> None:
        for disk, uri in self.uris.items():
            self.clients[disk] = await NbdClient.connect(uri)

    async def disconnect(self) -> None:
        for client in self.clients.values():
            await client.disconnect()
        self.clients.clear()

    def abandon(self) -> None:
        """Lets go of connections whose far end is dead."""
        for client in self.clients.values():
            client.abort()
        self.clients.clear()

    async def write(self, count: int) -> None:
        """`count` writes, each answered before the next. What was answered is remembered."""
        for _ in range(count):
            disk = self._random.choice(sorted(self.uris))
            length = SECTOR * self._random.choice((1, 2, 8, 8, 8, 16, 64))
            offset = SECTOR * self._random.randrange((self.disk_bytes - length) // SECTOR + 1)
            if self._random.random() < 0.15:
                data = bytes(length)
                await self.clients[disk].write_zeroes(offset=offset, length=length)
            else:
                data = self._random.randbytes(length)
                await self.clients[disk].pwrite(data, offset=offset)
            self.writes.append((disk, offset, data))

    def image(self, count: int | None = None) -> dict[str, bytes]:
        """The disks after the first `count` writes, or after all."""
        disks = {disk: bytearray(self.disk_bytes) for disk in self.uris}
        for disk, offset, data in self.writes[:count]:
            disks[disk][offset : offset + len(data)] = data
        return {disk: bytes(content) for disk, content in disks.items()}

    def prefix_of(self, images: Mapping[str, bytes]) -> int | None:
        """How many writes make these disks; None if no prefix does."""
        disks = {disk: bytearray(self.disk_bytes) for disk in self.uris}
        if all(disks[disk] == images[disk] for disk in disks):
            return 0
        for count, (disk, offset, data) in enumerate(self.writes, start=1):
            disks[disk][offset : offset + len(data)] = data
            if images[disk][offset : offset + len(data)] == data and all(
                disks[name] == images[name] for name in disks
            ):
                return count
        return None
