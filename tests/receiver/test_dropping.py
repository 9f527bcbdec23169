# SPDX-License-Identifier: Apache-2.0
"""What a person may give up, what refuses it, and that a lock is only broken aloud."""

from __future__ import annotations

import errno

import pytest

from receiver.counted.ages import Ages
from receiver.group.parts import Limits
from receiver.history import writer
from receiver.history.bodies import RollbackIntent
from receiver.history.state import GroupState
from receiver.points.policy import HistoryPolicy, Rule
from receiver.points.values import Point, PointKind
from receiver.retention.budget import Situation
from receiver.retention.dropping import DropOrder, check_reason, chosen
from receiver.retention.reclaim import Pins
from replicator.base.clock import NS_PER_S
from replicator.base.errors import (
    NoSpaceError,
    NotFoundError,
    OwnedError,
    UnreachableError,
    UsageError,
)
from tests.receiver.world import GROUP_DIRECTORY, World
from tests.world.faults import Failure

S = NS_PER_S
T0 = 1_000_000 * S
PLENTY = HistoryPolicy(1 << 40)
LIMITS = Limits(history_segment_bytes=30_000, inbox_segment_bytes=6_000, batch_bytes=1 << 20)


def point(
    sequence: int, label: str | None = None, kind: PointKind = "crash", expire_ns: int = 0
) -> Point:
    moment = T0 + sequence * S
    return Point(sequence, moment, moment, kind, label, received_ns=moment, expire_ns=expire_ns)


KNOWN = [
    point(1),
    point(2, "mine"),
    point(3),
    point(4),
    point(5, kind="application", expire_ns=3 * S),
    point(6, kind="rollback"),
    point(7),
    point(8),
]


def asked(order: DropOrder, *, lock_ns: int = 0, now_s: int = 10) -> list[int]:
    pins = Pins(held=frozenset([4]), kept=frozenset([6]))
    situation = Situation(Ages(T0 + now_s * S), GroupState(), 7, pins, lock_ns)
    return [each.sequence for each in chosen("g", KNOWN, order, situation)]


# -- deciding


def test_named_points_go_labelled_or_not() -> None:
    assert asked(DropOrder(frozenset([3, 2]))) == [2, 3]


def test_an_age_passes_over_what_must_stay_and_what_somebody_asked_for() -> None:
    assert asked(DropOrder(older_than_ns=0)) == [1, 3, 5], "5 has expired"
    assert asked(DropOrder(older_than_ns=0), now_s=7) == [1, 3]
    assert asked(DropOrder(older_than_ns=8 * S)) == [1]
    assert asked(DropOrder(frozenset([2]), older_than_ns=8 * S)) == [1, 2]


