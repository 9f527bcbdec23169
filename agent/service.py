# SPDX-License-Identifier: Apache-2.0
"""The life of the agent: take the lock, look at what is needed, serve until told to stop.

Tasks: the splitter link, one `run` per host of drivers, one per group. What one of them dies of is
named in the status of the group, and it is begun anew (retrying.supervision); the others do not
notice.

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from agent.drivers.driver import Host
from agent.drivers.external import ExternalHost
from agent.group.group import GroupAgent, Surroundings
from agent.leftovers import Leftovers
from agent.links.splitter_link import SplitterLink
from agent.memory import AgentMemory
from agent.metrics import AgentCollector
from agent.retrying.supervision import Supervision
from replicator import __version__
from replicator.base.certificates import require_own_name
from replicator.base.clock import SystemClock, rfc3339
from replicator.base.daemon import Daemon, hold_lock
from replicator.base.errors import NotFoundError, ReplicatorError, UsageError
from replicator.base.notify import Notifier
from replicator.base.storage import SystemStorage
from replicator.config.agent import AgentConfig, Driver, GroupConfig
from replicator.config.changes import agent_changes, in_force
from replicator.config.environment import require_credentials
from replicator.control import orders, requests, types
from replicator.control.describe import group_in_words
from replicator.control.reloading import reload_result, require_removals
from replicator.control.server import (
    AuditEntry,
    Server,
    serve_control,
    serve_metrics,
)
from replicator.control.service import Answers, Call, answer
from replicator.control.splitter import SplitterGroupStatus, SplitterStatus
from replicator.wire.credentials import Credentials
from replicator.wire.identity import client_context
from replicator.wire.transport import TcpConnector

log = structlog.get_logger("replicator.agent")

NICE = 10
# Compression and bulk reads of all groups: more would only take the CPU from the guests.
POOL_THREADS = 2


class Agent:
    """All groups of the host."""

    def __init__(
        self,
        config: AgentConfig,
        connector: TcpConnector,
        pool: ThreadPoolExecutor,
        credentials: Credentials,
        load: Callable[[], AgentConfig],
    ) -> None:
        self._config = config
        self._connector = connector
        self.credentials = credentials
        self._load = load
        self._one_reload = asyncio.Lock()
        self._hosts: dict[Driver, Host] = {}
        self._supervisions: dict[str, Supervision] = {}
        self.splitter = SplitterLink(config.splitter.control, self._publish)
        storage = SystemStorage()
        memory = self._memory = AgentMemory(storage, config.agent.state_dir)
        self._around = Surroundings(
            config=config,
            storage=storage,
            clock=SystemClock(),
            memory=memory,
            instance=str(memory.identity()),
            splitter=self.splitter,
            connector=connector,
            pool=pool,
            hosts=self._supervisions,
        )
        self._leftovers = Leftovers(
            *(lambda: self._config, memory, self.splitter), self._served, self._end_copies
        )
        self.groups: dict[str, GroupAgent] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._status: SplitterStatus | None = None
        for group in config.groups:
            self._add(group, self._host_of(group))

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
            self._tasks = tasks
            tasks.create_task(self.splitter.run())
            keep = Supervision("leftovers").keep
            tasks.create_task(keep("leftovers", self._leftovers.run))
            for kind in self._hosts:
                self._start_host(kind)
            for name in self.groups:
                self._start(name)

    # -- the configuration, as it changes

    async def reload(self, request: requests.ReloadRequest) -> types.ReloadResult:
        """All or nothing: first the splitter, then here. What a start alone can change is said,
        and stays. Raises ReplicatorError, OSError."""
        async with self._one_reload:
            config = await asyncio.to_thread(self._load)
            found = agent_changes(self._config, config)
            config = in_force(self._config, config)
            result = reload_result("agent", self._config.agent.name, found)
            if request.dry_run:
                return result
            require_removals(request, found)
            hosts = [(group, self._host_of(group)) for group in config.groups]
            files = (config.receiver.ca, config.receiver.certificate, config.receiver.key)
            self.credentials.check(files)
            if found or not self.splitter.problem:  # it may have read the file before us, or not
                await self.splitter.reload()
            self.credentials.refresh(files)
            if found:
                await self._take_over(config, hosts)
            await self._remove_strangers()
            log.info("reloaded", changes=[str(change) for change in found])
            return result

    async def reload_by_signal(self) -> None:
        """Whoever sends it has seen what is gone."""
        await self.reload(requests.ReloadRequest(removes_too=True))

    async def _take_over(
        self, config: AgentConfig, hosts: Sequence[tuple[GroupConfig, Host]]
    ) -> None:
        before, self._config = self._config, config
        self._around = replace(self._around, config=config)
        self._connector.address = config.receiver.address
        old = {group.name: group for group in before.groups}
        wanted = {group.name for group in config.groups}
        for name in [name for name in self.groups if name not in wanted]:
            await self.groups[name].leave()
            await self._stop(name)
        for group, host in hosts:
            if group == old.get(group.name):
                self.groups[group.name].reload(self._around)
                continue
            if group.name in self.groups:
                await self._make_way(group)
            self._add(group, host)
            self._start(group.name)
        self._publish(self._status)

    async def _remove_strangers(self) -> None:
        """Groups that left the file while this agent was away: nobody else ends them."""
        known = () if self._status is None else (group.name for group in self._status.groups)
        for name in [name for name in known if name not in self.groups]:
            try:
                await self.splitter.remove_group(name)
            except ReplicatorError as error:
                log.warning("group not removed", group=name, reason=str(error))

    async def _make_way(self, config: GroupConfig) -> None:
        """A group whose configuration is another one goes on as after a restart of the agent. The
        splitter knows by itself which disks an external one has."""
        group = self.groups[config.name]
        kept = {disk.disk_name for disk in config.disks}
        gone = [disk.disk_name for disk in group.config.disks if disk.disk_name not in kept]
        if gone and group.config.driver == "libvirt":
            await group.leave(gone)
        await self._stop(config.name)

    async def _stop(self, name: str) -> None:
        del self.groups[name]
        task = self._running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def _start(self, name: str) -> None:
        assert self._tasks is not None, "nothing is reloaded before it runs"
        self._running[name] = self._tasks.create_task(self.groups[name].run())

    def _add(self, config: GroupConfig, host: Host) -> None:
        self.groups[config.name] = GroupAgent(self._around, config, host)

    def _host_of(self, group: GroupConfig) -> Host:
        """Made when the first group needs it. Raises UsageError where it cannot be."""
        host = self._hosts.get(group.driver)
        if host is None:
            host = ExternalHost() if group.driver == "external" else _libvirt_host(self._config)
            self._hosts[group.driver] = host
            self._supervisions[group.driver] = Supervision(group.driver)
            if self._tasks is not None:
                self._start_host(group.driver)
        return host

    def _start_host(self, kind: Driver) -> None:
        assert self._tasks is not None
        self._tasks.create_task(self._supervisions[kind].keep(kind, self._hosts[kind].run))

    def _publish(self, status: SplitterStatus | None) -> None:
        self._status = status
        known: dict[str, SplitterGroupStatus] = {}
        if status is not None:
            known = {group.name: group for group in status.groups}
        for name, group in self.groups.items():
            try:
                group.publish(known.get(name))
            except Exception as error:  # noqa: BLE001 - a supervision
                group.supervision.failed("status", error)
            else:
                group.supervision.well("status")

    def told(self) -> Iterator[dict[str, object]]:
        """The state, for the log."""
        yield {"version": __version__, "splitter": self.splitter.problem or "heard"}
        for group in self.groups.values():
            yield group_in_words(group.group_status())

    # -- the control API

    def answers(self) -> Answers:
        return Answers(
            "agent",
            (
                answer(orders.STATUS, self._told_status),
                answer(orders.RELOAD, lambda call: self.reload(call.request)),
                answer(orders.FORGET, self._forget),
                answer(orders.MARK, self._mark),
                answer(orders.RESYNC, self._resync),
            ),
        )

    async def _told_status(self, _call: Call[requests.NoRequest]) -> types.Status:
        return types.Status(
            role="agent",
            name=self._config.agent.name,
            version=__version__,
            groups=[group.group_status() for group in self.groups.values()],
            certificate_not_after=rfc3339(self.credentials.not_after_ns),
            certificate_warning=self.credentials.warning,
            missing=self.splitter.missing,
            leftovers=self._leftovers.listed(),
        )

    async def _mark(self, call: Call[requests.MarkRequest]) -> types.MarkedPoint:
        return await self._group(call.name).mark(call.request, call.report)

    async def _resync(self, call: Call[requests.NoRequest]) -> types.GroupStatus:
        return await self._group(call.name).resync()

    async def _forget(self, call: Call[requests.ForgetRequest]) -> types.ForgetResult:
        if call.request.break_lock or call.request.reason:
            raise UsageError("there are no locks at the source", hint="locks are the receiver's")
        async with self._one_reload:
            return await self._leftovers.forget(call.name, call.request)

    async def _end_copies(self, group: str) -> list[str]:
        """Also where no group of the configuration uses libvirt any more."""
        host = self._hosts.get("libvirt")
        if host is not None:
            return await host.end_copies(group)
        try:
            host = _libvirt_host(self._config)
        except UsageError:  # it was never used on this machine
            return []
        running = asyncio.create_task(host.run())
        try:
            return await host.end_copies(group)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def _served(self) -> set[str]:
        return set() if self._status is None else {group.name for group in self._status.groups}

    def _group(self, name: str) -> GroupAgent:
        if name not in self.groups:
            raise NotFoundError(
                f"agent {self._config.agent.name!r} has no group {name!r}",
                hint=f"its groups: {', '.join(self.groups) or 'none'}",
            )
        return self.groups[name]


async def life(load: Callable[[], AgentConfig], daemon: Daemon) -> None:
    """Runs the agent until `daemon.stop` is set. The lock comes before any socket. `load` reads
    the configuration; raises ConfigError."""
    config = load()
    name = config.agent.name
    notifier = Notifier()
    _yield_the_cpu()
    with hold_lock(config.agent.state_dir / "agent.lock", f"agent {name!r}"):
        link = config.receiver
        require_credentials(link)
        credentials = Credentials(partial(_context, name), link.ca, link.certificate, link.key)
        connector = TcpConnector(link.address, credentials.tls, SystemClock())
        with ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="ship") as pool:
            agent = Agent(config, connector, pool, credentials, load)
            servers = await _listen(config, agent)
            try:
                notifier.ready(f"serving {len(agent.groups)} groups")
                log.info("started", name=name, groups=len(agent.groups), version=__version__)
                async with daemon.serving(
                    reload=agent.reload_by_signal, dump=agent.told, notifier=notifier
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


def _libvirt_host(config: AgentConfig) -> Host:
    """Imports libvirt only where it is used: it is an extra that needs a compiler to install."""
    try:
        from agent.drivers.libvirt.driver import LibvirtHost
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
        await serve_control(
            config.agent.control, agent.answers(), name=config.agent.name, audit=_audit
        )
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
        states = [group.state.word for group in agent.groups.values()]
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
