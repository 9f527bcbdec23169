# SPDX-License-Identifier: Apache-2.0
"""Marks that come by themselves: at multiples of `mark_every` since 1970 UTC.

One at a time, and none is made up for: what fell due while a mark was under way, or the host was
off, is passed over. A clock that is set is followed: set back, a time comes and is marked again,
rather than that the schedule is silent until the clock has caught up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from replicator.base.clock import NS_PER_S, Clock
from replicator.base.errors import ReplicatorError

log = structlog.get_logger("replicator.agent.schedule")

# The wall clock may be set while we wait: it is looked at again after this time.
LOOK_SECONDS = 5.0


def next_due_ns(now_ns: int, every_ns: int) -> int:
    """The first multiple of `every_ns` behind `now_ns`."""
    return (now_ns // every_ns + 1) * every_ns


class Schedule:
    """Calls `mark` whenever it is due. A mark that fails is an event and a count, nothing more."""

    def __init__(
        self, group: str, every_ns: int, clock: Clock, mark: Callable[[], Awaitable[None]]
    ) -> None:
        self.made = 0
        self.failed = 0
        self._group = group
        self._every_ns = every_ns
        self._clock = clock
        self._mark = mark

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Runs until it is cancelled."""
        while True:
            await self._wait(sleep)
            try:
                await self._mark()
            except ReplicatorError as error:
                self.failed += 1
                log.warning("scheduled mark failed", group=self._group, reason=str(error))
            else:
                self.made += 1

    async def _wait(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        due_ns = next_due_ns(self._clock.utc_ns(), self._every_ns)
        while (now_ns := self._clock.utc_ns()) < due_ns:
            due_ns = min(due_ns, next_due_ns(now_ns, self._every_ns))
            await sleep(min((due_ns - now_ns) / NS_PER_S, LOOK_SECONDS))
