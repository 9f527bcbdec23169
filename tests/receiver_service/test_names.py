# SPDX-License-Identifier: Apache-2.0
"""What is printed of points and writes is accepted back, and means the same: the command, the
control API, the tools that need no daemon.

The story is one that an older splitter leaves: stamps to the nanosecond, labels that are read as
something else by now; writes that came in together; a point that holds on; a rollback."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from replicator.cli.main import run
from replicator.control.orders import PLAN_ROLLBACK, POINTS, ROLLBACK, WRITES
from replicator.control.requests import PointsRequest, RollbackRequest, WritesRequest
from replicator.control.types import Point, Write
from replicator.wire.messages import Hold
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.source import Source
from tests.receiver_service.test_orders import feed, leave, order

Captured = pytest.CaptureFixture[str]
DISKS = {"vda": 1 << 20, "vdb": 1 << 20}
LABELS = ["before upgrade", "latest", "10m ago", "2026-03-01T12:00:00Z", "#3", "label:x", "99:00"]


def story(chance: random.Random) -> Source:
    source = Source(DISKS)
    source.start_from_zero()
    for number in range(24):
        for _ in range(chance.randrange(4)):
            source._time_ns += chance.randrange(1, 3_000)
            for _ in range(chance.choice([1, 1, 3])):
                source.write("vda", number * 4096, chance.randbytes(512))
        source.write("vdb", number * 4096, chance.randbytes(512))
        source._time_ns += chance.randrange(1_000, 3_000) - 10**9
        source.cut(LABELS[number // 3] if number % 3 == 0 and number < 21 else None)
    return source


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    site = DrSite(tmp_path)
    text = site.config_file.read_text()
    site.config_file.write_text(text.replace("[history]", '[history]\nfine_history = "1h"'))
    return site


def texts_of(point: Point) -> list[str]:
    """Everything that is printed of it and names it."""
    label = [] if point.label is None else [point.label]
    return [f"#{point.sequence}", point.time, point.until, *label]


async def command(site: DrSite, *words: str) -> int:
    return await asyncio.to_thread(run, ["--socket", str(site.socket), *words])


async def test_what_is_printed_of_a_point_or_a_write_means_it_everywhere(
    site: DrSite, tmp_path: Path, capsys: Captured
) -> None:
    source = story(random.Random(7))
    async with site.running() as receiver:
        agent = await feed(site, source)
        agent.link.send(Hold(source.end_lsn, source.cuts[-1].time_ns + 1_234_567))
        await leave(agent, receiver)
        await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="#5"))
        points = await order(site.control.order, POINTS, "web")
        assert len(points) == 26
        assert [point.kind for point in points[-2:]] == ["before-rollback", "rollback"]
        assert {point.label for point in points if point.label} == {
            label if label == "before upgrade" else f"label:{label}" for label in LABELS
        }
        for point in points:
            await _named_by_all_its_texts(site, point, capsys)
        writes = await order(
            site.control.order,
            WRITES,
            "web",
            WritesRequest(around=points[12].time, window="1h", limit=1000),
        )
        assert len(writes) > 50
        for write in writes:
            await _named_by_its_time(site, write, writes)
    for point in points[:-1:4]:  # the newest one's batch is in the replica as well, and shown last
        for text in texts_of(point):
            out = tmp_path / "out"
            words = ["journal", "extract", str(site.data_dir / "groups/web"), "--to", str(out)]
            capsys.readouterr()
            assert run([*words, "--at", text, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["point"] == point.sequence, text
            for path in out.iterdir():
                path.unlink()
            out.rmdir()


async def _named_by_all_its_texts(site: DrSite, point: Point, capsys: Captured) -> None:
    for text in texts_of(point):
        choice = (
            await order(
                site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to=text, dry_run=True)
            )
        ).choice
        assert choice.point == point, text
        assert (choice.writes, choice.distance_seconds or 0) == (0, 0)
    for bounds in (texts_of(point)[:2], texts_of(point)[1:3]):
        for since in bounds[:1]:
            found = await order(
                site.control.order, POINTS, "web", PointsRequest(since=since, until=point.time)
            )
            assert found == [point], "both bounds are inclusive, and nobody else is in between"
    capsys.readouterr()
    assert await command(site, "points", "web", "--since", point.until, "--until", point.until) == 0
    row, *more = _behind("POINT", capsys).splitlines()[1:]
    assert not more
    number, time, until, kind, *label = row.split(maxsplit=4)
    assert (number, time, until, kind) == (f"#{point.sequence}", *texts_of(point)[1:3], point.kind)
    for text in (number, time, until, *(each for each in label if each != "-")):
        assert await command(site, "rollback", "web", "--to", text, "--dry-run", "--json") == 0
        assert json.loads(_behind("{", capsys))["sequence"] == point.sequence, text


def _behind(start: str, capsys: Captured) -> str:
    """What the command printed; the daemon in this process logs to the same place."""
    lines = capsys.readouterr().out.splitlines(keepends=True)
    first = next(at for at, line in enumerate(lines) if line.startswith(start))
    return "".join(line for line in lines[first:] if not line.startswith("2026-"))


async def _named_by_its_time(site: DrSite, write: Write, writes: list[Write]) -> None:
    exact = (
        await order(
            site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to=write.point, dry_run=True)
        )
    ).choice
    assert exact.write_time == write.time
    assert f"#{exact.point.sequence}+{exact.writes}w" == write.point
    last = [each for each in writes if each.time == write.time][-1]
    by_time = (
        await order(
            site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to=write.time, dry_run=True)
        )
    ).choice
    assert f"#{by_time.point.sequence}+{by_time.writes}w" == last.point
    assert by_time.write_time == write.time
    assert by_time.distance_seconds == 0
