# SPDX-License-Identifier: Apache-2.0
"""A source whose wall clock is set a day ahead and back: what its points say, and which one a time
means, through the real client and over a restart."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from receiver.service import Receiver
from replicator.control.orders import PLAN_ROLLBACK, POINTS
from replicator.control.requests import PointsRequest, RollbackRequest
from replicator.control.types import Point
from replicator.wire.messages import AskLabel, LabelState
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.fake_agent import FakeAgent
from tests.receiver_service.source import Source
from tests.receiver_service.test_orders import leave, order

DISKS = {"vda": 1 << 20}
S = 1_000_000_000
DAY_NS = 86_400 * S


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


def story(now_ns: int, monotonic_ns: int) -> Source:
    """Five points, 10 s apart, the last one just now. The wall clock is a day ahead from the
    second one on; as stamps never go back, the rest bear tomorrow's date."""
    source = Source(DISKS, time_ns=now_ns - 50 * S)
    source.start_from_zero()
    for number in range(5):
        source.write("vda", number * 4096, bytes([number + 1]) * 4096)
        ago_ns = (4 - number) * 10 * S
        ahead_ns, step_ns = (DAY_NS, DAY_NS if number == 1 else 0) if number else (0, 0)
        source.cut(
            time_ns=now_ns - ago_ns + ahead_ns,
            step_ns=step_ns,
            monotonic_ns=monotonic_ns - ago_ns,
        )
    return source


async def fed(site: DrSite, receiver: Receiver, source: Source) -> FakeAgent:
    """By an agent that tells its clocks first, as the real one does."""
    agent = await site.agent()
    agent.link.tell_captured(str(source.stream))
    await agent.welcomed("web")
    clock = receiver.workers["web"].replica.intake.source_clock
    while clock.when(source.stream, 1) is None:
        agent.link.send(AskLabel("x"))
        await agent.expect(LabelState)
    await agent.open(source)
    await agent.ship(source, source.first_lsn)
    await agent.applied(source.end_lsn)
    return agent


def made(point: Point) -> datetime:
    assert point.made is not None
    return datetime.fromisoformat(point.made)


async def test_points_say_when_they_were_made_and_now_means_our_time(
    site: DrSite, capsys: pytest.CaptureFixture[str]
) -> None:
    source = story(time.time_ns(), time.monotonic_ns())
    async with site.running() as receiver:
        await leave(await fed(site, receiver, source), receiver)
        assert "source_clock.stepped" in capsys.readouterr().out
        await _asked(site)
    async with site.running():  # what is known of them is in the history
        await _asked(site)


async def _asked(site: DrSite) -> None:
    points = await order(site.control.order, POINTS, "web")
    assert [point.clock_step_seconds for point in points] == [None, 86_400.0, None, None, None]
    now = datetime.now(UTC)
    for number, point in enumerate(points):
        ago = now - made(point) - timedelta(seconds=10 * (4 - number))
        assert abs(ago) < timedelta(seconds=9)
        ahead = datetime.fromisoformat(point.time) - made(point)
        assert abs(ahead - timedelta(days=bool(number))) < timedelta(seconds=2)
    choice = (
        await order(
            site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to="now", dry_run=True)
        )
    ).choice
    assert choice.point == points[-1], "not the state of before the step"
    said = f"{(now - made(points[2])).total_seconds():.3f}s ago"
    assert (
        await order(
            site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to=said, dry_run=True)
        )
    ).choice.point in points[1:3]
    by_stamp = (
        await order(
            site.control.order,
            PLAN_ROLLBACK,
            "web",
            RollbackRequest(to=points[2].time, dry_run=True),
        )
    ).choice
    assert by_stamp.point == points[2]
    listed = await order(
        site.control.order, POINTS, "web", PointsRequest(since="1h ago", until="now")
    )
    assert listed == points
    assert (
        await order(
            site.control.order, POINTS, "web", PointsRequest(since="1h ago", until=points[0].time)
        )
        == points[:1]
    )


async def test_points_of_a_backlog_that_outlived_the_receiver_go_by_the_one_before(
    site: DrSite,
) -> None:
    """Durable, but not applied when it died; its next life has heard no clock yet."""
    source = story(time.time_ns(), time.monotonic_ns())
    async with site.running() as receiver:
        worker = receiver.workers["web"]
        agent = await fed(site, receiver, source)
        stream = source.stream
        source.write("vda", 0, b"z" * 4096)
        last = source.cut(
            time_ns=time.time_ns() + DAY_NS, step_ns=0, monotonic_ns=time.monotonic_ns()
        )
        await worker._pump.close()  # nothing is applied any more
        await agent.ship(source, source.cuts[-2].end_lsn)
        told = worker.ordered.points()[-1]
        assert told.made_ns == worker.replica.intake.source_clock.when(stream, told.monotonic_ns)
        await leave(agent, receiver)
    async with site.running():
        (point,) = (await order(site.control.order, POINTS, "web"))[-1:]
        assert point.sequence == told.sequence
        assert point.time == datetime.fromtimestamp(last.time_ns // 1000 / 10**6, UTC).isoformat(
            timespec="microseconds"
        ).replace("+00:00", "Z")
        assert abs(made(point).timestamp() - told.made_ns / S) < 0.001
