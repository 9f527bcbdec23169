# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver's steps over a scripted libvirt and splitter: what it closes, and when not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

import msgspec

from agent.drivers.driver import Look
from agent.drivers.libvirt.connection import LibvirtConnection, LiveDomain
from agent.drivers.libvirt.domain_xml import Mirror, instance_of
from agent.drivers.libvirt.driver import LibvirtDriver
from agent.drivers.libvirt.end import NEXT_WORD
from agent.drivers.libvirt.events import IoError
from agent.drivers.libvirt.source_errors import AGAIN_SECONDS
from replicator.config.agent import DiskConfig, GroupConfig
from replicator.control.splitter import SplitterDiskStatus, SplitterGroupStatus
from tests.drivers.test_libvirt_end import GROUP
from tests.drivers.test_libvirt_facts import FakeLibvirt
from tests.drivers.test_source_errors import DOMAIN
from tests.splitter.rig import SECOND, ManualClock

EXPORT = "g/d-vda/7"
MIRROR = Mirror("/s.sock", EXPORT, ready=True, reconnect_seconds=0)


@dataclass
class FakeOrders:
    """Notes what the splitter is told; the statuses are the test's."""

    closed: list[dict[str, Any]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    async def close_stream(self, reason: str, **how: Any) -> None:
        self.closed.append({"reason": reason, **how})

    async def open_stream(self, reason: str) -> Any:
        self.opened.append(reason)
        return msgspec.structs.replace(GROUP, stream="s2")


class Bench:
    """One disk, `d-vda`, protected: its mirror is READY, and its sync began with a count of 4."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.libvirt = FakeLibvirt()
        self.orders = FakeOrders()
        self.driver = LibvirtDriver(
            GroupConfig(name="g", disks=(DiskConfig(domain="d", target="vda"),)),
            cast(Any, self.orders),
            lambda *, anew=False: None,
            connection=cast(LibvirtConnection, self.libvirt),
            socket="/s.sock",
            clock=self.clock,
        )
        self.driver.watch.connected(self.clock.monotonic_ns())
        self.mirror(MIRROR)
        self.clock.move(SECOND)

    def mirror(self, mirror: Mirror | None) -> None:
        assert self.libvirt.domain is not None
        disks = tuple(
            replace(disk, mirror=mirror if disk.target == "vda" else None) for disk in DOMAIN.disks
        )
        self.libvirt.domain = LiveDomain(replace(DOMAIN, disks=disks), "", running=True)

    def status(self, **changes: Any) -> SplitterGroupStatus:
        instance: UUID = instance_of(DOMAIN, DOMAIN.disk("vda"))
        disk = SplitterDiskStatus(
            name="d-vda", index=0, instance=str(instance), size=1 << 20, connected=1,
            state="complete", source_errors=4, export=EXPORT,
        )  # fmt: skip
        said_ns = self.clock.monotonic_ns()
        return msgspec.structs.replace(GROUP, **{"disks": [disk], "said_ns": said_ns, **changes})

    async def step(self, status: SplitterGroupStatus) -> bool:
        return await self.driver.step(Look(status, 0.0, receiver_connected=True))


async def test_a_protected_group_is_left_alone() -> None:
    bench = Bench()
    assert not await bench.step(bench.status())
    assert (bench.orders.closed, bench.driver.problem) == ([], "")


async def test_a_copy_that_is_gone_closes_only_once_the_splitter_has_spoken_after_libvirt() -> None:
    """At a clean end libvirt may show it while the splitter's goodbye is on its way to us."""
    bench = Bench()
    bench.mirror(None)
    before = bench.status()
    bench.clock.move(SECOND)
    assert not await bench.step(before)
    assert bench.driver.problem == NEXT_WORD
    assert bench.orders.closed == []
    bench.clock.move(1)
    assert await bench.step(bench.status())
    assert bench.orders.closed[0]["reason"] == "d-vda: its block copy ended"
    assert bench.orders.closed[0]["stream"] == "s1"


async def test_an_io_error_closes_the_stream_and_again_within_ten_minutes_holds_it() -> None:
    bench = Bench()
    await bench.step(bench.status())
    for number in (1, 2):
        bench.driver.watch.heard("d", IoError("", "", "report"), bench.clock.monotonic_ns())
        bench.driver.look_again()
        assert await bench.step(bench.status())
        assert "an I/O error of the source of d-vda" in bench.orders.closed[-1]["reason"]
        assert len(bench.orders.closed) == number
        bench.mirror(None)
        lost = bench.status(state="lost", stream=f"s{number}", reason="r")
        assert not await bench.step(lost)  # it is tried again in a second
        bench.clock.move(2 * SECOND)
        opens = await bench.step(bench.status(state="lost", stream=f"s{number}", reason="r"))
        assert opens is (number == 1)
        bench.mirror(MIRROR)
    assert "I/O errors twice within 10 min" in bench.driver.problem
    assert "replicator resync g" in bench.driver.remedy
    assert bench.orders.opened == ["r"]
    bench.mirror(None)
    bench.driver.look_again()
    bench.clock.move(int(AGAIN_SECONDS) * SECOND)
    assert await bench.step(bench.status(state="lost", stream="s2", reason="r"))


async def test_an_error_that_paused_the_guest_is_done_again_and_no_loss() -> None:
    bench = Bench()
    bench.driver.watch.heard("d", IoError("", "", "pause"), bench.clock.monotonic_ns())
    assert not await bench.step(bench.status())
    assert bench.orders.closed == []


async def test_a_count_that_has_risen_since_the_syncs_begin_is_a_loss() -> None:
    bench = Bench()
    assert bench.libvirt.counts is not None
    bench.libvirt.counts["/machine/peripheral/virtio-disk0/virtio-backend"] = 5
    assert await bench.step(bench.status())
    assert "an I/O error of the source of d-vda" in bench.orders.closed[-1]["reason"]


async def test_a_libvirt_that_is_not_there_is_a_reason_and_no_failure() -> None:
    bench = Bench()
    bench.libvirt.connected = False
    bench.libvirt.problem, bench.libvirt.remedy = "no socket", "start it"
    assert not await bench.step(bench.status())
    assert bench.driver.problem == "libvirt is not reachable: no socket"
    assert bench.driver.remedy == "start it"


async def test_copies_of_a_splitter_that_is_gone_are_ended_though_the_new_one_knows_no_disk() -> (
    None
):
    """QEMU notices that an idle connection is dead at the next request only."""
    bench = Bench()
    lost = bench.status(state="closed", stream=None, reason="just started", disks=[])
    assert await bench.step(lost)
    assert bench.libvirt.ended == ["vda"]
    assert not await bench.step(lost), "it is still shown, and is not ended over and over"
    assert bench.libvirt.ended == ["vda"]
    assert "ending the old block copy of d-vda again in 1 s" in bench.driver.problem
    bench.clock.move(SECOND)
    bench.mirror(None)
    bench.driver.look_again()
    assert await bench.step(lost)
    assert bench.orders.opened == ["just started"]
