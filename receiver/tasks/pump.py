# SPDX-License-Identifier: Apache-2.0
"""Applies a group's batches one after the other, for as long as the group lives.

It pauses while the disk is full, and tries again by itself: nothing is lost meanwhile, the inbox
goes on as long as it can, and after that the source's spool. Whatever else comes out of a step
stops the group (receiver.tasks.stop), because what comes next would stand on it.

Concurrency: one task of the event loop; the steps run in the group's apply lane, where other
steps (a view, digests, a rollback) find their turn between two batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from receiver.tasks.lane import Lane
from receiver.tasks.stop import Stop
from replicator.base.errors import NoSpaceError, ReplicatorError
from replicator.base.trouble import words_of

SPACE_RETRY_SECONDS = 5.0

_log = structlog.get_logger(__name__)


class ApplyPump:
    """`step` applies one batch, and says in how many seconds the next one is due: 0.0 after a
    batch, for there may be more; later where there was none. `moved` is called on the loop
    whenever something has changed: a batch, a pause, the end."""

    def __init__(
        self,
        group: str,
        lane: Lane,
        step: Callable[[], float],
        moved: Callable[[], None],
        stop: Stop,
    ) -> None:
        self._group = group
        self._lane = lane
        self._step = step
        self._moved = moved
        self._stop = stop
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.paused: ReplicatorError | None = None
        """Why nothing is applied for now."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """There is something to apply."""
        self._work.set()

    async def close(self) -> None:
        """No step begins after this; one may still be under way in the lane."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while self._stop.reason is None:
            self._work.clear()
            try:
                wait_seconds = await self._lane.run(self._step)
            except Exception as error:  # noqa: BLE001 - a supervision: see receiver.tasks.stop
                trouble = words_of(error)
                if isinstance(trouble, NoSpaceError):
                    self._pause_for(trouble)
                    await self._until_work(SPACE_RETRY_SECONDS)
                else:
                    self._stop.because(error, "apply")
            else:
                self._go_on()
                if wait_seconds:
                    await self._until_work(wait_seconds)
                else:
                    self._moved()

    async def _until_work(self, timeout_seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._work.wait(), timeout_seconds)

    def _pause_for(self, error: NoSpaceError) -> None:
        if self.paused is None:
            _log.error("apply.paused", group=self._group, reason=error.message, hint=error.hint)
        self.paused = error
        self._moved()

    def _go_on(self) -> None:
        if self.paused is not None:
            self.paused = None
            _log.info("apply.goes_on", group=self._group)
            self._moved()
