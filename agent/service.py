# SPDX-License-Identifier: Apache-2.0
"""The life of the agent: take the lock, look at what is needed, serve until told to stop.

Tasks: the splitter link, one `run` per host of drivers, one per group. They end together: a bug
in one ends the process with its traceback, and the next start loses nothing (group.py).

What cannot work without a person ends the start with its documented code: a config that is wrong or
files that are missing (2), a second agent (11), a certificate that does not name this agent (12).
What may work later (no splitter, no receiver, a refusal by the receiver) never does: the agent
runs, tries again, and its status says why.

The guest comes first: the agent gives the CPU to the splitter and to QEMU whenever these want it.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from agent.drivers.driver import Host
from agent.drivers.external import ExternalHost
from agent.group import GroupAgent, Surroundings
from agent.memory import AgentMemory
from agent.metrics import AgentCollector
from agent.splitter_link import SplitterLink
from replicator import __version__
from replicator.base.certificates import require_own_name
from replicator.base.clock import SystemClock, rfc3339
from replicator.base.daemon import Daemon, hold_lock, nothing_to_reload
from replicator.base.errors import NotFoundError, UsageError
from replicator.base.notify import Notifier
from replicator.base.storage import SystemStorage
from replicator.config.agent import AgentConfig, Driver
from replicator.config.environment import require_credentials
from replicator.control import types
from replicator.control.describe import group_in_words
from replicator.control.server import (
    AuditEntry,
    Server,
    serve_agent_control,
    serve_metrics,
)
from replicator.control.service import Report
from replicator.control.splitter import SplitterGroupStatus, SplitterStatus
from replicator.wire.credentials import Credentials
from replicator.wire.identity import client_context
from replicator.wire.link import Connector
from replicator.wire.transport import TcpConnector

log = structlog.get_logger("replicator.agent")

NICE = 10
# Compression and bulk reads of all groups: more would only take the CPU from the guests.
POOL_THREADS = 2


class Agent:
    """All groups of the host; serves the control API (replicator.control.service.AgentControl)."""

    def __init__(
        self,
        config: AgentConfig,
        connector: Connector,
        pool: ThreadPoolExecutor,
        credentials: Credentials,
    ) -> None:
        self._config = config
        self.credentials = credentials
        self._hosts = _hosts(config)
        self.splitter = SplitterLink(config.splitter.control, self._publish)
        storage = SystemStorage()
        memory = self._memory = AgentMemory(storage, config.agent.state_dir)
        around = Surroundings(
            config=config,
            storage=storage,
            clock=SystemClock(),
            memory=memory,
            instance=str(memory.identity()),
            splitter=self.splitter,
            connector=connector,
            pool=pool,
        )
        self.groups = {
            group.name: GroupAgent(around, group, self._hosts[group.driver])
            for group in config.groups
        }

    async def run(self) -> None:
        """Runs until it is cancelled."""
        for name in self._memory.frozen_groups():
            if name not in self.groups:
                log.warning(
                    "guests of a group that is not in the config may be frozen",
                    group=name,
                    hint="virsh domfsthaw thaws one; put the group back, or remove its note",
                )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.splitter.run())
            for host in self._hosts.values():
                tasks.create_task(host.run())
            for group in self.groups.values():
                tasks.create_task(group.run())

    def _publish(self, status: SplitterStatus | None) -> None:
        known: dict[str, SplitterGroupStatus] = {}
        if status is not None:
            known = {group.name: group for group in status.groups}
        for name, group in self.groups.items():
            group.publish(known.get(name))

    def told(self) -> Iterator[dict[str, object]]:
        """The state, for the log."""
        yield {"version": __version__, "splitter": self.splitter.problem or "heard"}
        for group in self.groups.values():
            yield group_in_words(group.group_status())

    # -- the control API

    async def status(self) -> types.Status:
        return types.Status(
            role="agent",
            name=self._config.agent.name,
            version=__version__,
            groups=[group.group_status() for group in self.groups.values()],
            certificate_not_after=rfc3339(self.credentials.not_after_ns),
            certificate_warning=self.credentials.warning,
            missing=self.splitter.missing,
        )

    async def mark(
        self, group: str, request: types.MarkRequest, report: Report
    ) -> types.MarkedPoint:
        return await self._group(group).mark(request, report)

    async def resync(self, group: str) -> types.GroupStatus:
        return await self._group(group).resync()

    def _group(self, name: str) -> GroupAgent:
        if name not in self.groups:
            raise NotFoundError(
                f"agent {self._config.agent.name!r} has no group {name!r}",
                hint=f"its groups: {', '.join(self.groups) or 'none'}",
            )
        return self.groups[name]


async def life(config: AgentConfig, daemon: Daemon) -> None:
    """Runs the agent until `daemon.stop` is set. The lock comes before any socket."""
    name = config.agent.name
    notifier = Notifier()
    _yield_the_cpu()
    with hold_lock(config.agent.state_dir / "agent.lock", f"agent {name!r}"):
        link = config.receiver
        require_credentials(link)
        credentials = Credentials(partial(_context, name), link.ca, link.certificate, link.key)
        connector = TcpConnector(link.address, credentials.tls, SystemClock())
        with ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="ship") as pool:
            agent = Agent(config, connector, pool, credentials)
            servers = await _listen(config, agent)
            try:
                notifier.ready(f"serving {len(agent.groups)} groups")
                log.info("started", name=name, groups=len(agent.groups), version=__version__)
                async with daemon.serving(
                    reload=nothing_to_reload, dump=agent.told, notifier=notifier
                ):
                    await _until(daemon.stop, agent, notifier)
            finally:
                notifier.stopping()
                for server in servers:
                    await server.close()
    log.info("stopped", name=name)


def _context(name: str, ca: Path, certificate: Path, key: Path) -> ssl.SSLContext:
    """Raises IdentityError, UsageError."""
    context = client_context(ca, certificate, key)
    require_own_name(certificate, name)
    return context


def _hosts(config: AgentConfig) -> dict[Driver, Host]:
    """One for each kind of driver that the config uses."""
    kinds = {group.driver for group in config.groups}
    hosts: dict[Driver, Host] = {}
    if "external" in kinds:
        hosts["external"] = ExternalHost()
    if "libvirt" in kinds:
        hosts["libvirt"] = _libvirt_host(config)
    return hosts


def _libvirt_host(config: AgentConfig) -> Host:
    """Imports libvirt only where it is used: it is an extra that needs a compiler to install."""
    try:
        from agent.drivers.libvirt_driver import LibvirtHost
    except ModuleNotFoundError as error:
        if error.name not in ("libvirt", "libvirtaio", "libvirtmod"):
            raise
        raise UsageError(
            "a group has driver 'libvirt', and libvirt-python is not installed",
            hint="install it with: pip install 'replicator[libvirt]'",
        ) from error
    host: Host = LibvirtHost(config.libvirt.uri, config.splitter.socket)
    return host


async def _listen(config: AgentConfig, agent: Agent) -> Sequence[Server]:
    servers = [
        await serve_agent_control(config.agent.control, agent, name=config.agent.name, audit=_audit)
    ]
    if config.agent.metrics.address is not None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(
            AgentCollector(config.agent.name, agent.splitter, agent.groups, agent.credentials)
        )
        servers.append(await serve_metrics(config.agent.metrics.address, registry))
    return servers


async def _until(stop: asyncio.Event, agent: Agent, notifier: Notifier) -> None:
    """Waits for `stop`; if the agent ends before, it has failed, and its error ends the process."""
    running = asyncio.create_task(agent.run())
    stopped = asyncio.create_task(stop.wait())
    tending = asyncio.create_task(_tend(agent, notifier))
    try:
        await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in (running, stopped, tending):
            task.cancel()
        await asyncio.gather(running, stopped, tending, return_exceptions=True)


async def _tend(agent: Agent, notifier: Notifier) -> None:
    """Feeds systemd's watchdog and tells it in a line how things are."""
    interval = notifier.watchdog_interval_seconds or 10.0
    while True:
        states = [group.state.value for group in agent.groups.values()]
        summary = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        notifier.status(summary or "no groups")
        notifier.alive()
        agent.credentials.look(asyncio.get_running_loop().time())
        await asyncio.sleep(interval)


def _audit(entry: AuditEntry) -> None:
    log.info(
        "order",
        order=entry.order,
        object=entry.object,
        argument=entry.argument,
        uid=entry.uid,
        pid=entry.pid,
        outcome=entry.outcome,
        message=entry.message,
    )


def _yield_the_cpu() -> None:
    """Batch scheduling and a high nice value, for this process and all its threads."""
    os.nice(max(0, NICE - os.nice(0)))
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except PermissionError:
        log.warning("cannot use batch scheduling", reason="not permitted here")
