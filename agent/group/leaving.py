# SPDX-License-Identifier: Apache-2.0
"""How a group, or some of its disks, leave this agent in good order.

A group that left the configuration: a last cut, if one may be made; the stream is closed, so that
nothing is recorded any more; the copies are ended, which no guest feels; what is recorded is
shipped, for SHIP_SECONDS at most; the splitter lets go of it. What could not be shipped stays in
the spool, as a leftover. Nothing is deleted, here or at the receiver.

A disk that left its group: first the splitter is told, so that no cut lists it and what its mirror
still sends is not recorded; then its copy is ended. In the other order its end would be taken for
that of the whole group.

Each step may fail (a libvirt that does not answer, a splitter that is gone) without keeping the
others from being tried: whoever left is not looked after again, so what is left is said in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog

from agent.drivers.driver import Driver
from agent.links.splitter_link import GroupOrders
from replicator.base.errors import NoPointError, NotFoundError, ReplicatorError

log = structlog.get_logger("replicator.agent.leaving")

SHIP_SECONDS = 10.0
REASON = "the group left the configuration"

Shipped = Callable[[], Awaitable[None]]


class Leaving:
    """Of one group. `shipped` returns when all that is recorded is durable at the receiver."""

    def __init__(self, group: str, orders: GroupOrders, driver: Driver, shipped: Shipped) -> None:
        self._group = group
        self._orders = orders
        self._driver = driver
        self._shipped = shipped

    async def disks(self, names: Collection[str]) -> None:
        """These disks leave; the group goes on without them."""
        for name in names:
            await self._attempt("disk removed", self._orders.remove_disk(name))
        await self._attempt("copies ended", self._driver.release(names))

    async def group(self, disks: Collection[str]) -> None:
        """All of it leaves."""
        await self._attempt("last cut", self._orders.mark(None, "crash"))
        await self._attempt("stream closed", self._orders.close_stream(REASON))
        await self._attempt("copies ended", self._driver.release(disks))
        try:
            async with asyncio.timeout(SHIP_SECONDS):
                await self._shipped()
        except TimeoutError:
            log.warning("group left with a rest in the spool", group=self._group)
        await self._attempt("let go", self._orders.remove_group())
        log.info("group left", group=self._group)

    async def _attempt(self, step: str, work: Awaitable[object]) -> None:
        try:
            await work
        except (NoPointError, NotFoundError):
            pass  # there is nothing to cut, or it is gone already
        except ReplicatorError as error:
            log.warning("not left in order", group=self._group, step=step, reason=str(error))
