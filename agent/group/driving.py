# SPDX-License-Identifier: Apache-2.0
"""The loop that drives one source: look, one safe step, look again.

A step that did something is followed by the next at once, one that had nothing to do by a look
after LOOK_SECONDS, or when it is woken. One that failed is tried again, each time later
(agent.retrying.backoff): statuses of the splitter, which come four times a second, do not cut that
short. What does is news: the source moved by itself, or a person gave an order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from agent.retrying.backoff import Backoff
from replicator.base.errors import ReplicatorError

log = structlog.get_logger("replicator.agent.group")

LOOK_SECONDS = 1.0
FAILED_LIMIT_SECONDS = 30.0

Wait = Callable[[asyncio.Event, float], Awaitable[None]]


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Until the event, but no longer."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


class Driving:
    """`step` looks, and does one thing: True if it did, None if it could not even look."""

    def __init__(
        self, group: str, step: Callable[[], Awaitable[bool | None]], wait: Wait = wait
    ) -> None:
        self._group = group
        self._step = step
        self._wait = wait
        self._due = asyncio.Event()
        self._anew = asyncio.Event()
        self._tries = Backoff(LOOK_SECONDS, FAILED_LIMIT_SECONDS)
        self.failures = 0

    def wake(self, *, anew: bool = False) -> None:
        """See agent.drivers.driver.Wake."""
        self._due.set()
        if anew:
            self._anew.set()

    @property
    def problem(self) -> str:
        """Why the last step failed, and when the next is tried; empty after one that did not."""
        return self._tries.said("looking at the source", asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            self._due.clear()
            self._anew.clear()
            try:
                busy = await self._step()
            except ReplicatorError as error:
                await self._wait(self._anew, self._failed(str(error)))
                continue
            if busy is not None:
                self._tries.succeeded()
            if not busy:
                await self._wait(self._due, LOOK_SECONDS)

    def _failed(self, problem: str) -> float:
        self.failures += 1
        if problem != self._tries.reason:
            log.warning("driver", group=self._group, reason=problem)
        return self._tries.failed(problem, asyncio.get_running_loop().time())
