# SPDX-License-Identifier: Apache-2.0
"""When the thaw watchdog thaws, and when it may go. No I/O.

    idle ──freezing──► armed ──thaw, the agent is gone, the deadline──► thawing ──► done

Rules, each with a test that fails without it
* From `freezing` on a guest may be frozen, and there is no other way out than through a thaw. A
  watchdog whose agent goes before that has nothing to do.
* The deadline runs from `freezing`. The agent's own runs from before it said so, so what the agent
  orders within its deadline happens while the guest is frozen.
* A freeze that was sent may be carried out late: libvirt lets it wait for its turn, also when the
  one who sent it is dead. So a thaw counts only if it began after all freezes had `returned`, or
  after LATE_FREEZE_NS, when each of them has begun or failed. Until then the thaw is repeated. A
  thaw waits behind a freeze that has begun, and thawing twice does no harm.
* A round is over when each domain was thawed, or is gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from replicator.base.clock import NS_PER_S

# libvirt waits 30 s for its turn with the guest agent and 5 s for the agent to answer at all.
LATE_FREEZE_NS: Final = 60 * NS_PER_S
AGAIN_NS: Final = NS_PER_S


class Word(Enum):
    """What the agent says, one a line; GONE is the end of the pipe."""

    FREEZING = "freezing"
    RETURNED = "returned"
    THAW = "thaw"
    GONE = ""


class Watch:
    """`round` counts the thaws that were begun: whenever it has risen, every domain is thawed
    anew and `thawed` is told of each. `why` says what the first one was begun for."""

    def __init__(self, domains: Iterable[str], freeze_timeout_ns: int) -> None:
        self.round = 0
        self.done = False
        self.why = ""
        self.filesystems = 0  # of the round that is under way, or over
        self._domains = frozenset(domains)
        self._timeout_ns = freeze_timeout_ns
        self._since_ns: int | None = None
        self._returned = False
        self._left: set[str] = set()
        self._counts = False  # whether the round began late enough to be the last
        self._again_ns: int | None = None

    @property
    def due_ns(self) -> int | None:
        """When `tick` has something to do, if nothing else happens before."""
        if self.done or self._since_ns is None or self._left:
            return None
        return self._since_ns + self._timeout_ns if self.round == 0 else self._again_ns

    def hear(self, word: Word, now_ns: int) -> None:
        match word:
            case Word.FREEZING:
                self._since_ns = self._since_ns or now_ns
            case Word.RETURNED:
                self._returned = True
                if self._again_ns is not None:
                    self._begin(now_ns)
            case Word.THAW:
                self._thaw("ordered", now_ns)
            case Word.GONE:
                self._thaw("the agent is gone", now_ns)

    def tick(self, now_ns: int) -> None:
        due_ns = self.due_ns
        if due_ns is None or now_ns < due_ns:
            return
        if self.round == 0:
            self._thaw("freeze_timeout has passed", now_ns)
        else:
            self._begin(now_ns)

    def thawed(self, domain: str, filesystems: int, now_ns: int) -> bool:
        """Of the round that is under way. True: it is over with this."""
        assert domain in self._left, f"{domain} was not waited for"
        self._left.discard(domain)
        self.filesystems += filesystems
        if self._left:
            return False
        if self._counts:
            self.done = True
        elif self._returned:
            self._begin(now_ns)
        else:
            self._again_ns = now_ns + AGAIN_NS
        return True

    def _thaw(self, why: str, now_ns: int) -> None:
        if self._since_ns is None:
            self.done = True
        elif self.round == 0:
            self.why = why
            self._begin(now_ns)

    def _begin(self, now_ns: int) -> None:
        assert self._since_ns is not None
        assert not self._left, "the round before is under way"
        self.round += 1
        self.filesystems = 0
        self._left = set(self._domains)
        self._again_ns = None
        self._counts = self._returned or now_ns - self._since_ns >= LATE_FREEZE_NS
