# SPDX-License-Identifier: Apache-2.0
"""Application-consistent points of a guest that runs qemu-guest-agent, and its thaw."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from replicator.base.errors import NoPointError, UsageError
from replicator.control.orders import MARK, RESTORE, STATUS
from replicator.control.requests import MarkRequest, RestoreRequest
from replicator.control.types import GroupStatus
from replicator.demo.accelerator import probe_accelerator
from replicator.demo.account import Account, unprivileged_account
from replicator.demo.console import Console
from replicator.demo.domain import GuestDisk, domain_xml
from replicator.demo.guest.image import build_guest, default_kernel_directory, find_guest_agent
from replicator.demo.libvirtd import PrivateLibvirtd
from replicator.demo.site import Group, Site
from tests.libvirt.house import until_agent_connected

SECOND = 1_000_000_000
BOOT_SECONDS = 180.0
LIMIT_SECONDS = 180.0
TARGETS = ("vda", "vdb")

pytestmark = [
    pytest.mark.skipif(
        find_guest_agent(default_kernel_directory()) is None,
        reason="needs build/guest-agent: run deploy/install-dependencies.sh test",
    ),
]


@dataclass
class Guest:
    """A guest that writes, with its agent running."""

    home: Path
    account: Account
    libvirtd: PrivateLibvirtd
    console: Console

    def freeze_status(self) -> str:
        words = ["qemu-agent-command", "web", '{"execute": "guest-fsfreeze-status"}']
        done = subprocess.run(
            ["virsh", "--quiet", "--connect", self.libvirtd.uri, *words],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return str(json.loads(done.stdout)["return"])

    async def until_thawed(self) -> None:
        """No event tells of a thaw; the guest's next record is one."""
        async with asyncio.timeout(LIMIT_SECONDS):
            await self.console.wait_confirmed(self.console.confirmed + 2, LIMIT_SECONDS)
        assert await asyncio.to_thread(self.freeze_status) == "thawed"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
async def guest(stack: ExitStack) -> AsyncIterator[Guest]:
    account = unprivileged_account()
    home = account.make_home("rpl-quiesce-")
    stack.callback(shutil.rmtree, home)
    image = build_guest(default_kernel_directory(), account.make_directory(home / "guest"))
    accelerator = probe_accelerator(image, account, home)
    disks = tuple(GuestDisk(target, home / f"{target}.raw", "raw") for target in TARGETS)
    for disk in disks:
        with disk.path.open("wb") as image_file:
            image_file.truncate(64 << 20)
        account.own(disk.path)
    xml = domain_xml(
        "web",
        image,
        disks,
        accelerator=accelerator,
        console=home / "console.sock",
        guest_agent=home / "agent.sock",
    )
    libvirtd = stack.enter_context(PrivateLibvirtd(home, account))
    await asyncio.to_thread(libvirtd.create, xml)
    console = await Console.open(home / "console.sock")
    await console.wait_for("GUEST-READY", BOOT_SECONDS)
    await console.wait_confirmed(3, BOOT_SECONDS)
    guest = Guest(home, account, libvirtd, console)
    await until_agent_connected(libvirtd)
    yield guest
    await console.close()


async def frozen_by_agent(guest: Guest, *, timeout_ns: int) -> subprocess.Popen[str]:
    """An agent that has frozen the guest and hangs. Ended by the test."""
    arguments = [guest.libvirtd.uri, "web", str(guest.home / "state"), str(timeout_ns)]
    agent = _spawn("-m", "tests.libvirt.freezing", *arguments)
    assert agent.stdout is not None
    assert await asyncio.to_thread(agent.stdout.readline) == "frozen\n"
    return agent


