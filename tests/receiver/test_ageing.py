# SPDX-License-Identifier: Apache-2.0
"""What a wrong clock does to a group's points: nothing that their true age does not."""

from __future__ import annotations

import pytest

from receiver.counted.ages import Ages, Jump, Lag
from receiver.counted.keeper import CountedClock
from receiver.history.bodies import Mend
from receiver.points.policy import HistoryPolicy, Rule
from receiver.points.values import Point
from receiver.retention.dropping import DropOrder
from receiver.retention.stamps import mended, mends_for, moved
from receiver.retention.thinning import NEVER_NS, Protection, thinned
from replicator.base.clock import NS_PER_S
from replicator.base.errors import OwnedError
from tests.receiver.actions import tend_the_clock
from tests.receiver.test_keeping import GRADED, PLENTY, left, told, world_with
from tests.receiver.world import CLOCK_FILE, World

S = NS_PER_S
HOUR, DAY, WEEK = 3600 * S, 86_400 * S, 7 * 86_400 * S
KEPT_A_DAY = HistoryPolicy(PLENTY, (Rule(0, DAY),), min_lock_ns=HOUR)


def wrong_for(world: World, step_ns: int, policy: HistoryPolicy, seconds: int = 12) -> None:
    world.clock.step_ns = step_ns
    for _ in range(seconds):
        world.age(policy, S)
    world.clock.step_ns = 0


# -- steps


@pytest.mark.parametrize("step_ns", [WEEK, -WEEK, HOUR, 30 * S])
def test_a_clock_that_is_wrong_for_12_s_costs_no_point(step_ns: int) -> None:
    world = world_with(9, {3: "mine"})
    world.age(KEPT_A_DAY, 0)
    wrong_for(world, step_ns, KEPT_A_DAY)
    world.age(KEPT_A_DAY, S)
    assert left(world) == list(range(1, 10))
    world.check()


def test_nor_does_it_freeze_the_age_of_later_points() -> None:
    world = world_with(3)
    wrong_for(world, WEEK, GRADED)
    world.write("a", 0, bytes([1]) * 4096)
    world.cut()
    world.settle()
    world.write("a", 0, bytes([2]) * 4096)
    world.cut()
    world.settle()
    world.age(GRADED, HOUR)
    assert left(world) == [5]


def test_points_of_a_time_when_it_was_wrong_age_as_they_should() -> None:
    world = world_with(1)
    world.clock.step_ns = WEEK
    for number in range(2, 5):
        world.write("a", 0, bytes([number]) * 4096)
        world.cut()
        world.settle()
        world.age(GRADED, S)
    world.clock.step_ns = 0
    world.age(GRADED, 9 * S)
    assert left(world) == [1, 4]
    world.age(GRADED, HOUR)
    assert left(world) == [4]


def test_a_lock_a_budget_and_an_order_by_age_go_by_it_too() -> None:
    world = world_with(9)
    locked = HistoryPolicy(1, (Rule(0, DAY),), min_window_ns=HOUR, min_lock_ns=HOUR)
    world.age(locked, 0)
    world.clock.step_ns = WEEK
    retained = world.group.retain(locked)
    assert retained.dropped == []
    assert retained.must_wait
    assert "replicator clock accept" in retained.over_budget
    order = DropOrder(older_than_ns=HOUR)
    assert world.group.keeping.drop(locked, order, dry_run=False).points == []
    with pytest.raises(OwnedError, match="locked") as refused:
        world.group.keeping.drop(locked, DropOrder(frozenset([1])), dry_run=False)
    assert "replicator clock accept" in refused.value.hint
    world.counted.accept(dry_run=False)
    assert len(world.group.keeping.drop(locked, order, dry_run=False).points) == 8


def test_a_source_whose_clock_lies_does_not_keep_its_points_young() -> None:
    world = world_with(3)
    held_ns = world.group.points.all[-1].time_ns + 365 * DAY
    assert world.group.intake.hold(world.source.end_lsn, held_ns)
    for number in (4, 5):
        world.write("a", 0, bytes([number]) * 4096)
        world.cut()
        world.settle()
    (third,) = [each for each in world.group.points.all if each.sequence == 3]
    assert third.stood_ns <= 2 * S
    world.crash(power=True)
    world.age(GRADED, HOUR)
    assert left(world) == [5]


def test_a_point_that_stood_for_an_hour_is_as_old_as_its_end() -> None:
    world = world_with(3)
    world.clock.now_ns += HOUR
    assert world.group.intake.hold(world.source.end_lsn, world.source.time_ns + HOUR)
    for power in (False, True):
        world.crash(power=power)
        world.age(GRADED, 5 * S)
        assert left(world) == [3]
    world.connect()
    world.write("a", 0, bytes([4]) * 4096)
    world.source.time_ns += HOUR
    world.cut()
    world.settle()
    world.crash(power=True)
    world.age(GRADED, 0)
    assert left(world) == [3, 4]
    assert world.group.points.all[0].stood_ns >= HOUR - S


def test_a_group_without_rules_loses_nothing_to_a_jump() -> None:
    world = world_with(4)
    world.clock.pause(DAY)
    plan = world.counted.accept(dry_run=True)
    policy = HistoryPolicy(PLENTY)
    assert world.group.keeping.ageing_out(policy, plan.before, plan.after) == 0
    graded = world.group.keeping.ageing_out(KEPT_A_DAY, plan.before, plan.after)
    assert graded == 3


# -- acceptance


