# SPDX-License-Identifier: Apache-2.0
"""Any single write is a point: seen, and gone back to."""

from __future__ import annotations

import errno
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journal.segment import HEADER_BYTES
from receiver.points.policy import HistoryPolicy
from receiver.views.fine_view import FineView
from receiver.writes.overlay import FineOverlay
from receiver.writes.walk import FineWrite
from replicator.base.errors import DamageError, NoPointError, NoSpaceError
from tests.receiver.plain import Contents
from tests.receiver.side_by_side import Group
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, World
from tests.world.faults import Failure
from tests.world.storage import Stopped

HOUR_NS = 3600 * 1_000_000_000
SECTOR = 512


@pytest.fixture
def world() -> World:
    """Points 1 to 3, with three writes behind each: those behind #3 are not applied."""
    return made(World(fine_ns=HOUR_NS))


def made(world: World) -> World:
    world.begin_stream(from_zero=True)
    for value in (1, 2, 3):
        world.cut()
        world.write("a", value * SECTOR, noise(value, 13 * SECTOR))
        world.zero("a", (value + 1) * SECTOR, SECTOR)
        world.write("b", 4096 - SECTOR, noise(value + 10, 2 * SECTOR))
        world.ship_all()
    while not world.group.applier.is_point_applied(3):
        world.apply()
    return world


def content(view: FineView) -> Contents:
    return {name: view.read(name, 0, size) for name, size in view.disks}


def look(world: World, sequence: int) -> int:
    """Compares each write behind that point. How many there are."""
    behind = world.writes_behind(sequence)
    for number, expected in enumerate(behind, 1):
        view = world.group.showing.fine_view(sequence, number)
        assert content(view) == expected, f"#{sequence}+{number}w"
        view.close()
    with pytest.raises(NoPointError, match=f"{len(behind)} writes are kept"):
        world.group.showing.fine_view(sequence, len(behind) + 1)
    return len(behind)


def test_each_write_between_two_points_is_one(world: World) -> None:
    assert [look(world, sequence) for sequence in (1, 2, 3)] == [3, 3, 3]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_any_writes(seed: int) -> None:
    """Overlaps, parts of blocks, zeroes over all of it, applied or not, after a crash or not."""
    rng = Random(seed)
    world = World(seed=seed, fine_ns=HOUR_NS)
    world.begin_stream(from_zero=True)
    world.cut()
    for _ in range(30):
        name, size = world.disks[rng.randrange(2)]
        offset, length = rng.randrange(size), 1 + rng.randrange(3 * 4096)
        if rng.randrange(4) == 0:
            world.zero(name, offset, length)
        else:
            world.write(name, offset, noise(rng.randrange(5), length))
        if rng.randrange(6) == 0:
            world.cut()
        if rng.randrange(10) == 0:
            world.settle()
        if rng.randrange(12) == 0:
            world.crash(power=bool(rng.randrange(2)))
    world.ship_all()
    world.apply(1 + rng.randrange(20))
    for point in world.group.points.all:
        if world.group.applier.is_point_applied(point.sequence):
            look(world, point.sequence)
    world.check()


def test_what_came_later_does_not_show(world: World) -> None:
    view = world.group.showing.fine_view(2, 2)
    expected = world.writes_behind(2)[1]
    for value in range(20, 24):
        world.write("a", 0, noise(value, 9 * 4096))
        world.zero("b", 0, 4096)
        world.cut()
        world.settle()
    assert content(view) == expected


def test_points_that_are_gone_between_do_not_matter(world: World) -> None:
    before = [world.writes_behind(sequence) for sequence in (1, 2)]
    world.apply_all()
    world.give_up([2])
    assert world.writes_behind(1) == before[0] + before[1]
    assert look(world, 1) == 6


def test_kept_frames_go_when_they_are_too_old_and_with_the_budget(world: World) -> None:
    world.settle()
    kept = world.group.fine.log.used_bytes
    assert kept > 0
    world.clock.now_ns += HOUR_NS // 2
    world.age(HistoryPolicy(1 << 30), 0)
    assert world.group.fine.log.used_bytes == kept
    world.age(HistoryPolicy(1 << 30), HOUR_NS)
    assert world.group.fine.log.used_bytes == 0
    with pytest.raises(NoPointError, match="not kept"):
        world.group.showing.fine_view(1, 1)


