# SPDX-License-Identifier: Apache-2.0
"""Which cuts become points, and what is said of them."""

from __future__ import annotations

import pytest

from journal.record import HEADER_BYTES, Record, RecordType, encode
from receiver.orders.describe import point_of
from receiver.points.points import PointList
from receiver.points.pointspec import find
from receiver.points.values import Point
from replicator.base.errors import DamageError, FencedError, NotFoundError, UsageError
from replicator.wire.frames import FrameBuilder
from tests.receiver.source import START_NS, STEP_NS, Source
from tests.receiver.world import World


@pytest.fixture
def world() -> World:
    """Two disks of zeroes, complete; no point yet."""
    world = World()
    world.begin_stream(from_zero=True)
    return world


def condition(world: World) -> str:
    return world.group.known.condition


def newest_applied(world: World) -> Point | None:
    applied = world.group.points.up_to(world.group.applier.applied_point)
    return applied[-1] if applied else None


def sequences(world: World) -> list[int]:
    return [point.sequence for point in world.group.points.all]


def test_a_point_has_number_time_kind_label_and_members(world: World) -> None:
    world.write("a", 0, b"x" * 512)
    world.cut("before the upgrade")
    world.settle()
    (point,) = world.group.points.all
    assert (point.sequence, point.kind, point.label) == (1, "crash", "before the upgrade")
    assert point.time_ns == point.until_ns == START_NS + STEP_NS
    assert [(disk.name, disk.size_bytes) for disk in point.members] == world.disks
    assert str(point) == "#1 'before the upgrade'"
    world.check()


def test_a_point_counts_when_it_is_durable_and_shows_when_it_is_applied(world: World) -> None:
    world.write("a", 0, b"x" * 512)
    world.cut()
    world.ship(99)
    assert world.group.points.all == []
    world.acknowledge()
    assert sequences(world) == [1]
    assert world.group.points.newest is not None
    assert newest_applied(world) is None
    assert not world.group.applier.is_point_applied(1)
    world.apply_all()
    assert newest_applied(world) == world.group.points.newest
    world.check()


def test_numbers_are_the_same_after_a_crash_before_apply(world: World) -> None:
    for value in (b"1", b"2", b"3"):
        world.write("a", 0, value * 512)
        world.cut()
    world.ship_all()
    world.apply()
    world.crash(power=True)
    assert sequences(world) == [1, 2, 3]
    world.apply_all()
    world.check()


def test_a_cut_with_an_incomplete_member_makes_no_point(world: World) -> None:
    world.settle()
    world.begin_stream(from_zero=False)
    world.sync_all("a")
    world.cut()
    world.settle()
    assert sequences(world) == []
    assert condition(world) == "syncing"
    world.sync_all("b")
    world.cut()
    world.settle()
    assert sequences(world) == [1]
    assert condition(world) == "complete"
    world.check()


def test_times_never_go_back(world: World) -> None:
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.write("a", 0, b"2" * 512)
    world.log(world.source.cut(step_ns=-3600 * 10**9))
    world.whole_cuts.add((1, world.source.end_lsn))
    world.settle()
    first, second = world.group.points.all
    assert second.time_ns == first.time_ns + 1000, "and each is printed as another one"


def test_cuts_of_an_idle_group_only_carry_its_point_on(world: World) -> None:
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.cut()
    world.cut()
    world.settle()
    (point,) = world.group.points.all
    assert point.until_ns == point.time_ns + 2 * STEP_NS
    world.cut("a bookmark makes a point all the same")
    world.settle()
    assert sequences(world) == [1, 2]
    world.check()


def test_holds(world: World) -> None:
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.settle()
    end, later = world.source.end_lsn, START_NS + 90 * STEP_NS
    assert world.group.intake.hold(end, later)
    assert world.group.points.all[0].until_ns == later
    assert world.group.intake.hold(end, later - 1)
    assert world.group.points.all[0].until_ns == later, "a hold never takes time back"
    assert not world.group.intake.hold(end - 64, later + 1)
    world.write("a", 0, b"2" * 512)
    world.ship_all()
    assert not world.group.intake.hold(world.source.end_lsn, later + 1), (
        "something was written since"
    )
    world.log(world.source.cut(step_ns=100 * STEP_NS))
    world.whole_cuts.add((1, world.source.end_lsn))
    world.settle()
    world.catalog.untils.clear()
    world.crash(power=True)
    assert world.group.points.all[0].until_ns == later, "the next batch says how long it held"


