# SPDX-License-Identifier: Apache-2.0
"""What the agent asks of a driver, and what a driver may ask of the agent. No I/O.

A driver brings the writes of one group's source to the splitter. It keeps no state of its own that
could disagree with the world: each `step` looks at what is (the splitter's status, the source) and
does at most one safe thing about it. The agent calls it again whenever something may have changed,
so a lost event, a restart of the agent or a kill between two steps needs no case of its own.

The driver decides: disks, open_stream, sync_begin, ready, close_stream, the domain XML in the log,
the speed of a copy, and whether a loss is followed by a sync or waits for a person. The agent
decides: whether the receiver takes the stream (if not, it closes it, and the driver sees that).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from agent.quiesce.freezer import Freezer
from replicator.config.agent import GroupConfig
from replicator.control.splitter import SplitterGroupStatus, StreamOpened
from replicator.states.words import Trouble


@dataclass(frozen=True, slots=True)
class KnownDisk:
    """A disk of the group whose size is known. `instance` is its identity, a UUID."""

    name: str
    size: int
    instance: str


@dataclass(frozen=True, slots=True)
class Look:
    """What the agent knows as a step begins. `group`: the splitter's word, no older than any of its
    answers to this agent, and so no older than what the steps before have done. `spool_share`: of
    the spool's budget, how much this group's log takes now, 0 to 1; a copy slows down as it rises.
    `receiver_connected`: whether what is captured can leave."""

    group: SplitterGroupStatus
    spool_share: float
    receiver_connected: bool


class Orders(Protocol):
    """The splitter's orders, for the driver's own group. Each raises what the splitter answers,
    and UnreachableError when there is no splitter or it does not answer in time."""

    async def open_stream(self, reason: str) -> StreamOpened:
        """A new stream, of an ordinal above all that splitter and receiver know."""
        ...

    async def declare_disk(self, disk: str, size: int, instance: str) -> int:
        """The disk's index. From the answer on the splitter serves its export."""
        ...

    async def sync_begin(self, disk: str, reason: str, *, source_errors: int | None = None) -> None:
        """No copy of the disk lives; the next goes to the export that the status names then.
        `source_errors` comes back in each status of the disk, until the stream ends."""
        ...

    async def append_domain_xml(self, domain: str, xml: str) -> None: ...

    async def ready(self, disk: str, connection: int) -> None:
        """READY was read back after the FLUSH on this connection, the status's `flushed_by`."""
        ...

    async def resync(self) -> None:
        """External groups: what comes until the next FLUSH on each disk is its sync."""
        ...

    async def close_stream(
        self,
        reason: str,
        *,
        final_cut: bool = False,
        unwatched: bool = False,
        stream: str | None = None,
    ) -> None:
        """See CloseStream of the control protocol."""
        ...

    async def drop_connections(self) -> None: ...


class Wake(Protocol):
    """Says that a look is due; called on the event loop. `anew`: something happened at the source
    by itself, so what failed there may succeed now and need not wait any longer."""

    def __call__(self, *, anew: bool = False) -> None: ...


class Driver(Protocol):
    """One group's source. All methods are called on the event loop, `step` and `resync` never at
    the same time."""

    @property
    def disks(self) -> tuple[KnownDisk, ...]:
        """Those known now, in the config's order; may be empty before the source was read."""
        ...

    @property
    def problem(self) -> str:
        """Why the group cannot be protected now, in a sentence for people; empty if it can."""
        ...

    @property
    def remedy(self) -> str:
        """What a person can do about it, where that is known; empty if nothing need be done."""
        ...

    @property
    def is_down(self) -> bool:
        """The source was seen not to run: nothing is written to any disk of the group."""
        ...

    @property
    def read_back_seconds(self) -> float:
        """How long ago the source was last seen to mirror every disk. 0 where nobody can see that;
        infinite where nobody has seen it yet."""
        ...

    @property
    def left_out(self) -> Trouble:
        """Disks whose source runs and that are not protected all the same, because another domain
        of the group does not; and what to do about it."""
        ...

    @property
    def recovery(self) -> str:
        """What a person does after a loss; empty where the driver goes on by itself."""
        ...

    @property
    def freezer(self) -> Freezer | None:
        """None: nobody can be asked to freeze this source."""
        ...

    async def step(self, look: Look) -> bool:
        """Looks, and does at most one thing. True: something was done, look again at once.

        Not called while there is no splitter. A ReplicatorError out of it is shown as the group's
        problem, and the step is tried again, each time later (agent.retrying.backoff).
        """
        ...

    async def release(self, disks: Collection[str]) -> None:
        """These disks are the group's no more: their mirrors end, in good order, and the source
        goes on. The splitter records nothing of them by now. Raises ReplicatorError for what could
        not be ended; may be called again."""
        ...

    async def resync(self, look: Look) -> None:
        """A person orders a sync. Returns when it has begun, or will without further orders."""
        ...


class Host(Protocol):
    """What all drivers of one kind share (a connection to libvirtd); one per process."""

    def driver(self, group: GroupConfig, orders: Orders, wake: Wake) -> Driver: ...

    def forget(self, driver: object) -> None:
        """Nobody uses it any more."""
        ...

    async def end_copies(self, group: str) -> list[str]:
        """See agent.leftovers. Waits a little for the source, if it has just been made."""
        ...

    async def run(self) -> None:
        """Runs until it is cancelled."""
        ...