def test_what_agents_accept_is_deleted_by_ten_minutes_later_and_unlocks_nothing() -> None:
    world = world_with(9)
    policy = HistoryPolicy(PLENTY, (Rule(0, HOUR),), min_lock_ns=2 * HOUR)
    world.age(policy, 0)
    world.clock.pause(DAY)
    world.age(policy, S)
    accepted_by_agents(world)
    world.age(policy, 599 * S)
    assert left(world) == list(range(1, 10))
    world.age(policy, 2 * S)
    assert left(world) == list(range(1, 10)), "the lock does not believe them"
    world.age(policy, 2 * HOUR)
    assert left(world) == [9], "but it goes on"


def test_without_a_lock_they_go_ten_minutes_later_and_not_before() -> None:
    world = world_with(9)
    policy = HistoryPolicy(PLENTY, (Rule(0, HOUR),))
    world.clock.pause(DAY)
    world.age(policy, S)
    accepted_by_agents(world)
    world.age(policy, 590 * S)
    assert left(world) == list(range(1, 10))
    world.age(policy, 20 * S)
    assert left(world) == [9]


def test_what_came_while_the_clock_lagged_does_not_age_by_the_jump() -> None:
    """The machine was off for a day; for minutes nobody confirms its clock, and points come."""
    world = world_with(3)
    policy = HistoryPolicy(PLENTY, (Rule(0, HOUR),))
    world.counted.save()
    world.crash(power=True, off_ns=DAY)
    world.connect()
    for number in range(4, 7):
        world.write("a", 0, bytes([number]) * 4096)
        world.cut()
        world.settle()
        world.age(policy, 60 * S)
    assert world.counted.facts().state == "unconfirmed"
    for restarted in (False, True):
        if restarted:
            world.crash(power=False)
        else:
            world.counted.accept(dry_run=False)
        world.age(policy, 60 * S)
        assert left(world) == [4, 5, 6]
        world.check()
    world.age(policy, HOUR)
    assert left(world) == [6]


def accepted_by_agents(world: World) -> None:
    tend_the_clock(world, lambda _: 1)
    assert world.counted.facts().state == "good"


# -- stamps of earlier versions


def point(sequence: int, received_ns: int, time_ns: int = 0) -> Point:
    return Point(sequence, time_ns, time_ns, "crash", received_ns=received_ns)


def test_stamps_ahead_of_the_clock_are_mended_once_and_keep_their_order() -> None:
    points = [point(1, 50 * S), point(2, 900 * S), point(3, 901 * S), point(4, 60 * S)]
    mends = mends_for(points, (), 100 * S)
    assert mends == (Mend(3, 100 * S),)
    found = mended(points, mends)
    assert [each.received_ns // S for each in found] == [50, 100, 100, 60]
    assert [each.is_restamped for each in found] == [False, True, True, False]
    assert mends_for(found, mends, 150 * S) == mends
    late = point(5, 160 * S)
    assert mends_for([*found, late], mends, 159 * S) == mends, "a clock is drawn by as much"
    more = mends_for([*found, late], mends, 150 * S)
    assert more == (Mend(3, 100 * S), Mend(5, 150 * S))
    assert mends_for([point(4, 60 * S), late], mends, 150 * S) == (Mend(5, 150 * S),)


def test_a_point_without_a_stamp_whose_source_is_ahead_is_mended() -> None:
    (found,) = mended([point(1, 0, time_ns=500)], (Mend(1, 100),))
    assert found.received_ns == 100
    (found,) = mended([point(1, 0, time_ns=70)], (Mend(1, 100),))
    assert found.received_ns == 0


def test_points_that_share_a_mended_stamp_are_thinned_by_the_sources_time() -> None:
    """They came over a day, and a clock that had jumped gave all of them one stamp."""
    minute = 60 * S
    points = [
        Point(n + 1, n * 30 * S, n * 30 * S, "crash", received_ns=DAY, is_restamped=True)
        for n in range(20)
    ]
    rules = [Rule(0, HOUR), Rule(minute, DAY)]
    assert thinned(points, rules, DAY + HOUR - S, Protection()) == []
    gone = [each.sequence for each in thinned(points, rules, DAY + HOUR, Protection())]
    assert gone == list(range(2, 20, 2))


def test_a_frozen_group_is_mended_at_its_first_opening_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As 0.1.0 left it: no clock was kept, and a jump of a week is in the stamps."""
    world = world_with(3)
    with monkeypatch.context() as patch:
        patch.setattr(CountedClock, "stamp_ns", lambda _: world.clock.wall_ns + WEEK)
        for number in range(4, 7):
            world.write("a", 0, bytes([number]) * 4096)
            world.cut()
            world.settle()
    world.storage.unlink(CLOCK_FILE)
    world.crash(power=False)
    world.age(GRADED, 0)
    assert told(world, "history.restamped") == [{"upto": 6}, {"upto": 6}]
    mends = world.group.applier.newest_state.mends
    assert len(mends) == 1
    for power in (True, False):
        world.crash(power=power)
        assert world.group.applier.newest_state.mends == mends
    world.age(GRADED, HOUR)
    assert left(world) == [6]


# -- ages


def test_lags_move_what_was_stamped_in_them() -> None:
    lags = (Lag(100, 1000, 1150), Lag(1200, 50, 1300))
    stamps = [99, 100, 150, 400, 1150, 1199, 1200, 1240, 1299, 1300]
    assert [each.received_ns for each in moved([point(1, s) for s in stamps], lags)] == [
        99, 1100, 1150, 1150, 1150, 1199, 1250, 1290, 1300, 1300,
    ]  # fmt: skip


def test_without_jumps_the_lock_is_what_it_says() -> None:
    assert Ages(1000).locked_after_ns(100) == 900
    assert Ages(1000).lock_ends_ns(950, 100) == 1050
    assert Ages(1000, (Jump(900, 500, 0),)).lock_ends_ns(300, 100) == 900
    assert Ages(1000, (Jump(900, 500, 0),)).locked_after_ns(150) == 350
    assert Protection().spared_after_ns == NEVER_NS
