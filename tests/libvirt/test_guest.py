# SPDX-License-Identifier: Apache-2.0
"""The guest of the demo by itself: it writes in order, and it can tell good from bad."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.demo.accelerator import probe_accelerator
from replicator.demo.account import Account, unprivileged_account
from replicator.demo.console import Console
from replicator.demo.domain import Accelerator, GuestDisk, domain_xml, replica_domain_xml
from replicator.demo.guest.image import GuestImage, build_guest, default_kernel_directory
from replicator.demo.guest.verdict import Verdict, parse_verdict
from replicator.demo.libvirtd import PrivateLibvirtd

BOOT_SECONDS = 180.0


class Bench:
    """A home with a guest image, and the account that everything runs as."""

    def __init__(self) -> None:
        self.account: Account = unprivileged_account()
        self.home = self.account.make_home("rpl-guest-")
        folder = self.account.make_directory(self.home / "guest")
        self.image: GuestImage = build_guest(default_kernel_directory(), folder)
        self.accelerator: Accelerator = probe_accelerator(self.image, self.account, self.home)

    def make(self, disk: GuestDisk, backing: GuestDisk | None = None) -> GuestDisk:
        words = ["qemu-img", "create", "-q", "-f", disk.format]
        words += ["-b", str(backing.path), "-F", backing.format] if backing else []
        size = [] if backing else ["64M"]
        subprocess.run([*words, str(disk.path), *size], check=True)
        self.account.own(disk.path)
        return disk

    async def boot(self, libvirtd: PrivateLibvirtd, xml: str, path: Path) -> Console:
        await asyncio.to_thread(libvirtd.create, xml)
        return await Console.open(path)

    def writer_xml(self, disks: tuple[GuestDisk, ...], console: Path) -> str:
        return domain_xml(
            "writer", self.image, disks, accelerator=self.accelerator, console=console
        )

    async def verify(
        self, libvirtd: PrivateLibvirtd, xml: str, disks: tuple[GuestDisk, ...]
    ) -> Verdict:
        """Boots a verifying guest on overlays of `disks`."""
        overlays = {
            disk.target: self.make(
                GuestDisk(disk.target, self.home / f"overlay-{disk.target}.qcow2", "qcow2"), disk
            )
            for disk in disks
        }
        path = self.home / "verify.sock"
        again = replica_domain_xml(
            xml, "verify", overlays, accelerator=self.accelerator, console=path, role="verify"
        )
        console = await self.boot(libvirtd, again, path)
        try:
            return parse_verdict(await console.wait_for("VERIFY", BOOT_SECONDS))
        finally:
            await console.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    try:
        yield made
    finally:
        shutil.rmtree(made.home)


@pytest.mark.parametrize("attacked", [False, True])
async def test_a_guest_verifies_what_it_wrote(bench: Bench, *, attacked: bool) -> None:
    disks = (
        bench.make(GuestDisk("vda", bench.home / "a.raw", "raw")),
        bench.make(GuestDisk("vdb", bench.home / "b.qcow2", "qcow2")),
    )
    path = bench.home / "console.sock"
    xml = bench.writer_xml(disks, path)
    with PrivateLibvirtd(bench.home, bench.account) as libvirtd:
        console = await bench.boot(libvirtd, xml, path)
        await console.wait_for("GUEST-READY", BOOT_SECONDS)
        await console.wait_confirmed(10, BOOT_SECONDS)
        if attacked:
            await console.order("rubbish", "RUBBISH DONE", BOOT_SECONDS)
        confirmed = console.confirmed
        await asyncio.to_thread(libvirtd.destroy, "writer")
        await console.close()
        verdict = await bench.verify(libvirtd, xml, disks)
    assert verdict.rubbish is attacked
    assert (verdict.complaints(confirmed=confirmed) == []) is not attacked


def test_two_private_libvirtds_run_at_once_and_leave_nothing(bench: Bench) -> None:
    other = Bench()
    try:
        with (
            PrivateLibvirtd(bench.home, bench.account) as one,
            PrivateLibvirtd(other.home, other.account) as two,
        ):
            assert one.uri != two.uri
            sockets = (one.socket, two.socket)
            assert all(path.is_socket() for path in sockets)
        assert one.guest_pids() == two.guest_pids() == {}
    finally:
        shutil.rmtree(other.home)
