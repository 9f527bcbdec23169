# SPDX-License-Identifier: Apache-2.0
"""When a lost stream is followed by the next. No I/O.

A sync reads whole disks, so one that keeps failing is not begun over and over: each loss in a row
waits longer (agent.retrying.backoff), until a protection has stood for STOOD_SECONDS. A source that
came to its end in order has failed nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from agent.retrying.backoff import Backoff
from replicator.control.splitter import SplitterGroupStatus

FIRST_SECONDS: Final = 1.0
LIMIT_SECONDS: Final = 60.0
STOOD_SECONDS: Final = 30.0


@dataclass(slots=True)
class StreamTries:
    """Of one group. Times are seconds of the caller's clock."""

    backoff: Backoff = field(default_factory=lambda: Backoff(FIRST_SECONDS, LIMIT_SECONDS))
    _lost: str | None = None  # the stream whose loss was counted last
    _ready_since: float | None = None

    def saw(self, group: SplitterGroupStatus, now: float) -> bool:
        """Whether a protection has stood for long enough to count as good."""
        if group.state != "ready":
            self._ready_since = None
        elif self._ready_since is None:
            self._ready_since = now
        elif now - self._ready_since >= STOOD_SECONDS:
            self.backoff.succeeded()
        if group.state == "lost" and group.stream != self._lost:
            self._lost = group.stream
            self.backoff.failed(group.reason, now)
        return self._ready_since is not None and now - self._ready_since >= STOOD_SECONDS

    def said(self, group: SplitterGroupStatus, now: float) -> str:
        """What is waited for, or tried again; empty if nothing failed. A group that is lost says
        its reason by itself."""
        if not self.backoff.failures:
            return ""
        if group.state in ("lost", "closed"):
            return f"the next sync begins in {self.backoff.left(now):.0f} s"
        if group.state == "syncing":
            return self.backoff.said("syncing", now)
        return ""