def _spawn(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_guest_is_thawed_when_the_agent_is_killed_between_freeze_and_thaw(
    guest: Guest, number: signal.Signals
) -> None:
    agent = await frozen_by_agent(guest, timeout_ns=60 * SECOND)
    with agent:
        assert await asyncio.to_thread(guest.freeze_status) == "frozen"
        assert (guest.home / "state/frozen/g.json").exists()
        agent.send_signal(number)
    await guest.until_thawed()


async def test_a_guest_is_thawed_after_freeze_timeout_though_the_agent_hangs(guest: Guest) -> None:
    agent = await frozen_by_agent(guest, timeout_ns=3 * SECOND)
    with agent:
        assert await asyncio.to_thread(guest.freeze_status) == "frozen"
        agent.send_signal(signal.SIGSTOP)
        await guest.until_thawed()
        agent.kill()


async def until(site: Site, state: str) -> GroupStatus:
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            group = (await asyncio.to_thread(site.agent.order, STATUS)).groups[0]
            if group.state == state:
                return group
            await asyncio.sleep(0.1)


def needs_recovery(image: Path) -> bool:
    """Whether ext4 says that its journal has to be replayed."""
    text = subprocess.check_output(
        ["dumpe2fs", "-h", str(image)], text=True, stderr=subprocess.DEVNULL
    )
    (features,) = [line for line in text.splitlines() if line.startswith("Filesystem features:")]
    return "needs_recovery" in features.split()


async def test_a_quiesced_point_holds_clean_filesystems(guest: Guest, stack: ExitStack) -> None:
    tables = tuple(f'domain = "web"\ntarget = "{target}"' for target in TARGETS)
    group = Group("web", "libvirt", tables)
    site = stack.enter_context(
        Site(guest.home, guest.account, (group,), libvirt_uri=guest.libvirtd.uri)
    )
    await asyncio.to_thread(site.prepare)
    site.start("receiver", "splitter", "agent")
    await until(site, "protected")

    def mark(label: str, *, quiesce: bool) -> dict[str, object]:
        point = site.agent.order(MARK, "web", MarkRequest(label=label, wait=True, quiesce=quiesce))
        target = guest.home / label
        site.receiver.order(RESTORE, "web", RestoreRequest(at=label, to=str(target)))
        disks = [target / f"web-{name}.raw" for name in TARGETS]
        return {
            "kind": point.kind,
            "frozen": point.frozen_seconds,
            "recovery": [needs_recovery(disk) for disk in disks],
            "fsck": [
                subprocess.run(
                    ["e2fsck", "-f", "-n", str(disk)], capture_output=True, check=False
                ).returncode
                for disk in disks
            ],
        }

    crash = await asyncio.to_thread(mark, "crash", quiesce=False)
    assert crash["recovery"] == [True, True], "the guest has both mounted"
    assert (crash["kind"], crash["frozen"]) == ("crash", None)
    calm = await asyncio.to_thread(mark, "calm", quiesce=True)
    assert calm["kind"] == "application"
    assert calm["recovery"] == [False, False]
    assert calm["fsck"] == [0, 0]
    assert isinstance(calm["frozen"], float)
    assert 0 < calm["frozen"] < 10
    await guest.until_thawed()
    assert not (guest.home / "source/state/frozen/web.json").exists()


async def test_nothing_is_frozen_for_a_group_that_is_not_protected(
    guest: Guest, stack: ExitStack
) -> None:
    group = Group("web", "libvirt", ('domain = "web"\ntarget = "vda"',))
    site = stack.enter_context(
        Site(guest.home, guest.account, (group,), libvirt_uri=guest.libvirtd.uri)
    )
    await asyncio.to_thread(site.prepare)
    site.start("splitter", "agent")  # no receiver: no sync is begun
    with pytest.raises(NoPointError):
        await asyncio.to_thread(site.agent.order, MARK, "web", MarkRequest(label="x", quiesce=True))
    with pytest.raises(UsageError, match="label"):
        await asyncio.to_thread(site.agent.order, MARK, "web", MarkRequest(wait=False))
    await guest.until_thawed()
