# SPDX-License-Identifier: Apache-2.0
"""A machine whose disks are mirrored, as QEMU 7.2 and libvirt do it, against splitter and plan.

`Machine` is the model of QEMU and libvirt: source disks, one mirror job a disk, its connection, its
place in the live XML. `Protected` joins it with the real group of a splitter (tests.splitter.rig)
and the real plan of the driver. Nothing runs by itself: each call is one thing that happens.

The oracle: whenever a cut appears in the log, the log up to it makes exactly the source's disks as
they are then. A sync has to do so by itself, so at each sync-begin the replica is made rubbish.

What the model knows of QEMU (docs/splitter.md, tests/qemu, tests/libvirt have the real one):
* A guest write goes to the source, then to the target, then it is complete. A write to a target
  that is gone ends the job, or, with a reconnect delay, is sent again on a new connection to the
  export that the job was begun with.
* A pause flushes the target of every job, once or twice, running or ready. So does a job's end.
* A job flushes before it is ready, and is ready only if that went well. A copy that was begun goes
  on while the machine is paused.
* That a connection is gone is noticed at the next request on it.
* A disk is not resized while a job runs on it, and no job makes its target longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from agent.drivers.libvirt.domain_xml import Mirror
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
)
from agent.naming.export_name import parse_export_name
from agent.splitter.group import StateError
from agent.splitter.status import group_status
from journal.bodies import Cut, SyncBegin
from journal.record import RecordType
from replicator.control.splitter import SplitterGroupStatus
from replicator.nbd.exports import EndKind
from tests.drivers.test_libvirt_plan import fact, next_step
from tests.splitter.rig import Client, Rig, body_of, flush, instance, write

SECTOR: Final = 512
SECTORS: Final = 4
SIZE: Final = SECTOR * SECTORS
OTHER_SECTORS: Final = {SECTORS: 6, 6: 3, 3: SECTORS}
RUBBISH: Final = bytes([0xEE])


@dataclass(eq=False)
class Job:
    """QEMU's mirror of one disk, in the live XML for as long as it is alive."""

    export: str
    reconnects: bool
    dirty: list[int]
    client: Client | None = None
    alive: bool = True
    ready: bool = False


