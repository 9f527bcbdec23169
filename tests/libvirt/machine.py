# SPDX-License-Identifier: Apache-2.0
"""A machine under a private libvirtd, and the whole chain beside it; its disks are the oracle.

Most need no operating system: the block layer neither knows nor cares what runs in a guest. Such a
machine stands in its firmware, boots in no time, and writes exactly what the test orders through
its disk's own backend (QEMU's `qemu-io`), which is where a guest's requests go. What depends on the
disk's device (an error policy) needs the guest of the demo, which is quiet once it has unmounted.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from replicator.base.units import KIB, MIB
from replicator.control.orders import MARK, RESTORE, STATUS
from replicator.control.requests import MarkRequest, RestoreRequest
from replicator.control.splitter import SplitterGroupStatus
from replicator.control.types import GroupStatus
from replicator.demo.accelerator import probe_accelerator
from replicator.demo.account import Account, unprivileged_account
from replicator.demo.console import Console
from replicator.demo.domain import GuestDisk, add_disk, domain_xml
from replicator.demo.guest.image import build_guest, default_kernel_directory
from replicator.demo.libvirtd import PrivateLibvirtd
from replicator.demo.site import Group, Limits, Site
from tests.process.waiting import until_served
from tests.splitter.daemon import Agent, subscribed

NAME = "web"
GROUP = "web"
BLOCK_BYTES = 64 * KIB
STOP_SECONDS = 1.0
LIMIT_SECONDS = 180.0
LOOK_SECONDS = 0.05


def machine_xml(disks: tuple[GuestDisk, ...]) -> str:
    domain = ET.Element("domain", type="qemu")
    ET.SubElement(domain, "name").text = NAME
    ET.SubElement(domain, "memory", unit="MiB").text = "64"
    ET.SubElement(domain, "vcpu").text = "1"
    ET.SubElement(ET.SubElement(domain, "os"), "type", arch="x86_64", machine="q35").text = "hvm"
    devices = ET.SubElement(domain, "devices")
    for disk in disks:
        add_disk(devices, disk)
    ET.SubElement(devices, "memballoon", model="none")
    return ET.tostring(domain, encoding="unicode")


@dataclass
class Machine:
    """`splitter` is a second agent's end of the splitter's control socket: it only listens."""

    home: Path
    site: Site
    libvirtd: PrivateLibvirtd
    disks: tuple[GuestDisk, ...]
    splitter: Agent
    console: Console | None = None  # a guest's
    marks: int = field(default=0)

    async def virsh(self, *words: str) -> str:
        return await asyncio.to_thread(self.libvirtd.virsh, *words)

    async def write(self, offset: int, length: int, pattern: int, target: str = "vda") -> None:
        """A guest write; returns when the guest would see it complete."""
        number = [disk.target for disk in self.disks].index(target)
        device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
        order = f'qemu-io -d {device} "write -P {pattern} {offset} {length}"'
        answer = await self.virsh("qemu-monitor-command", NAME, "--hmp", order)
        assert "error" not in answer.lower(), answer
        assert "failed" not in answer.lower(), answer

    async def mirror(self, target: str = "vda") -> ET.Element | None:
        """The disk's block copy as libvirt's live XML shows it."""
        domain = ET.fromstring(await self.virsh("dumpxml", NAME))
        for disk in domain.iterfind("devices/disk"):
            found = disk.find("target")
            if found is not None and found.get("dev") == target:
                return disk.find("mirror")
        raise AssertionError(f"no disk {target}")

    async def until(self, true: Callable[[SplitterGroupStatus], bool]) -> SplitterGroupStatus:
        """The splitter's first word from now on of which that is so."""
        return await self.splitter.until(GROUP, true)

    async def copying(self, *, bytes_per_second: int, at_least: int) -> SplitterGroupStatus:
        """Returns within copies that are slowed down, when they have sent `at_least` bytes.

        A copy waits for its target. So the splitter is stopped as soon as it is connected, and goes
        on when the copy is slow: else that might be over before virsh has even started. It goes on
        after STOP_SECONDS in any case: where the next disk's copy is being begun, libvirt waits for
        the splitter with the domain locked, and virsh for libvirt."""
        begun = await self.until(lambda group: any(disk.connected for disk in group.disks))
        for number, disk in enumerate(self.disks):
            await self.until(lambda group, number=number: _is_copied(group, number))  # type: ignore[misc]
            os.kill(self.site.pid("splitter"), signal.SIGSTOP)
            slowing = asyncio.create_task(self.slow(disk.target, bytes_per_second))
            try:
                await asyncio.wait([slowing], timeout=STOP_SECONDS)
            finally:
                os.kill(self.site.pid("splitter"), signal.SIGCONT)
            await slowing
        return await self.until(lambda group: group.bytes >= begun.bytes + at_least)

    async def slow(self, target: str, bytes_per_second: int) -> None:
        await self.virsh("blockjob", NAME, target, "--bytes", str(bytes_per_second))

    async def said(self) -> GroupStatus:
        """The agent's word."""
        (group,) = (await asyncio.to_thread(self.site.agent.order, STATUS)).groups
        return group

    async def protected(self) -> None:
        await self._until_said(protected=True)

    async def unprotected(self) -> None:
        """The next protection comes a second later at the earliest."""
        await self._until_said(protected=False)

    async def _until_said(self, *, protected: bool) -> None:
        """The agent's word has no event of its own."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                if ((await self.said()).state == "protected") is protected:
                    return
                await asyncio.sleep(LOOK_SECONDS)

    async def until_domain_is(self, state: str) -> None:
        """As `virsh domstate --reason` says it; its event would need an event loop of libvirt's."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                if (await self.virsh("domstate", NAME, "--reason")).strip() == state:
                    return
                await asyncio.sleep(LOOK_SECONDS)

    async def compare(self) -> None:
        """A point made now equals the source, byte for byte. Nobody else may write meanwhile."""
        self.marks += 1
        label, target = f"compared {self.marks}", self.home / f"restored-{self.marks}"
        await asyncio.to_thread(
            self.site.agent.order, MARK, GROUP, MarkRequest(label=label, wait=True)
        )
        await asyncio.to_thread(
            self.site.receiver.order, RESTORE, GROUP, RestoreRequest(at=label, to=str(target))
        )
        for disk in self.disks:
            differing = differing_blocks(disk.path, target / f"{NAME}-{disk.target}.raw")
            assert not differing, f"{label}: {len(differing)} blocks of {disk.target} differ"
        shutil.rmtree(target)