def test_the_budget_takes_frames_before_points_and_says_so(world: World) -> None:
    world.settle()
    others, kept = (
        world.group.history.segment_set.used_bytes + world.group.known.inbox_bytes,
        world.group.fine.log,
    )
    before = kept.used_bytes
    world.retain(others + before)
    assert kept.used_bytes == before
    world.retain(others + before - 1)
    assert [event.name for event in world.events] == ["fine_history.shrunk"]
    assert 0 < kept.used_bytes < before
    assert len(world.group.points.all) == 3


def test_a_full_disk_takes_frames_first(world: World) -> None:
    assert world.group.fine.log.used_bytes > 0
    world.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.ENOSPC))
    with pytest.raises(NoSpaceError):
        world.apply_all()
    assert world.group.fine.log.used_bytes == 0
    assert [event.name for event in world.events] == ["fine_history.shrunk"]
    world.storage.heal()
    world.apply_all()
    world.check()


def test_off_keeps_nothing() -> None:
    world = made(World())
    world.settle()
    assert world.group.fine.log.used_bytes == 0
    assert not world.storage.exists(GROUP_DIRECTORY / "fine")


def test_kept_frames_are_taken_up_again_and_never_applied_again(world: World) -> None:
    world.settle()
    world.rollback(1)
    assert world.group.fine.log.used_bytes > 0
    for power in (False, True):
        world.crash(power=power)
        assert world.group.known.condition == "rolled-back"
        assert not world.group.apply_next()
        assert world.raw("a") == world.expected[1]["a"]
        assert [look(world, sequence) for sequence in (1, 2, 3)] == [3, 3, 3], "of a closed stream"
    world.check()


@pytest.mark.parametrize(
    ("what", "why"),
    [("sync", "a sync begins"), ("detach", "a disk is detached"), ("fold", "folded")],
)
def test_refused_behind(world: World, what: str, why: str) -> None:
    source, expected = world.source, world.writes_behind(3)[2]
    if what == "sync":
        world.log(source.sync_begin("a", from_zero=False))
    elif what == "detach":
        world.log(source.detach("b"))
        world.disks = world.disks[:1]
    world.ship_all()
    if what == "fold":
        covered = [source.write("a", 0, noise(9, 4096)) for _ in range(2)]
        last = covered[-1]
        piece = (last.kind, last.disk, last.offset, last.length, last.payload)
        world.group.intake.accept(source.reduced_frame(covered, [piece]))
        world.group.intake.sync()
    assert content(world.group.showing.fine_view(3, 3)) == expected
    with pytest.raises(NoPointError, match=why):
        world.group.showing.fine_view(3, 4)


def test_a_stream_ends_and_a_rollbacks_points_have_none(world: World) -> None:
    world.rollback(2)
    world.begin_stream(from_zero=False)
    world.ship_all()
    with pytest.raises(NoPointError, match="no more have come in that stream"):
        world.group.showing.fine_view(3, 4)
    with pytest.raises(NoPointError, match="kind rollback is followed by none"):
        world.group.showing.fine_view(5, 1)


def test_rot_in_a_kept_frame_is_said(world: World) -> None:
    world.settle()
    folder = GROUP_DIRECTORY / "fine"
    path = next(
        folder / stream / name
        for stream in world.storage.names(folder)
        for name in sorted(world.storage.names(folder / stream))
    )
    for offset in range(192 + 48 + 72, 192 + 48 + 400):
        world.storage.flip(path, offset)
    with pytest.raises(DamageError, match=str(path)):
        look(world, 1)


def test_the_last_write_up_to_a_moment(world: World) -> None:
    source, points = world.source, world.group.points.all
    source.time_ns += 50
    third = source.write("a", 0, noise(7, SECTOR))
    source.time_ns += 50
    source.zero("a", 0, SECTOR)
    world.ship_all()
    history, last = world.group.fine, points[-1]
    moment_ns = source.time_ns
    found, why = history.last_write(last, moment_ns - 1)
    assert found is not None
    assert (found.number, found.time_ns, found.lsn, why) == (4, moment_ns - 50, third.lsn, "")
    found, why = history.last_write(last, moment_ns + 50)
    assert found is not None
    assert (found.number, why) == (5, "")
    assert history.last_write(last, last.time_ns - 1) == (None, "")
    source.sync_begin("a", from_zero=False)
    world.ship_all()
    found, why = history.last_write(last, moment_ns + 50)
    assert found is not None
    assert (found.number, why) == (5, "a sync begins there")


