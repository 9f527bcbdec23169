# SPDX-License-Identifier: Apache-2.0
"""A page of points: which, how many more there are, and that it costs what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from receiver.orders import points as point_orders
from receiver.orders.describe import point_of
from receiver.points.values import Point as CorePoint
from receiver.service import Receiver
from replicator.base.errors import UsageError
from replicator.control.orders import POINT_PAGE, POINTS
from replicator.control.requests import PointPageRequest
from replicator.control.types import Point
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.test_orders import feed, leave, order, story


async def test_a_page_of_points_puts_into_words_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = DrSite(tmp_path)
    async with site.running() as receiver:
        await _check_pages(site, receiver, monkeypatch)


async def _check_pages(site: DrSite, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    source = story()
    agent = await feed(site, source)
    points = await order(site.control.order, POINTS, "web")
    said: list[int] = []

    def counting(point: CorePoint, damage: str, *, unverified: bool) -> Point:
        said.append(point.sequence)
        return point_of(point, damage, unverified=unverified)

    async def page(**asked: Any) -> tuple[list[Point], int]:
        said.clear()
        found = await order(site.control.order, POINT_PAGE, "web", PointPageRequest(**asked))
        assert said == [each.sequence for each in found.points]
        return found.points, found.earlier

    monkeypatch.setattr(point_orders, "point_of", counting)
    monkeypatch.setattr(point_orders, "TOLD_TOGETHER", 2)
    count, third = len(points), points[2].time
    assert await page(limit=2) == (points[-2:], count - 2)
    assert await page(limit=2, before=points[-2].sequence) == (points[-4:-2], count - 4)
    assert await page() == (points, 0)
    assert await page(limit=2, since=third, until="good") == (points[4:6], 2)
    assert await page(limit=5, until=third) == (points[:3], 0)
    assert await page(before=1) == ([], 0)
    assert await order(site.control.order, POINTS, "web") == points
    with pytest.raises(UsageError):
        await page(limit=0)
    await leave(agent, receiver)
