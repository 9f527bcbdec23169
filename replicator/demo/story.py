# SPDX-License-Identifier: Apache-2.0
"""The story: a real guest is protected, attacked, destroyed, and brought back from its replica.

    1  an installation: PKI, receiver, splitter, agent, a private libvirtd, as one ordinary user
    2  a guest that appends numbered, checksummed records to two disks, A before B
    3  protection of the running guest; recovery points grow
    4  a bookmark, then ransomware, then the host is lost: QEMU, splitter and agent are killed, the
       source disks deleted
    5  the last good point: a view of it is checked, the replica rolled back and booted on
       throw-away overlays, and the guest verifies itself
    6  undo: the rubbish is back, nothing was lost by looking; and rolled back again

It is the demonstration and, word for word, a test: `tell` raises where the story does not hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console as RichConsole
from rich.table import Table

from replicator.base.errors import DamageError, ReplicatorError
from replicator.control.orders import CLOSE_VIEW, MARK, OPEN_VIEW, POINTS, RESTORE, ROLLBACK, STATUS
from replicator.control.requests import MarkRequest, RestoreRequest, RollbackRequest, ViewRequest
from replicator.control.types import GroupStatus, Point
from replicator.demo.accelerator import probe_accelerator
from replicator.demo.account import Account, require_program, unprivileged_account
from replicator.demo.console import Console
from replicator.demo.domain import Accelerator, GuestDisk, domain_xml, replica_domain_xml
from replicator.demo.figures import Figures
from replicator.demo.guest.image import GuestImage, build_guest, default_kernel_directory
from replicator.demo.guest.verdict import Verdict, parse_verdict
from replicator.demo.libvirtd import PrivateLibvirtd
from replicator.demo.narrator import LiveLine, Narrator, bar
from replicator.demo.programs import own_python
from replicator.demo.site import Group, Site

GUEST = "web"
TARGETS = ("vda", "vdb")
DISKS = tuple(f"{GUEST}-{target}" for target in TARGETS)
DISK_SIZE = "64M"
LABEL = "before the attack"
BOOT_SECONDS = 60.0
SYNC_SECONDS = 60.0
POINTS_SECONDS = 30.0
RECORDS_BEFORE = 30
LOOK_SECONDS = 0.1


@dataclass
class Facts:
    """What must hold together: the records known to be safe around the bookmark."""

    confirmed_before_mark: int = 0
    confirmed_after_mark: int = 0
    mark: Point | None = None
    before_rollback: int = 0
    rolled_back_digest: str = ""
    xml: str = ""


@dataclass
class Story:
    """Tells itself once, in `home`, which its caller makes and removes."""

    home: Path
    account: Account
    narrator: Narrator
    figures: Figures = field(default_factory=Figures)
    facts: Facts = field(default_factory=Facts)
    boots: int = 0

    async def tell(self) -> Figures:
        tables = tuple(f'domain = "{GUEST}"\ntarget = "{target}"' for target in TARGETS)
        group = Group(GUEST, "libvirt", tables)
        with Site(self.home, self.account, (group,)) as site:
            self.narrator.step("An installation: PKI, receiver, splitter, agent, private libvirtd")
            image = await asyncio.to_thread(self._build_guest)
            accelerator = await asyncio.to_thread(probe_accelerator, image, self.account, self.home)
            with PrivateLibvirtd(self.home, self.account) as libvirtd:
                await asyncio.to_thread(site.prepare)
                site.start("receiver", "splitter")
                self.narrator.say(f"everything runs as uid {self.account.uid} in {self.home}")
                console = await self._boot_source(libvirtd, image, accelerator)
                try:
                    await self._protect(site)
                    await self._lose_everything(site, libvirtd, console)
                finally:
                    await console.close()
                await self._bring_back(site, libvirtd, accelerator)
                await self._undo(site, libvirtd, accelerator)
        self.narrator.table(self.figures.table())
        return self.figures

    # -- 1 and 2 ----------------------------------------------------------------------------------

    def _build_guest(self) -> GuestImage:
        folder = self.account.make_directory(self.home / "guest")
        return build_guest(default_kernel_directory(), folder)

    def _source_disks(self) -> tuple[GuestDisk, ...]:
        return (
            GuestDisk("vda", self.home / "source-a.raw", "raw"),
            GuestDisk("vdb", self.home / "source-b.qcow2", "qcow2"),
        )

    async def _boot_source(
        self, libvirtd: PrivateLibvirtd, image: GuestImage, accelerator: Accelerator
    ) -> Console:
        how = "KVM" if accelerator == "kvm" else "emulated: KVM does not work here"
        self.narrator.step(f"A guest with two disks, raw and qcow2 ({how})")
        disks = self._source_disks()
        for disk in disks:
            self._make_image(disk)
        path = self.home / "console.sock"
        xml = domain_xml(GUEST, image, disks, accelerator=accelerator, console=path)
        await asyncio.to_thread(libvirtd.create, xml)
        console = await Console.open(path)
        await console.wait_for("GUEST-READY", BOOT_SECONDS)
        await console.wait_confirmed(5, BOOT_SECONDS)
        self.narrator.say("it appends a checksummed record to both disks every 100 ms, with fsync")
        return console

    def _make_image(self, disk: GuestDisk, backing: GuestDisk | None = None) -> None:
        words = ["qemu-img", "create", "-q", "-f", disk.format]
        if backing is None:
            words += [str(disk.path), DISK_SIZE]
        else:
            words += ["-b", str(backing.path), "-F", backing.format, str(disk.path)]
        subprocess.run(words, check=True)
        self.account.own(disk.path)

    # -- 3 ----------------------------------------------------------------------------------------

    async def _protect(self, site: Site) -> None:
        self.narrator.step("Protection of the running guest")
        self.narrator.command("replicator-agent --config agent.toml")
        site.start("agent")
        with self.narrator.live() as line:
            await self._watch(site, line, lambda s: s[0].state == "protected", SYNC_SECONDS)
        with self.narrator.live() as line:
            await self._watch(site, line, lambda s: s[1].points >= 4, POINTS_SECONDS)

    async def _watch(
        self,
        site: Site,
        line: LiveLine,
        done: Callable[[tuple[GroupStatus, GroupStatus]], bool],
        limit_seconds: float,
    ) -> None:
        """Shows both ends of the group until `done`; keeps the RPO that it sees."""
        deadline = time.monotonic() + limit_seconds
        while True:
            at_source = (await asyncio.to_thread(site.agent.order, STATUS)).groups[0]
            at_site = (await asyncio.to_thread(site.receiver.order, STATUS)).groups[0]
            if at_site.rpo_seconds is not None and at_source.state == "protected":
                self.figures.rpo_seconds.append(at_site.rpo_seconds)
            line.show(_state_line(at_source, at_site))
            if done((at_source, at_site)):
                return
            if time.monotonic() > deadline:
                raise ReplicatorError(
                    f"the group is still {at_source.state} after {limit_seconds:.0f} s: "
                    f"{at_source.reason or at_site.reason or 'no reason is known'}",
                    hint=f"the logs are in {self.home}",
                )
            await asyncio.sleep(LOOK_SECONDS)

    # -- 4 ----------------------------------------------------------------------------------------

    async def _lose_everything(
        self, site: Site, libvirtd: PrivateLibvirtd, console: Console
    ) -> None:
        self.narrator.step("A bookmark, an attack, and the loss of the host")
        await console.wait_confirmed(RECORDS_BEFORE, BOOT_SECONDS)
        self.facts.confirmed_before_mark = console.confirmed
        self.narrator.command(f'replicator mark {GUEST} --label "{LABEL}" --wait')
        mark = await asyncio.to_thread(
            site.agent.order, MARK, GUEST, MarkRequest(label=LABEL, wait=True)
        )
        self.facts.confirmed_after_mark = console.confirmed
        self.facts.mark = mark
        self.narrator.say(
            f"point #{mark.sequence}, {self.facts.confirmed_before_mark} records were confirmed"
        )
        await console.order("rubbish", "RUBBISH DONE", BOOT_SECONDS)
        self.narrator.say("[red]the guest overwrites its records with rubbish[/]")
        points = (await asyncio.to_thread(site.receiver.order, STATUS)).groups[0].points
        with self.narrator.live() as line:
            await self._watch(site, line, lambda s: s[1].points >= points + 3, POINTS_SECONDS)
        await asyncio.to_thread(self.figures.read_agent, site.agent_metrics_port, GUEST)
        os.kill(libvirtd.guest_pids()[GUEST], signal.SIGKILL)
        site.kill("splitter")
        site.kill("agent")
        for disk in self._source_disks():
            disk.path.unlink()
        self.narrator.say("[red]QEMU, splitter and agent are killed, the source disks deleted[/]")
        await self._until_alone(site)

    async def _until_alone(self, site: Site) -> None:
        deadline = time.monotonic() + POINTS_SECONDS
        while (await asyncio.to_thread(site.receiver.order, STATUS)).groups[0].peer is not None:
            if time.monotonic() > deadline:
                raise ReplicatorError("the receiver still counts the dead source as connected")
            await asyncio.sleep(LOOK_SECONDS)

    # -- 5 ----------------------------------------------------------------------------------------

    async def _bring_back(
        self, site: Site, libvirtd: PrivateLibvirtd, accelerator: Accelerator
    ) -> None:
        self.narrator.step("The last good point: look, roll back, boot")
        self.narrator.command(f"replicator points {GUEST}")
        points = await asyncio.to_thread(site.receiver.order, POINTS, GUEST)
        self.narrator.table(_points_table(points))
        good = next(point for point in reversed(points) if point.label == LABEL)
        await self._check_view(site, good)
        ordered = time.monotonic()
        self.narrator.command(f'replicator rollback {GUEST} --to "{LABEL}" --yes')
        result = await asyncio.to_thread(
            site.receiver.order, ROLLBACK, GUEST, RollbackRequest(to=LABEL)
        )
        self.facts.before_rollback = _sequence(result.result.before)
        self.figures.rollback_seconds = time.monotonic() - ordered
        self.facts.rolled_back_digest = self._replica_digest(site)
        self.facts.xml = await self._replicated_xml(site)
        booting = time.monotonic()
        verdict = await self._boot_replica(site, libvirtd, accelerator)
        self.figures.boot_seconds = time.monotonic() - booting
        self.figures.rto_seconds = time.monotonic() - ordered
        self._judge(verdict)

    async def _check_view(self, site: Site, point: Point) -> None:
        self.narrator.command(f'replicator view open {GUEST} --at "{LABEL}"')
        view = (
            await asyncio.to_thread(
                site.receiver.order,
                OPEN_VIEW,
                request=ViewRequest(group=GUEST, at=f"#{point.sequence}"),
            )
        ).result
        try:
            for disk, uri in view.disks.items():
                await asyncio.to_thread(self._check_disk, disk, uri)
        finally:
            await asyncio.to_thread(site.receiver.order, CLOSE_VIEW, view.id)
        self.narrator.say("both filesystems of the view are clean, without touching the replica")

    def _check_disk(self, disk: str, uri: str) -> None:
        """A filesystem check of a copy of the view: the view itself is read-only."""
        copy = self.home / f"check-{disk}.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", uri, str(copy)], check=True)
        e2fsck = require_program("e2fsck", package="e2fsprogs")
        replay = subprocess.run([e2fsck, "-p", copy], capture_output=True, check=False)
        check = subprocess.run([e2fsck, "-f", "-n", copy], capture_output=True, check=False)
        copy.unlink()
        if replay.returncode not in (0, 1) or check.returncode != 0:
            said = (check.stdout or replay.stdout).decode(errors="replace").strip()
            raise DamageError(f"the view of {disk} holds a damaged filesystem: {said}")

    async def _replicated_xml(self, site: Site) -> str:
        """The domain XML that belongs to the point, as a restore writes it."""
        target = self.account.make_directory(self.home / "restore") / "web"
        result = await asyncio.to_thread(
            site.receiver.order, RESTORE, GUEST, RestoreRequest(at=LABEL, to=str(target))
        )
        xml = (target / f"{GUEST}.xml").read_text()
        for name in result.result.files:
            Path(name).unlink()
        return xml

    async def _boot_replica(
        self, site: Site, libvirtd: PrivateLibvirtd, accelerator: Accelerator
    ) -> Verdict:
        """Boots the replicated machine on overlays: only the receiver ever writes a replica."""
        self.boots += 1
        name = f"{GUEST}-replica-{self.boots}"
        overlays = {}
        for target, disk in zip(TARGETS, DISKS, strict=True):
            overlay = GuestDisk(target, self.home / f"{name}-{target}.qcow2", "qcow2")
            replica = GuestDisk(target, site.replica(GUEST, disk), "raw")
            await asyncio.to_thread(self._make_image, overlay, replica)
            overlays[target] = overlay
        path = self.home / f"{name}.sock"
        xml = replica_domain_xml(
            self.facts.xml, name, overlays, accelerator=accelerator, console=path, role="verify"
        )
        self.narrator.command(f"virsh create {name}.xml    # the replicated XML, on overlays")
        await asyncio.to_thread(libvirtd.create, xml)
        console = await Console.open(path)
        try:
            return parse_verdict(await console.wait_for("VERIFY", BOOT_SECONDS))
        finally:
            await console.close()

    def _judge(self, verdict: Verdict) -> None:
        facts = self.facts
        complaints = verdict.complaints(confirmed=facts.confirmed_before_mark)
        if verdict.a.last > facts.confirmed_after_mark + 1:
            complaints.append(
                f"record {verdict.a.last} is there, {facts.confirmed_after_mark} was the last"
                " confirmed when the bookmark was made"
            )
        if complaints:
            raise DamageError("the booted replica is wrong: " + "; ".join(complaints))
        self.narrator.say(
            f"[green]the guest verifies itself: fsck clean, records 1 to {verdict.b.last} intact"
            f" on both disks, B never ahead of A[/]"
        )

    # -- 6 ----------------------------------------------------------------------------------------

    async def _undo(self, site: Site, libvirtd: PrivateLibvirtd, accelerator: Accelerator) -> None:
        self.narrator.step("Undo, and back again: nothing was lost by looking")
        before = f"#{self.facts.before_rollback}"
        self.narrator.command(f"replicator rollback {GUEST} --to {before} --yes")
        await asyncio.to_thread(site.receiver.order, ROLLBACK, GUEST, RollbackRequest(to=before))
        verdict = await self._boot_replica(site, libvirtd, accelerator)
        if not verdict.rubbish:
            raise DamageError(f"the undone replica does not hold the rubbish: {verdict}")
        self.narrator.say("[red]the rubbish is back[/]: the undo is exact")
        self.narrator.command(f'replicator rollback {GUEST} --to "{LABEL}" --yes')
        await asyncio.to_thread(site.receiver.order, ROLLBACK, GUEST, RollbackRequest(to=LABEL))
        if self._replica_digest(site) != self.facts.rolled_back_digest:
            raise DamageError("the second rollback gave other bytes than the first")
        self.narrator.say("[green]rolled back again, byte for byte the same[/]\n")

    def _replica_digest(self, site: Site) -> str:
        digest = hashlib.sha256()
        for disk in DISKS:
            digest.update(site.replica(GUEST, disk).read_bytes())
        return digest.hexdigest()


def _sequence(point: Point) -> int:
    assert point.sequence is not None, "the receiver numbers its points"
    return point.sequence


def _state_line(at_source: GroupStatus, at_site: GroupStatus) -> str:
    if at_source.state == "protected" and at_site.rpo_seconds is not None:
        return (
            f"[green]protected[/]  RPO {at_site.rpo_seconds:4.1f} s  "
            f"{at_site.points} recovery points"
        )
    known = [disk for disk in at_source.disks if disk.synced_bytes is not None]
    total = sum(disk.size for disk in known)
    share = sum(disk.synced_bytes or 0 for disk in known) / total if total else 0.0
    return f"{at_source.state:<10} {bar(share)} {share:4.0%}"


def _points_table(points: list[Point], newest: int = 8) -> Table:
    table = Table(title=f"the newest of {len(points)} points", title_justify="left")
    for heading in ("point", "time", "kind", "label"):
        table.add_column(heading)
    for point in points[-newest:]:
        table.add_row(f"#{point.sequence}", point.time, point.kind, point.label or "")
    return table


def main() -> None:
    """`replicator demo`: tells the story in a directory of its own and removes it afterwards. When
    it fails, the directory stays, with all logs."""
    account = unprivileged_account()
    own_python(account)  # says what is wrong before anything is made
    home = account.make_home()
    story = Story(home, account, Narrator(RichConsole()))
    try:
        asyncio.run(story.tell())
    except ReplicatorError as error:
        error.hint = error.hint or f"everything it left is in {home}"
        raise
    shutil.rmtree(home)
