# SPDX-License-Identifier: Apache-2.0
"""Scrubs by order and by the clock, through the real client, on a receiver that has been fed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from receiver.service import Receiver
from replicator.base.errors import DamageError, NotFoundError, ReplicatorError, UsageError
from replicator.control.orders import (
    CANCEL_SCRUB,
    CLOSE_VIEW,
    OPEN_VIEW,
    POINTS,
    RESTORE,
    SCRUB,
    SCRUBBED,
    STATUS,
)
from replicator.control.requests import RestoreRequest, ScrubRequest, ViewRequest
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.test_orders import feed, leave, order, story

WAIT_SECONDS = 120.0


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


@pytest.fixture
async def receiver(site: DrSite) -> AsyncIterator[Receiver]:
    async with site.running() as receiver:
        await leave(await feed(site, story()), receiver)
        yield receiver


def rot(site: DrSite, disk: str, offset: int) -> None:
    with site.replica(disk).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


async def test_a_scrub_of_what_is_good(site: DrSite, receiver: Receiver) -> None:
    before = await order(site.control.order, SCRUBBED, "web")
    assert (before.running, before.began, before.bad) == (False, None, [])
    found = await order(site.control.order, SCRUB, "web")
    assert (found.running, found.bad, found.unverified_bytes) == (False, [], 0)
    assert found.replica_bytes == 3 << 20
    assert found.history_bytes > 0
    assert found.good == found.ended
    assert await order(site.control.order, SCRUBBED, "web") == found
    (group,) = (await order(site.control.order, STATUS)).groups
    assert (group.scrub_ended, group.scrub_bad, group.scrub_progress) == (found.ended, 0, None)
    with pytest.raises(NotFoundError):
        await order(site.control.order, SCRUB, "mail")


async def test_rot_is_refused(site: DrSite, receiver: Receiver) -> None:
    for block in range(16):  # written once, in front of the point of the seventh cut
        rot(site, "vda", 6 * 65536 + block * 4096 + 5)
    found = await order(site.control.order, SCRUB, "web")
    (bad,) = found.bad
    assert (bad.where, bad.disk, bad.block_offset) == ("replica", "vda", 6 * 65536)
    assert (bad.length, bad.file, bad.healed) == (65536, str(site.replica("vda")), False)
    assert bad.points == [7, 8, 9]
    points = await order(site.control.order, POINTS, "web")
    assert [point.sequence for point in points if point.damaged] == [7, 8, 9]
    assert "disk vda: 65536 bytes at 393216" in points[-1].damage
    for text in ("latest", "#7"):
        with pytest.raises(DamageError, match="is damaged"):
            await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at=text))
        with pytest.raises(DamageError, match="is damaged"):
            await order(
                site.control.order,
                RESTORE,
                "web",
                RestoreRequest(at=text, to=str(site.folder / "new")),
            )
    view = (
        await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="good"))
    ).result
    await order(site.control.order, CLOSE_VIEW, view.id)
    (group,) = (await order(site.control.order, STATUS)).groups
    assert (group.scrub_bad, group.damaged_points) == (1, 3)
    assert group.state == "damaged"
    assert "disk vda: 65536 bytes at 393216" in group.reason
    assert "replicator resync web" in group.remedy
    snapshot = receiver.snapshot().groups[0]
    assert (snapshot.figures.scrub_errors, snapshot.damaged_points) == (1, 3)


async def test_a_slow_scrub_is_joined_and_goes_on_after_a_restart(site: DrSite) -> None:
    async with site.running() as receiver:
        await leave(await feed(site, story()), receiver)
        await order(site.control.order, SCRUB, "web", ScrubRequest(wait=False, rate=1 << 16))
        scrubbing = receiver.workers["web"].scrubbing
        async with asyncio.timeout(WAIT_SECONDS):
            await scrubbing.moved.until(lambda: scrubbing.report().replica_bytes > 0)
        joined = await order(site.control.order, SCRUB, "web", ScrubRequest(wait=False))
        assert joined.running
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.scrub_progress is not None
        assert 0 < group.scrub_progress < 1
    async with site.running() as receiver:
        async with asyncio.timeout(WAIT_SECONDS):
            report = await order(site.control.order, SCRUB, "web")
        assert report.began == joined.began, "the same one"
        assert report.good is not None


async def test_an_answer_without_waiting_is_of_the_scrub_that_has_begun(site: DrSite) -> None:
    async with site.running() as receiver:
        await leave(await feed(site, story()), receiver)
        last = await order(site.control.order, SCRUB, "web")
        begun = await order(
            site.control.order, SCRUB, "web", ScrubRequest(wait=False, rate=1 << 16)
        )
        assert begun.began is not None
        assert last.ended is not None
        assert (begun.running, begun.began > last.ended) == (True, True)
        await order(site.control.order, CANCEL_SCRUB, "web")


async def test_a_scrub_is_cancelled_and_whoever_waits_is_told(site: DrSite) -> None:
    async with site.running() as receiver:
        await leave(await feed(site, story()), receiver)
        with pytest.raises(NotFoundError, match="no scrub of group 'web' is under way"):
            await order(site.control.order, CANCEL_SCRUB, "web")
        await order(site.control.order, SCRUB, "web", ScrubRequest(wait=False, rate=1 << 16))
        scrubbing = receiver.workers["web"].scrubbing
        joined = threading.Event()
        ask = partial(site.control.order, SCRUB, "web", on_progress=lambda _: joined.set())
        waiting = asyncio.create_task(order(ask))
        async with asyncio.timeout(WAIT_SECONDS):
            await asyncio.to_thread(joined.wait, WAIT_SECONDS)
            await scrubbing.moved.until(lambda: scrubbing.report().replica_bytes > 0)
            report = await order(site.control.order, CANCEL_SCRUB, "web")
            with pytest.raises(ReplicatorError, match="the scrub of group 'web' was cancelled"):
                await waiting
        assert (report.running, report.ended) == (False, None)
        assert report.cancelled is not None
    async with site.running():
        assert not (await order(site.control.order, SCRUBBED, "web")).running, "also over a restart"
        found = await order(site.control.order, SCRUB, "web")
        assert (found.good, found.cancelled) == (found.ended, None)


async def test_a_rate_is_bounded_and_the_last_one_that_is_said_holds(site: DrSite) -> None:
    async with site.running() as receiver:
        await leave(await feed(site, story()), receiver)
        for rate in (0, -1, 5, (1 << 16) - 1):
            with pytest.raises(UsageError, match="would never end"):
                await order(site.control.order, SCRUB, "web", ScrubRequest(rate=rate))
        assert (await order(site.control.order, SCRUBBED, "web")).began is None
        await order(site.control.order, SCRUB, "web", ScrubRequest(wait=False, rate=1 << 16))
        async with asyncio.timeout(WAIT_SECONDS / 2):  # at the first rate it would take 48 s
            report = await order(site.control.order, SCRUB, "web", ScrubRequest(rate=1 << 30))
        assert report.good is not None


async def test_scrubs_by_the_clock(site: DrSite) -> None:
    text = site.config_file.read_text()
    site.config_file.write_text('[scrub]\nevery = "200ms"\n' + text)
    async with site.running() as receiver:
        await leave(await feed(site, story()), receiver)
        scrubbing = receiver.workers["web"].scrubbing
        async with asyncio.timeout(WAIT_SECONDS):
            await scrubbing.moved.until(lambda: scrubbing.ended_ns > 0)
            first_ns = scrubbing.ended_ns
            await scrubbing.moved.until(lambda: scrubbing.ended_ns > first_ns)
        assert scrubbing.good_ns > first_ns
