# SPDX-License-Identifier: Apache-2.0
"""What QEMU and libvirt may do while a disk is copied: no point is false afterwards.

Every test ends with a point that is compared with the source, byte for byte. drivers/
test_sync_events.py has the same events at every moment, in a model.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.base.errors import ReplicatorError
from replicator.base.units import KIB, MIB
from replicator.control.splitter import Done, DropConnections
from tests.libvirt.machine import GROUP, LIMIT_SECONDS, NAME, Machine, Plan, machine

SLOW = 16 * MIB  # bytes per second of a copy, so that things happen in its middle
COPIED = 16 * MIB


async def copying(it: Machine) -> None:
    it.site.start("agent")
    await it.copying(bytes_per_second=SLOW, at_least=COPIED)


async def flushed(it: Machine) -> None:
    """The copy is whole, and nobody has confirmed it: the agent is away until `ends_well`."""
    it.site.start("agent")
    await it.copying(bytes_per_second=SLOW, at_least=8 * MIB)
    it.site.kill("agent")
    await it.slow("vda", 0)
    await it.until(lambda group: group.disks[0].state == "flushed")


async def protected(it: Machine) -> None:
    it.site.start("agent")
    await it.protected()


async def pause(it: Machine) -> None:
    await it.virsh("suspend", NAME)
    await it.virsh("resume", NAME)


async def ends_well(it: Machine) -> None:
    """Protected again, by a sync of the same stream or a new one, and true; also what comes
    after it."""
    if not it.site.is_running("agent"):
        it.site.start("agent")
    await it.protected()
    await it.compare()
    await it.write(MIB, 512 * KIB, 9)
    await it.compare()


async def suspended_and_resumed(it: Machine) -> None:
    await pause(it)


async def suspended_and_resumed_twice(it: Machine) -> None:
    """The second pause comes in the sync that the first one made necessary."""
    await pause(it)
    await it.copying(bytes_per_second=SLOW, at_least=8 * MIB)
    await it.write(0, 512 * KIB, 5)
    await pause(it)


async def reset(it: Machine) -> None:
    await it.virsh("reset", NAME)


async def written_to(it: Machine) -> None:
    """Where the copy has been, and where it has not."""
    await it.write(0, 512 * KIB, 5)
    await it.write(95 * MIB, 512 * KIB, 6)


async def cancelled_by_somebody(it: Machine) -> None:
    await it.virsh("blockjob", NAME, "vda", "--abort")


async def migrated_and_saved_in_vain(it: Machine) -> None:
    for words in (
        ("save", NAME, str(it.home / "tmp" / "saved")),
        ("managedsave", NAME),
        ("migrate", NAME, it.libvirtd.uri, "--live"),
        ("snapshot-create-as", NAME, "one"),
    ):
        with pytest.raises(ReplicatorError):
            await it.virsh(*words)


async def given_another_disk_and_rid_of_it(it: Machine) -> None:
    other = it.home / "tmp" / "other.raw"
    with other.open("wb") as image:
        image.truncate(MIB)
    other.chmod(0o666)
    await it.virsh("attach-disk", NAME, str(other), "vdc", "--live")
    await it.virsh("detach-disk", NAME, "vdc", "--live")


async def left_alone_by_libvirtd(it: Machine) -> None:
    """libvirtd is killed, and a pause happens at its next life."""
    await asyncio.to_thread(it.libvirtd.kill)
    await asyncio.to_thread(it.libvirtd.start)
    await pause(it)


async def without_its_splitter_for_a_moment(it: Machine) -> None:
    """An idle copy outlives it in libvirt's eyes: QEMU notices at the next request."""
    it.site.kill("splitter")
    it.site.start("splitter")


async def disconnected(it: Machine) -> None:
    await it.splitter.ask(lambda number: DropConnections(id=number, group=GROUP), Done)


async def used(it: Machine) -> None:
    """What is done to a machine on an ordinary day, or is refused; it costs no protection."""
    for event in (
        written_to,
        reset,
        migrated_and_saved_in_vain,
        given_another_disk_and_rid_of_it,
    ):
        await event(it)


