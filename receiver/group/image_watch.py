# SPDX-License-Identifier: Apache-2.0
"""Looks every few seconds whether a group's images are still what its history says.

A batch checks the same before it writes (worker.py); this is for the time in which none comes: a
group whose replica was cut short, or taken away, is never shown as protected for longer than
LOOK_SECONDS, however idle its source is.

Concurrency: one task of the event loop; the look itself is a step of the apply lane.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from receiver.tasks.lane import Lane
from receiver.tasks.stop import Stop
from replicator.base.errors import DamageError

LOOK_SECONDS = 5.0
REMEDY = "put the right one back, and restart the receiver"


class ImageWatch:
    """`look` raises what is wrong; that stops the group, and the watch has ended."""

    def __init__(self, lane: Lane, look: Callable[[], None], stop: Stop) -> None:
        self._lane = lane
        self._look = look
        self._stop = stop
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._stop.reason is None:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._lane.run(self._look)
            except Exception as error:  # noqa: BLE001 - a supervision: see receiver.tasks.stop
                self._stop.because(error, "a look at its replica")


def changed_under_us(path: Path, found_bytes: int | None, wanted_bytes: int) -> DamageError:
    """An image that is not what it was when the group was opened."""
    if found_bytes is None:
        what = f"{path} is missing"
    else:
        what = f"{path} has {found_bytes} bytes, its history says {wanted_bytes}"
    return DamageError(what, hint=REMEDY)
