# SPDX-License-Identifier: Apache-2.0
"""A receiver whose disk is full to the last block, or has no inode left: a real filesystem. To look
and to make room still works, and a restart; then all goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import receiver.tasks.pump
from receiver.group.parts import Limits
from receiver.service import Receiver
from replicator.base.errors import NoSpaceError
from replicator.base.units import MIB
from replicator.control.orders import (
    AUDITED,
    CLOSE_VIEW,
    DROP_POINTS,
    OPEN_VIEW,
    POINTS,
    RELOAD,
    STATUS,
    VERIFY_AUDIT,
)
from replicator.control.requests import DropRequest, ReloadRequest, ViewRequest
from replicator.wire.messages import Welcome
from tests.receiver.source import noise
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.fake_agent import FakeAgent
from tests.receiver_service.source import Source
from tests.receiver_service.test_orders import order

DISKS = {"vda": 8 * MIB}
POINTS_MADE = 12


@pytest.fixture
def small() -> Iterator[Path]:
    """A filesystem of 96 MiB, with 400 inodes, at a path that has room for a view's socket."""
    folder = Path(tempfile.mkdtemp(prefix="small-"))
    options = "size=96m,nr_inodes=400"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


@pytest.fixture
def site(small: Path, monkeypatch: pytest.MonkeyPatch) -> DrSite:
    monkeypatch.setattr(receiver.tasks.pump, "SPACE_RETRY_SECONDS", 0.05)
    segments = partial(Limits, history_segment_bytes=2 * MIB)
    monkeypatch.setattr("receiver.group.group.Limits", segments)
    return DrSite(small)


def fill(folder: Path) -> Path:
    """Whoever else writes there: to the last block."""
    path = folder / f"other-{len(list(folder.iterdir()))}"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 4096):
            with suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass
    return path


def fill_inodes(folder: Path) -> list[Path]:
    made: list[Path] = []
    with suppress(OSError):
        while True:
            path = folder / f"tiny-{len(made)}"
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            made.append(path)
    return made


async def fed(site: DrSite, dr: Receiver) -> tuple[FakeAgent, Source]:
    """Points that do not compress, and the reserve made."""
    dr.tend()
    await dr.reserve_errand.ended()
    source = Source(DISKS)
    source.start_from_zero()
    for number in range(POINTS_MADE):
        source.write("vda", number % 3 * MIB, noise(number + 1, MIB))
        source.cut()
    agent = await site.agent()
    await agent.welcomed("web")
    await agent.open(source)
    await agent.ship(source, source.first_lsn)
    await agent.applied(source.end_lsn)
    return agent, source


async def made_again(dr: Receiver) -> None:
    dr.tend()
    await dr.reserve_errand.ended()
    dr.workers["web"].wake()


@pytest.mark.parametrize("what", ["blocks", "inodes"])
async def test_on_a_full_disk_one_looks_makes_room_and_it_goes_on(
    site: DrSite, small: Path, what: str
) -> None:
    async with site.running() as dr:
        agent, source = await fed(site, dr)
        others = [fill(small)] if what == "blocks" else fill_inodes(small)
        before = source.end_lsn
        source.write("vda", 0, noise(99, MIB))
        source.cut()
        if what == "blocks":
            for frame in source.frames(before):
                agent.link.send(frame)
            with pytest.raises(NoSpaceError):
                await agent.expect(Welcome)
        await agent.close()

        # looking
        assert len(await order(site.control.order, POINTS, "web")) == POINTS_MADE
        view = await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="#3"))
        await order(site.control.order, CLOSE_VIEW, view.result.id)
        verdict = await order(site.control.order, VERIFY_AUDIT)
        assert verdict.faults == []
        # making room
        done = await order(site.control.order, DROP_POINTS, "web", drop_of(*range(1, POINTS_MADE)))
        assert len(done.points) == POINTS_MADE - 1
        assert done.freed_bytes > 4 * MIB
        entries = await order(site.control.order, AUDITED)
        assert [each.outcome for each in entries if each.order == "points drop"] == [
            "started",
            "done",
        ]
        for path in others:
            path.unlink()
        await made_again(dr)
        again = await site.agent()
        welcome = await again.welcomed("web")
        await again.open(source, welcome.durable_lsn)
        if welcome.durable_lsn < source.end_lsn:
            await again.ship(source, welcome.durable_lsn)
        await again.applied(source.end_lsn)
        assert site.replica("vda").read_bytes() == source.contents["vda"]
        await again.close()


