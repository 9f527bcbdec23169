# SPDX-License-Identifier: Apache-2.0
"""The thaw watchdog: a small process that thaws guests, whatever becomes of the agent.

The agent starts it before a freeze and holds the pipe that is its stdin. It speaks first:

    watchdog → agent    ready | thawed N       N filesystems; one line a round
    agent → watchdog    freezing | returned | thaw

Every thaw is made here, the orderly one too: the way that must work after a crash is the one that
is gone each time. What the words lead to is decided in watch.py.

It outlives the agent: a session of its own, deaf to every signal that a person or a service manager
may send (SIGTERM goes to all that is left of a service). Only SIGKILL ends it early; the agent's
note in its state directory makes the next start thaw then.

Each domain has a thread that calls `thaw` until it succeeds: a hung one holds up no other. Threads
report to the main one by a queue; that alone touches the Watch.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from agent.quiesce.watch import Watch, Word
from replicator.base.signals import DROPPED, HEEDED

RETRY_FIRST_SECONDS = 0.2
RETRY_LIMIT_SECONDS = 5.0


class ThawError(Exception):
    """The domain could not be thawed just now. The message says why."""


Thaw = Callable[[str], int]
"""Thaws a domain, by its name; how many filesystems were thawed. 0 for a domain that is gone, and
for one that was not frozen. Raises ThawError where it is worth another try."""


@dataclass(frozen=True, slots=True)
class _Thawed:
    domain: str
    filesystems: int


def run(domains: Sequence[str], freeze_timeout_ns: int, thaw: Thaw) -> None:
    """Returns when no guest is frozen any more on our account."""
    for number in HEEDED | DROPPED:
        signal.signal(number, signal.SIG_IGN)  # it starts no program that would inherit this
    _Process(domains, freeze_timeout_ns, thaw).run()


class _Process:
    def __init__(self, domains: Sequence[str], freeze_timeout_ns: int, thaw: Thaw) -> None:
        self._watch = Watch(domains, freeze_timeout_ns)
        self._thaw = thaw
        self._news: SimpleQueue[Word | _Thawed] = SimpleQueue()
        self._work: dict[str, SimpleQueue[int]] = {name: SimpleQueue() for name in domains}
        self._round = 0

    def run(self) -> None:
        for domain in self._work:
            threading.Thread(target=self._serve, args=(domain,), daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()
        _say("ready")
        while not self._watch.done:
            self._take(self._next())
            self._begin_round()

    def _next(self) -> Word | _Thawed | None:
        due_ns = self._watch.due_ns
        wait_ns = None if due_ns is None else max(0, due_ns - time.monotonic_ns())
        try:
            return self._news.get(timeout=None if wait_ns is None else wait_ns / 1e9)
        except Empty:
            return None

    def _take(self, news: Word | _Thawed | None) -> None:
        now_ns = time.monotonic_ns()
        if isinstance(news, Word):
            self._watch.hear(news, now_ns)
        elif news is None:
            self._watch.tick(now_ns)
        elif self._watch.thawed(news.domain, news.filesystems, now_ns):
            _say(f"thawed {self._watch.filesystems}")

    def _begin_round(self) -> None:
        if self._watch.round == self._round:
            return
        if self._round == 0 and self._watch.why != "ordered":
            _complain(f"thawing {', '.join(self._work)}: {self._watch.why}")
        self._round = self._watch.round
        for queue in self._work.values():
            queue.put(self._round)

    def _serve(self, domain: str) -> None:
        while True:
            self._work[domain].get()
            self._news.put(_Thawed(domain, self._thaw_at_last(domain)))

    def _thaw_at_last(self, domain: str) -> int:
        delay_seconds, said = RETRY_FIRST_SECONDS, ""
        while True:
            try:
                return self._thaw(domain)
            except ThawError as error:
                if str(error) != said:
                    said = str(error)
                    _complain(f"thawing {domain} failed, and is tried again: {said}")
            time.sleep(delay_seconds)
            delay_seconds = min(delay_seconds * 2, RETRY_LIMIT_SECONDS)

    def _listen(self) -> None:
        """Words that are not known are those of a later version: they are no reason to stop."""
        known = {word.value: word for word in Word}
        with open(0, "rb", closefd=False) as pipe:
            for line in pipe:
                word = known.get(line.decode(errors="replace").strip())
                if word is not None and word is not Word.GONE:
                    self._news.put(word)
        self._news.put(Word.GONE)


def _say(line: str) -> None:
    """To the agent, which may be gone."""
    try:
        os.write(1, line.encode() + b"\n")
    except OSError:
        return


def _complain(line: str) -> None:
    """Into the agent's log. Its reader may be gone too."""
    try:
        os.write(2, f"thaw watchdog: {line}\n".encode())
    except OSError:
        return
