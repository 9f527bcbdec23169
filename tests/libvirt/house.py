# SPDX-License-Identifier: Apache-2.0
"""A guest that writes, its host and the DR site, for tests of how a source ends and is lost."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from replicator.base.errors import ReplicatorError
from replicator.control.orders import STATUS
from replicator.control.splitter import SplitterGroupStatus
from replicator.control.types import GroupStatus
from replicator.demo.accelerator import probe_accelerator
from replicator.demo.account import Account, unprivileged_account
from replicator.demo.console import REPEAT_SECONDS, Console
from replicator.demo.domain import Accelerator, GuestDisk, domain_xml
from replicator.demo.guest.image import GuestImage, build_guest, default_kernel_directory
from replicator.demo.libvirtd import PrivateLibvirtd
from replicator.demo.site import Group, Site
from tests.process.waiting import until_served
from tests.splitter.daemon import Agent, subscribed

GUEST = "web"
TARGETS = ("vda", "vdb")
DISK_BYTES = 64 << 20
BOOT_SECONDS = 180.0
LIMIT_SECONDS = 180.0
LOOK_SECONDS = 0.05


End = Literal["shutdown", "poweroff", "destroy"]


async def until_agent_connected(libvirtd: PrivateLibvirtd) -> None:
    """libvirt's state of the channel; its event would need an event loop of libvirt's."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            xml = await asyncio.to_thread(libvirtd.virsh, "dumpxml", GUEST)
            if "name='org.qemu.guest_agent.0' state='connected'" in xml:
                return
            await asyncio.sleep(2 * LOOK_SECONDS)


@dataclass
class House:
    """`splitter` is a second agent's end of the splitter's control socket: it only listens. Whether
    the domain is known to libvirt while it is off is `persistent`."""

    home: Path
    account: Account
    image: GuestImage
    accelerator: Accelerator
    libvirtd: PrivateLibvirtd
    site: Site
    splitter: Agent
    persistent: bool = True
    console: Console | None = None
    xml: Callable[[str], str] = field(default=lambda text: text)  # what a test changes in it

    @property
    def disks(self) -> tuple[GuestDisk, ...]:
        return tuple(GuestDisk(target, self.home / f"{target}.raw", "raw") for target in TARGETS)

    async def boot(self) -> Console:
        """The guest writes when this returns."""
        if self.console is not None:
            await self.console.close()
        socket = self.home / "console.sock"
        socket.unlink(missing_ok=True)
        xml = self.xml(
            domain_xml(
                GUEST,
                self.image,
                self.disks,
                accelerator=self.accelerator,
                console=socket,
                guest_agent=self.home / "agent.sock",
            )
        )
        await asyncio.to_thread(self._start, xml)
        self.console = await Console.open(socket)
        await self.console.wait_for("GUEST-READY", BOOT_SECONDS)
        await self.console.wait_confirmed(self.console.confirmed + 3, BOOT_SECONDS)
        return self.console

    def _start(self, xml: str) -> None:
        if not self.persistent:
            self.libvirtd.create(xml)
            return
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(xml)
            file.flush()
            if GUEST in self.libvirtd.virsh("list", "--all", "--name").split():
                self.libvirtd.virsh("undefine", GUEST)
            self.libvirtd.virsh("define", file.name)
        self.libvirtd.virsh("start", GUEST)

    async def shut_off(self, kind: End) -> None:
        """Returns when libvirt says that it is off."""
        if kind == "shutdown":
            await until_agent_connected(self.libvirtd)
            # The guest may be gone before its agent has answered.
            with suppress(ReplicatorError):
                await self.virsh("shutdown", GUEST, "--mode", "agent")
            await self._off(LIMIT_SECONDS)
        elif kind == "destroy":
            await self.virsh("destroy", GUEST)
            await self._off(LIMIT_SECONDS)
        else:
            await self._power_off()

    async def _power_off(self) -> None:
        """The guest does it by itself. Its shell may cut a line that comes in pieces (Console)."""
        assert self.console is not None
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                with suppress(ConnectionError):  # it has just gone
                    await self.console.send("poweroff")
                try:
                    return await self._off(REPEAT_SECONDS)
                except TimeoutError:
                    continue

    async def virsh(self, *words: str) -> str:
        return await asyncio.to_thread(self.libvirtd.virsh, *words)

    async def state(self) -> GroupStatus:
        (group,) = (await asyncio.to_thread(self.site.agent.order, STATUS)).groups
        return group

    async def until(self, state: str, reason: str = "") -> GroupStatus:
        """The agent's word, which has no event of its own."""
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                while True:
                    group = await self.state()
                    if group.state == state and reason in group.reason:
                        return group
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            found = await self.state()
            raise AssertionError(f"{found.state}: {found.reason}, not {state}: {reason}") from None

    async def said(self, true: Callable[[SplitterGroupStatus], bool]) -> SplitterGroupStatus:
        """The splitter's first word from now on of which that is so."""
        return await self.splitter.until(GUEST, true)

    async def _off(self, limit_seconds: float) -> None:
        """Until libvirt says so; virsh has no event for a domain that may be gone."""
        async with asyncio.timeout(limit_seconds):
            while True:
                if GUEST not in (await self.virsh("list", "--name")).split():
                    return
                await asyncio.sleep(LOOK_SECONDS)

    async def applied(self, lsn: int) -> None:
        """Until the receiver has applied the log up to there."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while True:
                (group,) = (await asyncio.to_thread(self.site.receiver.order, STATUS)).groups
                if (group.applied_lsn or 0) >= lsn:
                    return
                await asyncio.sleep(LOOK_SECONDS)

    def differing(self, block_bytes: int = 4096) -> dict[str, int]:
        """How many blocks of each disk differ from the replica, where any do."""
        found = {}
        for disk in self.disks:
            replica = self.site.replica(GUEST, f"{GUEST}-{disk.target}")
            with disk.path.open("rb") as one, replica.open("rb") as other:
                count = sum(
                    one.read(block_bytes) != other.read(block_bytes)
                    for _ in range(DISK_BYTES // block_bytes)
                )
            if count:
                found[disk.target] = count
        return found


@asynccontextmanager
async def house(*, persistent: bool = True) -> AsyncIterator[House]:
    """Receiver, splitter and agent run; the guest is for the test to boot."""
    account = unprivileged_account()
    home = account.make_home("rpl-ends-")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        image = build_guest(default_kernel_directory(), account.make_directory(home / "guest"))
        accelerator = probe_accelerator(image, account, home)
        for target in TARGETS:
            with (home / f"{target}.raw").open("wb") as file:
                file.truncate(DISK_BYTES)
            account.own(home / f"{target}.raw")
        libvirtd = stack.enter_context(PrivateLibvirtd(home, account))
        tables = tuple(f'domain = "{GUEST}"\ntarget = "{target}"' for target in TARGETS)
        group = Group(GUEST, "libvirt", tables)
        site = stack.enter_context(Site(home, account, (group,), libvirt_uri=libvirtd.uri))
        await asyncio.to_thread(site.prepare)
        site.start("receiver", "splitter", "agent")
        await until_served(site.splitter_control)
        async with subscribed(site.splitter_control) as splitter:
            made = House(home, account, image, accelerator, libvirtd, site, splitter, persistent)
            try:
                yield made
            finally:
                if made.console is not None:
                    await made.console.close()
                for program in ("splitter", "agent"):
                    print(f"--- {program}\n{site.said(program)[-8000:]}")
