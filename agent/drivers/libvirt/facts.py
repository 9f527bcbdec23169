# SPDX-License-Identifier: Apache-2.0
"""What libvirt says now of a group's domains and disks, and when it was asked.

An answer is kept for a moment, because statuses of the splitter come far more often than anything
changes at libvirt. It is thrown away by each event, each new connection, everything that was done,
another word of the splitter on the group or a disk of it (an answer is never older than the
question), and after AGE_NS.

The disks are read only while all domains run: a domain that is off has no block copies, and often
no disk that libvirt could measure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from agent.drivers.driver import KnownDisk
from agent.drivers.libvirt.connection import LiveDomain
from agent.drivers.libvirt.domain_xml import DomainDisk, instance_of, is_ours, require_supported
from agent.drivers.libvirt.end import DomainFacts, Reading
from agent.drivers.libvirt.plan import DiskFacts
from agent.naming.export_name import ExportName
from replicator.base.clock import Clock
from replicator.base.errors import ReplicatorError, UnreachableError
from replicator.config.agent import DiskConfig, GroupConfig
from replicator.control.splitter import SplitterGroupStatus

log = logging.getLogger("replicator.agent.libvirt")

# An event may be lost while libvirtd restarts; this is how long that can go unnoticed.
AGE_NS: Final = 3_000_000_000


@dataclass(frozen=True, slots=True)
class Facts:
    """`about`: the splitter's word when libvirt was asked. `domains`: those that libvirt knows."""

    reading: Reading
    domains: dict[str, LiveDomain]
    disks: tuple[DiskFacts, ...]
    about: object


class Asked(Protocol):
    """What is asked of libvirt: see LibvirtConnection."""

    async def find_domain(self, name: str) -> LiveDomain | None: ...

    async def disk_bytes(self, name: str, target: str) -> int: ...

    async def source_errors(self, name: str) -> dict[str, int]: ...


class LibvirtFacts:
    """See the head of this file. `known`: the disks of which the size was read once."""

    def __init__(self, group: GroupConfig, connection: Asked, socket: str, clock: Clock) -> None:
        self.known: tuple[KnownDisk, ...] = ()
        self._group = group
        self._connection = connection
        self._socket = socket
        self._clock = clock
        self._facts: Facts | None = None
        self._forgotten = 0
        self._down_ns = 0
        self._uncounted = False

    def forget(self) -> None:
        """Also what is being read now: it is returned, and not kept."""
        self._facts = None
        self._forgotten += 1

    async def read(self, group: SplitterGroupStatus) -> Facts:
        about, now_ns = _word(group), self._clock.monotonic_ns()
        kept = self._facts
        if kept is not None and kept.about == about and now_ns - kept.reading.asked_ns < AGE_NS:
            return kept
        forgotten = self._forgotten
        domains = await self._domains()
        disks: tuple[DiskFacts, ...] = ()
        if self._all_run(domains):
            try:
                disks = await self._disks(domains)
            except ReplicatorError:
                domains = await self._domains()  # one of them may have ended meanwhile
                if self._all_run(domains):
                    raise
        if disks:
            self.known = tuple(KnownDisk(one.name, one.size, str(one.instance)) for one in disks)
        read = Facts(self._reading(domains, now_ns), domains, disks, about)
        self._facts = read if forgotten == self._forgotten else None
        return read

    def _reading(self, domains: dict[str, LiveDomain], asked_ns: int) -> Reading:
        answered_ns = self._clock.monotonic_ns()
        if self._all_run(domains):
            self._down_ns = 0
        elif not self._down_ns:
            self._down_ns = answered_ns
        facts = tuple(
            DomainFacts(name, name in domains and domains[name].running, name in domains)
            for name in self._names()
        )
        return Reading(facts, asked_ns, answered_ns, self._down_ns)

    def _names(self) -> Iterable[str]:
        return dict.fromkeys(disk.domain for disk in self._group.disks if disk.domain is not None)

    def _all_run(self, domains: dict[str, LiveDomain]) -> bool:
        return all(name in domains and domains[name].running for name in self._names())

    async def _domains(self) -> dict[str, LiveDomain]:
        found = {name: await self._connection.find_domain(name) for name in self._names()}
        return {name: domain for name, domain in found.items() if domain is not None}

    async def _disks(self, domains: dict[str, LiveDomain]) -> tuple[DiskFacts, ...]:
        disks = []
        errors: dict[str, dict[str, int] | None] = {}
        for config in self._group.disks:
            assert config.domain is not None, "the config was checked"
            if config.domain not in errors:
                errors[config.domain] = await self._source_errors(config.domain)
            disks.append(await self._disk(config, domains[config.domain], errors[config.domain]))
        return tuple(disks)

    async def _disk(
        self, config: DiskConfig, domain: LiveDomain, errors: dict[str, int] | None
    ) -> DiskFacts:
        assert config.domain is not None
        assert config.target is not None
        disk = domain.facts.disk(config.target)
        require_supported(domain.facts, disk)
        name = config.disk_name
        return DiskFacts(
            name=name,
            domain=config.domain,
            target=config.target,
            size=await self._connection.disk_bytes(config.domain, config.target),
            instance=instance_of(domain.facts, disk),
            mirror=disk.mirror,
            ours=is_ours(disk.mirror, self._socket, ExportName(self._group.name, name)),
            source_errors=None if errors is None else _of_disk(disk, errors),
        )

    async def _source_errors(self, domain: str) -> dict[str, int] | None:
        """None if QEMU may not be asked; that it does not answer is an error like any other, and
        so is that it is gone."""
        try:
            return await self._connection.source_errors(domain)
        except UnreachableError:
            raise
        except ReplicatorError as error:
            found = await self._connection.find_domain(domain)
            if found is None or not found.running:
                raise
            if not self._uncounted:
                log.warning("QEMU does not count the I/O errors of domain %s: %s", domain, error)
            self._uncounted = True
            return None


def _of_disk(disk: DomainDisk, errors: dict[str, int]) -> int | None:
    """QEMU names a device by its id, or by a path that holds it."""
    for device, count in errors.items():
        if disk.alias and disk.alias in device.split("/"):
            return count
    return None


def _word(group: SplitterGroupStatus) -> object:
    """What the splitter says of the group and its disks, without the figures."""
    disks = [
        (disk.name, disk.instance, disk.state, disk.export, disk.flushed_by, disk.connected)
        for disk in group.disks
    ]
    return (group.state, group.stream, group.sign_ns, disks)
