# SPDX-License-Identifier: Apache-2.0
"""kill -9 and SIGSTOP of each process in the middle of writes: nothing acknowledged is lost, the
guest notices nothing, and no false point is made."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from replicator.control.orders import POINTS, RESYNC
from replicator.demo.site import Program
from tests.peers.nbd_client import NbdClient
from tests.process.conftest import DISK_BYTES, MakeSite
from tests.process.test_main_path import (
    group_at_agent,
    group_at_receiver,
    mark,
    protected,
    source_of,
    view_images,
)
from tests.process.waiting import until_served, wait_until

KILLS = 3


@pytest.mark.parametrize("victim", ["agent", "receiver"])
async def test_a_killed_agent_or_receiver_costs_nothing(
    make_site: MakeSite, victim: Program
) -> None:
    site = make_site(disks=2)
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site, "ab", seed=7)
    await source.connect()
    for _ in range(KILLS):
        writing = asyncio.create_task(source.write(250))
        await asyncio.sleep(0.05)  # somewhere in the middle of the writes
        await asyncio.to_thread(site.kill, victim)
        await writing  # raises if the guest had noticed anything
        site.start(victim)
    await protected(site)
    await mark(site, "end")
    assert await view_images(site, "end") == source.image()
    for point in site.receiver.order(POINTS, "g"):
        images = await view_images(site, f"#{point.sequence}")
        assert source.prefix_of(images) is not None, f"{point} is no prefix"
    assert "lost" not in group_at_agent(site).state
    await source.disconnect()


async def test_a_killed_splitter_loses_continuity_and_nothing_that_it_answered(
    make_site: MakeSite,
) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site, seed=3)
    await source.connect()
    await source.write(100)
    await mark(site, "before")
    before = len(source.writes)
    await source.write(100)
    points = len(site.receiver.order(POINTS, "g"))
    await asyncio.to_thread(site.kill, "splitter")
    source.abandon()
    answered = source.image()
    site.start("splitter")
    await wait_until(lambda: group_at_agent(site).state == "lost", "the loss is known")
    # What it had answered is still shipped and applied, behind its last cut too.
    await wait_until(
        lambda: site.replica("g", "a").read_bytes() == answered["a"], "the rest has arrived"
    )
    await until_served(site.nbd_socket)
    fresh = await NbdClient.connect(site.export("g", "a"))
    await fresh.pwrite(b"\xaa" * 4096, offset=0)  # answered, and not protected: that is known
    assert site.replica("g", "a").read_bytes() == answered["a"]
    assert len(site.receiver.order(POINTS, "g")) <= points + 2
    for point in site.receiver.order(POINTS, "g"):
        assert source.prefix_of(await view_images(site, f"#{point.sequence}")) is not None
    await wait_until(lambda: "anew" in group_at_agent(site).reason, "the agent has heard of it")
    await asyncio.to_thread(site.agent.order, RESYNC, "g")
    whole = bytearray(answered["a"])
    whole[:4096] = b"\xaa" * 4096
    for offset in range(0, DISK_BYTES, 1 << 20):
        await fresh.pwrite(bytes(whole[offset : offset + (1 << 20)]), offset=offset)
    await fresh.flush()
    await protected(site)
    await mark(site, "after")
    assert await view_images(site, "after") == {"a": bytes(whole)}
    assert await view_images(site, "before") == source.image(before)
    await fresh.disconnect()


async def test_a_stopped_agent_is_not_felt_by_the_guest(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site, seed=5)
    await source.connect()
    os.kill(site.pid("agent"), signal.SIGSTOP)
    try:
        async with asyncio.timeout(30):  # it would be for ever if they waited for the agent
            await source.write(400)
    finally:
        os.kill(site.pid("agent"), signal.SIGCONT)
    await mark(site, "end")
    assert await view_images(site, "end") == source.image()
    await source.disconnect()


async def test_a_receiver_that_is_away_is_caught_up_with(make_site: MakeSite) -> None:
    site = make_site()
    site.start("splitter", "agent")
    source = source_of(site, seed=9)
    await until_served(site.nbd_socket)
    await source.connect()
    await source.write(200)
    assert group_at_agent(site).state != "lost"
    site.start("receiver")
    await protected(site)
    await mark(site, "end")
    assert await view_images(site, "end") == source.image()
    assert group_at_receiver(site).newest_point is not None
    await source.disconnect()
