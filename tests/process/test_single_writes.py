# SPDX-License-Identifier: Apache-2.0
"""Any single write of a guest, through a real splitter, agent and receiver."""

from __future__ import annotations

import asyncio

from replicator.base.errors import UnreachableError
from replicator.control.orders import POINTS, ROLLBACK, WRITES
from replicator.control.requests import RollbackRequest, WritesRequest
from replicator.control.types import Chosen
from replicator.demo.site import Site
from tests.process.conftest import DISK_BYTES, MakeSite
from tests.process.source import Source
from tests.process.test_main_path import (
    group_at_receiver,
    mark,
    protected,
    source_of,
    view_images,
)
from tests.process.waiting import wait_until

LOOKED_AT = 7
"""Every so many writes: each look reads whole disks."""


def keeping_frames(site: Site) -> Site:
    config = site.receiver_config
    config.write_text(config.read_text().replace("[history]", '[history]\nfine_history = "1h"'))
    return site


async def written(site: Site) -> tuple[Source, int]:
    """A source that has gone, and how much it wrote before the mark `start`; then 100 writes, and
    the mark `end`."""
    await protected(site)
    source = source_of(site, "ab", seed=11)
    await source.connect()
    await source.write(20)
    await mark(site, "start")
    count = len(source.writes)
    await source.write(100)
    await mark(site, "end")
    await source.disconnect()
    return source, count


async def test_each_write_is_a_prefix_across_a_restart(make_site: MakeSite) -> None:
    site = keeping_frames(make_site(disks=2))
    site.start("receiver", "splitter", "agent")
    source, count = await written(site)
    await asyncio.to_thread(site.kill, "receiver")
    site.start("receiver")
    await protected(site)
    (start,) = (each for each in site.receiver.order(POINTS, "g") if each.label == "start")
    found = await asyncio.to_thread(
        site.receiver.order, WRITES, "g", WritesRequest(around="start", window="1h", limit=1000)
    )
    behind = [each for each in found if each.time >= start.time]
    assert len(behind) == 100
    for number in range(0, 100, LOOKED_AT):
        disk, offset, data = source.writes[count + number]
        listed = behind[number]
        assert (listed.disk, listed.offset, listed.length) == (disk, offset, len(data))
        assert await view_images(site, listed.point) == source.image(count + number + 1)


async def test_a_rollback_to_a_write_survives_a_kill(make_site: MakeSite) -> None:
    site = keeping_frames(make_site(disks=2))
    site.start("receiver", "splitter", "agent")
    source, count = await written(site)
    site.stop("agent")
    await wait_until(lambda: group_at_receiver(site).peer is None, "the source has left")
    found = await asyncio.to_thread(
        site.receiver.order, WRITES, "g", WritesRequest(around="start", window="1h", limit=1000)
    )
    target = found[-50]
    for wait_seconds in (0.0, 0.01, 0.03):
        order = asyncio.create_task(
            asyncio.to_thread(site.receiver.order, ROLLBACK, "g", RollbackRequest(to=target.point))
        )
        await asyncio.sleep(wait_seconds)  # somewhere in the middle of it
        await asyncio.to_thread(site.kill, "receiver")
        site.start("receiver")
        (result,) = await asyncio.gather(order, return_exceptions=True)
        assert isinstance(result, UnreachableError | Chosen), result
        kinds = [each.kind for each in await asyncio.to_thread(site.receiver.order, POINTS, "g")]
        if "before-rollback" in kinds:
            break
    else:
        await asyncio.to_thread(
            site.receiver.order, ROLLBACK, "g", RollbackRequest(to=target.point)
        )
    await wait_until(lambda: group_at_receiver(site).state == "rolled-back", "it has ended")
    await wait_until(
        lambda: site.receiver.order(POINTS, "g")[-1].kind == "rollback", "its point has been made"
    )
    expected = source.image(count + 51)
    assert await view_images(site, "latest") == expected
    assert {disk: site.replica("g", disk).read_bytes() for disk in "ab"} == expected
    assert len(expected["a"]) == DISK_BYTES
