# SPDX-License-Identifier: Apache-2.0
"""A lane: one thread that does the blocking work of one lock domain, a step at a time.

"One writer" is a property of the structure here, not of discipline: what changes the inbox of a
group is only ever called through the group's intake lane, what changes its history and replica
only through its apply lane, and a lane has exactly one thread.

A step that was begun is carried to its end, whatever becomes of the task that waits for it: a
half-done step is a thing for recovery, not for a cancellation. `close` waits for it.

What changes nothing needs no lane: it is done aside, by threads that are the group's own, so that a
disk which does not answer holds up nobody but those who wait for that group.

Concurrency: `run` is called from the event loop. Steps of a lane run in the order of their calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

ASIDE_THREADS = 4

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Its thread starts with the first step."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `step` returns or raises. A step that has not begun is dropped when cancelled."""
        return await asyncio.wrap_future(self._pool.submit(step, *args, **kwargs))

    async def quiet(self) -> None:
        """Returns when every step called for so far has ended; its outcome is not told here."""
        await self.run(_nothing)

    async def close(self) -> None:
        """Drops what has not begun, waits for what has. Nothing runs afterwards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._pool.shutdown)


class Aside:
    """A group's threads for what may take long and changes nothing."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(ASIDE_THREADS, thread_name_prefix=name)

    async def run(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `step` returns or raises. Once begun it is carried to its end."""
        return await asyncio.wrap_future(self._pool.submit(step, *args, **kwargs))

    async def close(self) -> None:
        """Drops what has not begun, waits for what has."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._pool.shutdown)


def _nothing() -> None:
    """A step that ends when those before it have."""