def drop_of(*sequences: int) -> DropRequest:
    return DropRequest(points=[f"#{each}" for each in sequences])


async def test_a_restart_on_a_full_disk_comes_up_and_takes_nothing_in_before_there_is_room(
    site: DrSite, small: Path
) -> None:
    async with site.running() as dr:
        agent, source = await fed(site, dr)
        await agent.close()
    other = fill(small)
    before = source.end_lsn
    source.write("vda", 0, noise(99, MIB))
    source.cut()
    async with site.running() as dr:
        assert len(await order(site.control.order, POINTS, "web")) == POINTS_MADE
        again = await site.agent()
        welcome = await again.welcomed("web")
        assert welcome.durable_lsn == before
        await again.open(source, before)
        for frame in source.frames(before):
            again.link.send(frame)
        with pytest.raises(NoSpaceError, match="given back"):
            await again.expect(Welcome)
        await again.close()
        (group,) = (await order(site.control.order, STATUS)).groups
        assert "given" in group.reason
        done = await order(site.control.order, DROP_POINTS, "web", drop_of(*range(1, POINTS_MADE)))
        assert done.freed_bytes > 4 * MIB
        await made_again(dr)
        third = await site.agent()
        await third.welcomed("web")
        await third.open(source, before)
        await third.ship(source, before)
        await third.applied(source.end_lsn)
        assert site.replica("vda").read_bytes() == source.contents["vda"]
        await third.close()
    other.unlink()


async def test_what_is_in_between_is_said_as_bytes_to_come_and_comes(
    site: DrSite, small: Path
) -> None:
    async with site.running() as dr:
        agent, _ = await fed(site, dr)
        await agent.close()
        used = dr.workers["web"].replica.history.segment_set.used_bytes
        done = await order(site.control.order, DROP_POINTS, "web", drop_of(*range(2, POINTS_MADE)))
        assert done.freed_bytes < MIB
        assert done.to_come_bytes > 4 * MIB
        worker = dr.workers["web"]
        for _ in range(1500):
            if worker.replica.history.segment_set.used_bytes < used - done.to_come_bytes * 3 // 4:
                break
            worker.wake()
            await asyncio.sleep(0.02)
        assert (
            abs(used - worker.replica.history.segment_set.used_bytes - done.to_come_bytes) < 2 * MIB
        )


async def test_a_smaller_budget_makes_room_on_a_full_disk_and_it_goes_on_by_itself(
    site: DrSite, small: Path
) -> None:
    """What the pause says: nothing else is removed."""
    async with site.running() as dr:
        agent, source = await fed(site, dr)
        fill(small)
        before = source.end_lsn
        source.write("vda", 0, noise(99, MIB))
        source.cut()
        for frame in source.frames(before):
            agent.link.send(frame)
        with pytest.raises(NoSpaceError, match=r"lower \[history\] max_bytes"):
            await agent.expect(Welcome)
        await agent.close()
        text = site.config_file.read_text()
        site.config_file.write_text(text.replace('max_bytes = "1GiB"', 'max_bytes = "3MiB"'))
        await order(site.control.order, RELOAD, request=ReloadRequest())
        async with asyncio.timeout(60):
            await taken_in(site, dr, source)
        assert site.replica("vda").read_bytes() == source.contents["vda"]
        assert len(await order(site.control.order, POINTS, "web")) < POINTS_MADE


async def taken_in(site: DrSite, dr: Receiver, source: Source) -> None:
    """As an agent does, which tries again later each time."""
    while True:
        await made_again(dr)
        agent = await site.agent()
        try:
            welcome = await agent.welcomed("web")
            await agent.open(source, welcome.durable_lsn)
            await agent.ship(source, welcome.durable_lsn)
            return await agent.applied(source.end_lsn)
        except NoSpaceError:
            await asyncio.sleep(0.1)
        finally:
            await agent.close()
