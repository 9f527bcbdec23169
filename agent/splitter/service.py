# SPDX-License-Identifier: Apache-2.0
"""The life of the splitter process: start up, run, shut down.

It serves its exports from its own start, with or without an agent. The lock comes before any
socket, so a second splitter on the same state directory is refused while it has touched nothing.

Shutdown: appends that are queued may finish (max_stall at most), each group gets a last cut if one
may be made, its stream is closed, and in the same step the connections: nothing is answered behind
the end of a stream. Guests go on without us; the next start opens new streams, and a sync closes
the gap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from typing import Final
from uuid import UUID, uuid4, uuid5

from agent.splitter.control import ControlServer, Publisher
from agent.splitter.exports import SplitterExports
from agent.splitter.group import GroupLog, GroupSettings
from agent.splitter.lane import ThreadLane
from agent.splitter.orders import Orders
from agent.splitter.reservation import Reservation, first_sequence
from agent.splitter.status import dump_of, splitter_status
from agent.splitter.tiers import SpoolTiers, Tier
from agent.splitter.writer import Surroundings
from replicator.base.clock import Clock
from replicator.base.daemon import Daemon, hold_lock, nothing_to_reload
from replicator.base.notify import Notifier
from replicator.base.storage import Storage
from replicator.base.unixsocket import inode_of, listen_unix, remove_unix
from replicator.config.agent import AgentConfig, GroupConfig, SplitterSection
from replicator.config.environment import spool_warnings
from replicator.control.splitter import SplitterStatus
from replicator.nbd.server import NbdServer, serve_unix

_log = logging.getLogger(__name__)

CONTROL_MODE: Final = 0o600
COUNT_SECONDS: Final = 1.0
"""How often it is looked up what the spool's files take, for the status."""

EXTERNAL_DISKS: Final = UUID("5f1f2a1e-7b3c-5d7e-8e0a-3c8f7f6c2b90")
"""Namespace of the identities of external disks, which have but their names. The agent's driver
uses the same."""


