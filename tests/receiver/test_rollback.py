# SPDX-License-Identifier: Apache-2.0
"""Back to a point, and back from there."""

from __future__ import annotations

import errno

import pytest

from replicator.base.errors import FencedError, NoSpaceError, NotFoundError, OwnedError
from tests.receiver.world import World
from tests.world.faults import CHANGING_CALLS, Failure
from tests.world.storage import Stopped


@pytest.fixture
def world() -> World:
    """Points 1 to 3; the third is durable and not applied."""
    world = World()
    world.begin_stream(from_zero=True)
    for value in (b"1", b"2", b"3"):
        world.write("a", 0, value * 12_000)
        world.zero("a", 8192, 4096)
        world.cut()
        world.ship_all()
    world.apply(4)
    return world


def test_what_is_in_the_inbox_is_applied_first(world: World) -> None:
    world.rollback(1)
    world.check()
    assert world.raw("a") == world.expected[1]["a"]
    before = world.group.points.all[3]
    assert (before.sequence, before.kind, before.consistent) == (4, "before-rollback", True)
    assert world.expected[4]["a"] == world.expected[3]["a"], "the newest that had come"


def test_undo_is_a_rollback_to_before(world: World) -> None:
    world.rollback(1)
    world.rollback(4)
    world.check()
    assert world.raw("a") == world.expected[3]["a"]
    world.rollback(5)
    world.check()
    assert world.raw("a") == world.expected[1]["a"]


def test_the_stream_is_closed_and_the_generation_raised(world: World) -> None:
    old = world.source
    assert world.group.known.generation == 1
    world.rollback(2)
    facts = world.group.known.welcome()
    assert (facts.stream, facts.closed_ordinal, facts.generation) == (None, 1, 2)
    with pytest.raises(FencedError, match="closed for ever"):
        world.group.intake.open_stream(old.stream, 1, old.end_lsn, old.chain_at(old.end_lsn))
    world.crash(power=True)
    facts = world.group.known.welcome()
    assert (facts.stream, facts.closed_ordinal, facts.generation) == (None, 1, 2)
    assert world.group.known.condition == "rolled-back"


def test_a_stream_that_was_opened_and_sent_nothing_is_closed_as_well(world: World) -> None:
    """For ever: also for a receiver that is started anew."""
    world.ship_all()
    world.begin_stream(from_zero=False)
    second = world.source
    world.connect()
    assert world.group.known.welcome().stream == second.stream
    world.group.rolling_back.run(2)
    for _ in range(2):
        assert world.group.known.welcome().closed_ordinal == 2
        with pytest.raises(FencedError, match="closed for ever"):
            world.group.intake.open_stream(second.stream, 2, second.first_lsn, second.first_chain)
        world.storage.kill()
        world.group = world._new_group()
        world.group.recover()


def test_the_inbox_of_a_closed_stream_goes(world: World) -> None:
    world.rollback(2)
    assert world.group.known.inbox_bytes == 0


def test_the_source_comes_back_with_a_sync(world: World) -> None:
    world.rollback(1)
    world.begin_stream(from_zero=False)
    for name, _ in world.disks:
        world.sync_all(name)
    world.cut("back")
    world.settle()
    world.check()
    assert world.group.known.condition == "complete"
    assert world.group.points.all[-1].sequence == 6


def test_a_plan_changes_nothing_and_counts_exactly(world: World) -> None:
    world.apply_all()
    raw = world.raw("a")
    plan = world.group.rolling_back.plan(1)
    differing = sum(
        raw[at : at + 4096] != world.expected[1]["a"][at : at + 4096]
        for at in range(0, len(raw), 4096)
    )
    assert plan.changed_bytes == differing * 4096
    assert (plan.point.sequence, plan.disks, plan.points_after) == (1, ["a", "b"], 2)
    assert world.raw("a") == raw
    assert len(world.group.points.all) == 3
    with pytest.raises(NotFoundError, match="no point #77"):
        world.group.rolling_back.plan(77)


def test_progress_is_told(world: World) -> None:
    told: list[tuple[int, int]] = []
    world.group.rolling_back.run(1, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (2, 2)


def test_an_unknown_point_changes_nothing(world: World) -> None:
    with pytest.raises(NotFoundError):
        world.group.rolling_back.run(9)
    assert world.group.known.welcome().stream == world.source.stream


def test_a_full_disk_before_the_stream_is_closed_changes_nothing(world: World) -> None:
    world.apply_all()
    world.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.ENOSPC, forever=True))
    with pytest.raises(NoSpaceError):
        world.group.rolling_back.run(1)
    world.storage.heal()
    assert world.group.known.welcome().stream == world.source.stream
    world.check()
    world.rollback(1)
    world.check()


def test_a_rollback_that_was_cut_short_is_gone_on_with_and_nothing_comes_in(world: World) -> None:
    for at in range(1, 400):
        other = World()
        other.begin_stream(from_zero=True)
        for value in (b"1", b"2", b"3"):
            other.write("a", 0, value * 12_000)
            other.cut()
        other.settle()
        other.storage.stop_at(at)
        try:
            other.rollback(1)
        except Stopped:
            other.crash(power=True)
        else:
            assert at > 20
            return
        if other.group.known.condition == "rolling-back":
            with pytest.raises(OwnedError, match="is being rolled back"):
                other.group.intake.open_stream(other.source.stream, 2, 0, 0)
            with pytest.raises(OwnedError, match="already"):
                other.group.rolling_back.run(1)
            other.retain(1)
            other.finish_rollback()
        other.check()
    pytest.fail("the rollback never ended")


def test_in_the_middle_of_a_sync_the_state_before_is_pinned_as_it_is(world: World) -> None:
    world.apply_all()
    world.guest["a"][:4096] = b"x" * 4096
    world.begin_stream(from_zero=False)
    world.sync_range("a", 0, 4096)
    world.zero("a", 4096, 8192)
    world.ship_all()
    world.rollback(2)
    world.check()
    before = world.group.points.all[-2]
    assert (before.kind, before.consistent) == ("before-rollback", False)
    world.rollback(before.sequence)
    world.check()
    assert world.raw("a")[:4096] == b"x" * 4096
    assert not world.group.points.all[-1].consistent


def test_rollbacks_are_told(world: World) -> None:
    world.rollback(1)
    told = [
        (event.name, dict(event.fields))
        for event in world.events
        if event.name.startswith("rollback")
    ]
    assert told == [
        ("rollback.begun", {"target": 1, "before": 4}),
        ("rollback.done", {"point": 5}),
    ]


def test_a_rollback_whose_end_failed_says_nothing_about_the_next_one() -> None:
    """Whichever call of it fails: the next one goes to its own point."""
    nth = 1
    while True:
        world = World()
        world.begin_stream(from_zero=True)
        for value in (b"1", b"2", b"3"):
            world.write("a", 0, value * 12_000)
            world.cut()
            world.settle()
        failure = Failure(CHANGING_CALLS, nth, errno.EIO)
        world.storage.plan(failure)
        try:
            world.rollback(1)
        except OSError:
            world.storage.heal()
            world.after_mishap()
        if failure.seen < nth:
            break
        world.storage.heal()
        world.rollback(2)
        world.check()
        assert world.raw("a") == world.expected[2]["a"]
        nth += 1
    assert nth > 10
