# SPDX-License-Identifier: Apache-2.0
"""Disks of a real machine are resized: their group goes on, and points keep the size of their time.

Every point that is looked at is compared with the source as it was then, byte for byte.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from replicator.base.errors import ReplicatorError, UsageError
from replicator.base.units import KIB, MIB
from replicator.control.orders import (
    CLOSE_VIEW,
    MARK,
    OPEN_VIEW,
    PLAN_ROLLBACK,
    RELOAD,
    RESTORE,
    STATUS,
)
from replicator.control.requests import (
    MarkRequest,
    ReloadRequest,
    RestoreRequest,
    RollbackRequest,
    ViewRequest,
)
from replicator.control.splitter import SplitterGroupStatus
from replicator.control.types import GroupStatus
from replicator.demo.site import Group, Program
from tests.libvirt.machine import (
    GROUP,
    LIMIT_SECONDS,
    LOOK_SECONDS,
    NAME,
    Machine,
    Plan,
    differing_blocks,
    machine,
    machine_xml,
)

SIZE = 24 * MIB
GROWN = 33 * MIB + 33 * 512
SHRUNK = 9 * MIB + 512


async def reload(it: Machine, *targets: str) -> None:
    """The group with these disks alone; without any, no group."""
    tables = tuple(f'domain = "{NAME}"\ntarget = "{target}"' for target in targets)
    group = Group(GROUP, "libvirt", tables, checkpoint_interval="200ms")
    it.site.groups = (group,) if targets else ()
    it.site.write_configs()
    await asyncio.to_thread(it.site.agent.order, RELOAD, request=ReloadRequest(removes_too=True))


async def marked(it: Machine, label: str) -> Path:
    """The disks as they are at a point of that name; nobody writes meanwhile."""
    await asyncio.to_thread(it.site.agent.order, MARK, GROUP, MarkRequest(label=label, wait=True))
    kept = it.home / f"kept-{label}"
    kept.mkdir()
    for disk in it.disks:
        shutil.copy(disk.path, kept / f"{NAME}-{disk.target}.raw")
    return kept


async def is_as_kept(it: Machine, label: str) -> None:
    """By a restore, and by a view."""
    kept, restored = it.home / f"kept-{label}", it.home / f"restored-{label}"
    await asyncio.to_thread(
        it.site.receiver.order, RESTORE, GROUP, RestoreRequest(at=label, to=str(restored))
    )
    view = await asyncio.to_thread(
        it.site.receiver.order, OPEN_VIEW, request=ViewRequest(group=GROUP, at=label)
    )
    for disk in it.disks:
        name = f"{NAME}-{disk.target}"
        differing = differing_blocks(kept / f"{name}.raw", restored / f"{name}.raw")
        assert not differing, f"{label}: {len(differing)} blocks of {disk.target} differ"
        words = ("qemu-img", "compare", "-f", "raw", "-F", "raw")
        compared = [*words, str(kept / f"{name}.raw"), view.result.disks[name]]
        await asyncio.to_thread(subprocess.run, compared, check=True, capture_output=True)
    await asyncio.to_thread(it.site.receiver.order, CLOSE_VIEW, view.result.id)
    shutil.rmtree(restored)


async def at_receiver(it: Machine) -> GroupStatus:
    (group,) = (await asyncio.to_thread(it.site.receiver.order, STATUS)).groups
    return group


async def sizes(it: Machine) -> dict[str, tuple[int, list[int]]]:
    """Of each disk, and what earlier ones are kept."""
    disks = (await at_receiver(it)).disks
    return {disk.name.removeprefix(f"{NAME}-"): (disk.size, disk.earlier_sizes) for disk in disks}


def complete(group: SplitterGroupStatus) -> bool:
    return [disk.state for disk in group.disks] == ["complete", "complete"]


async def started_again(it: Machine) -> None:
    """Of the same definition, so that it is the same domain."""
    with tempfile.NamedTemporaryFile("w", suffix=".xml", dir=it.home) as file:
        file.write(machine_xml(it.disks))
        file.flush()
        if NAME not in (await it.virsh("list", "--all", "--name")).split():
            await it.virsh("define", file.name)
    await it.virsh("start", NAME)


async def resized_while_off(it: Machine, size: int) -> None:
    await it.virsh("destroy", NAME)
    await it.until(lambda group: group.state in ("closed", "lost"))
    os.truncate(it.disks[0].path, size)
    await started_again(it)


async def no_rollback_to(it: Machine, label: str) -> None:
    with pytest.raises(UsageError, match="there is no rollback across that") as refused:
        await asyncio.to_thread(
            it.site.receiver.order, PLAN_ROLLBACK, GROUP, RollbackRequest(to=label, dry_run=True)
        )
    found = re.search(r"replicator restore web --at '(#\d+)' --to", refused.value.hint)
    assert found is not None
    restored = it.home / "by the remedy"
    await asyncio.to_thread(
        it.site.receiver.order, RESTORE, GROUP, RestoreRequest(at=found[1], to=str(restored))
    )
    for kept in (it.home / f"kept-{label}").iterdir():
        assert not differing_blocks(kept, restored / kept.name)
    shutil.rmtree(restored)


async def test_a_disk_is_grown_on_a_running_machine() -> None:
    """Its copy ends by a reload, since libvirt refuses a resize meanwhile; the other disk's goes
    on, and so do points."""
    async with machine(Plan(size=SIZE, targets=("vda", "vdb"))) as it:
        it.site.start("agent")
        await it.protected()
        await it.write(SIZE - 64 * KIB, 64 * KIB, 1)
        before = await it.until(complete)
        await marked(it, "before")
        with pytest.raises(ReplicatorError, match=r"block copy|block job|in use"):
            await it.virsh("blockresize", NAME, "vda", f"{GROWN}B")

        await reload(it, "vdb")
        await it.until(lambda group: len(group.disks) == 1)
        await it.virsh("blockresize", NAME, "vda", f"{GROWN}B")
        await it.write(3 * MIB, 64 * KIB, 2)
        await it.write(GROWN - 4 * KIB - 512, 4 * KIB, 3)
        await reload(it, "vda", "vdb")
        after = await it.until(complete)
        assert (after.stream, after.state) == (before.stream, "ready")

        await it.protected()
        await it.write(5 * MIB, 64 * KIB, 4)
        await it.compare()
        await marked(it, "after")
        assert await sizes(it) == {"vda": (GROWN, [SIZE]), "vdb": (SIZE, [])}
        await no_rollback_to(it, "before")
        for label in ("before", "after"):
            await is_as_kept(it, label)


async def test_the_only_disk_of_a_group_is_grown_on_a_running_machine() -> None:
    """While the group is out of the configuration, and behind the back of a copy that is ended."""
    async with machine(Plan(size=SIZE)) as it:
        it.site.start("agent")
        await it.protected()
        await marked(it, "before")
        await reload(it)
        await it.virsh("blockresize", NAME, "vda", f"{GROWN}B")
        await reload(it, "vda")
        await protected_with(it, GROWN)
        await it.write(GROWN - 4 * KIB - 512, 4 * KIB, 3)
        await marked(it, "grown")
        await it.virsh("blockjob", NAME, "vda", "--abort")
        await it.virsh("blockresize", NAME, "vda", f"{GROWN + MIB}B")
        await protected_with(it, GROWN + MIB)
        await it.write(GROWN, 64 * KIB, 4)
        await it.compare()
        for label in ("before", "grown"):
            await is_as_kept(it, label)


async def protected_with(it: Machine, size: int) -> None:
    """Neither end's word has an event of its own."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            if (await sizes(it)).get("vda", (0, []))[0] == size and (
                await it.said()
            ).state == "protected":
                return
            await asyncio.sleep(LOOK_SECONDS)


@pytest.mark.parametrize("program", ["agent", "receiver", "splitter"])
async def test_a_disk_is_grown_and_shrunk_while_the_machine_is_off(program: Program) -> None:
    """And a program is killed while the new instance is being synced."""
    async with machine(Plan(size=SIZE)) as it:
        it.site.start("agent")
        await it.protected()
        await marked(it, "first")
        resized = (GROWN, SHRUNK)
        for number, size in enumerate(resized):
            await resized_while_off(it, size)
            if size == resized[-1]:
                await it.until(lambda group: group.state == "syncing")
                it.site.kill(program)
                it.site.start(program)
            await protected_with(it, size)
            await it.write(size - 8 * KIB - 512, 8 * KIB, number + 5)
            await it.compare()
            await marked(it, f"size {size}")
        assert await sizes(it) == {"vda": (SHRUNK, [SIZE, GROWN])}
        for label in ("first", *(f"size {size}" for size in resized)):
            await is_as_kept(it, label)
        for label in ("first", f"size {GROWN}"):
            await no_rollback_to(it, label)
