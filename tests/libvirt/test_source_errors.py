# SPDX-License-Identifier: Apache-2.0
"""A guest's write that fails half-way on its source: it is never mirrored, and nothing shows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from replicator.control.orders import RESYNC
from replicator.control.splitter import SplitterGroupStatus
from tests.libvirt.failing_disk import FailingDisk, as_network_disk, failing_disk
from tests.libvirt.house import GUEST, House, house

BIG_SECONDS = 120.0


@asynccontextmanager
async def failing_house() -> AsyncIterator[tuple[House, FailingDisk]]:
    """Disk B of the guest is served by a server that fails when it is told to; the group is
    protected, and the guest has written its large file once."""
    async with house() as it:
        file = it.home / "vdb.raw"
        with failing_disk(it.account, it.home, file) as disk:
            it.xml = lambda text: as_network_disk(text, file, disk.socket)
            console = await it.boot()
            await console.order("big 1", "BIG 1 DONE", BIG_SECONDS)
            await it.until("protected")
            yield it, disk


async def fail_a_write(it: House, disk: FailingDisk, number: int) -> None:
    disk.fail_writes()
    assert it.console is not None
    await it.console.order(f"big {number}", f"BIG {number} FAILED", BIG_SECONDS)
    disk.fail_writes(fails=False)


def lost_by_it(group: SplitterGroupStatus) -> bool:
    return group.state == "lost" and f"an I/O error of the source of {GUEST}-vdb" in group.reason


async def compare(it: House) -> None:
    """After an end in order the replica equals the source, whatever happened before."""
    await it.until("protected")
    await it.shut_off("poweroff")
    status = await it.said(lambda group: group.state in ("closed", "lost"))
    assert status.ended == "final cut", status.reason
    await it.applied(status.end_lsn)
    assert it.differing() == {}


async def test_an_io_error_of_the_source_is_a_loss_and_again_waits_for_a_person() -> None:
    async with failing_house() as (it, disk):
        await fail_a_write(it, disk, 2)
        await it.said(lost_by_it)
        await it.until("protected")
        await fail_a_write(it, disk, 3)
        await it.said(lost_by_it)
        await it.until("lost", "I/O errors twice within 10 min")
        await asyncio.sleep(3)  # no sync begins meanwhile
        group = await it.until("lost", "I/O errors twice within 10 min")
        assert f"replicator resync {GUEST}" in group.remedy
        await asyncio.to_thread(it.site.agent.order, RESYNC, GUEST)
        await compare(it)


async def test_an_io_error_while_the_agent_is_away_is_found_when_it_is_back() -> None:
    async with failing_house() as (it, disk):
        await asyncio.to_thread(it.site.stop, "agent")
        await fail_a_write(it, disk, 2)
        it.site.start("agent")
        await it.said(lost_by_it)
        await compare(it)


async def test_a_read_error_in_a_sync_is_tried_later_each_time_and_says_why() -> None:
    async with failing_house() as (it, disk):
        disk.fail_reads()
        await asyncio.to_thread(it.site.agent.order, RESYNC, GUEST)
        group = await it.until("syncing", f"syncing {GUEST}-vdb again in 4 s")
        assert "an error in reading the source" in group.reason
        disk.fail_reads(fails=False)
        await compare(it)
        begun = [line for line in it.site.said("agent").splitlines() if "StartCopy web-vdb" in line]
        assert len(begun) <= 2 + 4, "each waits twice as long"
