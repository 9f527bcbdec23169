# SPDX-License-Identifier: Apache-2.0
"""A disk that fills while replication runs: what pauses, what goes on, what is said."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

import receiver.tasks.pump
from replicator.base.errors import NoSpaceError
from replicator.base.storage import Buffer, File, SystemFile, SystemStorage
from replicator.control.orders import OPEN_VIEW, STATUS
from replicator.control.requests import ViewRequest
from replicator.wire.messages import Welcome
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.source import Source
from tests.receiver_service.test_orders import order

DISKS = {"vda": 1 << 20}


class TightFile(SystemFile):
    """Its writes fail while its folder is full."""

    def __init__(self, path: Path, descriptor: int, full: set[str]) -> None:
        super().__init__(path, descriptor)
        self._full = full

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        if self._full & set(self.path.parts):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        return super().pwritev(buffers, offset)


class TightStorage(SystemStorage):
    """`full` names the folders that take no more bytes."""

    def __init__(self) -> None:
        self.full: set[str] = set()

    def create(self, path: Path) -> File:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return TightFile(path, os.open(path, flags, 0o600), self.full)

    def open(self, path: Path, *, writable: bool = False) -> File:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        return TightFile(path, os.open(path, flags), self.full)


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


def cut_after_write(source: Source, block: int) -> None:
    source.write("vda", block * 65536, bytes([block + 1]) * 65536)
    source.cut()


async def test_applying_pauses_and_the_inbox_goes_on_while_it_can(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver.tasks.pump, "SPACE_RETRY_SECONDS", 0.05)
    storage, source = TightStorage(), Source(DISKS)
    source.start_from_zero()
    cut_after_write(source, 0)
    async with site.running(storage) as dr:
        agent = await site.agent()
        await agent.welcomed("web")
        await agent.open(source)
        await agent.ship(source, 0)
        await agent.applied(source.end_lsn)
        storage.full.add("history")
        before = source.end_lsn
        cut_after_write(source, 1)
        await agent.ship(source, before)  # acknowledged all the same
        worker = dr.workers["web"]
        await worker.changed.until(lambda: worker.health.paused is not None)
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.state == "paused"
        assert "full" in group.reason
        assert group.points == 2
        assert (group.applied_lsn or 0) < (group.durable_lsn or 0)
        replica = site.replica("vda").read_bytes()
        assert replica == source.cuts[0].disks["vda"]  # not a byte without its before-image
        view = asyncio.create_task(
            order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="latest"))
        )
        done, _ = await asyncio.wait([view], timeout=0.2)
        assert not done, "a view of a point that is not applied was served"
        storage.full.clear()
        await agent.applied(source.end_lsn)
        chosen = await view
        assert chosen.choice.point.sequence == 2
        assert site.replica("vda").read_bytes() == source.contents["vda"]
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.state == "protected"
        await agent.close()


async def test_a_full_inbox_ends_the_session_and_costs_nothing_acknowledged(site: DrSite) -> None:
    storage, source = TightStorage(), Source(DISKS)
    source.start_from_zero()
    cut_after_write(source, 0)
    async with site.running(storage):
        agent = await site.agent()
        await agent.welcomed("web")
        await agent.open(source)
        await agent.ship(source, 0)
        acknowledged = source.end_lsn
        storage.full.add("inbox")
        cut_after_write(source, 1)
        for frame in source.frames(acknowledged):
            agent.link.send(frame)
        with pytest.raises(NoSpaceError) as refused:
            await agent.expect(Welcome)
        assert refused.value.exit_code == 15
        await agent.close()
        storage.full.clear()
        again = await site.agent()
        welcome = await again.welcomed("web")
        assert welcome.durable_lsn == acknowledged
        await again.open(source, acknowledged)
        await again.ship(source, acknowledged)
        await again.applied(source.end_lsn)
        assert site.replica("vda").read_bytes() == source.contents["vda"]
        await again.close()
