# SPDX-License-Identifier: Apache-2.0
"""Keeps the tasks of one part of the agent going: of a group, or of a kind of source.

One group's trouble is that group's. What comes out of a task of it, whatever it is, is named in the
log and in the group's reason, and the task is begun anew: each time after a longer wait, for ever.
The guest is captured meanwhile, and the other groups do not notice. What a task knew it learns
anew, as after a restart of the agent, which loses nothing.

A task that has run for PROVEN_SECONDS since is well again, and so is one that came to its end.

Concurrency: one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from agent.retrying.pace import Pace
from replicator.base.trouble import is_bug, words_of

log = structlog.get_logger("replicator.agent")

AGAIN = Pace(first_seconds=1.0, most_seconds=60.0)
PROVEN_SECONDS = 60.0


class Supervision:
    """Of the part called `name`; `changed` is called when `problem` has become another one."""

    def __init__(self, name: str, changed: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._changed = changed
        self._problems: dict[str, str] = {}

    @property
    def problem(self) -> str:
        """What has failed and is tried again; empty if nothing has."""
        return "; ".join(self._problems.values())

    async def keep(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Runs `work`, and again when it fails; returns when it does."""
        pace = AGAIN.fresh()
        loop = asyncio.get_running_loop()
        while True:
            proven = loop.call_later(PROVEN_SECONDS, self._well_again, what, pace)
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - the supervision
                self.failed(what, error)
            else:
                self.well(what)
                return
            finally:
                proven.cancel()
            await asyncio.sleep(pace.next_seconds())

    def failed(self, what: str, error: Exception) -> None:
        """Names it. For what is no task as well: then `well` says when it is over."""
        said = words_of(error)
        text = f"{what}: {said}"
        if self._problems.get(what) == text:
            return
        self._problems[what] = text
        log.error(
            "failed",
            part=self._name,
            what=what,
            reason=said.message,
            hint=said.hint,
            exc_info=error if is_bug(error) else None,
        )
        self._changed()

    def well(self, what: str) -> None:
        if self._problems.pop(what, None) is not None:
            log.info("goes on", part=self._name, what=what)
            self._changed()

    def ended(self, what: str, task: asyncio.Task[None]) -> None:
        """For an errand of its own, as its done callback: what it died of is named."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self.failed(what, error)

    def _well_again(self, what: str, pace: Pace) -> None:
        pace.succeeded()
        self.well(what)