def _is_copied(group: SplitterGroupStatus, number: int) -> bool:
    return len(group.disks) > number and group.disks[number].connected > 0


def differing_blocks(one: Path, other: Path) -> list[int]:
    """Numbers of the blocks that are not equal in two files of one size."""
    assert one.stat().st_size == other.stat().st_size
    with one.open("rb") as left, other.open("rb") as right:
        blocks = range(-(-one.stat().st_size // BLOCK_BYTES))
        return [n for n in blocks if left.read(BLOCK_BYTES) != right.read(BLOCK_BYTES)]


def make_disk(account: Account, path: Path, size: int, hole: int = 0) -> None:
    """Behind the hole every block is another one, and none is zero."""
    block = os.urandom(BLOCK_BYTES - 8)
    with path.open("wb") as image:
        image.seek(hole)
        for number in range((size - hole) // BLOCK_BYTES):
            image.write(number.to_bytes(8, "little") + block)
    account.own(path)


@dataclass(frozen=True, slots=True)
class Plan:
    """`folder` of the disks; None: the home. `hole`: at the beginning of each disk, for a guest's
    filesystem. With `guest` the demo's boots from the disks `vda` and `vdb`."""

    size: int = 128 * MIB
    targets: tuple[str, ...] = ("vda",)
    folder: Path | None = None
    hole: int = 0
    guest: bool = False


@asynccontextmanager
async def machine(plan: Plan | None = None) -> AsyncIterator[Machine]:
    """The domain runs, and so do receiver and splitter; the agent is for the test to start."""
    plan = plan or Plan()
    account = unprivileged_account()
    async with AsyncExitStack() as stack:
        home = account.make_home("rpl-sync-")
        stack.callback(shutil.rmtree, home)
        disks = tuple(
            GuestDisk(target, (plan.folder or home) / f"{target}.raw", "raw")
            for target in plan.targets
        )
        for disk in disks:
            make_disk(account, disk.path, plan.size, plan.hole)
        tables = tuple(f'domain = "{NAME}"\ntarget = "{target}"' for target in plan.targets)
        group = Group(GROUP, "libvirt", tables, checkpoint_interval="200ms")
        limits = Limits(spool_memory_bytes=1024 * MIB)
        libvirtd = stack.enter_context(PrivateLibvirtd(home, account))
        site = stack.enter_context(Site(home, account, (group,), limits, libvirt_uri=libvirtd.uri))
        await asyncio.to_thread(site.prepare)
        site.start("receiver", "splitter")
        await until_served(site.splitter_control)
        splitter = await stack.enter_async_context(subscribed(site.splitter_control))
        made = Machine(home, site, libvirtd, disks, splitter)
        if plan.guest:
            made.console = await _boot(made, account)
            stack.push_async_callback(made.console.close)
        else:
            await asyncio.to_thread(libvirtd.create, machine_xml(disks))
        try:
            yield made
        finally:
            for program in ("splitter", "agent"):
                print(f"--- {program}\n{site.said(program)[-6000:]}")


async def _boot(made: Machine, account: Account) -> Console:
    image = build_guest(default_kernel_directory(), account.make_directory(made.home / "guest"))
    accelerator = probe_accelerator(image, account, made.home)
    path = made.home / "console.sock"
    xml = domain_xml(NAME, image, made.disks, accelerator=accelerator, console=path)
    await asyncio.to_thread(made.libvirtd.create, xml)
    console = await Console.open(path)
    await console.wait_for("GUEST-READY", LIMIT_SECONDS)
    await console.wait_confirmed(3, LIMIT_SECONDS)
    return console