COSTLY = (
    suspended_and_resumed,
    cancelled_by_somebody,
    left_alone_by_libvirtd,
    without_its_splitter_for_a_moment,
    disconnected,
)


@pytest.mark.parametrize("event", [used, *COSTLY])
@pytest.mark.parametrize("state", [copying, flushed, protected])
async def test_a_machine_that_is(state, event) -> None:  # type: ignore[no-untyped-def]
    async with machine(Plan(size=96 * MIB)) as it:
        await state(it)
        before = await it.until(lambda group: True)
        await event(it)
        if state is protected and event is not used:
            await it.unprotected()
        await ends_well(it)
        if event is used:
            after = await it.until(lambda group: True)
            assert after.stream == before.stream
            assert after.disks[0].export == before.disks[0].export


async def test_two_pauses_in_one_protection() -> None:
    async with machine() as it:
        await copying(it)
        await suspended_and_resumed_twice(it)
        await ends_well(it)


async def test_an_agent_that_was_away_in_a_pause_leaves_the_old_copy_no_say() -> None:
    """Nothing of it is recorded since the pause."""
    async with machine() as it:
        await copying(it)
        it.site.kill("agent")
        await pause(it)
        await it.write(0, 512 * KIB, 7)
        await ends_well(it)


async def test_a_pause_between_flush_and_ready_costs_that_copy() -> None:
    async with machine(Plan(size=96 * MIB)) as it:
        await flushed(it)
        await pause(it)
        voided = await it.until(lambda group: group.disks[0].state == "idle")
        assert "flushed" in voided.disks[0].void
        await it.write(0, 512 * KIB, 7)
        await ends_well(it)


async def test_a_machine_that_stays_paused_is_synced_as_well() -> None:
    async with machine() as it:
        await copying(it)
        await it.virsh("suspend", NAME)
        await it.protected()
        await it.compare()
        await it.virsh("resume", NAME)
        await it.write(MIB, 512 * KIB, 9)
        await ends_well(it)


async def test_status_says_why_a_sync_is_begun_again() -> None:
    async with machine() as it:
        await copying(it)
        await it.virsh("suspend", NAME)
        await it.until(lambda group: bool(group.disks[0].void))
        async with asyncio.timeout(LIMIT_SECONDS):
            while "flushed" not in (said := await it.said()).reason:
                assert said.state != "protected", "it was never said"
        assert "web-vda" in said.reason
        await it.virsh("resume", NAME)
        await ends_well(it)
        assert "flushed" not in (await it.said()).reason


@pytest.fixture
def small_filesystem() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rpl-full-", dir="/var/tmp") as name:
        path = Path(name)
        options = "size=160m,mode=0777"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", name], check=True)
        try:
            yield path
        finally:
            subprocess.run(["umount", name], check=True)


async def test_a_full_filesystem_of_the_source_in_a_sync_ends_in_no_false_point(
    small_filesystem: Path,
) -> None:
    """QEMU pauses by itself on ENOSPC, and the guest's write is made when it is resumed."""
    plan = Plan(
        size=64 * MIB, targets=("vda", "vdb"), folder=small_filesystem, hole=32 * MIB, guest=True
    )
    async with machine(plan) as it:
        assert it.console is not None
        it.site.start("agent")
        await it.copying(bytes_per_second=4 * MIB, at_least=4 * MIB)
        filler = small_filesystem / "filler"
        with pytest.raises(OSError, match="No space"):
            _fill(filler)
        await it.until_domain_is("paused (I/O error)")
        voided = await it.until(lambda group: any(disk.void for disk in group.disks))
        assert voided.state == "syncing"
        filler.unlink()
        await it.virsh("resume", NAME)
        await it.console.order("unmount", "UNMOUNTED", LIMIT_SECONDS)
        await it.protected()
        await it.compare()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for step in (MIB, 64 * KIB, 4 * KIB):
            try:
                while True:
                    file.write(bytes(step))
            except OSError:
                if step == 4 * KIB:
                    raise
