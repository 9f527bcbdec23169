# SPDX-License-Identifier: Apache-2.0
"""Disks come into a group of a running guest and leave it, by a reload: the guest and the other
disk notice nothing, and no block copy is left behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from replicator.control.orders import CLOSE_VIEW, MARK, OPEN_VIEW, RELOAD, STATUS
from replicator.control.requests import MarkRequest, ReloadRequest, ViewRequest
from replicator.control.splitter import SplitterGroupStatus
from replicator.demo.site import Group
from tests.libvirt.house import BOOT_SECONDS, GUEST, House, house


async def reload(it: House, *targets: str) -> None:
    """The group with these disks alone; without any, no group."""
    tables = tuple(f'domain = "{GUEST}"\ntarget = "{target}"' for target in targets)
    it.site.groups = (Group(GUEST, "libvirt", tables),) if tables else ()
    it.site.write_configs()
    await asyncio.to_thread(it.site.agent.order, RELOAD, request=ReloadRequest(removes_too=True))


async def mirrors(it: House) -> int:
    return (await it.virsh("dumpxml", GUEST)).count("<mirror ")


async def writes_on(it: House) -> None:
    assert it.console is not None
    await it.console.wait_confirmed(it.console.confirmed + 10, BOOT_SECONDS)


async def members_of_newest(it: House) -> Sequence[str]:
    """The disks of a point made now."""
    await asyncio.to_thread(
        it.site.agent.order,
        MARK,
        GUEST,
        MarkRequest(label=f"mark {time.monotonic_ns()}", wait=True),
    )
    view = await asyncio.to_thread(
        it.site.receiver.order, OPEN_VIEW, request=ViewRequest(group=GUEST, at="latest")
    )
    await asyncio.to_thread(it.site.receiver.order, CLOSE_VIEW, view.result.id)
    return sorted(view.result.disks)


async def test_disks_come_and_go_while_the_guest_writes() -> None:
    async with house() as it:
        await reload(it, "vda")
        await it.boot()
        await it.until("protected")
        before = await it.said(lambda group: group.state == "ready")
        assert await mirrors(it) == 1

        def both(group: SplitterGroupStatus) -> bool:
            return [disk.state for disk in group.disks] == ["complete", "complete"]

        await reload(it, "vda", "vdb")
        added = await it.said(both)
        assert (added.stream, added.state) == (before.stream, "ready")
        await it.until("protected")
        assert await members_of_newest(it) == [f"{GUEST}-vda", f"{GUEST}-vdb"]
        await writes_on(it)

        await reload(it, "vda")
        left = await it.said(lambda group: len(group.disks) == 1)
        assert (left.stream, left.state) == (before.stream, "ready")
        assert await mirrors(it) == 1
        await it.until("protected")
        assert await members_of_newest(it) == [f"{GUEST}-vda"]
        await writes_on(it)

        await reload(it)
        assert (await asyncio.to_thread(it.site.agent.order, STATUS)).groups == []
        assert await mirrors(it) == 0
        await writes_on(it)
        assert it.console is not None

        await reload(it, "vda", "vdb")
        await it.until("protected")
        await it.shut_off("poweroff")
        status = await it.said(lambda group: group.state in ("closed", "lost"))
        assert status.ended == "final cut", status.reason
        await it.applied(status.end_lsn)
        assert it.differing() == {}
