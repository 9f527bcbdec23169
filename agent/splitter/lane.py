# SPDX-License-Identifier: Apache-2.0
"""Threads for what may wait for a device: a lane per stream, and single errands.

All threads are daemons: a device that never answers must not keep the process from ending. What a
lane was given is carried out in order; its results come back to the event loop in the same order.

A bug in the work ends its thread with a traceback. Nothing more comes back from that lane then, so
the group's deadline finds it, and the guest goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeVar

from journal.appender import AppendError
from replicator.base.errors import ReplicatorError

Work = Callable[[], object]
Done = Callable[[Exception | None], None]
_T = TypeVar("_T")


class ThreadLane:
    """Implements agent.splitter.stream.Lane. The thread starts with the first work."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self._works: SimpleQueue[tuple[Work, Done] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, work: Work, done: Done) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._works.put((work, done))

    def end(self) -> None:
        if self._thread is not None:
            self._works.put(None)

    def _run(self) -> None:
        while (item := self._works.get()) is not None:
            work, done = item
            error = _attempt(work)
            try:
                self._loop.call_soon_threadsafe(done, error)
            except RuntimeError:  # the loop is closed: the process ends
                return


def _attempt(work: Work) -> Exception | None:
    try:
        work()
    except (AppendError, OSError, ReplicatorError) as error:
        return error
    return None


async def aside(loop: asyncio.AbstractEventLoop, work: Callable[[], _T]) -> _T:
    """The result of `work`, done in a thread of its own. Raises its OSError or ReplicatorError."""
    answer: asyncio.Future[_T] = loop.create_future()
    results: list[_T] = []

    def done(error: Exception | None) -> None:
        if answer.cancelled():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(results[0])

    lane = ThreadLane(loop, "errand")
    lane.put(lambda: results.append(work()), done)
    lane.end()
    return await answer
