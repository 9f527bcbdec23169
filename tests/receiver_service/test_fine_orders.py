# SPDX-License-Identifier: Apache-2.0
"""Single writes, local times and sources that are cut off, through the real client."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.base.clock import rfc3339, rfc3339_exact
from replicator.base.errors import FencedError, NoPointError, UsageError
from replicator.control.client import ControlClient
from replicator.control.orders import (
    OPEN_VIEW,
    PLAN_ROLLBACK,
    POINTS,
    RESTORE,
    ROLLBACK,
    STATUS,
    WRITES,
)
from replicator.control.requests import (
    PointsRequest,
    RestoreRequest,
    RollbackRequest,
    ViewRequest,
    WritesRequest,
)
from replicator.control.types import Progress
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.source import START_NS, Source
from tests.receiver_service.test_orders import feed, leave, order

DISKS = {"vda": 2 << 20, "vdb": 1 << 20}
STEP_NS = 1_000_000
"""From write to write."""


class Story:
    """Point #1, then ten writes a millisecond apart, of which the last is a zero; then point #2."""

    def __init__(self) -> None:
        self.source = Source(DISKS)
        self.source.start_from_zero()
        self.source.write("vda", 0, b"0" * 65536)
        self.source.cut("first")
        self.images: list[dict[str, bytes]] = []
        self.times_ns: list[int] = []
        for number in range(1, 11):
            self.source._time_ns += STEP_NS
            if number < 10:
                self.source.write("vda", number * 512, bytes([number]) * 1024)
            else:
                self.source.zero("vda", 1024, 1024)
            self.times_ns.append(self.source._time_ns)
            self.images.append({name: bytes(each) for name, each in self.source.contents.items()})
        self.source.cut()


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    site = DrSite(tmp_path)
    text = site.config_file.read_text()
    site.config_file.write_text(text.replace("[history]", '[history]\nfine_history = "1h"'))
    return site


async def test_writes_are_listed_seen_restored_and_gone_back_to(site: DrSite) -> None:
    story = Story()
    async with site.running() as receiver:
        await leave(await feed(site, story.source), receiver)
        found = await order(
            site.control.order, WRITES, "web", WritesRequest(around="#1+5w", window="2ms")
        )
        assert [each.point for each in found] == [f"#1+{number}w" for number in range(3, 8)]
        assert (found[0].disk, found[0].offset, found[0].length) == ("vda", 3 * 512, 1024)
        assert [each.time for each in found] == [
            rfc3339_exact(each) for each in story.times_ns[2:7]
        ]
        (last,) = await order(
            site.control.order, WRITES, "web", WritesRequest(around="#2", window="1h", limit=1)
        )
        assert (last.point, last.kind) == ("#1+10w", "zero")

        view = await order(
            site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="#1+4w")
        )
        assert (view.choice.writes, view.result.writes) == (4, 4)
        assert view.choice.write_time == rfc3339_exact(story.times_ns[3])
        restored = site.folder / "restored"
        done = await order(
            site.control.order, RESTORE, "web", RestoreRequest(at="#1+10w", to=str(restored))
        )
        assert done.choice.writes == 10
        for name, content in story.images[9].items():
            assert (restored / f"{name}.raw").read_bytes() == content

        plan = await order(
            site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to="#1+4w", dry_run=True)
        )
        assert (plan.result.changed_blocks, plan.result.changed_bytes) == (2, 8192)
        assert plan.result.expected_seconds == 8192 / receiver.workers["web"].applying.rewrite_rate
        assert plan.result.fed_by is None
        told: list[Progress] = []
        await order(
            site.control.order,
            ROLLBACK,
            "web",
            RollbackRequest(to="#1+4w"),
            on_progress=told.append,
        )
        for name, content in story.images[3].items():
            assert site.replica(name).read_bytes() == content
        assert told[-1].done == told[-1].total > 0
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.fine_bytes is not None
        assert group.fine_bytes > 0
        assert group.fine_since is not None