class GroupTimer:
    """Calls a group's `tick` when it is due."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._loop = loop
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None
        self._due_ns = 0
        self.group: GroupLog | None = None

    def wake(self, due_ns: int) -> None:
        """No later than this."""
        if self._handle is not None:
            if self._due_ns <= due_ns:
                return
            self._handle.cancel()
        self._due_ns = due_ns
        delay_ns = max(0, due_ns - self._clock.monotonic_ns())
        self._handle = self._loop.call_later(delay_ns / 1e9, self._tick)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _tick(self) -> None:
        self._handle = None
        assert self.group is not None
        self.wake(self.group.tick())


class Splitter:
    """All groups of the host, with their timers."""

    def __init__(
        self, config: AgentConfig, storage: Storage, clock: Clock, *, memory_is_sticky: bool
    ) -> None:
        self._config = config
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.instance = str(uuid4())
        self.tiers = _tiers(config.splitter, storage, memory_is_sticky=memory_is_sticky)
        self.groups: dict[str, GroupLog] = {}
        self.publisher = Publisher(self._loop, self.status)
        self.moved = asyncio.Event()  # something has changed: see `drained`
        self._timers: list[GroupTimer] = []
        self._counting = False
        self._counter: asyncio.TimerHandle | None = None
        self._count_lane = ThreadLane(self._loop, "spool-count")
        sequence = count(first_sequence(storage, config.agent.state_dir))
        for group in config.groups:
            self.groups[group.name] = self._make_group(group, storage, clock, sequence)

    def _make_group(
        self, config: GroupConfig, storage: Storage, clock: Clock, sequence: Iterator[int]
    ) -> GroupLog:
        timer = GroupTimer(self._loop, clock)
        around = Surroundings(
            storage=storage,
            clock=clock,
            tiers=self.tiers,
            sequence=sequence,
            make_lane=partial(ThreadLane, self._loop, f"spool-{config.name}"),
            make_uuid=uuid4,
            wake=timer.wake,
            changed=self._changed,
        )
        settings = GroupSettings(
            name=config.name,
            driver=config.driver,
            checkpoint_interval_ns=config.checkpoint_interval_ns,
            max_stall_ns=self._config.splitter.max_stall_ns,
        )
        reservation = Reservation(
            storage, self._config.agent.state_dir, config.name, self.tiers.directories(config.name)
        )
        group = timer.group = GroupLog(settings, around, reservation)
        self._timers.append(timer)
        if config.driver == "external":
            for disk in config.disks:
                assert disk.size_bytes is not None, "the config was checked"
                instance = uuid5(EXTERNAL_DISKS, f"{config.name}/{disk.disk_name}")
                group.declare_disk(disk.disk_name, int(disk.size_bytes), str(instance))
        return group

    def begin(self) -> None:
        """Before anybody can connect."""
        for group in self.groups.values():
            group.begin()
        for timer in self._timers:
            timer.wake(0)
        self._count()

    def status(self) -> SplitterStatus:
        now_ns = self._clock.monotonic_ns()
        return splitter_status(self.instance, self.groups.values(), self.tiers, now_ns)

    def told(self) -> Iterator[dict[str, object]]:
        """The state, for the log."""
        yield {"instance": self.instance, "groups": len(self.groups)}
        for group in self.status().groups:
            yield dump_of(group)

    async def drained(self) -> None:
        """Returns in a step in which no append is queued, or after max_stall."""
        try:
            async with asyncio.timeout(self._config.splitter.max_stall_ns / 1e9):
                while any(group.draining for group in self.groups.values()):
                    self.moved.clear()
                    await self.moved.wait()
        except TimeoutError:
            _log.warning("appends are still queued at the end")

    def shut_down(self) -> None:
        for timer in self._timers:
            timer.stop()
        if self._counter is not None:
            self._counter.cancel()
        for group in self.groups.values():
            group.shut_down()
        self._count_lane.end()

    def _changed(self) -> None:
        self.moved.set()
        self.publisher.changed()

    def _count(self) -> None:
        """What the files take, for the status. The disk tier is looked at in a thread."""
        self._counter = self._loop.call_later(COUNT_SECONDS, self._count)
        if not self._counting:
            self._counting = True
            self._count_lane.put(self._count_tiers, self._counted)

    def _count_tiers(self) -> None:
        self.tiers.memory.count()
        self.tiers.disk.count()

    def _counted(self, error: Exception | None) -> None:
        self._counting = False
        if error is not None:
            _log.warning("spool cannot be counted", extra={"reason": str(error)})


def _tiers(spool: SplitterSection, storage: Storage, *, memory_is_sticky: bool) -> SpoolTiers:
    return SpoolTiers(
        Tier(
            storage, spool.spool_memory_dir, int(spool.spool_memory_bytes), sticky=memory_is_sticky
        ),
        Tier(storage, spool.spool_disk_dir, int(spool.spool_disk_bytes), sticky=True),
    )


async def life(
    config: AgentConfig,
    storage: Storage,
    clock: Clock,
    daemon: Daemon,
    *,
    memory_is_sticky: bool,
) -> None:
    """Runs the splitter until `daemon.stop` is set."""
    notifier = Notifier()
    with hold_lock(config.agent.state_dir / "splitter.lock", f"splitter of {config.agent.name}"):
        for warning in spool_warnings(config.splitter):
            _log.warning("config", extra={"warning": warning})
        splitter = Splitter(config, storage, clock, memory_is_sticky=memory_is_sticky)
        splitter.begin()
        async with _serving(config, splitter) as server:
            notifier.ready(f"serving {config.splitter.socket}")
            _log.info("serving", extra={"socket": config.splitter.socket})
            async with daemon.serving(
                reload=nothing_to_reload, dump=splitter.told, notifier=notifier
            ):
                with _watchdog(notifier):
                    await daemon.stop.wait()
            notifier.stopping()
            _log.info("stopping")
            await splitter.drained()
            splitter.shut_down()
            await server.close()
            splitter.publisher.push()
            await asyncio.sleep(0)  # a step for the last status to leave


@asynccontextmanager
async def _serving(config: AgentConfig, splitter: Splitter) -> AsyncIterator[NbdServer]:
    section = config.splitter
    control = ControlServer(Orders(splitter.groups, splitter.instance), splitter.publisher)
    listener = listen_unix(section.control, mode=CONTROL_MODE)
    inode = inode_of(section.control)
    control_server = await asyncio.start_unix_server(control.serve, sock=listener)
    try:
        server = await serve_unix(
            section.socket,
            SplitterExports(splitter.groups),
            mode=section.socket_mode,
            group=section.socket_group or None,
        )
        try:
            yield server
        finally:
            await server.close()
    finally:
        control_server.close()
        await control.close()
        splitter.publisher.close()
        remove_unix(section.control, inode)


@contextmanager
def _watchdog(notifier: Notifier) -> Iterator[None]:
    """Tells systemd, while the block runs, that the event loop turns."""
    interval = notifier.watchdog_interval_seconds
    if interval is None:
        yield
        return
    loop = asyncio.get_running_loop()
    handle: asyncio.Handle

    def feed() -> None:
        nonlocal handle
        notifier.alive()
        handle = loop.call_later(interval, feed)

    handle = loop.call_soon(feed)
    try:
        yield
    finally:
        handle.cancel()
