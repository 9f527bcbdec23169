# SPDX-License-Identifier: Apache-2.0
"""Signals: what each one means to a daemon, and how it gets from the kernel to the event loop.

    TERM, INT    end in order; a second INT ends it at once
    HUP          reload the configuration; a terminal that is gone says the same, and ends nothing
    USR1         write the state into the log
    DROPPED      would end a process by default, though nobody means an end by them: logged, no more

At the splitter an end costs every group its continuity, so no signal ends a daemon by accident, at
no moment: `Signals()` stands in the first lines of each main, before the parts that take time to
load. QUIT and what stands for a fault of the program (SEGV, ABRT, …) keep their meaning.

They are handlers, never SIG_IGN: what is ignored stays ignored in the scripts and programs that we
start, a handler does not.

A handler may have interrupted anything, the log included. It remembers and wakes, no more. What
comes before anybody listens is kept, each signal once; what comes behind the end is dropped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

DROPPED: Final = frozenset(
    {
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGVTALRM,
        signal.SIGPROF,
        signal.SIGIO,
        signal.SIGPWR,
        signal.SIGSTKFLT,
        *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
    }
)
HEEDED: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})

Take = Callable[[int], None]


def signal_name(number: int) -> str:
    """`SIGUSR2`; a real-time signal by its number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Signals:
    """See the head of this file. Made once, in the main thread."""

    def __init__(self) -> None:
        self._early: dict[int, None] = {}
        self._post: Take | None = None
        self._interrupts = 0
        self._is_over = False
        for number in HEEDED | DROPPED:
            signal.signal(number, self._caught)

    def listen(self, post: Take) -> None:
        """From now on `post` is called for each signal, first for those that came before. It is
        called within a signal handler: it may hand the number to a loop, and nothing else."""
        self._post = post
        early, self._early = self._early, {}
        for number in early:
            post(number)

    def end(self) -> None:
        """The process is at its end: whatever comes now changes nothing any more."""
        self._is_over = True
        self._post = None

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if self._is_over:
            return
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        if self._post is None:
            self._early[number] = None
        else:
            self._post(number)
