# SPDX-License-Identifier: Apache-2.0
"""A mark is decided: by its point, by what comes behind it, by the end of its stream."""

from __future__ import annotations

import asyncio

import pytest

from agent.shipping.marks import PENDING_MAX, RECENT_MAX, Marks
from replicator.base.errors import NoPointError
from replicator.wire.limits import POINTS_PER_ACK
from replicator.wire.messages import Ack, Opened, Point


def point(number: int, lsn: int, label: str | None = None, ordinal: int = 1) -> Point:
    return Point(number, 0, "crash", lsn, label, ordinal=ordinal)


def ack(durable_lsn: int, *points: Point) -> Ack:
    return Ack(durable_lsn, 0, list(points))


def streaming(marks: Marks, ordinal: int = 1, durable_lsn: int = 0, resent: int = 0) -> None:
    marks.opened(ordinal, Opened(durable_lsn, [], resent))


async def test_a_mark_is_decided_by_the_point_of_its_cut() -> None:
    marks = Marks()
    streaming(marks)
    mark = marks.add("x", 1, 500)
    marks.acknowledged(ack(400, point(1, 400)))
    assert not mark.point.done()
    assert marks.labels == {"x"}
    marks.acknowledged(ack(500, point(2, 500, "x")))
    assert (await mark.point).sequence == 2
    assert marks.labels == set()


async def test_a_label_that_was_taken_meanwhile_changes_nothing() -> None:
    marks = Marks()
    streaming(marks)
    mark = marks.add("x", 1, 500)
    marks.acknowledged(ack(500, point(2, 500, "x~2")))
    assert (await mark.point).label == "x~2"
    assert marks.labels == set()


async def test_the_same_lsn_in_another_stream_is_another_cut() -> None:
    marks = Marks()
    mark = marks.add("x", 2, 500)
    marks.told([point(7, 500, "x", ordinal=1)])
    assert not mark.point.done()
    marks.told([point(8, 500, "x", ordinal=2)])
    assert (await mark.point).sequence == 8


async def test_a_point_may_come_before_its_mark_is_waited_for() -> None:
    """Between the cut and the wait guests are thawed."""
    marks = Marks()
    points = [point(n, 100 * n) for n in range(1, RECENT_MAX + 2)]
    marks.told(points)
    assert await marks.add(None, 1, 200).point == points[1]
    assert await marks.add("x", 1, 300).point == points[2]
    assert not marks.add(None, 2, 300).point.done()
    assert not marks.add(None, 1, 100).point.done(), "what is remembered is bounded"


@pytest.mark.parametrize("label", ["x", None])
async def test_a_stream_that_is_acknowledged_beyond_it_has_no_point_of_it(
    label: str | None,
) -> None:
    marks = Marks()
    streaming(marks)
    mark = marks.add(label, 1, 500)
    marks.acknowledged(ack(600, point(3, 600)))
    with pytest.raises(NoPointError, match="no point of it"):
        await mark.point
    assert marks.labels == set()


@pytest.mark.parametrize("label", ["x", None])
async def test_a_later_stream_ends_it(label: str | None) -> None:
    marks = Marks()
    streaming(marks)
    mark = marks.add(label, 1, 500)
    streaming(marks, 2, 900)
    with pytest.raises(NoPointError, match="its stream ended"):
        await mark.point
    assert marks.labels == set()


async def test_a_mark_of_the_stream_that_opens_goes_on() -> None:
    marks = Marks()
    mark = marks.add("x", 2, 1500)
    streaming(marks, 2, 900)
    assert not mark.point.done()
    assert marks.labels == {"x"}


async def test_an_ack_that_was_lost_is_made_good_by_what_is_told_again() -> None:
    marks = Marks()
    streaming(marks)
    early, late = marks.add("early", 1, 500), marks.add(None, 1, 700)
    assert marks.known_lsn(1) == 499
    assert marks.known_lsn(2) is None
    marks.session_ended()
    streaming(marks, 1, 800, resent=3)
    assert not early.point.done()
    marks.acknowledged(ack(800, point(2, 500, "early"), point(3, 600)))
    assert (await early.point).sequence == 2
    assert not late.point.done(), "there is more to be told"
    marks.acknowledged(ack(800, point(4, 700)))
    assert (await late.point).sequence == 4
    assert marks.known_lsn(1) is None


async def test_what_is_not_told_again_is_no_point() -> None:
    marks = Marks()
    marks.add("gone", 1, 500)
    held = marks.add("ahead", 1, 900)
    streaming(marks, 1, 800, resent=0)
    assert marks.labels == {"ahead"}
    assert not held.point.done()


async def test_of_very_many_points_the_rest_is_waited_for() -> None:
    marks = Marks()
    streaming(marks)
    last = POINTS_PER_ACK + 1
    mark = marks.add(None, 1, last)
    points = [point(n, n) for n in range(1, last + 1)]
    marks.acknowledged(ack(last, *points[:POINTS_PER_ACK]))
    assert not mark.point.done()
    marks.acknowledged(ack(last, *points[POINTS_PER_ACK:]))
    assert (await mark.point).sequence == last


async def test_what_its_dead_stream_does_not_hold_is_known_at_once() -> None:
    marks = Marks()
    shipped, lost = marks.add("shipped", 3, 500), marks.add("lost", 3, 700)
    marks.stream_over(3, 600, "it was lost with its stream")
    assert not shipped.point.done()
    with pytest.raises(NoPointError, match="'lost' did not become a point: it was lost"):
        await lost.point
    assert marks.labels == {"shipped"}


async def test_labels_are_in_use_from_the_order_on() -> None:
    marks = Marks()
    marks.reserve("x")
    assert marks.labels == {"x"}
    marks.add("x", 1, 10)
    marks.release("x")
    assert marks.labels == {"x"}


async def test_what_nobody_waits_for_is_bounded() -> None:
    marks = Marks()
    for lsn in range(PENDING_MAX + 5):
        marks.add(None, 1, lsn + 1)
    assert marks.known_lsn(1) == 5
    await asyncio.sleep(0)