@pytest.mark.parametrize(
    ("sequence", "kind", "words"),
    [
        (99, NotFoundError, "has no point #99"),
        (8, UnreachableError, "is not applied yet"),
        (7, OwnedError, "it is the newest one"),
        (4, OwnedError, "a view shows it"),
        (6, OwnedError, "it is the way back"),
    ],
)
def test_a_named_point_that_must_stay_refuses_the_whole_order(
    sequence: int, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        asked(DropOrder(frozenset([1, sequence]), reason="whatever"))


def test_a_locked_point_refuses_the_order_and_says_until_when() -> None:
    assert asked(DropOrder(frozenset([1, 3])), lock_ns=7 * S) == [1, 3]
    with pytest.raises(OwnedError, match="1 point is locked in group 'g': #3 until 1970-01-12T13"):
        asked(DropOrder(frozenset([1, 3])), lock_ns=7 * S + 1)
    with pytest.raises(OwnedError, match="3 points are locked"):
        asked(DropOrder(older_than_ns=0), lock_ns=60 * S)
    assert asked(DropOrder(older_than_ns=8 * S), lock_ns=8 * S) == [1]
    assert asked(DropOrder(frozenset([3]), reason="disk full"), lock_ns=60 * S) == [3]


def test_a_lock_is_not_broken_without_a_reason() -> None:
    assert check_reason("", breaks_lock=False) == ""
    assert check_reason(" disk full ", breaks_lock=True) == "disk full"
    for reason in ("", "  ", "x" * 501, "two\nlines"):
        with pytest.raises(UsageError):
            check_reason(reason, breaks_lock=True)
    with pytest.raises(UsageError):
        check_reason("disk full", breaks_lock=False)


# -- doing


def world_with(count: int) -> World:
    world = World(limits=LIMITS)
    world.begin_stream(from_zero=True)
    for _ in range(count):
        world.write("a", 0, world.rng.randbytes(20_480))
        world.cut()
        world.settle()
        world.clock.now_ns += S
    return world


def drop(world: World, order: DropOrder, policy: HistoryPolicy = PLENTY) -> list[int]:
    gone = [each.sequence for each in world.group.keeping.drop(policy, order, dry_run=False).points]
    for sequence in gone:
        world.forget(sequence)
    return gone


def told(world: World, name: str) -> list[dict[str, object]]:
    return [dict(event.fields) for event in world.events if event.name == name]


def test_what_is_given_up_is_gone_for_good_and_its_room_comes_back() -> None:
    world = world_with(8)
    used = world.group.history.segment_set.used_bytes
    plan = world.group.keeping.drop(PLENTY, DropOrder(frozenset([3])), dry_run=True)
    assert [each.sequence for each in plan.points] == [3]
    world.check()
    assert drop(world, DropOrder(frozenset([3, 5]), older_than_ns=6 * S + S // 2)) == [1, 2, 3, 5]
    world.check()
    world.crash(power=True)
    world.check()
    world.tidy(1000)
    assert world.group.history.segment_set.used_bytes < used
    world.check()


def test_an_order_under_a_lock_is_refused_or_loud() -> None:
    world = world_with(8)
    locked = HistoryPolicy(1 << 40, min_lock_ns=60 * S)
    world.age(locked, 0)
    with pytest.raises(OwnedError, match="locked"):
        drop(world, DropOrder(frozenset([3])), PLENTY)
    world.check()
    assert drop(world, DropOrder(frozenset([3]), reason="court order"), PLENTY) == [3]
    (event,) = told(world, "history.lock_broken")
    assert event == {"what": "drop of 1 points", "reason": "court order"}
    assert world.group.keeping.lock_ns == 60 * S, "the others stay locked"
    world.check()


def test_an_unlock_takes_the_lock_down_to_the_policy_durably() -> None:
    world = world_with(8)
    world.age(HistoryPolicy(1 << 40, min_lock_ns=60 * S), 0)
    shorter = HistoryPolicy(1 << 40, (Rule(0, 2 * S),), min_lock_ns=5 * S)
    world.age(shorter, 0)
    assert world.group.points.count == 8
    assert world.group.keeping.unlock(shorter, "not needed any more") == 60 * S
    assert told(world, "history.lock_broken") == [
        {"what": "unlock", "reason": "not needed any more"}
    ]
    world.lock_ns = 5 * S
    world.crash(power=True)
    assert world.group.keeping.lock_ns == 5 * S
    world.age(shorter, 0)
    assert [each.sequence for each in world.group.points.all] == [5, 6, 7, 8]
    world.check()
    assert world.group.keeping.unlock(shorter, "again") == 5 * S
    assert len(told(world, "history.lock_broken")) == 1, "there was nothing to break"


@pytest.mark.parametrize("calls", ["pwritev", "datasync", "create", "sync_directory"])
def test_an_order_that_meets_a_full_disk_is_done_or_not(calls: str) -> None:
    for nth in range(1, 5):
        world = world_with(6)
        world.age(HistoryPolicy(1 << 40, min_lock_ns=S), 0)
        world.may_be_gone = {2, 3}
        world.storage.plan(Failure(frozenset([calls]), nth, errno.ENOSPC))
        try:
            drop(world, DropOrder(frozenset([2, 3])))
            world.group.keeping.unlock(PLENTY, "full")
        except NoSpaceError:
            world.storage.heal()
            world.after_mishap()
        world.storage.heal()
        world.lock_ns = 0
        world.check()
        world.may_be_gone = {2, 3}
        world.crash(power=True)
        world.check()


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_of_many_points_all_go_or_none(nth: int) -> None:
    """They take several records, one of which finds no room."""
    world = world_with(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "DROPPED_TOGETHER", 2)
        history = GROUP_DIRECTORY / "history"
        world.storage.plan(Failure(frozenset(["pwritev"]), nth, errno.ENOSPC, under=history))
        with pytest.raises(NoSpaceError):
            drop(world, DropOrder(frozenset([2, 3, 4, 5, 6])))
    world.storage.heal()
    world.write("a", 0, b"later")
    world.cut()
    world.settle()
    there = [each.sequence for each in world.group.points.all]
    world.crash(power=True)
    assert [each.sequence for each in world.group.points.all] == there == list(range(1, 10))
    world.check()


def test_nothing_is_given_up_while_a_rollback_is_under_way() -> None:
    world = world_with(4)
    state = world.group.applier.applied
    world.group.applier.applied = state.copy()
    world.group.applier.applied.rollback = RollbackIntent(1, 5)
    with pytest.raises(OwnedError, match="rolled back"):
        world.group.keeping.drop(PLENTY, DropOrder(frozenset([1])), dry_run=True)
    with pytest.raises(OwnedError, match="rolled back"):
        world.group.keeping.unlock(PLENTY, "why not")
