# SPDX-License-Identifier: Apache-2.0
"""The external driver: whoever connects to the export is the source. No socket.

The splitter does all of it by itself: it serves the disks of the config from its start, opens the
first stream, and calls the group lost when continuity is gone. Nobody can tell from outside when
such a source has sent everything again, so after a loss the group waits for a person's `resync`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from agent.drivers.driver import Driver, KnownDisk, Look, Orders, Wake
from agent.naming.external_instance import external_instance
from agent.quiesce.freezer import Freezer
from replicator.config.agent import GroupConfig
from replicator.states.words import NO_TROUBLE, Trouble


class ExternalDriver:
    """See the head of this file."""

    def __init__(self, group: GroupConfig, orders: Orders) -> None:
        self._orders = orders
        self._group = group.name
        self._disks = tuple(
            KnownDisk(
                disk.disk_name,
                int(disk.size_bytes or 0),
                external_instance(group.name, disk.disk_name),
            )
            for disk in group.disks
        )

    @property
    def disks(self) -> tuple[KnownDisk, ...]:
        return self._disks

    @property
    def problem(self) -> str:
        return ""

    @property
    def remedy(self) -> str:
        return ""

    @property
    def is_down(self) -> bool:
        return False

    @property
    def read_back_seconds(self) -> float:
        return 0.0

    @property
    def left_out(self) -> Trouble:
        return NO_TROUBLE

    @property
    def recovery(self) -> str:
        return f"replicator resync {self._group}, then let the source write every disk again"

    @property
    def freezer(self) -> Freezer | None:
        return None

    async def step(self, look: Look) -> bool:
        return False

    async def release(self, disks: Collection[str]) -> None:
        """The splitter drops whoever is connected."""

    async def resync(self, look: Look) -> None:
        if look.group.state in ("ready", "suspended", "syncing"):
            await self._orders.close_stream("a resync was ordered")
        await self._orders.resync()


class ExternalHost:
    """External groups share nothing."""

    def driver(self, group: GroupConfig, orders: Orders, wake: Wake) -> Driver:
        return ExternalDriver(group, orders)

    def forget(self, driver: object) -> None:
        """Nothing is kept of it."""

    async def end_copies(self, group: str) -> list[str]:
        return []  # nobody copies for it

    async def run(self) -> None:
        await asyncio.Event().wait()