class Machine:
    """`flushes`: how often a pause flushes a target. `reconnects`: the jobs have a delay."""

    def __init__(self, rig: Rig, *disks: str, flushes: int, reconnects: bool) -> None:
        self.source = {name: bytearray([n + 1]) * SIZE for n, name in enumerate(disks)}
        self.jobs: dict[str, Job] = {}
        self.paused = False
        self._rig = rig
        self._flushes = flushes
        self._reconnects = reconnects
        self._held: list[tuple[str, int]] = []  # writes that failed and are tried on resume
        self._values = 0

    def meets(self, rig: Rig) -> None:
        """Another splitter: nobody is connected to that one."""
        self._rig = rig
        for job in self.jobs.values():
            if job.client is not None:
                job.client.gone = True

    # What libvirt is asked for.

    def start_copy(self, name: str, export: str) -> None:
        assert name not in self.jobs, "libvirt allows one job a disk"
        sectors = len(self.source[name]) // SECTOR
        self.jobs[name] = Job(export, self._reconnects, list(range(sectors)))

    def end_copy(self, name: str) -> None:
        """A soft cancel. Fine if the job has ended meanwhile."""
        job = self.jobs.get(name)
        if job is not None and job.alive:
            self._send(job, "flush")
            self._conclude(name, EndKind.DISC)

    def mirror(self, name: str) -> Mirror | None:
        job = self.jobs.get(name)
        return None if job is None else Mirror("/s.sock", job.export, job.ready, 0)

    # What happens.

    def guest_writes(self, name: str, sector: int) -> None:
        if self.paused:
            return
        self._values = self._values % 200 + 10
        data = bytes([self._values]) * SECTOR
        sector %= len(self.source[name]) // SECTOR
        self.source[name][sector * SECTOR : (sector + 1) * SECTOR] = data
        job = self.jobs.get(name)
        if job is not None and job.alive:
            if sector in job.dirty:
                job.dirty.remove(sector)
            self._send(job, "write", sector)

    def copies(self, name: str) -> None:
        """The background copy goes one step on: a sector, or what comes behind the last one."""
        job = self.jobs.get(name)
        if job is None or not job.alive or job.ready:
            return
        if job.dirty:
            self._send(job, "write", job.dirty.pop(0))
        elif self._send(job, "flush"):
            job.ready = True

    def resizes(self, name: str) -> None:
        """Refused while a job runs. What it grows by may hold anything: it may have been off."""
        if name not in self.jobs:
            sectors = OTHER_SECTORS[len(self.source[name]) // SECTOR]
            content = bytes(self.source[name]).ljust(sectors * SECTOR, b"\x07")
            self.source[name][:] = content[: sectors * SECTOR]

    def pauses(self) -> None:
        for job in list(self.jobs.values()):
            for _ in range(self._flushes):
                if job.alive:
                    self._send(job, "flush")
        self.paused = True

    def pauses_for_a_moment(self) -> None:
        self.pauses()
        self.resumes()

    def resumes(self) -> None:
        self.paused = False
        held, self._held = self._held, []
        for name, sector in held:
            self.guest_writes(name, sector)

    def filesystem_fills_up(self, name: str, sector: int) -> None:
        """werror=stop: the write has failed, the machine pauses, and writes again on resume."""
        if not self.paused:
            self._held.append((name, sector))
            self.pauses()

    def resets(self) -> None:
        """What was to be written again is forgotten; a reset drains, and flushes nothing."""
        self._held.clear()

    def job_fails(self, name: str) -> None:
        """A read error of the source, say."""
        if name in self.jobs and self.jobs[name].alive:
            self._conclude(name, EndKind.DISC)

    def job_breaks(self, name: str) -> None:
        """The same, and its connection ends without a goodbye."""
        if name in self.jobs and self.jobs[name].alive:
            self._conclude(name, EndKind.EOF)

    def somebody_cancels(self, name: str) -> None:
        self.end_copy(name)

    def connection_breaks(self, name: str) -> None:
        job = self.jobs.get(name)
        if job is not None and job.client is not None and not job.client.gone:
            job.client.end(EndKind.EOF)

    def someone_looks(self, name: str) -> None:
        """nbdinfo, by the plain name."""
        visitor = self._rig.visit(name)
        visitor.disc()

    # Inside.

    def _send(self, job: Job, what: str, sector: int = 0) -> bool:
        """Whether it was answered on the connection that it was sent on last."""
        for _ in range(3):
            client = self._connection(job)
            if client is None:
                return False
            at = sector * SECTOR
            name = client.disk.name
            data = bytes(self.source[name][at : at + SECTOR])
            client.send(flush() if what == "flush" else write(at, data))
            if not client.gone:
                return True
            if not job.reconnects:
                self._conclude(name, EndKind.EOF)
                return False
        raise AssertionError("it is dropped again and again: the guest would hang")

    def _connection(self, job: Job) -> Client | None:
        if job.client is None or job.client.gone:
            name = parse_export_name(job.export)
            assert name is not None
            is_served = name.disk in self._rig.group.roster.disks
            if (
                (job.client is not None and not job.reconnects)
                or not is_served
                or self._rig.group.roster.disks[name.disk].size < len(self.source[name.disk])
            ):  # no target grows
                self._conclude(name.disk, EndKind.EOF)
                return None
            job.client = self._rig.connect(name.disk, name.sync_lsn)
        return job.client

    def _conclude(self, name: str, kind: EndKind) -> None:
        job = self.jobs.pop(name, None)
        if job is None:
            return
        job.alive = False
        if job.client is not None and not job.client.gone:
            job.client.disc() if kind is EndKind.DISC else job.client.end(kind)


class Protected:
    """See the head of this file."""

    def __init__(
        self,
        *disks: str,
        flushes: int = 2,
        reconnects: bool = False,
        rig: Rig | None = None,
        above: Callable[[], int] = lambda: 0,
    ) -> None:
        """`above`: the ordinal that a new stream has to be above of."""
        self.rig = rig or Rig("libvirt")
        self.rig.group.begin()
        self.names = disks
        self.machine = Machine(self.rig, *disks, flushes=flushes, reconnects=reconnects)
        self.told = Told()
        self.cuts = 0
        self._above = above
        self._stream: str | None = None
        self._seen, self._end_lsn = 0, 0  # records of this stream
        self._replica: dict[int, bytearray] = {}

    # The agent.

    def status(self) -> SplitterGroupStatus:
        return group_status(self.rig.group, self.rig.tiers, self.rig.clock.monotonic)

    def facts(self) -> tuple[DiskFacts, ...]:
        found = []
        for name in self.names:
            mirror = self.machine.mirror(name)
            found.append(
                replace(
                    fact(f"web-{name}"),
                    name=name,
                    size=len(self.machine.source[name]),
                    instance=UUID(instance(name)),
                    mirror=mirror,
                    ours=mirror is not None,
                )
            )
        return tuple(found)

    def decides(self) -> Step:
        status = self.status()
        if status.state == "suspended":
            return Close("the guest goes on")  # what is said of a source that has not ended
        return next_step(status, self.facts(), self.told)

    def does(self, step: Step) -> None:
        """What was decided on what was seen before; things may have happened since."""
        group = self.rig.group
        try:
            match step:
                case OpenStream(reason):
                    group.open_stream(self._above(), reason)
                case Declare(disk):
                    group.declare_disk(disk.name, disk.size, str(disk.instance))
                case BeginSync(disk):
                    group.sync_begin(disk.name, "test")
                case RecordXml(domain):
                    group.append_domain_xml(domain, "<domain/>")
                    self._tell(domains=frozenset({domain}))
                case StartCopy(disk, export):
                    self.machine.start_copy(disk.name, export)
                case ConfirmReady(disk, connection):
                    group.ready(disk.name, connection)
                    self._tell(ready=frozenset({(disk.name, connection)}))
                case EndCopy(disk):
                    self.machine.end_copy(disk.name)
                case Close(reason):
                    group.close_stream(reason)
                case Wait() | Rest():
                    pass
        except StateError:
            pass  # refused: what it was decided on is no longer so
        self.check()

    def steps(self) -> Step:
        step = self.decides()
        self.does(step)
        return step

    def agent_is_killed(self) -> None:
        self.told = Told()

    def splitter_is_replaced(self, rig: Rig) -> None:
        """QEMU notices that its connections are dead when it uses them next."""
        self.rig = rig
        rig.group.begin()
        self.machine.meets(rig)
        self._stream = None

    def _tell(
        self,
        domains: frozenset[str] = frozenset(),
        ready: frozenset[tuple[str, int]] = frozenset(),
    ) -> None:
        stream = self.status().stream
        told = self.told if self.told.stream == stream else Told(stream)
        self.told = Told(stream, told.domains | domains, told.ready | ready)

    # All of it.

    def ticks(self) -> None:
        self.rig.tick()
        self.check()

    def goes_on(self) -> None:
        """Everybody does the next thing that is theirs."""
        self.steps()
        for name in self.names:
            self.machine.copies(name)
            self.check()

    def until_ready(self, limit: int = 60) -> None:
        """Left alone, the machine running: the group is protected, by a cut that was checked."""
        self.machine.resumes()
        self.check()
        for _ in range(limit):
            self.goes_on()
            if self.rig.state() == "ready" and isinstance(self.decides(), Rest):
                break
        else:
            raise AssertionError(f"never protected again: {self.decides()}, {self.rig.state()}")
        cuts = self.cuts
        for name in self.names:
            self.machine.guest_writes(name, 0)
        self.ticks()
        assert self.cuts > cuts, "no cut although it is ready"

    def check(self) -> None:
        """Each new cut makes the source as it is now."""
        stream = self.rig.group.writer.stream
        if stream is None:
            return
        if self._stream != str(stream.name.stream):
            self._stream, self._seen, self._replica = str(stream.name.stream), 0, {}
            self._end_lsn = stream.first_lsn
        if self._end_lsn == stream.end_lsn:
            return
        self._end_lsn = stream.end_lsn
        records = self.rig.log()
        for record in records[self._seen :]:
            at = slice(record.offset, record.offset + record.length)
            if record.type == RecordType.SYNC_BEGIN:
                begun = body_of(record)
                assert isinstance(begun, SyncBegin)
                self._replica[record.disk] = bytearray(RUBBISH * begun.size)
            elif record.type == RecordType.WRITE:
                self._replica[record.disk][at] = record.payload
            elif record.type == RecordType.CUT:
                body = body_of(record)
                assert isinstance(body, Cut)
                assert [member.name for member in body.members] == list(self.names)
                assert all(member.complete for member in body.members)
                for member in body.members:
                    source = self.machine.source[member.name]
                    assert self._replica[member.disk] == source, f"a false cut of {member.name}"
                self.cuts += 1
        self._seen = len(records)
