# SPDX-License-Identifier: Apache-2.0
"""One disk of a group: who writes it, and how far its sync has come. No I/O.

A *link* is a connection as the group sees it. Whose it is says the name that it asked for: a job of
QEMU's connects to the export of one sync (agent.naming.export_name). Evidence counts only for the
job it came from, so of a libvirt disk only links to the sync of now are *its own*. What any other
sends is answered, since a guest may wait for it, and is neither recorded nor a sign of anything: it
may be an old job's that lives on, and be older than what the new one has sent already.

The *carrier* of a sync is the link that wrote or flushed last. If another takes over, QEMU has
reconnected or the job was begun anew, and what the one before had flushed counts for nothing. While
a sync runs only its carrier's signals count; once the disk is complete, those of every link of its
own that has written.

READY is the word of libvirt on the job as a whole; it is taken for the connection whose FLUSH it
was read back after, so who confirms it names that connection.
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
class Standing:
    """What is known of a link. `number` is never given twice by one splitter; `sync_lsn`: the sync
    whose export it asked for."""

    number: int
    sync_lsn: int | None
    wrote: bool = False


@dataclass(slots=True, eq=False)
class Disk:
    """`index` is its number in records; `member`: cuts of this stream list it; `sync_lsn`: the sync
    that makes or made it complete, None for an external disk and outside of a stream; `void`: why
    the sync before was void."""

    name: str
    index: int
    instance: str
    size: int
    state: DiskState = DiskState.IDLE
    member: bool = False
    rule: SyncEnd | None = None  # while a libvirt sync runs
    carrier: Link | None = None
    links: dict[Link, Standing] = field(default_factory=dict)
    sync_lsn: int | None = None
    void: str = ""
    said_disc: bool = False  # its mirror has ended in good order
    recorded: bool = False  # this stream's log knows it
    source_errors: int | None = None  # kept for the agent: see SyncBegin of the control protocol
    latency: Histogram = field(default_factory=Histogram)

    def begin_sync(self, driver: Driver, sync_lsn: int) -> None:
        self.state = DiskState.SYNCING
        self.said_disc = False
        self.recorded = True
        self._start_over(None)
        if driver == "external":
            self.rule = None
        else:
            self.sync_lsn = sync_lsn

    def end_sync(self) -> None:
        self.state, self.rule, self.carrier = DiskState.COMPLETE, None, None
        self.member, self.void = True, ""

    def void_sync(self, why: str = "") -> None:
        """The sync has failed; nothing is recorded until another begins."""
        self.state, self.rule, self.carrier = DiskState.IDLE, None, None
        self.sync_lsn, self.void = None, why

    def leave_stream(self) -> None:
        self.void_sync()
        self.member = self.recorded = False
        self.source_errors = None

    def owns(self, link: Link) -> bool:
        """Whether the link belongs to the job that the disk's records come from."""
        standing = self.links.get(link)
        return standing is not None and standing.sync_lsn == self.sync_lsn

    def strangers(self) -> list[Link]:
        return [link for link in self.links if not self.owns(link)]

    def wrote(self, link: Link) -> None:
        """A request that only a mirror sends has come from `link`, which is its own."""
        self.links[link].wrote = True
        if self.rule is not None and self.carrier is not link:
            self.state = DiskState.SYNCING
            self._start_over(link)

    def flushed(self) -> None:
        assert self.rule is not None
        self.state = DiskState.FLUSHED
        self.rule.flushed = True

    @property
    def flushed_by(self) -> int:
        """The number of the connection whose FLUSH awaits READY; 0 if there is none."""
        if self.state is not DiskState.FLUSHED or self.carrier not in self.links:
            return 0
        return self.links[self.carrier].number

    def effect(self, driver: Driver, link: Link, signal: Signal) -> Effect:
        """What a signal on `link` does. A link that never wrote is a visitor's."""
        if not self.owns(link):
            return Effect.NOTHING
        if not self.links[link].wrote and signal is not Signal.BROKEN:
            return Effect.NOTHING
        if self.rule is not None and self.carrier is not link:
            return Effect.NOTHING
        return effect_of(driver, self.state, signal)

    def mirror_hung_up(self) -> bool:
        return any(
            standing.wrote and self.owns(link) and link.hung_up()
            for link, standing in self.links.items()
        )

    def _start_over(self, carrier: Link | None) -> None:
        self.carrier = carrier
        self.rule = SyncEnd(longest=MAX_BLOCK_BYTES, size=self.size)
