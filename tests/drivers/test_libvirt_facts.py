# SPDX-License-Identifier: Apache-2.0
"""What is read of libvirt, when it is asked again, and a domain that is gone, or goes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest

from agent.drivers.libvirt.connection import LiveDomain
from agent.drivers.libvirt.facts import AGE_NS, LibvirtFacts
from replicator.base.errors import ReplicatorError
from replicator.config.agent import DiskConfig, GroupConfig
from tests.drivers.test_libvirt_end import GROUP
from tests.drivers.test_source_errors import DOMAIN
from tests.splitter.rig import ManualClock

# As QEMU 7.2 names them: by the path of a device with an id, or by an id alone.
COUNTS = {
    "/machine/peripheral/virtio-disk0/virtio-backend": 4,
    "virtio-disk1": 5,
    "/machine/peripheral/virtio-disk10/virtio-backend": 6,
}


@dataclass
class FakeLibvirt:
    """`ends`: the domain is off from the first question about a disk on."""

    domain: LiveDomain | None = field(default_factory=lambda: LiveDomain(DOMAIN, "", running=True))
    counts: dict[str, int] | None = field(default_factory=lambda: dict(COUNTS))
    ends: bool = False
    fails: bool = False
    meanwhile: Callable[[], None] | None = None
    asked: int = 0
    ended: list[str] = field(default_factory=list)
    connected: bool = True
    problem: str = ""
    remedy: str = ""

    async def find_domain(self, name: str) -> LiveDomain | None:
        self.asked += 1
        if self.meanwhile is not None:
            self.meanwhile()
        return self.domain

    async def end_copy(self, domain: str, target: str) -> None:
        self.ended.append(target)

    async def disk_bytes(self, name: str, target: str) -> int:
        if self.ends:
            self.domain = None
        if self.ends or self.fails:
            raise ReplicatorError("libvirt: the domain is not running")
        return 1 << 20

    async def source_errors(self, name: str) -> dict[str, int]:
        if self.counts is None:
            raise ReplicatorError("libvirt: not permitted")
        return self.counts


def facts_of(libvirt: FakeLibvirt, clock: ManualClock | None = None) -> LibvirtFacts:
    disks = tuple(DiskConfig(domain="d", target=target) for target in ("vda", "vdb"))
    group = GroupConfig(name="g", disks=disks)
    return LibvirtFacts(group, libvirt, "/s.sock", clock or ManualClock())


async def test_the_count_of_each_disk_is_its_own() -> None:
    found = await facts_of(FakeLibvirt()).read(GROUP)
    assert [(disk.name, disk.source_errors) for disk in found.disks] == [("d-vda", 4), ("d-vdb", 5)]


async def test_a_qemu_that_cannot_be_asked_counts_nothing() -> None:
    found = await facts_of(FakeLibvirt(counts=None)).read(GROUP)
    assert [disk.source_errors for disk in found.disks] == [None, None]


async def test_no_such_domain_is_a_fact() -> None:
    found = await facts_of(FakeLibvirt(domain=None)).read(GROUP)
    (domain,) = found.reading.domains
    assert (domain.running, domain.known) == (False, False)
    assert found.disks == ()
    assert found.reading.down_ns


async def test_a_domain_that_ends_under_the_questions_is_off_and_no_error() -> None:
    facts = facts_of(FakeLibvirt(ends=True))
    assert not (await facts.read(GROUP)).reading.domains[0].running
    with pytest.raises(ReplicatorError, match="not running"):
        await facts_of(FakeLibvirt(fails=True)).read(GROUP)


async def test_what_was_known_of_the_disks_stays_while_the_domain_is_off() -> None:
    libvirt = FakeLibvirt()
    facts = facts_of(libvirt)
    await facts.read(GROUP)
    libvirt.domain = None
    facts.forget()
    await facts.read(GROUP)
    assert [disk.name for disk in facts.known] == ["d-vda", "d-vdb"]


async def test_it_is_asked_again_when_the_splitter_says_something_else() -> None:
    libvirt, clock = FakeLibvirt(), ManualClock()
    facts = facts_of(libvirt, clock)
    ready = msgspec.structs.replace(GROUP, state="ready")
    first = await facts.read(ready)
    clock.move(1)
    figures = msgspec.structs.replace(ready, end_lsn=5, held_until_ns=7, said_ns=8)
    assert await facts.read(figures) is first
    suspended = msgspec.structs.replace(ready, state="suspended", sign_ns=9)
    second = await facts.read(suspended)
    assert second.reading.asked_ns > first.reading.asked_ns
    clock.move(AGE_NS)
    assert await facts.read(suspended) is not second
    assert libvirt.asked == 3


async def test_an_answer_that_an_event_has_overtaken_is_not_kept() -> None:
    """It came while libvirt was asked: nobody knows on which side of it the answers are."""
    libvirt, clock = FakeLibvirt(), ManualClock()
    facts = facts_of(libvirt, clock)
    libvirt.meanwhile = facts.forget
    first = await facts.read(GROUP)
    libvirt.meanwhile = None
    clock.move(1)
    second = await facts.read(GROUP)
    assert second.reading.asked_ns > first.reading.asked_ns
    assert await facts.read(GROUP) is second
