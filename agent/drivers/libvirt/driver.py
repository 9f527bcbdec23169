# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver: protects running domains by synchronous block copies into the splitter.

A step reads what libvirt and the splitter say now (libvirt_facts), and does one safe thing:

    source_errors   a guest's write has failed on its source: the stream is lost
    libvirt_end     the source has come to its end, or may have
    libvirt_plan    what comes next towards protection

What may be tried again waits, longer each time: a lost stream (stream_tries), a void sync of a disk
(sync_tries), a source that fails (source_errors), a step that raised (agent.group.driving). No sync
begins while the receiver is away: it would only fill the spool.

The background copy is slowed down as the spool fills (`copy_speed`); guest writes never are.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from agent.drivers.driver import KnownDisk, Look, Orders, Wake
from agent.drivers.libvirt import source_errors
from agent.drivers.libvirt.connection import LibvirtConnection
from agent.drivers.libvirt.domain_xml import goes_to, is_ours
from agent.drivers.libvirt.end import NEXT_WORD, end_step, is_answer, left_out
from agent.drivers.libvirt.events import CopyNews, Event, IoError
from agent.drivers.libvirt.facts import Facts, LibvirtFacts
from agent.drivers.libvirt.freezer import LibvirtFreezer
from agent.drivers.libvirt.plan import (
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
from agent.drivers.libvirt.source_errors import SourceErrors
from agent.drivers.libvirt.stream_tries import StreamTries
from agent.drivers.libvirt.sync_tries import SyncTries, void_of
from agent.drivers.libvirt.watch import Watch
from agent.naming.export_name import ExportName
from agent.quiesce.freezer import Freezer
from replicator.base.clock import NS_PER_S, Clock, SystemClock
from replicator.base.units import MIB
from replicator.config.agent import GroupConfig
from replicator.states.words import NO_TROUBLE

log = logging.getLogger("replicator.agent.libvirt")

REACH_SECONDS = 5.0
"""How long an order waits for a connection that has just been begun."""

_LIVE = ("syncing", "ready", "suspended")

# (share of the spool that is taken, bytes per second of the background copy; 0: no limit).
# QEMU cannot be told to stop a copy, so the last step is a trickle.
COPY_SPEEDS = ((0.25, 0), (0.5, 64 * MIB), (0.75, 16 * MIB), (1.0, MIB))


def copy_speed(spool_share: float) -> int:
    """Bytes per second for the background copy at this filling of the spool; 0: no limit."""
    for share, speed in COPY_SPEEDS:
        if spool_share <= share:
            return speed
    return COPY_SPEEDS[-1][1]


class LibvirtHost:
    """All libvirt groups of this process share one connection."""

    def __init__(self, uri: str, socket: Path, clock: Clock | None = None) -> None:
        self._uri = uri
        self._socket = socket
        self._clock = clock or SystemClock()
        self._drivers: list[LibvirtDriver] = []
        self._reached = asyncio.Event()
        self._connection = LibvirtConnection(
            uri, opened=self._opened, changed=self._changed, closed=self._closed
        )

    def driver(self, group: GroupConfig, orders: Orders, wake: Wake) -> LibvirtDriver:
        freezer = LibvirtFreezer(
            self._uri, self._connection, [disk.domain for disk in group.disks if disk.domain]
        )
        driver = LibvirtDriver(
            group,
            orders,
            wake,
            connection=self._connection,
            socket=str(self._socket),
            clock=self._clock,
            freezer=freezer,
        )
        self._drivers.append(driver)
        if self._connection.connected:  # it came by a reload, and hears the events from here on
            driver.watch.connected(self._clock.monotonic_ns())
        return driver

    def forget(self, driver: object) -> None:
        self._drivers = [each for each in self._drivers if each is not driver]

    async def run(self) -> None:
        await self._connection.run()

    async def end_copies(self, group: str) -> list[str]:
        try:
            async with asyncio.timeout(REACH_SECONDS):
                await self._reached.wait()
        except TimeoutError:
            pass  # the question says why
        ended = []
        for domain in await self._connection.running_domains():
            live = await self._connection.find_domain(domain)
            for disk in live.facts.disks if live is not None and live.running else ():
                if goes_to(disk.mirror, str(self._socket), group):
                    await self._connection.end_copy(domain, disk.target)
                    ended.append(f"{domain}/{disk.target}")
        return ended

    def _opened(self) -> None:
        self._reached.set()
        for driver in self._drivers:
            driver.watch.connected(self._clock.monotonic_ns())
            driver.look_again(anew=True)

    def _closed(self) -> None:
        for driver in self._drivers:
            driver.watch.disconnected()

    def _changed(self, domain: str, event: Event) -> None:
        log.debug("domain %s: %s", domain, event)
        if isinstance(event, IoError):
            log.warning("domain %s: %s", domain, event)
        for driver in self._drivers:
            if driver.uses(domain):
                driver.watch.heard(domain, event, self._clock.monotonic_ns())
                # A copy's news may come of what this driver does; a domain's do not.
                driver.look_again(anew=not isinstance(event, CopyNews))


class LibvirtDriver:
    """One group's domains. See the head of this file, and Driver for the contract."""

    def __init__(
        self,
        group: GroupConfig,
        orders: Orders,
        wake: Wake,
        *,
        connection: LibvirtConnection,
        socket: str,
        clock: Clock,
        freezer: Freezer | None = None,
    ) -> None:
        self.problem = ""
        self.recovery = ""
        self.is_down = False
        self.left_out = NO_TROUBLE
        self.freezer = freezer
        self.watch = Watch()
        self._group = group
        self._orders = orders
        self._wake = wake
        self._connection = connection
        self._socket = socket
        self._clock = clock
        self._facts = LibvirtFacts(group, connection, socket, clock)
        self._mirrored_ns: int | None = None
        self._waits = ""  # for what, last time
        self._told = Told()
        self._speeds: dict[str, int] = {}
        self._streams = StreamTries()
        self._syncs = SyncTries()
        self._errors = SourceErrors()

    @property
    def disks(self) -> tuple[KnownDisk, ...]:
        return self._facts.known

    @property
    def remedy(self) -> str:
        if not self._connection.connected:
            return self._connection.remedy
        return self._errors.remedy(self._group.name, self._now())

    def uses(self, domain: str) -> bool:
        return any(disk.domain == domain for disk in self._group.disks)

    @property
    def read_back_seconds(self) -> float:
        if self._mirrored_ns is None:
            return math.inf
        return (self._clock.monotonic_ns() - self._mirrored_ns) / NS_PER_S

    def look_again(self, *, anew: bool = False) -> None:
        """What libvirt said last may be old. `anew`: see Wake."""
        self._facts.forget()
        self._wake(anew=anew)

    async def step(self, look: Look) -> bool:
        if not self._connection.connected:
            self.problem = f"libvirt is not reachable: {self._connection.problem}"
            return False
        group = look.group
        if group.state in ("syncing", "ready") and group.stream is not None:
            self.watch.said_live(group.stream, group.said_ns)
        facts = await self._facts.read(group)
        self._note(facts)
        if self._streams.saw(group, self._now()):
            self._syncs.clear()
        if failed := self._failed_sources(look, facts):
            await self._do(Close(source_errors.in_words(failed)), facts, look)
            self._errors.failed(failed, self._now())
            return True
        step, held = self._next_step(look, facts)
        waits = step.reason if isinstance(step, Wait) else ""
        if waits and waits != self._waits and group.state not in _LIVE:
            log.info("group %s: %s", self._group.name, waits)
        self._waits = waits
        self.problem = "; ".join(filter(None, (waits, held)))
        if step is None or isinstance(step, Wait | Rest):
            return await self._pace(look, facts)
        await self._do(step, facts, look)
        return True

    async def release(self, disks: Collection[str]) -> None:
        self._facts.forget()
        for config in self._group.disks:
            assert config.domain is not None
            if config.disk_name not in disks:
                continue
            live = await self._connection.find_domain(config.domain)
            export = ExportName(self._group.name, config.disk_name)
            for disk in live.facts.disks if live is not None and live.running else ():
                if disk.target == config.target and is_ours(disk.mirror, self._socket, export):
                    await self._connection.end_copy(config.domain, disk.target)

    async def resync(self, look: Look) -> None:
        self._streams.backoff.hurry()
        self._syncs.clear()
        self._errors.forget()
        if look.group.state in _LIVE:
            await self._orders.close_stream("a resync was ordered")
        self.look_again(anew=True)

    # -- deciding ---------------------------------------------------------------------------------

    def _note(self, facts: Facts) -> None:
        """What a state is told from."""
        self.is_down = not any(domain.running for domain in facts.reading.domains)
        disks = [(disk.domain or "", disk.disk_name) for disk in self._group.disks]
        self.left_out = left_out(disks, facts.reading.domains)
        mirrored = [one.ours and one.mirror is not None and one.mirror.ready for one in facts.disks]
        if mirrored and all(mirrored):
            self._mirrored_ns = facts.reading.asked_ns

    def _next_step(self, look: Look, facts: Facts) -> tuple[Step | None, str]:
        """The most urgent step that need not wait (None: each has to), and what is put off or is
        tried again, with the reason."""
        now_ns = self._clock.monotonic_ns()
        ending = end_step(look.group, facts.reading, self.watch, now_ns)
        if ending is not None:
            return ending, ""
        reasons = []
        chosen: Step | None = None
        for step in next_steps(look.group, facts.disks, self._told):
            held = self._holds_back(step, look)
            if not held:
                chosen = step
                break
            reasons.append(held)
        if isinstance(chosen, Close) and not is_answer(look.group, facts.reading):
            return Wait(NEXT_WORD), ""
        if look.group.state == "syncing":
            reasons.append(self._streams.said(look.group, self._now()))
        reasons.append(self._syncs.said(look.group, self._now()))
        return chosen, "; ".join(filter(None, dict.fromkeys(reasons)))

    def _failed_sources(self, look: Look, facts: Facts) -> set[str]:
        """The disks whose source has failed in the stream that lives."""
        if look.group.state not in _LIVE:
            return set()
        counted = source_errors.counted(look.group, facts.disks)
        failed = set(counted)
        for name, error in self.watch.errors:
            members = {
                disk.target: disk.disk_name
                for disk in self._group.disks
                if disk.domain == name and disk.target is not None
            }
            domain = facts.domains.get(name)
            found = source_errors.concerned(error, domain.facts if domain else None, members)
            failed |= found & counted or found
        return failed

    def _holds_back(self, step: Step, look: Look) -> str:
        """Why a new stream is not opened, or a disk not synced again, just now; empty if it may."""
        now = self._now()
        if isinstance(step, EndCopy | BeginSync | StartCopy):
            disk = step.disk
            failed = (disk.domain, disk.target) in self.watch.failed_copies
            left = self._syncs.left(step, look.group, now, failed=failed)
            return self._syncs.said_of(step, now) if left else ""
        if not isinstance(step, OpenStream):
            return ""
        if not look.receiver_connected:
            return "a sync is due and waits for the receiver"
        if holds := self._errors.holds(now):
            return holds
        return self._streams.said(look.group, now) if self._streams.backoff.left(now) else ""

    def _now(self) -> float:
        return self._clock.monotonic_ns() / NS_PER_S

    # -- doing ------------------------------------------------------------------------------------

    async def _do(self, step: Step, facts: Facts, look: Look) -> None:
        log.info("group %s: %s", self._group.name, _in_words(step))
        self._facts.forget()
        match step:
            case OpenStream(reason):
                self.watch.begin_stream()
                opened = await self._orders.open_stream(reason)
                self._told = Told(opened.stream)
                self._syncs.begin_stream()
                self._speeds.clear()
            case Declare(disk):
                await self._orders.declare_disk(disk.name, disk.size, str(disk.instance))
            case BeginSync(disk):
                void = void_of(look.group, disk.name)
                await self._orders.sync_begin(
                    disk.name,
                    void or look.group.reason or "sync",
                    source_errors=disk.source_errors,
                )
            case RecordXml(domain):
                await self._orders.append_domain_xml(domain, facts.domains[domain].definition)
                self._tell(look, domain=domain)
            case StartCopy(disk, export):
                self._syncs.begun(step)
                self.watch.failed_copies.discard((disk.domain, disk.target))
                await self._start_copy(disk, export, facts, look)
            case ConfirmReady(disk, connection):
                await self._orders.ready(disk.name, connection)
                self._tell(look, ready=(disk.name, connection))
            case EndCopy(disk):
                self._syncs.begun(step)
                await self._connection.end_copy(disk.domain, disk.target)
            case Close(reason, final_cut, unwatched):
                await self._orders.close_stream(
                    reason, final_cut=final_cut, unwatched=unwatched, stream=look.group.stream
                )
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

    async def _start_copy(self, disk: DiskFacts, export: str, facts: Facts, look: Look) -> None:
        speed = copy_speed(look.spool_share)
        await self._connection.copy_disk(
            disk.domain,
            facts.domains[disk.domain].facts.disk(disk.target),
            socket=self._socket,
            export=export,
            bytes_per_second=speed,
        )
        self._speeds[disk.name] = speed

    async def _pace(self, look: Look, facts: Facts) -> bool:
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


def _in_words(step: Step) -> str:
    """A step for the log: its name, and what it is about."""
    match step:
        case OpenStream(reason) | Close(reason) | Wait(reason):
            about = reason
        case RecordXml(domain):
            about = domain
        case Rest():
            about = ""
        case _:
            about = step.disk.name
    return f"{type(step).__name__} {about}".rstrip()
