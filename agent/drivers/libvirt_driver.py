# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver: protects running domains by synchronous block copies into the splitter.

A step reads what libvirt and the splitter say now, asks the plan (libvirt_plan) for one safe thing
to do, and does it. What libvirt said is kept for a moment, because statuses of the splitter come
far more often than anything changes there: it is read again after every event, every reconnect,
everything that was done, whenever the splitter says something else of a disk, and after
FACTS_AGE_SECONDS. So it is never older than the word of the splitter that it is joined with.

A copy that keeps failing is not begun over and over: after a loss the next stream waits, and after
a void sync its disk's next one, longer each time, until a protection has stood for a while. No sync
begins while the receiver is away: it would only fill the spool.

The background copy is slowed down as the spool fills (`copy_speed`); guest writes never are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from agent.drivers.domain_xml import instance_of, is_ours, require_supported
from agent.drivers.driver import Freezer, KnownDisk, Look, Orders
from agent.drivers.libvirt_connection import LibvirtConnection, LiveDomain
from agent.drivers.libvirt_freezer import LibvirtFreezer
from agent.drivers.libvirt_plan import (
    BeginSync,
    Close,
    ConfirmReady,
    Declare,
    DiskFacts,
    EndCopy,
    OpenStream,
    RecordXml,
    Rest,
    StartCopy,
    Step,
    Told,
    Wait,
    next_steps,
)
from agent.drivers.sync_tries import SyncTries
from agent.export_name import ExportName
from replicator.base.errors import UnreachableError
from replicator.base.units import MIB
from replicator.config.agent import DiskConfig, GroupConfig
from replicator.control.splitter import SplitterDiskStatus

log = logging.getLogger("replicator.agent.libvirt")

# An event may be lost while libvirtd restarts; this is how long that can go unnoticed.
FACTS_AGE_SECONDS = 3.0
RETRY_FIRST_SECONDS = 1.0
RETRY_LIMIT_SECONDS = 60.0
# A protection that stood this long counts as good: the next loss is met without delay.
STOOD_SECONDS = 30.0

# (share of the spool that is taken, bytes per second of the background copy; 0: no limit).
# QEMU cannot be told to stop a copy, so the last step is a trickle.
COPY_SPEEDS = ((0.25, 0), (0.5, 64 * MIB), (0.75, 16 * MIB), (1.0, MIB))


