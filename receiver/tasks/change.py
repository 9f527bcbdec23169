# SPDX-License-Identifier: Apache-2.0
"""Waiting for a fact of a group to become true. No socket.

Whoever changes something says `told`; whoever waits looks at its own condition again. Nothing is
passed along, so nothing can be missed or out of date. One event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Change:
    """Something may have changed."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def told(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        """Returns at the next `told`."""
        await self._next.wait()

    async def until(self, condition: Callable[[], bool]) -> None:
        """`condition` must not wait, and may raise: that ends the waiting too."""
        while not condition():
            await self._next.wait()