def test_a_point_holds_no_longer_than_until_the_next_one(world: World) -> None:
    """A source whose clock went back without its knowledge."""
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.settle()
    assert world.group.intake.hold(world.source.end_lsn, START_NS + 90 * STEP_NS)
    world.write("a", 0, b"2" * 512)
    world.cut()
    world.settle()
    for _ in range(2):
        first, second = world.group.points.all
        assert first.time_ns < first.until_ns == second.time_ns - 1
        world.crash(power=True)


def test_the_newest_hold_is_in_the_catalog_alone(world: World) -> None:
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.settle()
    later = START_NS + 90 * STEP_NS
    assert world.group.intake.hold(world.source.end_lsn, later)
    world.crash(power=True)
    assert world.group.points.all[0].until_ns == later


def test_a_label_that_comes_twice_is_kept_apart_and_told(world: World) -> None:
    for value in (b"1", b"2", b"3"):
        world.write("a", 0, value * 512)
        world.cut("twice")
    world.ship_all()
    assert [point.label for point in world.group.points.all] == ["twice", "twice~2", "twice~3"]
    changed = [event for event in world.events if event.name == "label.changed"]
    assert [event.fields["label"] for event in changed] == ["twice~2", "twice~3"]
    world.crash(power=False)
    assert [point.label for point in world.group.points.all] == ["twice", "twice~2", "twice~3"]
    assert world.group.known.is_label_taken("twice~2")
    assert not world.group.known.is_label_taken("once")


@pytest.mark.parametrize("text", ["torn\nin two", " x", "é" * 65])
def test_a_text_that_has_not_the_form_of_a_label_is_left_out(world: World, text: str) -> None:
    world.write("a", 0, b"1" * 512)
    world.cut(text)
    world.settle()
    (point,) = world.group.points.all
    assert point.label is None


@pytest.mark.parametrize("text", ["latest", "10m ago", "2026-03-01T12:00:00Z", "#1", "label:x"])
def test_a_label_that_is_read_as_something_else_is_kept_with_its_cut(
    world: World, text: str
) -> None:
    """An agent of a later version refuses it; what is durable is kept, and has a name."""
    world.write("a", 0, b"1" * 512)
    world.cut(text)
    world.settle()
    for _ in range(2):
        (point,) = world.group.points.all
        assert point.label == text
        assert point_of(point).label == f"label:{text}"
        assert find(f"label:{text}", point.time_ns, None, [point]).point == point
        world.crash(power=True)


def test_a_label_that_comes_twice_stays_within_its_bound(world: World) -> None:
    for value in (b"1", b"2"):
        world.write("a", 0, value * 512)
        world.cut("é" * 64)
    world.ship_all()
    assert [point.label for point in world.group.points.all] == ["é" * 64, "é" * 63 + "~2"]


def test_a_point_has_the_machine_that_belongs_to_it(world: World) -> None:
    world.log(world.source.domain_xml("vm", "<domain>old</domain>"))
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.log(world.source.domain_xml("vm", "<domain>new</domain>"))
    world.cut()
    world.settle()
    world.crash(power=True)
    world.check()
    for sequence, text in ((1, "<domain>old</domain>"), (2, "<domain>new</domain>")):
        view = world.group.showing.view(sequence)
        assert view.domains == {"vm": text}
        view.close()


# -- disks that come and go


def test_a_disk_that_comes_later_is_no_part_of_earlier_points() -> None:
    world = World(disks=[("a", 40_960)])
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.settle()
    world.disks.append(("late", 8192))
    world.guest["late"] = bytearray(b"L" * 8192)
    world.source.disks.append(("late", 8192))
    world.log(world.source.sync_begin("late", from_zero=False))
    world.sync_all("late")
    world.write("a", 0, b"2" * 512)
    world.cut()
    world.settle()
    world.check()
    first, second = world.group.points.all
    assert [disk.name for disk in first.members] == ["a"]
    assert [disk.name for disk in second.members] == ["a", "late"]
    view = world.group.showing.view(1)
    with pytest.raises(NotFoundError, match="no disk 'late'"):
        view.read("late", 0, 512)
    view.close()
    done = world.group.rolling_back.run(1)
    assert world.raw("late") == b"L" * 8192, "a rollback leaves alone what the point does not have"
    assert world.raw("a")[:512] == b"1" * 512
    assert [disk.name for disk in done.before.members] == ["a", "late"]


def test_a_detached_disk_stays_in_the_points_that_had_it(world: World) -> None:
    world.write("b", 0, b"b" * 512)
    world.cut()
    world.log(world.source.detach("b"))
    world.write("a", 0, b"a" * 512)
    world.cut()
    world.settle()
    world.check()
    assert [disk.name for disk in world.group.points.all[1].members] == ["a"]
    with pytest.raises(UsageError, match="not declared"):
        world.group.intake.accept(world.source.frame([world.source.write("b", 0, b"x" * 512)]))


