# SPDX-License-Identifier: Apache-2.0
"""Something that the daemon does now and then on the shared disk, in a thread: one at a time.

A disk that does not answer holds up this errand, and nobody who began it. What an errand raises is
logged, once for as long as it stays the same, and it is tried again the next time.

Concurrency: the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, ParamSpec

import structlog

from replicator.base.trouble import is_bug, words_of

P = ParamSpec("P")

_log = structlog.get_logger(__name__)


class Errand(Generic[P]):
    """See the head of this file."""

    def __init__(self, name: str, step: Callable[P, object]) -> None:
        self._name = name
        self._step = step
        self._under_way: asyncio.Task[None] | None = None
        self._trouble = ""

    def begin(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Unless the one before is still under way."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._run(*args, **kwargs))

    async def ended(self) -> None:
        """Returns when none is under way."""
        if self._under_way is not None:
            await asyncio.wait([self._under_way])

    async def _run(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """A supervision."""
        try:
            await asyncio.to_thread(self._step, *args, **kwargs)
        except Exception as error:  # noqa: BLE001
            trouble = words_of(error).message
            if trouble != self._trouble:
                _log.error(
                    "errand.failed", errand=self._name, reason=trouble, exc_info=is_bug(error)
                )
            self._trouble = trouble
        else:
            self._trouble = ""
