# SPDX-License-Identifier: Apache-2.0
"""The life of the splitter process: start up, run, shut down.

It serves its exports from its own start, with or without an agent. A checkpoint timer per group
cuts all disks of the group in one step; a finer timer looks at syncs whose end only time can tell.

Shutdown: connections are closed after their replies are sent; the streams are not ended in order,
because guests go on without us. The next start opens new ones, and a sync closes the gap.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4, uuid5

from agent.splitter import external
from agent.splitter.append_lane import ThreadLane
from agent.splitter.control import ControlConnection, Orders, Publisher
from agent.splitter.export import DiskExport
from agent.splitter.group_log import GroupLog
from agent.splitter.numbering import HostSequence
from agent.splitter.tiers import Tier, Tiers
from replicator.base.clock import Clock, SystemClock
from replicator.base.daemon import hold_lock
from replicator.base.notify import Notifier
from replicator.base.storage import Storage, SystemStorage
from replicator.base.unixsocket import inode_of, listen_unix, remove_unix
from replicator.config.agent import AgentConfig, GroupConfig
from replicator.config.environment import spool_warnings
from replicator.control.splitter import SplitterStatus
from replicator.nbd.exports import Export
from replicator.nbd.server import serve_unix

log = logging.getLogger("replicator.splitter")

# How often a sync that has flushed is looked at: its last condition may be time alone.
SYNC_LOOK_SECONDS = 0.05
SPOOL_LOOK_SECONDS = 1.0
CONTROL_MODE = 0o600
# Identity of external disks: the config is all that names them.
_EXTERNAL_DISKS = UUID("5f1f2a1e-7b3c-5d7e-8e0a-3c8f7f6c2b90")


class Splitter:
    """All groups of the host and their exports; implements `replicator.nbd.exports.Exports`."""

    def __init__(
        self, config: AgentConfig, storage: Storage, clock: Clock, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._config = config
        self._storage = storage
        self._clock = clock
        self._loop = loop
        self._exports: dict[tuple[str, str], DiskExport] = {}
        self.publisher = Publisher(loop, self._status)
        spool = config.splitter
        tiers = Tiers(
            storage,
            Tier(spool.spool_memory_dir, int(spool.spool_memory_bytes), may_stick=False),
            Tier(spool.spool_disk_dir, int(spool.spool_disk_bytes), may_stick=True),
            [group.name for group in config.groups],
        )
        sequence = HostSequence()
        self.groups = {
            group.name: GroupLog(
                group.name,
                group.driver,
                storage=storage,
                clock=clock,
                state_dir=config.agent.state_dir,
                tiers=tiers,
                sequence=sequence,
                lane=lambda: ThreadLane(loop, spool.max_stall_ns),
                changed=self.publisher.changed,
            )
            for group in config.groups
        }
        self.orders = Orders(
            self.groups, self._exports, self._serve, instance=str(uuid4()), pid=os.getpid()
        )

    def begin(self) -> None:
        """Opens what can be opened without an agent: the external groups."""
        for config in self._config.groups:
            if config.driver == "external":
                self._begin_external(config)

    def names(self) -> Sequence[str]:
        return [f"{group}/{disk}" for group, disk in self._exports]

    def find(self, name: str) -> Export | None:
        group, _, disk = name.partition("/")
        return self._exports.get((group, disk))

    def cut(self, group: GroupLog) -> None:
        """One tick of a group's checkpoint timer."""
        hung_up = any(
            export.hung_up() for (owner, _), export in self._exports.items() if owner == group.name
        )
        group.tick(may_cut=not hung_up)

    def look_at_syncs(self) -> None:
        for export in self._exports.values():
            export.check_sync_end()

    def measure_spool(self) -> None:
        for group in self.groups.values():
            group.measure_spool()

    def _begin_external(self, config: GroupConfig) -> None:
        group = self.groups[config.name]
        for disk in config.disks:
            assert disk.size_bytes is not None, "the config was checked"
            instance = uuid5(_EXTERNAL_DISKS, f"{config.name}/{disk.disk_name}")
            group.declare(disk.disk_name, int(disk.size_bytes), instance)
            self._serve(group, disk.disk_name)
        external.begin(group)

    def _serve(self, group: GroupLog, disk: str) -> None:
        if (group.name, disk) not in self._exports:
            export = DiskExport(group, group.disk(disk), self._clock)
            self._exports[group.name, disk] = export

    def _status(self) -> SplitterStatus:
        return self.orders.status()


async def life(config: AgentConfig, config_file: Path, stop: asyncio.Event) -> None:
    """Runs the splitter until `stop` is set. The lock comes before any socket."""
    notifier = Notifier()
    with hold_lock(config.agent.state_dir / "splitter.lock", f"splitter of {config.agent.name}"):
        for warning in spool_warnings(config.splitter):
            log.warning("%s: %s", config_file, warning)
        loop = asyncio.get_running_loop()
        splitter = Splitter(config, SystemStorage(), SystemClock(), loop)
        splitter.begin()
        await _serve(config, splitter, notifier, stop)


async def _serve(
    config: AgentConfig, splitter: Splitter, notifier: Notifier, stop: asyncio.Event
) -> None:
    loop = asyncio.get_running_loop()
    control_path = config.splitter.control
    control_socket = listen_unix(control_path, mode=CONTROL_MODE)
    control_inode = inode_of(control_path)
    control = await loop.create_unix_server(
        lambda: ControlConnection(splitter.orders, splitter.publisher), sock=control_socket
    )
    try:
        server = await serve_unix(
            config.splitter.socket,
            splitter,
            mode=config.splitter.socket_mode,
            group=config.splitter.socket_group or None,
        )
        timers = [
            asyncio.create_task(_every(interval, tick))
            for interval, tick in _timers(config, splitter, notifier)
        ]
        notifier.ready(f"serving {config.splitter.socket}")
        log.info("serving %s", config.splitter.socket)
        await _until(stop, timers)
        notifier.stopping()
        log.info("stopping")
        for timer in timers:
            timer.cancel()
        await asyncio.gather(*timers, return_exceptions=True)
        await server.close()
    finally:
        splitter.publisher.close()
        control.close()
        remove_unix(control_path, control_inode)


def _timers(
    config: AgentConfig, splitter: Splitter, notifier: Notifier
) -> list[tuple[float, Callable[[], None]]]:
    """(interval in seconds, what to do then)."""
    timers: list[tuple[float, Callable[[], None]]] = [
        (SYNC_LOOK_SECONDS, splitter.look_at_syncs),
        (SPOOL_LOOK_SECONDS, splitter.measure_spool),
    ]
    for group in config.groups:
        cut = partial(splitter.cut, splitter.groups[group.name])
        timers.append((group.checkpoint_interval_ns / 1e9, cut))
    if notifier.watchdog_interval_seconds:
        timers.append((notifier.watchdog_interval_seconds, notifier.alive))
    return timers


async def _every(interval_seconds: float, tick: Callable[[], None]) -> None:
    """Calls `tick` on a fixed grid of the loop's clock, so that lateness does not add up."""
    loop = asyncio.get_running_loop()
    due = loop.time() + interval_seconds
    while True:
        await asyncio.sleep(max(0.0, due - loop.time()))
        tick()
        due = max(due + interval_seconds, loop.time())


async def _until(stop: asyncio.Event, timers: list[asyncio.Task[None]]) -> None:
    """Waits for `stop`; a timer that ends before has failed, and its error ends the process."""
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopped, *timers], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    for task in done:
        if task is not stopped:
            task.result()
