# SPDX-License-Identifier: Apache-2.0
"""Ageing, window, lock and pause of a group, as its worker asks for them step by step."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from receiver.group.parts import Limits
from receiver.points.policy import HistoryPolicy, Rule
from receiver.retention.forecast import DAY_NS, HOUR_NS, Growth, Sample, forecast_seconds
from replicator.base.clock import NS_PER_S
from replicator.base.errors import NoSpaceError
from tests.receiver.world import World
from tests.world.faults import Failure
from tests.world.storage import Stopped

S = NS_PER_S
PLENTY = 1 << 40
LIMITS = Limits(history_segment_bytes=30_000, inbox_segment_bytes=6_000, batch_bytes=1 << 20)
GRADED = HistoryPolicy(PLENTY, (Rule(0, 10 * S), Rule(5 * S, 60 * S)))


def world_with(count: int, labels: dict[int, str] | None = None) -> World:
    """Points 1 to `count`, received one second apart; each replaces 5 blocks."""
    world = World(limits=LIMITS)
    world.begin_stream(from_zero=True)
    world.settle()
    world.clock.now_ns += 5 * S - world.clock.now_ns % (5 * S)
    for number in range(1, count + 1):
        world.write("a", 0, world.rng.randbytes(20_480))
        world.cut((labels or {}).get(number))
        world.settle()
        world.clock.now_ns += S
    return world


def left(world: World) -> list[int]:
    return [each.sequence for each in world.group.points.all]


def told(world: World, name: str) -> list[dict[str, object]]:
    return [dict(event.fields) for event in world.events if event.name == name]


# -- keep


def test_points_go_as_they_age_though_nothing_comes_in() -> None:
    world = world_with(9, {3: "mine"})
    world.age(GRADED, 0)
    assert left(world) == list(range(1, 10))
    world.age(GRADED, 20 * S)
    assert left(world) == [1, 3, 6, 9]
    world.check()
    world.age(GRADED, 3600 * S)
    assert left(world) == [3, 9]
    world.check()


def test_what_was_thinned_stays_gone_and_its_room_comes_back() -> None:
    world = world_with(12)
    used = world.group.history.segment_set.used_bytes
    world.age(GRADED, 20 * S)
    world.crash(power=True)
    assert left(world) == [1, 6, 11, 12]
    world.tidy(1000)
    assert world.group.history.segment_set.used_bytes < used
    world.check()


def test_it_is_thinned_now_and_then_and_at_once_under_new_rules() -> None:
    world = world_with(12)
    world.age(GRADED, 15 * S)
    before = left(world)
    world.age(GRADED, S)
    assert left(world) == before, "a quarter of the first span has not passed"
    world.age(replace(GRADED, rules=(Rule(0, S),)), 0)
    assert left(world) == [12]


def test_a_thinning_that_dies_anywhere_is_done_or_not() -> None:
    for at in range(1, 200):
        world = world_with(8)
        world.storage.stop_at(at)
        try:
            world.age(GRADED, 30 * S)
            world.tidy(1000)
        except Stopped:
            world.may_be_gone |= set(range(1, 8))
        else:
            world.storage.heal()
            assert at > 3
            return
        world.crash(power=bool(at % 2))
        assert left(world) in (list(range(1, 9)), [1, 6, 8])
        world.age(GRADED, 0)
        assert left(world) == [1, 6, 8]
        world.check()
    raise AssertionError("never came to its end")


@pytest.mark.parametrize("calls", ["pwritev", "datasync", "create", "sync_directory", "unlink"])
def test_a_disk_that_is_full_while_thinning_loses_no_kept_point(calls: str) -> None:
    for nth in range(1, 8):
        world = world_with(8)
        world.storage.plan(Failure(frozenset([calls]), nth, errno.ENOSPC))
        try:
            world.age(GRADED, 30 * S)
            world.tidy(1000)
        except (OSError, NoSpaceError):
            world.storage.heal()
            world.after_mishap()
        world.storage.heal()
        assert set(left(world)) >= {1, 6, 8}
        world.check()
        world.crash(power=True)
        assert set(left(world)) >= {1, 6, 8}
        world.check()


# -- budget


def test_the_window_is_not_given_up_for_the_budget_and_apply_has_to_wait() -> None:
    world = world_with(12)
    policy = HistoryPolicy(60_000, min_window_ns=6 * S)
    retained = world.group.retain(policy)
    for point in retained.dropped:
        world.forget(point.sequence)
    assert left(world) == [8, 9, 10, 11, 12]
    assert retained.must_wait
    assert "4 are younger than min_window" in retained.over_budget
    world.check()
    world.clock.now_ns += 10 * S
    retained = world.group.retain(policy)
    assert not retained.must_wait
    assert retained.dropped
    for point in retained.dropped:
        world.forget(point.sequence)
    world.check()


def test_a_policy_to_pause_gives_up_nothing_for_the_budget_but_goes_on_thinning() -> None:
    world = world_with(9)
    policy = replace(GRADED, max_bytes=60_000, when_full="pause")
    retained = world.group.retain(policy)
    assert retained.must_wait
    assert retained.dropped == []
    assert retained.over_budget == "no points are given up for the budget (when_full)"
    world.age(policy, 3600 * S)
    assert left(world) == [9]
    assert not world.group.retain(policy).must_wait


def test_an_inbox_that_is_larger_than_the_budget_does_not_stop_apply() -> None:
    """Applying is what makes it smaller."""
    world = world_with(1)
    for _ in range(5):
        world.write("a", 0, world.rng.randbytes(20_480))
    world.cut()
    world.ship_all()
    retained = world.group.retain(HistoryPolicy(60_000))
    assert retained.over_budget
    assert not retained.must_wait


def test_images_that_no_point_needs_do_not_stop_apply() -> None:
    """One point, and before it much that was overwritten, all in the segment being written."""
    world = World(limits=Limits(batch_bytes=1 << 20))
    world.begin_stream(from_zero=True)
    for _ in range(4):
        world.write("a", 0, world.rng.randbytes(20_480))
        world.settle()
    world.cut()
    world.settle()
    assert world.group.history.segment_set.used_bytes > 60_000
    retained = world.group.retain(HistoryPolicy(30_000))
    assert not retained.must_wait, retained
    assert world.group.history.segment_set.used_bytes < 30_000
    world.check()


def test_a_window_that_the_budget_makes_shorter_is_told_once_and_again_when_it_matters() -> None:
    world = world_with(30)
    policy = HistoryPolicy(400_000, (Rule(0, 60 * S),))
    world.age(policy, 0)
    (first,) = told(world, "history.window_shrunk")
    assert first["wanted_seconds"] == 60
    assert int(str(first["seconds"])) < int(str(first["before_seconds"])) <= 30
    facts = world.group.keeping.facts(policy)
    assert facts.is_short
    world.age(replace(policy, max_bytes=380_000), 0)
    assert len(told(world, "history.window_shrunk")) == 1, "less than a tenth"
    world.age(replace(policy, max_bytes=100_000), 0)
    assert len(told(world, "history.window_shrunk")) == 2
    world.age(replace(policy, max_bytes=PLENTY), 56 * S)
    assert not world.group.keeping.facts(policy).is_short


def test_ageing_is_no_shrinking_of_the_window() -> None:
    world = world_with(12)
    world.age(GRADED, 3600 * S)
    assert left(world) == [12]
    assert told(world, "history.window_shrunk") == []


# -- the lock


def test_what_is_locked_goes_for_nothing() -> None:
    world = world_with(12)
    locked = HistoryPolicy(1, (Rule(0, S),), min_lock_ns=8 * S)
    world.age(locked, 0)
    assert left(world) == [6, 7, 8, 9, 10, 11, 12]
    assert world.group.retain(locked).must_wait
    world.check()


@pytest.mark.parametrize("power", [True, False])
def test_the_longest_lock_stands_whatever_the_configuration_says_later(power: bool) -> None:
    world = world_with(12)
    world.age(HistoryPolicy(PLENTY, min_lock_ns=8 * S), 0)
    assert told(world, "history.locked") == [{"seconds": 8, "before_seconds": 0}]
    for lock_ns in (0, 2 * S):
        world.crash(power=power)
        assert world.group.keeping.lock_ns == 8 * S
        world.age(HistoryPolicy(1, (Rule(0, S),), min_lock_ns=lock_ns), 0)
        assert left(world) == [6, 7, 8, 9, 10, 11, 12]
    world.check()
    world.write("a", 0, bytes(4096))
    world.cut()
    world.settle()
    world.crash(power=power)
    assert world.group.keeping.lock_ns == 8 * S
    world.check()


def test_the_lock_survives_rollback_and_compaction() -> None:
    world = world_with(12, {4: "four"})
    world.age(HistoryPolicy(PLENTY, min_lock_ns=3 * S), 0)
    world.rollback(6)
    world.age(HistoryPolicy(1), 60 * S)
    world.tidy(1000)
    world.crash(power=True)
    assert world.group.keeping.lock_ns == 3 * S
    world.check()


def test_a_group_without_points_locks_nothing_and_writes_nothing() -> None:
    world = World()
    world.group.retain(HistoryPolicy(PLENTY, min_lock_ns=S))
    assert world.group.keeping.lock_ns == 0
    assert world.group.history.segment_set.used_bytes == 0


# -- what is said


def test_the_facts_are_by_the_receivers_clock() -> None:
    world = world_with(12)
    policy = replace(GRADED, min_lock_ns=5 * S)
    world.age(policy, 0)
    newest = world.group.points.all[-1]
    world.clock.now_ns = newest.received_ns + 7 * S
    facts = world.group.keeping.facts(policy)
    assert facts.window_ns is not None
    assert 18 * S <= facts.window_ns < 19 * S
    assert (facts.wanted_ns, facts.capacity_bytes) == (60 * S, PLENTY)
    assert facts.locked_until_ns == newest.received_ns + 5 * S
    assert not facts.is_short


def test_the_forecast_takes_the_higher_of_two_rates() -> None:
    quiet_night = [Sample(0, 0), Sample(DAY_NS - HOUR_NS, 24_000), Sample(DAY_NS, 24_000)]
    assert forecast_seconds(quiet_night, 24_000) == 86_400
    busy_hour = [Sample(0, 0), Sample(DAY_NS - HOUR_NS, 0), Sample(DAY_NS, 3600)]
    assert forecast_seconds(busy_hour, 24_000) == 24_000


def test_there_is_no_forecast_before_there_is_anything_to_go_by() -> None:
    assert forecast_seconds([], 1000) is None
    assert forecast_seconds([Sample(0, 0)], 1000) is None
    assert forecast_seconds([Sample(0, 0), Sample(59 * S, 500)], 1000) is None
    assert forecast_seconds([Sample(0, 500), Sample(DAY_NS, 500)], 1000) is None
    assert forecast_seconds([Sample(0, 0), Sample(60 * S, 60)], 1000) == 1000


def test_samples_are_bounded_and_a_clock_that_goes_back_begins_anew() -> None:
    growth = Growth()
    for at in range(0, 3 * 86_400, 7):
        growth.note(at * S, at)
    assert len(growth.samples) <= 1441
    assert growth.samples[-1].at_ns - growth.samples[0].at_ns <= DAY_NS
    assert forecast_seconds(growth.samples, 1000) == 1000
    growth.note(0, 10**6)
    assert growth.samples == (Sample(0, 10**6),)
