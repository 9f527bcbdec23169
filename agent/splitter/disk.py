# SPDX-License-Identifier: Apache-2.0
"""One disk of a group: who writes it, and how far its sync has come. No I/O.

A *link* is a connection as the group sees it. The *carrier* of a sync is the link that wrote or
flushed last: with libvirt the mirror job's. If another takes over, the job was begun anew, and what
the one before had flushed counts for nothing. While a sync runs only its carrier's signals count;
once the disk is complete, those of every link that has written since the sync began.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from agent.splitter.continuity import DiskState, Driver, Effect, Signal, effect_of
from agent.splitter.latency import Histogram
from agent.splitter.sync_end import SyncEnd
from replicator.nbd.limits import MAX_BLOCK_BYTES


class Link(Protocol):
    """A connection. Hashable by identity."""

    def hung_up(self) -> bool:
        """Whether the far end has closed its side, known or not yet known to us."""
        ...

    def settled(self, kept: bool) -> None:
        """The batch that was taken last is in the log (`kept`), or will never be: answer it."""
        ...

    def drop(self) -> None:
        """Close the connection."""
        ...


@dataclass(slots=True, eq=False)
class Disk:
    """`index` is its number in records; `member`: cuts of this stream list it."""

    name: str
    index: int
    instance: str
    size: int
    state: DiskState = DiskState.IDLE
    member: bool = False
    rule: SyncEnd | None = None  # while a libvirt sync runs
    carrier: Link | None = None
    links: dict[Link, bool] = field(default_factory=dict)  # → wrote since the sync began
    said_disc: bool = False  # its mirror has ended in good order
    recorded: bool = False  # this stream's log knows it
    source_errors: int | None = None  # kept for the agent: see SyncBegin of the control protocol
    latency: Histogram = field(default_factory=Histogram)

    def begin_sync(self, driver: Driver) -> None:
        self.state = DiskState.SYNCING
        self.said_disc = False
        self.recorded = True
        self._start_over(None)
        if driver == "external":
            self.rule = None
        else:
            self.links = dict.fromkeys(self.links, False)

    def end_sync(self) -> None:
        self.state, self.rule, self.carrier = DiskState.COMPLETE, None, None
        self.member = True

    def void_sync(self) -> None:
        """The sync has failed; nothing is recorded until another begins."""
        self.state, self.rule, self.carrier = DiskState.IDLE, None, None

    def leave_stream(self) -> None:
        self.void_sync()
        self.member = self.recorded = False
        self.source_errors = None

    def wrote(self, link: Link) -> None:
        """A request that only a mirror sends has come from `link`."""
        self.links[link] = True
        if self.rule is not None and self.carrier is not link:
            self.state = DiskState.SYNCING
            self._start_over(link)

    def flushed(self) -> None:
        assert self.rule is not None
        self.state = DiskState.FLUSHED
        self.rule.flushed = True

    def effect(self, driver: Driver, link: Link, signal: Signal) -> Effect:
        """What a signal on `link` does. A link that never wrote is a visitor's."""
        if not self.links.get(link, False) and signal is not Signal.BROKEN:
            return Effect.NOTHING
        if self.rule is not None and self.carrier is not link:
            return Effect.NOTHING
        return effect_of(driver, self.state, signal)

    def mirror_hung_up(self) -> bool:
        return any(wrote and link.hung_up() for link, wrote in self.links.items())

    def _start_over(self, carrier: Link | None) -> None:
        self.carrier = carrier
        self.rule = SyncEnd(longest=MAX_BLOCK_BYTES, size=self.size)
