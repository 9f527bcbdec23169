# SPDX-License-Identifier: Apache-2.0
"""Which points go, what must not, and that the room really comes back."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import cast

import pytest

from journal.record import RecordType, scan
from journal.segment import HEADER_BYTES
from receiver.counted.ages import Ages
from receiver.group.parts import Limits
from receiver.history.bodies import PointsDropped, decode
from receiver.history.log import HistoryLog
from receiver.history.state import GroupState
from receiver.history.writer import DROPPED_TOGETHER, initial_chain
from receiver.points.points import PointList
from receiver.points.policy import HistoryPolicy, Rule
from receiver.points.values import Point
from receiver.retention.budget import Retention, Situation, droppable
from receiver.retention.reclaim import Pins, Reclaim
from replicator.base.clock import NS_PER_S
from tests.receiver.world import GROUP_DIRECTORY, World
from tests.world.faults import Failure
from tests.world.storage import SimStorage

NO_PINS = Pins(frozenset(), frozenset())
LIMITS = Limits(history_segment_bytes=30_000, inbox_segment_bytes=6_000, batch_bytes=1 << 20)


def point(sequence: int, label: str | None = None) -> Point:
    return Point(sequence, sequence, sequence, "crash", label)


def world_with(count: int, labels: dict[int, str] | None = None) -> World:
    """Points 1 to `count`; each replaces the same 5 blocks with what does not compress."""
    world = World(limits=LIMITS)
    world.begin_stream(from_zero=True)
    world.settle()
    for number in range(1, count + 1):
        world.write("a", 0, world.rng.randbytes(20_480))
        world.cut((labels or {}).get(number))
        world.settle()
    return world


def disk_bytes(world: World) -> int:
    folder = GROUP_DIRECTORY / "history"
    total = 0
    for stream in world.storage.names(folder):
        for name in world.storage.names(folder / stream):
            total += world.storage.allocated_bytes(folder / stream / name)
    return total


def left(world: World) -> list[int]:
    return [each.sequence for each in world.group.points.all]


# -- deciding


def test_oldest_unlabelled_first_and_never_the_newest() -> None:
    points = [point(1), point(2, "kept"), point(3), point(4)]
    assert [each.sequence for each in droppable(points, NO_PINS, 100)] == [1, 3]
    assert droppable(points[:1], NO_PINS, 100) == []


def test_pinned_points_stay_and_nothing_behind_a_view_goes() -> None:
    points = [point(number) for number in range(1, 7)]
    pins = Pins(held=frozenset([4]), kept=frozenset([2]))
    assert [each.sequence for each in droppable(points, pins, 100)] == [1, 3]


# -- thinning


def idle(storage: SimStorage, count: int) -> tuple[Retention, PointList, HistoryLog]:
    """A history that has not been written to for long, with a point a second."""
    history = HistoryLog(storage, GROUP_DIRECTORY / "history", "g", lambda: 0, 1 << 30)
    history.open()
    history.accept_tail()
    points = PointList(lambda: 0)
    points.reset(replace(point(n), received_ns=n * NS_PER_S) for n in range(1, count + 1))
    unused = cast(Reclaim, None)
    return Retention(unused, history, points, lambda: 0), points, history


def at(now_ns: int) -> Situation:
    return Situation(Ages(now_ns), GroupState(), 1 << 40, NO_PINS)


def test_points_of_a_whole_day_that_are_too_old_go_in_one_go() -> None:
    storage = SimStorage()
    retention, points, _ = idle(storage, 28_000)
    policy = HistoryPolicy(1 << 40, (Rule(60 * NS_PER_S, 30_000 * NS_PER_S),))
    drops, calls = points.drops, dict(storage.calls)
    gone = retention.thin(policy, at(28_000 * NS_PER_S))
    assert len(gone) == 28_000 - 28_000 // 60 - 2
    assert points.drops == drops + 1
    records = -(-len(gone) // DROPPED_TOGETHER)
    assert storage.calls["pwritev"] - calls.get("pwritev", 0) <= records + 2, "and a segment's head"
    assert storage.calls["datasync"] - calls.get("datasync", 0) == 1
    assert retention.thin(policy, at(28_001 * NS_PER_S)) == []


def test_points_are_given_up_in_records_of_bounded_size() -> None:
    storage = SimStorage()
    _, _, history = idle(storage, 1)
    sequences = list(range(1, 2 * DROPPED_TOGETHER + 2))
    history.drop_points(sequences, GroupState())
    assert history.batch_list.dropped == frozenset(sequences)
    segment = history.segment_set.newest
    assert segment is not None
    data = storage.open(segment.path).pread(segment.size_bytes, HEADER_BYTES)
    found = [
        decode(PointsDropped, record, "").sequences
        for _, record in scan(memoryview(data), 0, initial_chain("g")).records
        if record.type == RecordType.POINTS_DROPPED
    ]
    assert [len(each) for each in found] == [DROPPED_TOGETHER, DROPPED_TOGETHER, 1]
    assert [each for record in found for each in record] == sequences


# -- doing


def test_within_the_budget_nothing_goes() -> None:
    world = world_with(4)
    assert world.group.retain(HistoryPolicy(10 << 20)).dropped == []
    assert left(world) == [1, 2, 3, 4]


@pytest.mark.parametrize("budget", [200_000, 120_000, 60_000])
def test_the_budget_is_kept_on_the_disk(budget: int) -> None:
    world = world_with(12)
    before = disk_bytes(world)
    assert before > budget
    world.retain(budget)
    used = world.group.history.segment_set.used_bytes + world.group.known.inbox_bytes
    assert used <= budget
    assert abs(disk_bytes(world) - world.group.history.segment_set.used_bytes) < 16_384
    assert left(world) == list(range(13 - len(left(world)), 13)), "the oldest went"
    world.check()
    world.crash(power=True)
    world.check()
    told = [event for event in world.events if event.name == "points.dropped"]
    assert len(told) == 1
    assert told[0].fields["oldest"] == 1


def test_labelled_points_stay_and_what_lies_between_is_merged() -> None:
    world = world_with(14, {2: "two", 9: "nine"})
    images = sum(batch.images.record_bytes for batch in world.group.history.batch_list.all)
    retained = world.group.retain(HistoryPolicy(1))
    for dropped in retained.dropped:
        world.forget(dropped.sequence)
    assert left(world) == [2, 9, 14]
    assert retained.over_budget == "the points that are left are needed: 2 have labels"
    world.check()
    after = sum(batch.images.record_bytes for batch in world.group.history.batch_list.all)
    assert after < images / 4
    assert disk_bytes(world) < 120_000
    world.crash(power=True)
    world.check()
    world.rollback(9)
    world.check()
    world.rollback(2)
    world.check()


def test_what_is_not_worth_it_is_not_tried_again_at_once() -> None:
    world = world_with(10, {number: f"l{number}" for number in range(1, 11)})
    assert world.group.retain(HistoryPolicy(100_000)).over_budget
    calls = world.storage.calls["pread"]
    assert world.group.retain(HistoryPolicy(100_000)).over_budget
    assert world.storage.calls["pread"] == calls


def test_an_open_view_keeps_what_lies_behind_its_point() -> None:
    world = world_with(10)
    view = world.group.showing.view(4)
    again = world.group.showing.view(4)
    retained = world.group.retain(HistoryPolicy(1))
    assert [each.sequence for each in retained.dropped] == [1, 2, 3]
    assert retained.over_budget == "an open view keeps what lies behind its point"
    assert view.read("a", 0, 37_376) == world.expected[4]["a"]
    view.close()
    assert world.group.retain(HistoryPolicy(2)).dropped == []
    again.close()
    retained = world.group.retain(HistoryPolicy(3))
    assert retained.dropped[0].sequence == 4
    for sequence in set(world.announced) - set(left(world)):
        world.forget(sequence)
    world.check()


def test_the_way_back_from_the_newest_rollback_stays() -> None:
    world = world_with(6)
    world.rollback(3)
    world.rollback(7)
    world.retain(1)
    assert left(world)[-2:] == [9, 10]
    kinds = [each.kind for each in world.group.points.all]
    assert kinds[-2:] == ["before-rollback", "rollback"]
    assert set(left(world)) <= {9, 10}
    world.check()
    world.rollback(9)
    world.check()


def test_points_that_are_not_applied_stay() -> None:
    world = world_with(3)
    for _ in range(3):
        world.write("a", 0, world.rng.randbytes(20_480))
        world.cut()
    world.ship_all()
    world.retain(1)
    assert left(world)[-3:] == [4, 5, 6]
    world.apply_all()
    world.check()


def test_on_a_full_disk_room_is_still_made() -> None:
    world = world_with(12)
    used = world.group.history.segment_set.used_bytes
    world.storage.plan(Failure(frozenset(["pwritev", "create"]), 1, errno.ENOSPC, forever=True))
    world.retain(used // 2)
    assert world.group.history.segment_set.used_bytes < used
    world.storage.heal()
    world.check()
    world.crash(power=True)
    world.check()


def test_a_label_is_free_again_when_nothing_has_it() -> None:
    world = world_with(3, {3: "mine"})
    assert world.group.known.is_label_taken("mine")
    assert not world.group.known.is_label_taken("yours")


def test_compaction_keeps_the_seals_in_a_row() -> None:
    """Each sealed segment goes on from the digest of the one before, also where some were merged;
    a new life of the group checks it."""
    world = world_with(16, {3: "three", 8: "eight"})
    world.retain(150_000)
    for power in (True, False, True):
        world.crash(power=power)
        world.check()
        world.write("a", 0, world.rng.randbytes(20_480))
        world.cut()
        world.settle()
        world.retain(150_000)
    world.check()