# -- frames that may not come


def test_frames_continue_or_are_refused(world: World) -> None:
    world.ship(2)
    records = world.source.records
    with pytest.raises(UsageError, match="does not continue"):
        world.group.intake.accept(world.source.frame(records[:2]))
    with pytest.raises(UsageError, match="does not continue"):
        world.group.intake.accept(world.source.frame(records[3:]))
    other = FrameBuilder().build(
        encode(Record(RecordType.ZERO, 0, 0, 512, 1, 1), records[2].chain ^ 1)[0],
        start_lsn=records[2].lsn,
        end_lsn=records[2].lsn + HEADER_BYTES,
        chain_start=records[2].chain ^ 1,
        chain_end=encode(Record(RecordType.ZERO, 0, 0, 512, 1, 1), records[2].chain ^ 1)[1],
    )
    with pytest.raises(UsageError, match="does not continue"):
        world.group.intake.accept(other)  # the right place of another log
    world.group.intake.accept(world.source.frame(records[2:]))
    world.acknowledge()


def test_a_refused_frame_changes_nothing(world: World) -> None:
    world.settle()
    beyond = world.source.write("a", 37_000, b"x" * 512)
    state = world.group.known.welcome()
    with pytest.raises(UsageError, match="beyond the end of disk 'a'"):
        world.group.intake.accept(world.source.frame([beyond]))
    world.group.intake.sync()
    assert world.group.known.welcome() == state


def test_a_stream_begins_with_a_sync(world: World) -> None:
    world.settle()
    other = Source(world.disks, ordinal=2, first_lsn=1 << 30)
    other.cut()
    world.group.intake.open_stream(other.stream, 2, other.first_lsn, other.first_chain)
    with pytest.raises(UsageError, match="begins with a sync-begin"):
        world.group.intake.accept(other.frame(other.records))


def test_resume_proves_identity(world: World) -> None:
    world.write("a", 0, b"1" * 512)
    world.settle()
    facts = world.group.known.welcome()
    stream = world.source.stream
    with pytest.raises(FencedError, match="another content below"):
        world.group.intake.open_stream(stream, 1, facts.durable_lsn, facts.chain ^ 1)
    with pytest.raises(UsageError, match="cannot be resumed at"):
        world.group.intake.open_stream(stream, 1, facts.durable_lsn - 64, facts.chain)
    with pytest.raises(FencedError, match="closed for ever"):
        world.group.intake.open_stream(Source([], ordinal=7).stream, 1, 0, 0)
    assert world.group.intake.open_stream(stream, 1, facts.durable_lsn, facts.chain).syncs == []


def test_what_was_not_acknowledged_comes_again(world: World) -> None:
    world.settle()
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.ship(1)
    facts = world.group.known.welcome()
    world.group.intake.open_stream(world.source.stream, 1, facts.durable_lsn, facts.chain)
    world.settle()
    world.check()
    assert sequences(world) == [1]


def test_an_older_stream_is_closed_for_ever(world: World) -> None:
    world.settle()
    old = world.source
    world.begin_stream(from_zero=False)
    world.connect()
    assert world.group.known.welcome().closed_ordinal == 1
    with pytest.raises(FencedError, match="closed for ever"):
        world.group.intake.open_stream(old.stream, 1, old.end_lsn, old.chain_at(old.end_lsn))


def test_a_bad_frame_is_damage_and_leaves_no_trace(world: World) -> None:
    world.settle()
    record = world.source.write("a", 0, b"1" * 512)
    frame = world.source.frame([record])
    bad = type(frame)(frame.header, bytes(frame.data)[:-1] + b"\xff")
    with pytest.raises(DamageError, match="checksum"):
        world.group.intake.accept(bad)
    world.group.intake.accept(frame)


def test_a_list_that_was_taken_only_grows_at_its_end() -> None:
    """What a reader without a lock relies on."""
    points = PointList(lambda: 100)
    points.add(Point(number, 5, 5, "crash", label=f"l{number}") for number in range(1, 4))
    taken = points.all
    before = list(taken)
    points.add([Point(4, 6, 6, "crash", label="l4")])
    assert points.hold(4, 9)
    points.received(2, 77)
    assert [point.sequence for point in taken] == [1, 2, 3, 4]
    assert (taken[3].until_ns, taken[1].received_ns) == (9, 77)
    assert "l4" in points.labels
    assert [point.sequence for point in points.drop([2, 3])] == [2, 3]
    assert [point.sequence for point in taken] == [1, 2, 3, 4], "a list of its own from here on"
    assert before == [Point(number, 5, 5, "crash", label=f"l{number}") for number in range(1, 4)]
    assert "l2" not in points.labels
