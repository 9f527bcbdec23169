# SPDX-License-Identifier: Apache-2.0
"""What was seen of a group's domains without a gap. No I/O.

To be *watched* means: since a moment at which the splitter said that the group's stream is live,
all events of libvirt have come to this one process over one connection. Only then does "it is off
now" say something of the time in between: there was no event of a start, so it has stopped once and
stayed off. A new process, or a new connection, begins to watch from there.

I/O errors of the guest are kept also over a new connection, since what was heard was so. They count
until the next stream, which begins with a sync.

Times are the machine's monotonic clock, in nanoseconds: the splitter's words have them too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.drivers.libvirt.events import CopyNews, Event, IoError, Lifecycle, Turn


@dataclass(slots=True)
class Heard:
    """When each turn of one domain was last heard of; 0: never on this connection."""

    started_ns: int = 0
    stopped_ns: int = 0
    paused_ns: int = 0


@dataclass(slots=True)
class Watch:
    """One group's. `errors`: (domain, error) in this stream, without those that paused it."""

    errors: list[tuple[str, IoError]] = field(default_factory=list)
    failed_copies: set[tuple[str, str]] = field(default_factory=set)
    """Domain and target of each copy that failed, until the next one begins."""
    _since_ns: int | None = None
    _heard: dict[str, Heard] = field(default_factory=dict)
    _live: tuple[str, int] | None = None  # a stream, and when the splitter said that it is live

    # What comes in.

    def connected(self, now_ns: int) -> None:
        """From here on all events come."""
        self._since_ns = now_ns
        self._heard.clear()
        self._live = None

    def disconnected(self) -> None:
        self._since_ns = self._live = None

    def heard(self, domain: str, event: Event, now_ns: int) -> None:
        match event:
            case Lifecycle(turn):
                self._turned(self._heard.setdefault(domain, Heard()), turn, now_ns)
            case CopyNews(target, failed=True):
                self.failed_copies.add((domain, target))
            case IoError(action="none" | "report"):
                self.errors.append((domain, event))

    def said_live(self, stream: str, said_ns: int) -> None:
        """The splitter says that the stream is live, with no sign of its end."""
        if self._since_ns is None or said_ns <= self._since_ns:
            return
        if self._live is None or self._live[0] != stream:
            self._live = (stream, said_ns)

    def begin_stream(self) -> None:
        """A sync is about to close whatever gap there was."""
        self.errors.clear()

    # What is known.

    def watches(self, stream: str | None) -> bool:
        """Whether this stream was watched since before the first sign of its end."""
        return self._live is not None and self._live[0] == stream

    def stopped_once(self, domain: str) -> bool:
        """Whether the domain has stopped, and was not started, since `watches` is true."""
        heard = self._heard.get(domain, Heard())
        return self._live is not None and heard.started_ns < self._live[1] < heard.stopped_ns

    def started_since(self, domain: str, moment_ns: int) -> bool:
        return self._heard.get(domain, Heard()).started_ns > moment_ns

    def paused_since(self, domain: str, moment_ns: int) -> bool:
        return self._heard.get(domain, Heard()).paused_ns > moment_ns

    def _turned(self, heard: Heard, turn: Turn, now_ns: int) -> None:
        if turn is Turn.STARTED:
            heard.started_ns = now_ns
        elif turn is Turn.STOPPED:
            heard.stopped_ns = now_ns
        elif turn is Turn.PAUSED:
            heard.paused_ns = now_ns