def test_writes_around_a_moment(world: World) -> None:
    points = world.group.points.all
    middle = points[1].time_ns
    step = points[1].time_ns - points[0].time_ns
    found = world.group.fine.around(middle, step, 100)
    assert [(each.point.sequence, each.write.number) for each in found] == [
        (sequence, number) for sequence in (1, 2, 3) for number in (1, 2, 3)
    ]
    assert [each.write.disk for each in found[:3]] == ["a", "a", "b"]
    assert [each.write.content for each in found[:3]] == [b"", None, b""]
    near = world.group.fine.around(middle, step, 4)
    assert [(each.point.sequence, each.write.number) for each in near] == [
        (2, 2), (2, 3), (3, 1), (3, 2),
    ]  # fmt: skip
    assert world.group.fine.around(middle, step // 2, 100) == found[3:6]


def test_back_to_a_write_and_back_again(world: World) -> None:
    world.rollback(2, 2)
    world.check()
    assert world.raw("a") == world.writes_behind(2)[1]["a"]
    undo = world.group.points.all[-2]
    world.rollback(undo.sequence)
    world.check()


def test_a_plan_for_a_write_counts_exactly(world: World) -> None:
    world.apply_all()
    target = world.writes_behind(1)[1]
    differing = sum(
        world.raw(name)[at : at + 4096] != target[name][at : at + 4096]
        for name in target
        for at in range(0, len(target[name]), 4096)
    )
    assert world.group.rolling_back.plan(1, 2).changed_bytes == differing * 4096


def test_blocks_that_have_no_image_are_brought_back_as_well() -> None:
    """What is written and undone within one batch leaves no image."""
    world = World(fine_ns=HOUR_NS)
    world.begin_stream(from_zero=True)
    world.cut()
    world.write("a", 8192 + SECTOR, noise(1, SECTOR))
    world.write("b", 0, noise(2, 9 * SECTOR))
    world.zero("a", 8192, 4096)
    world.zero("b", 0, 8192)
    world.cut()
    world.settle()
    assert world.group.rolling_back.plan(1, 2).changed_bytes == 3 * 4096
    world.rollback(1, 2)
    world.check()
    assert world.raw("b")[: 9 * SECTOR] == noise(2, 9 * SECTOR)


def test_a_rollback_to_a_write_that_was_cut_short_is_gone_on_with() -> None:
    for at in range(1, 600):
        world = made(World(seed=at, fine_ns=HOUR_NS))
        world.storage.stop_at(at)
        try:
            world.rollback(1, 2)
        except Stopped:
            if at % 2:
                world.fine_ns = 0  # what it needs stays until it is done
            world.crash(power=bool(at % 3))
        else:
            assert at > 30
            return
        world.retain(1)
        world.finish_rollback()
        world.check()
    pytest.fail("the rollback never ended")


def test_what_cannot_be_had_closes_nothing(world: World) -> None:
    with pytest.raises(NoPointError):
        world.group.rolling_back.run(2, writes=4)
    assert world.group.known.welcome().stream == world.source.stream
    world.check()


WRITES = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 30), st.one_of(st.none(), st.integers(1, 255))),
    max_size=20,
)


@given(WRITES, st.integers(0, 70), st.integers(0, 70))
def test_an_overlay_is_the_last_write_of_each_byte(
    writes: list[tuple[int, int, int | None]], start: int, end: int
) -> None:
    plain: list[int | None] = [None] * 80
    found = []
    for number, (offset, length, value) in enumerate(writes, 1):
        plain[offset : offset + length] = [value or 0] * length
        data = None if value is None else bytes([value]) * length
        found.append(FineWrite(number, 0, "a", offset, length, 0, data))
    overlay = FineOverlay(found)
    laid: list[int | None] = [None] * 80
    for piece in overlay.within("a", start, end):
        shown = bytes(piece.length) if piece.content is None else piece.content
        assert start <= piece.offset < piece.offset + piece.length <= end
        assert len(shown) == piece.length
        assert laid[piece.offset : piece.offset + piece.length] == [None] * piece.length
        laid[piece.offset : piece.offset + piece.length] = list(shown)
    assert laid == [each if start <= at < end else None for at, each in enumerate(plain)]
    assert overlay.within("b", start, end) == []


@pytest.mark.parametrize("cut_to", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 9])
def test_single_writes_that_were_cut_off_stop_nothing(cut_to: int) -> None:
    """Cut off in its header, the newest segment stopped the group, and nothing helped but `rm`."""
    group = Group()
    group.stop()
    *_, newest = sorted(group.now["fine"])
    file = group.world.storage.open(newest, writable=True)
    file.truncate(cut_to)
    file.datasync()
    file.close()
    group.open()
    assert group.check()[:12] == list(range(1, 13))
