# SPDX-License-Identifier: Apache-2.0
"""How appends are run: in line on tmpfs, in a thread with a deadline on disk.

An append to tmpfs is a copy of memory and is done in line: a thread would cost more than it. An
append to a disk can wait for that disk, in the worst case for ever, and must not take the other
disks of the host with it. So it is done by one thread per stream, in order, and has a deadline:
when the oldest append has waited `max_stall`, the lane *fails open*. From then on nothing it was
given counts as appended, whatever the thread still does later, and every waiting answer is
released with an error, so that the guests go on.

A lane serves one stream. A lane that has failed is not used again; its thread ends when the disk
lets go of it.

Concurrency: methods and callbacks belong to the loop's thread. `work` runs wherever it was put;
what it touches (the stream's writer) is touched by nobody else.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from journal.appender import AppendError

Work = Callable[[], None]
Done = Callable[[AppendError | None], None]


class StuckError(AppendError):
    """An append has not come back within the deadline."""

    def __init__(self, limit_ns: int) -> None:
        Exception.__init__(self, f"the spool's disk took longer than {limit_ns / 1e9:g} s")
        self.broken = True


class AppendLane(Protocol):
    """Runs the appends of one stream one after another, in the order of `run`."""

    @property
    def idle(self) -> bool:
        """Nothing is under way: what `run` is given with may_stick=False is done at once."""
        ...

    def run(self, work: Work, done: Done, *, may_stick: bool) -> None:
        """Runs `work`, then calls `done` with None or the error that it raised."""
        ...

    def close(self, work: Work) -> None:
        """Runs a last work when all others are done; nothing may follow."""
        ...


class InlineLane:
    """Does everything at once."""

    idle = True

    def run(self, work: Work, done: Done, *, may_stick: bool) -> None:
        done(_attempt(work))

    def close(self, work: Work) -> None:
        work()


class ThreadLane:
    """In line while it can be, in a thread as soon as it might stick."""

    def __init__(self, loop: asyncio.AbstractEventLoop, max_stall_ns: int) -> None:
        self._loop = loop
        self._max_stall_ns = max_stall_ns
        self._jobs: SimpleQueue[Work | None] = SimpleQueue()
        self._waiting: deque[Done] = deque()
        self._thread: threading.Thread | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._failed = False

    @property
    def idle(self) -> bool:
        return not self._waiting

    def run(self, work: Work, done: Done, *, may_stick: bool) -> None:
        if self._failed:
            done(StuckError(self._max_stall_ns))
        elif self.idle and not may_stick:
            done(_attempt(work))
        else:
            self._waiting.append(done)
            self._watch()
            self._start()
            self._jobs.put(work)

    def close(self, work: Work) -> None:
        if self._thread is None:
            work()
            return
        self._jobs.put(work)
        self._jobs.put(None)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="spool-append", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            error = _attempt(work)
            try:
                self._loop.call_soon_threadsafe(self._finished, error)
            except RuntimeError:  # the loop is closed: the process ends
                return

    def _finished(self, error: AppendError | None) -> None:
        if self._failed or not self._waiting:
            return
        done = self._waiting.popleft()
        self._watch(again=True)
        done(error)

    def _watch(self, *, again: bool = False) -> None:
        """Keeps the deadline of the oldest append that waits."""
        if again and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._waiting and self._deadline is None:
            self._deadline = self._loop.call_later(self._max_stall_ns / 1e9, self._fail_open)

    def _fail_open(self) -> None:
        self._deadline = None
        self._failed = True
        waiting = list(self._waiting)
        self._waiting.clear()
        for done in waiting:
            done(StuckError(self._max_stall_ns))


def _attempt(work: Work) -> AppendError | None:
    try:
        work()
    except AppendError as error:
        return error
    return None
