# SPDX-License-Identifier: Apache-2.0
"""QEMU's own mirror job into the splitter: when a sync ends, and what ends continuity.

The storage daemon runs the mirror as libvirt would ask for it; the test plays the agent on the
control socket. The oracle is the source image itself: the log, replayed, must make the same bytes.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from journal.record import Record, RecordType
from replicator.base.errors import ReplicatorError
from replicator.control.splitter import (
    CloseStream,
    DeclareDisk,
    DiskDeclared,
    Done,
    DropConnections,
    OpenStream,
    Ready,
    StreamOpened,
    SyncBegin,
)
from tests.peers.fio import random_writes
from tests.peers.storage_daemon import QmpError, StorageDaemon, storage_daemon
from tests.splitter.daemon import Agent, Home, agent, home, splitter, uuid_text

DISK_BYTES = 16 << 20
GROUP, DISK = "vm", "vm-vda"


@dataclass
class Setting:
    """A source with a splitter beside it; the mirror is not begun."""

    place: Home
    one: Agent
    source: StorageDaemon
    image: Path
    splitter_pid: int

    async def begin(self) -> None:
        """What a driver does up to the block copy."""
        ask = self.one.ask
        await ask(
            lambda number: OpenStream(id=number, group=GROUP, above_ordinal=0, reason="test"),
            StreamOpened,
        )
        await ask(
            lambda number: DeclareDisk(
                id=number, group=GROUP, disk=DISK, size=DISK_BYTES, instance=uuid_text(5)
            ),
            DiskDeclared,
        )
        await ask(lambda number: SyncBegin(id=number, group=GROUP, disk=DISK, reason="test"), Done)

    async def export(self) -> str:
        """That of the sync of now."""
        status = await self.one.until(GROUP, lambda group: group.disks[0].state == "syncing")
        return status.disks[0].export

    async def mirror(self) -> str:
        """Runs the mirror to READY, tells the splitter; the group is ready when this returns."""
        job = await asyncio.to_thread(
            self.source.mirror, self.place.path / "nbd", await self.export()
        )
        flushed = await self.one.until(GROUP, lambda group: group.disks[0].flushed_by > 0)
        connection = flushed.disks[0].flushed_by
        await self.one.ask(
            lambda number: Ready(id=number, group=GROUP, disk=DISK, connection=connection), Done
        )
        await self.one.until(GROUP, lambda group: group.state == "ready")
        return job

    async def load(self, seconds: float = 1.0, seed: int = 1) -> None:
        await asyncio.to_thread(
            random_writes,
            self.source.uri,
            block_bytes=4096,
            depth=16,
            span_bytes=DISK_BYTES,
            seconds=seconds,
            seed=seed,
        )

    def replayed(self, records: list[Record]) -> bytes:
        disk = bytearray(DISK_BYTES)
        for record in records:
            if record.type == RecordType.WRITE:
                disk[record.offset : record.offset + record.length] = record.payload
            elif record.type == RecordType.ZERO:
                disk[record.offset : record.offset + record.length] = bytes(record.length)
        return bytes(disk)


@asynccontextmanager
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    image = tmp_path / "source.raw"
    image.write_bytes(os.urandom(1 << 20))
    os.truncate(image, DISK_BYTES)
    with home() as place:
        place.write_config(memory_size="1GiB")  # nobody frees it here
        with splitter(place) as child, storage_daemon(tmp_path, image) as source:
            async with agent(place) as one:
                yield Setting(place, one, source, image, child.pid)


async def test_a_sync_under_load_ends_with_a_log_that_makes_the_source(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        await it.begin()
        loading = asyncio.create_task(it.load(1.5))
        await it.mirror()
        await loading
        status = await it.one.until(GROUP, lambda group: group.held_until_ns > 0)
        assert status.state == "ready"
        records = it.place.records(GROUP, status.end_lsn)
        kinds = [record.type for record in records]
        assert kinds[0] == RecordType.SYNC_BEGIN
        first_cut, sync_end = kinds.index(RecordType.CUT), kinds.index(RecordType.SYNC_END)
        assert sync_end < first_cut, "a point was possible inside the sync"
        assert it.replayed(records) == it.image.read_bytes()


async def test_a_mirror_that_is_ended_stops_cuts_before_the_guest_goes_on(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        await it.begin()
        job = await it.mirror()
        await asyncio.to_thread(it.source.cancel, job)
        # The source goes on alone from here: nothing of it may stand in a cut.
        status = await it.one.until(GROUP, lambda group: group.state == "suspended")
        cuts = status.last_cut_time_ns
        await it.load(0.5, seed=2)
        later = (await it.one.heard(3))[-1]
        group = next(one for one in later.groups if one.name == GROUP)
        assert (group.state, group.last_cut_time_ns) == ("suspended", cuts)
        assert it.replayed(it.place.records(GROUP, group.end_lsn)) != it.image.read_bytes()
        await it.one.ask(
            lambda number: CloseStream(id=number, group=GROUP, reason="the domain goes on"), Done
        )
        await it.one.until(GROUP, lambda group: group.state == "lost")


async def test_a_killed_qemu_is_a_loss(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        await it.begin()
        await it.mirror()
        os.kill(it.source.pid, signal.SIGKILL)
        status = await it.one.until(GROUP, lambda group: group.state == "lost")
        assert "without a goodbye" in status.reason


async def test_a_killed_splitter_fails_the_job_and_not_the_guest(tmp_path: Path) -> None:
    async with setting(tmp_path) as it:
        await it.begin()
        job = await it.mirror()
        os.kill(it.splitter_pid, signal.SIGKILL)
        await it.load(0.5)  # raises if a write of the source had failed
        event = await asyncio.to_thread(
            it.source.qmp.wait_event,
            lambda event: (
                event["event"] == "BLOCK_JOB_COMPLETED" and event["data"]["device"] == job
            ),
        )
        assert event["data"]["error"]
        await it.load(0.2)  # nor afterwards, without the job


@pytest.mark.parametrize("size", [DISK_BYTES + 512, DISK_BYTES - 512])
async def test_a_disk_of_another_size_fails_the_job_and_costs_nothing_else(
    tmp_path: Path, size: int
) -> None:
    async with setting(tmp_path) as it:
        os.truncate(it.image, DISK_BYTES)
        ask = it.one.ask
        await ask(
            lambda number: OpenStream(id=number, group=GROUP, above_ordinal=0, reason="test"),
            StreamOpened,
        )
        await ask(
            lambda number: DeclareDisk(
                id=number, group=GROUP, disk=DISK, size=size, instance=uuid_text(5)
            ),
            DiskDeclared,
        )
        await ask(lambda number: SyncBegin(id=number, group=GROUP, disk=DISK, reason="test"), Done)
        with pytest.raises(QmpError, match="different sizes"):
            await asyncio.to_thread(it.source.mirror, it.place.path / "nbd", await it.export())
        status = (await it.one.heard(1))[-1]
        group = next(one for one in status.groups if one.name == GROUP)
        assert group.state == "syncing"
        assert group.last_cut_time_ns == 0


async def test_a_job_that_reconnects_into_the_next_sync_is_no_evidence_for_it(
    tmp_path: Path,
) -> None:
    """QEMU asks for the export that its job was begun with, however late, and flushes, and is
    READY; its copy began before the sync did."""
    async with setting(tmp_path) as it:
        it.image.write_bytes(os.urandom(DISK_BYTES))
        await it.begin()
        job = await asyncio.to_thread(
            it.source.mirror,
            it.place.path / "nbd",
            await it.export(),
            wait=False,
            reconnect_seconds=20,
            bytes_per_second=8 << 20,
        )
        await it.one.until(GROUP, lambda group: group.bytes > 4 << 20)
        await it.one.ask(lambda number: DropConnections(id=number, group=GROUP), Done)
        voided = await it.one.until(GROUP, lambda group: group.disks[0].state == "idle")
        assert voided.disks[0].void
        await it.one.ask(
            lambda number: SyncBegin(id=number, group=GROUP, disk=DISK, reason="again"), Done
        )
        records = len(it.place.records(GROUP))
        await asyncio.to_thread(it.source.wait_ready, job)  # it came back, and has flushed
        status = await it.one.until(GROUP, lambda group: group.disks[0].connected > 0)
        assert (status.disks[0].state, status.disks[0].flushed_by) == ("syncing", 0)
        await it.load(0.3)  # no write of the source is refused, or waits
        assert len(it.place.records(GROUP)) == records, "nor is one recorded"
        for connection in (0, 1, 2, 3):
            with pytest.raises(ReplicatorError, match="no FLUSH"):
                await it.one.ask(
                    lambda number, connection=connection: Ready(  # type: ignore[misc]
                        id=number, group=GROUP, disk=DISK, connection=connection
                    ),
                    Done,
                )
        await asyncio.to_thread(it.source.cancel, job)
        await it.mirror()
        status = await it.one.until(GROUP, lambda group: group.held_until_ns > 0)
        log = it.place.records(GROUP, status.end_lsn)
        begun = max(n for n, r in enumerate(log) if r.type == RecordType.SYNC_BEGIN)
        assert it.replayed(log[begun:]) == it.image.read_bytes()