def copy_speed(spool_share: float) -> int:
    """Bytes per second for the background copy at this filling of the spool; 0: no limit."""
    for share, speed in COPY_SPEEDS:
        if spool_share <= share:
            return speed
    return COPY_SPEEDS[-1][1]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What libvirt said, and when (seconds of the loop's clock). `word`: what the splitter had said
    before."""

    disks: tuple[DiskFacts, ...]
    domains: dict[str, LiveDomain]
    read_at: float
    word: tuple[object, ...]


class LibvirtHost:
    """All libvirt groups of this process share one connection."""

    def __init__(self, uri: str, socket: Path) -> None:
        self._uri = uri
        self._socket = socket
        self._drivers: list[LibvirtDriver] = []
        self._connection = LibvirtConnection(uri, opened=self._opened, changed=self._changed)

    def driver(self, group: GroupConfig, orders: Orders, wake: Callable[[], None]) -> LibvirtDriver:
        freezer = LibvirtFreezer(
            self._uri, self._connection, [disk.domain for disk in group.disks if disk.domain]
        )
        driver = LibvirtDriver(group, orders, wake, self._connection, str(self._socket), freezer)
        self._drivers.append(driver)
        return driver

    async def run(self) -> None:
        await self._connection.run()

    def _opened(self) -> None:
        for driver in self._drivers:
            driver.look_again()

    def _changed(self, domain: str, event: str) -> None:
        log.debug("%s event of domain %s", event, domain)
        for driver in self._drivers:
            if driver.uses(domain):
                driver.look_again()


class LibvirtDriver:
    """One group's domains. See the head of this file, and Driver for the contract."""

    def __init__(
        self,
        group: GroupConfig,
        orders: Orders,
        wake: Callable[[], None],
        connection: LibvirtConnection,
        socket: str,
        freezer: Freezer | None = None,
    ) -> None:
        self.problem = ""
        self.freezer = freezer
        self.disks: tuple[KnownDisk, ...] = ()
        self._group = group
        self._orders = orders
        self._wake = wake
        self._connection = connection
        self._socket = socket
        self._facts: _Facts | None = None
        self._told = Told()
        self._speeds: dict[str, int] = {}
        self._tries = SyncTries()
        self._retry_seconds = 0.0
        self._opened_at = 0.0
        self._ready_since: float | None = None

    def uses(self, domain: str) -> bool:
        return any(disk.domain == domain for disk in self._group.disks)

    def look_again(self) -> None:
        """What libvirt said last may be old."""
        self._facts = None
        self._wake()

    async def step(self, look: Look) -> bool:
        facts = await self._look(look)
        self.disks = tuple(
            KnownDisk(disk.name, disk.size, str(disk.instance)) for disk in facts.disks
        )
        self._note_standing(look)
        step, held = self._next_step(look, facts)
        self.problem = held or (step.reason if isinstance(step, Wait) else "")
        if isinstance(step, Wait):
            return False
        if step is None or isinstance(step, Rest):
            return await self._pace(look, facts)
        log.info("group %s: %s", self._group.name, _in_words(step))
        self._facts = None
        await self._do(step, facts, look)
        return True

    async def resync(self, look: Look) -> None:
        self._retry_seconds = 0.0
        self._tries.clear()
        if look.group.state in ("syncing", "ready", "suspended"):
            await self._orders.close_stream("a resync was ordered")
        self.look_again()

    # -- looking ----------------------------------------------------------------------------------

    async def _look(self, look: Look) -> _Facts:
        now, word = asyncio.get_running_loop().time(), _word(look)
        if (
            self._facts is not None
            and self._facts.word == word
            and now - self._facts.read_at < FACTS_AGE_SECONDS
        ):
            return self._facts
        if not self._connection.connected:
            raise UnreachableError(f"libvirt is not reachable: {self._connection.problem}")
        domains: dict[str, LiveDomain] = {}
        disks = []
        for config in self._group.disks:
            assert config.domain is not None, "the config was checked"
            if config.domain not in domains:
                domains[config.domain] = await self._connection.domain(config.domain)
            disks.append(await self._disk_facts(config, domains[config.domain]))
        self._facts = _Facts(tuple(disks), domains, now, word)
        return self._facts

    async def _disk_facts(self, config: DiskConfig, domain: LiveDomain) -> DiskFacts:
        assert config.domain is not None
        assert config.target is not None
        disk = domain.facts.disk(config.target)
        require_supported(domain.facts, disk)
        name = config.disk_name
        return DiskFacts(
            name=name,
            domain=config.domain,
            target=config.target,
            running=domain.running,
            size=await self._connection.disk_bytes(config.domain, config.target),
            instance=instance_of(domain.facts, disk),
            mirror=disk.mirror,
            ours=is_ours(disk.mirror, self._socket, ExportName(self._group.name, name)),
        )

    # -- deciding when ----------------------------------------------------------------------------

    def _note_standing(self, look: Look) -> None:
        """A protection that has stood for a while makes the next loss a first one again."""
        now = asyncio.get_running_loop().time()
        if look.group.state != "ready":
            self._ready_since = None
        elif self._ready_since is None:
            self._ready_since = now
        elif now - self._ready_since >= STOOD_SECONDS:
            self._retry_seconds = 0.0
            self._tries.clear()

    def _next_step(self, look: Look, facts: _Facts) -> tuple[Step | None, str]:
        """The most urgent step that need not wait (None: each has to), and what is put off or is
        tried again, with the reason."""
        reasons = []
        chosen: Step | None = None
        for step in next_steps(look.group, facts.disks, self._told):
            held = self._holds_back(step, look)
            if not held:
                chosen = step
                break
            reasons.append(held)
        reasons.append(self._tries.said(look.group, asyncio.get_running_loop().time()))
        return chosen, "; ".join(filter(None, dict.fromkeys(reasons)))

    def _holds_back(self, step: Step, look: Look) -> str:
        """Why a new stream is not opened, or a disk not synced again, just now; empty if it may."""
        now = asyncio.get_running_loop().time()
        if isinstance(step, EndCopy | BeginSync | StartCopy):
            left = self._tries.left(step, _status_of(look, step.disk.name), now)
            return self._tries.said(look.group, now) if self._puts_off(left) else ""
        if not isinstance(step, OpenStream):
            return ""
        if not look.receiver_connected:
            return "a sync is due and waits for the receiver"
        left = self._opened_at + self._retry_seconds - now
        if self._puts_off(left):
            return f"the next sync begins in {left:.0f} s ({step.reason})"
        return ""

    def _puts_off(self, seconds: float) -> bool:
        """Looks again then."""
        if seconds > 0:
            asyncio.get_running_loop().call_later(seconds, self._wake)
        return seconds > 0

    # -- doing ------------------------------------------------------------------------------------

    async def _do(self, step: Step, facts: _Facts, look: Look) -> None:
        match step:
            case OpenStream(reason):
                opened = await self._orders.open_stream(reason)
                self._told = Told(opened.stream)
                self._tries.begin_stream()
                self._speeds.clear()
                self._opened_at = asyncio.get_running_loop().time()
                doubled = max(RETRY_FIRST_SECONDS, self._retry_seconds * 2)
                self._retry_seconds = min(doubled, RETRY_LIMIT_SECONDS)
            case Declare(disk):
                await self._orders.declare_disk(disk.name, disk.size, str(disk.instance))
            case BeginSync(disk):
                void = _status_of(look, disk.name).void
                await self._orders.sync_begin(disk.name, void or look.group.reason or "sync")
            case RecordXml(domain):
                await self._orders.append_domain_xml(domain, facts.domains[domain].definition)
                self._tell(look, domain=domain)
            case StartCopy(disk, export):
                self._tries.begun(step)
                await self._start_copy(disk, export, facts, look)
            case ConfirmReady(disk, connection):
                await self._orders.ready(disk.name, connection)
                self._tell(look, ready=(disk.name, connection))
            case EndCopy(disk):
                self._tries.begun(step)
                await self._connection.end_copy(disk.domain, disk.target)
            case Close(reason, final_cut):
                await self._orders.close_stream(reason, final_cut=final_cut)
            case Wait() | Rest():
                raise AssertionError("nothing to do")
            case _:
                assert_never(step)

    def _tell(
        self, look: Look, *, domain: str | None = None, ready: tuple[str, int] | None = None
    ) -> None:
        told = self._told
        if told.stream != look.group.stream:
            told = Told(look.group.stream)
        if domain is not None:
            told = replace(told, domains=told.domains | {domain})
        if ready is not None:
            told = replace(told, ready=told.ready | {ready})
        self._told = told

    async def _start_copy(self, disk: DiskFacts, export: str, facts: _Facts, look: Look) -> None:
        speed = copy_speed(look.spool_share)
        await self._connection.copy_disk(
            disk.domain,
            facts.domains[disk.domain].facts.disk(disk.target),
            socket=self._socket,
            export=export,
            bytes_per_second=speed,
        )
        self._speeds[disk.name] = speed

    async def _pace(self, look: Look, facts: _Facts) -> bool:
        """Sets the speed of the copies by the filling of the spool, where it has changed."""
        if look.group.state != "syncing":
            return False
        speed = copy_speed(look.spool_share)
        for disk in facts.disks:
            if disk.mirror is None or disk.mirror.ready or self._speeds.get(disk.name, 0) == speed:
                continue
            await self._connection.set_copy_speed(disk.domain, disk.target, speed)
            self._speeds[disk.name] = speed
        return False


def _word(look: Look) -> tuple[object, ...]:
    """What the splitter says of the group and its disks, without the figures."""
    group = look.group
    disks = tuple(
        (disk.name, disk.instance, disk.state, disk.export, disk.flushed_by, disk.connected)
        for disk in group.disks
    )
    return (group.state, group.stream, disks)


def _status_of(look: Look, name: str) -> SplitterDiskStatus:
    return next(disk for disk in look.group.disks if disk.name == name)


def _in_words(step: Step) -> str:
    """A step for the log: its name, and what it is about."""
    match step:
        case OpenStream(reason) | Close(reason, _) | Wait(reason):
            about = reason
        case RecordXml(domain):
            about = domain
        case Rest():
            about = ""
        case _:
            about = step.disk.name
    return f"{type(step).__name__} {about}".rstrip()
