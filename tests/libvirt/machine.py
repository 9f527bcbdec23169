# SPDX-License-Identifier: Apache-2.0
"""A machine without an operating system under a private libvirtd, and the whole chain beside it.

The block layer neither knows nor cares what runs in a guest. So this one stands in its firmware,
boots in no time, and writes exactly what the test orders through its disk's own backend (QEMU's
`qemu-io`), which is where a guest's requests go. Its disk is a raw file: the oracle of everything.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from replicator.base.units import KIB, MIB
from replicator.control.splitter import SplitterGroupStatus
from replicator.control.types import GroupStatus
from replicator.demo.account import Account, unprivileged_account
from replicator.demo.domain import GuestDisk, add_disk
from replicator.demo.libvirtd import PrivateLibvirtd
from replicator.demo.site import Group, Limits, Site
from tests.splitter.daemon import Agent, subscribed

NAME = "web"
GROUP = "web"
BLOCK_BYTES = 64 * KIB
LIMIT_SECONDS = 60.0
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
        """Returns within a copy that is slowed down, when it has sent `at_least` bytes of it."""
        begun = await self.until(lambda group: any(disk.connected for disk in group.disks))
        for disk in self.disks:
            await self.slow(disk.target, bytes_per_second)
        return await self.until(lambda group: group.bytes >= begun.bytes + at_least)

    async def slow(self, target: str, bytes_per_second: int) -> None:
        await self.virsh("blockjob", NAME, target, "--bytes", str(bytes_per_second))

    async def protected(self) -> GroupStatus:
        """The agent's word, which has no event of its own."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                (group,) = (await asyncio.to_thread(self.site.agent.status)).groups
                if group.state == "protected":
                    return group
                await asyncio.sleep(LOOK_SECONDS)

    async def compare(self) -> None:
        """A point made now equals the source, byte for byte. Nobody else may write meanwhile."""
        self.marks += 1
        label, target = f"compared {self.marks}", self.home / f"restored-{self.marks}"
        await asyncio.to_thread(self.site.agent.mark, GROUP, label, wait=True)
        await asyncio.to_thread(self.site.receiver.restore, GROUP, label, target)
        for disk in self.disks:
            differing = differing_blocks(disk.path, target / f"{NAME}-{disk.target}.raw")
            assert not differing, f"{label}: {len(differing)} blocks of {disk.target} differ"
        shutil.rmtree(target)


def differing_blocks(one: Path, other: Path) -> list[int]:
    """Numbers of the blocks that are not equal in two files of one size."""
    assert one.stat().st_size == other.stat().st_size
    with one.open("rb") as left, other.open("rb") as right:
        blocks = range(-(-one.stat().st_size // BLOCK_BYTES))
        return [n for n in blocks if left.read(BLOCK_BYTES) != right.read(BLOCK_BYTES)]


def make_disk(account: Account, path: Path, size: int) -> None:
    """Every block is another one, and none is zero."""
    block = os.urandom(BLOCK_BYTES - 8)
    with path.open("wb") as image:
        for number in range(size // BLOCK_BYTES):
            image.write(number.to_bytes(8, "little") + block)
    account.own(path)


@asynccontextmanager
async def machine(
    *,
    size: int = 128 * MIB,
    targets: tuple[str, ...] = ("vda",),
    folder: Path | None = None,
) -> AsyncIterator[Machine]:
    """The domain runs, and so do receiver and splitter; the agent is for the test to start. The
    disks lie in `folder`, or in the home."""
    account = unprivileged_account()
    home = account.make_home("rpl-sync-")
    try:
        disks = tuple(GuestDisk(t, (folder or home) / f"{t}.raw", "raw") for t in targets)
        for disk in disks:
            make_disk(account, disk.path, size)
        tables = tuple(f'domain = "{NAME}"\ntarget = "{target}"' for target in targets)
        group = Group(GROUP, "libvirt", tables, checkpoint_interval="200ms")
        limits = Limits(spool_memory_bytes=1024 * MIB)
        with PrivateLibvirtd(home, account) as libvirtd:
            site = Site(home, account, (group,), limits, libvirt_uri=libvirtd.uri)
            with site:
                await asyncio.to_thread(site.prepare)
                site.start("receiver", "splitter")
                await asyncio.to_thread(libvirtd.create, machine_xml(disks))
                async with subscribed(site.splitter_control) as splitter:
                    try:
                        yield Machine(home, site, libvirtd, disks, splitter)
                    finally:
                        for program in ("splitter", "agent"):
                            print(f"--- {program}\n{site.said(program)[-6000:]}")
    finally:
        shutil.rmtree(home)