async def test_a_time_within_a_second_is_the_last_write_up_to_then(site: DrSite) -> None:
    story = Story()
    async with site.running() as receiver:
        await leave(await feed(site, story.source), receiver)
        asked = rfc3339(story.times_ns[6] + STEP_NS // 2)
        choice = (
            await order(
                site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to=asked, dry_run=True)
            )
        ).choice
        assert (choice.point.sequence, choice.writes, choice.notice) == (1, 7, "")
        assert choice.distance_seconds == STEP_NS / 2e9
        whole = rfc3339(story.times_ns[6] // 10**9 * 10**9 + 10**9).replace(".000000", "")
        choice = (
            await order(
                site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to=whole, dry_run=True)
            )
        ).choice
        assert choice.writes == 0
        with pytest.raises(NoPointError, match="those that follow lie behind #2"):
            await order(
                site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="#1+11w")
            )


async def test_without_frames_the_checkpoint_is_meant_and_that_is_said(tmp_path: Path) -> None:
    site, story = DrSite(tmp_path), Story()
    async with site.running() as receiver:
        await leave(await feed(site, story.source), receiver)
        done = await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="first"))
        assert done.choice.point.sequence == 1
        asked = rfc3339(story.times_ns[6])
        choice = (
            await order(
                site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to=asked, dry_run=True)
            )
        ).choice
        assert (choice.point.sequence, choice.writes) == (1, 0)
        assert "the checkpoint before is meant" in choice.notice
        assert "the frames that follow are not kept" in choice.notice


async def test_local_times_are_read_in_the_zone_of_who_asks(site: DrSite) -> None:
    story = Story()
    berlin = ControlClient(site.socket, zone="Europe/Berlin")
    async with site.running() as receiver:
        await leave(await feed(site, story.source), receiver)
        local = rfc3339(START_NS + 7205 * 10**9)[:19].replace("T", " ")  # in summer
        found = await order(berlin.order, POINTS, "web", PointsRequest(until=f"{local}.9"))
        assert len(found) == 2
        choice = (
            await order(
                berlin.order, PLAN_ROLLBACK, "web", RollbackRequest(to=f"{local}.9", dry_run=True)
            )
        ).choice
        assert choice.local == f"{local}.9+02:00"
        again = (
            await order(
                site.control.order,
                PLAN_ROLLBACK,
                "web",
                RollbackRequest(to=choice.local, dry_run=True),
            )
        ).choice
        assert again.point == choice.point
        with pytest.raises(UsageError, match="does not say in which time zone"):
            await order(
                site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to=local, dry_run=True)
            )
        lost = ControlClient(site.socket, zone="Mars/Phobos")
        with pytest.raises(UsageError, match="does not know the time zone"):
            await order(lost.order, PLAN_ROLLBACK, "web", RollbackRequest(to=local, dry_run=True))
        assert (
            await order(
                lost.order, PLAN_ROLLBACK, "web", RollbackRequest(to="latest", dry_run=True)
            )
        ).choice.point.sequence == 2


async def test_a_source_is_cut_off_and_has_to_begin_anew(site: DrSite) -> None:
    story = Story()
    async with site.running():
        agent = await feed(site, story.source)
        plan = await order(
            site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to="first", dry_run=True)
        )
        assert plan.result.fed_by is not None
        assert plan.result.fed_by.startswith("kvm1")
        done = await order(
            site.control.order, ROLLBACK, "web", RollbackRequest(to="first", force_detach=True)
        )
        assert done.result.kind == "rollback"
        with pytest.raises(FencedError, match="was detached for a rollback"):
            await agent.applied(1 << 60)
        again = await site.agent()
        welcome = await again.welcomed("web")
        assert (welcome.stream, welcome.generation) == (None, 2)
        assert welcome.closed_ordinal >= story.source.ordinal
        await again.close()
