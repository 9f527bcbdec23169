# SPDX-License-Identifier: Apache-2.0
"""Rot is found, named with file and offset, and never served. Torn tails are no rot."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from journal.segment import HEADER_BYTES
from receiver.history.opening import TailImage
from replicator.base.errors import DamageError, OwnedError, VersionError
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World
from tests.world.faults import Failure


@pytest.fixture
def world() -> World:
    """Three points, applied, in one segment; the last batch has two images."""
    world = World(limits=replace(SMALL, history_segment_bytes=48_000))
    world.begin_stream(from_zero=True)
    for value in (1, 2, 3):
        world.write("a", 0, noise(value, 4096))
        world.write("b", 4096, noise(value, 4096))
        world.cut()
        world.settle()
    return world


def segments(world: World, part: str) -> list[Path]:
    folder = GROUP_DIRECTORY / part
    return [
        folder / stream / name
        for stream in world.storage.names(folder)
        for name in world.storage.names(folder / stream)
    ]


def restart(world: World) -> None:
    world.storage.kill()
    world.group = world._new_group()
    world.group.recover()


def leave_half_applied(world: World) -> None:
    """The next batch is in the history, and not in the replica."""
    disks = GROUP_DIRECTORY / "disks" / "a.raw"
    world.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.EIO, under=disks))
    with pytest.raises(OSError, match="Input/output"):
        world.apply()
    world.storage.heal()
    assert world.group.history.batch_list.unapplied is not None


def content_of(world: World, path: Path) -> bytes:
    return world._read(path)


def test_a_rotten_image_stops_what_depends_on_it_and_nothing_else(world: World) -> None:
    (path,) = segments(world, "history")
    at = content_of(world, path).index(noise(1, 4096))
    world.storage.flip(path, at + 100)
    view = world.group.showing.view(1)
    with pytest.raises(DamageError, match=rf"{path.name}: before-image at offset {at - 64} fails"):
        view.read("a", 0, 4096)
    assert view.read("a", 4096, 4096) == bytes(4096), "other blocks are served"
    view.close()
    world.check_point(world.group.points.all[1])
    world.check_point(world.group.points.all[2])


@pytest.mark.parametrize(
    "marker", [noise(1, 4096), noise(2, 4096)], ids=["older image", "last image"]
)
def test_rot_in_durable_history_is_damage_at_open(world: World, marker: bytes) -> None:
    (path,) = segments(world, "history")
    at = content_of(world, path).index(marker)
    world.storage.flip(path, at + 7)
    with pytest.raises(DamageError, match=rf"^{path}: payload.*file offset {at - 64}"):
        restart(world)
    before = content_of(world, path)
    with pytest.raises(DamageError):
        restart(world)
    assert content_of(world, path) == before, "nothing is cut, nothing is written"


@pytest.mark.parametrize("step", [0, 1, 2], ids=["header", "extents", "first image"])
def test_the_last_batch_is_not_taken_for_torn_when_it_was_applied(world: World, step: int) -> None:
    """Even if nothing later says that it was durable: its images no longer equal the replica."""
    (path,) = segments(world, "history")
    data = content_of(world, path)
    batch = world.group.history.batch_list.all[-1]
    file = world.storage.open(path, writable=True)
    file.truncate(HEADER_BYTES + batch.end)  # "applied" did not reach the disk
    file.datasync()
    file.close()
    begin = HEADER_BYTES + batch.begin
    image = data.index(noise(2, 4096), begin)
    world.storage.flip(path, (begin + 3, begin + 90, image + 5)[step])
    with pytest.raises(DamageError, match=r"looks incomplete.*was complete once") as caught:
        restart(world)
    assert "b.raw" in str(caught.value) or "a.raw" in str(caught.value)


def test_an_incomplete_batch_that_touched_nothing_is_cut() -> None:
    world = World()
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"1" * 4096)
    world.cut()
    world.settle()
    world.write("a", 0, b"2" * 4096)
    world.cut()
    world.ship_all()
    (path,) = segments(world, "history")
    size = len(content_of(world, path))
    world.apply()
    data = content_of(world, path)
    for cut_at in range(size, len(data), 97):
        other = World()
        other.begin_stream(from_zero=True)
        other.write("a", 0, b"1" * 4096)
        other.cut()
        other.settle()
        other.write("a", 0, b"2" * 4096)
        other.cut()
        other.ship_all()
        other.storage.kill()
        file = other.storage.open(path, writable=True)
        file.pwritev([data[size:cut_at]], size)
        file.close()
        other.crash(power=False)
        other.apply_all()
        other.check()


def test_the_tail_says_which_images_it_has(world: World) -> None:
    (path,) = segments(world, "history")
    batch = world.group.history.batch_list.all[-1]
    world.storage.kill()
    file = world.storage.open(path, writable=True)
    file.truncate(HEADER_BYTES + batch.end - 20)
    file.close()
    group = world._new_group()
    _, _, tail = group.history.open()
    assert tail is not None
    assert tail.label == "torn at the end"
    assert tail.images[0] == TailImage(0, 0, 4096, noise(2, 4096))
    assert len(tail.images) == 2
    group.close()


def test_a_sealed_segment_is_whole_or_damaged() -> None:
    world = World()
    world.begin_stream(from_zero=True)
    for value in range(1, 9):
        world.write("a", 0, noise(value, 9000))
        world.cut()
        world.settle()
    paths = segments(world, "history")
    assert len(paths) > 2
    begin = world.group.history.batch_list.all[1].begin
    world.storage.flip(paths[0], HEADER_BYTES + begin + 80)
    with pytest.raises(DamageError, match=rf"{paths[0].name}: record at offset"):
        restart(world)
    world.storage.flip(paths[0], HEADER_BYTES + begin + 80)
    restart(world)
    world.check()
    file = world.storage.open(paths[0], writable=True)
    file.truncate(file.size() - 1)
    file.close()
    with pytest.raises(DamageError, match="not sealed, although newer segments follow"):
        restart(world)


def test_a_missing_segment_is_named() -> None:
    world = World()
    world.begin_stream(from_zero=True)
    for value in range(1, 12):
        world.write("a", 0, noise(value, 9000))
        world.cut()
        world.settle()
    paths = segments(world, "history")
    world.storage.unlink(paths[1])
    with pytest.raises(DamageError, match=rf"{paths[2].name}: does not continue {paths[0].name}"):
        restart(world)


def test_another_format_is_refused_with_its_own_error(world: World) -> None:
    (path,) = segments(world, "history")
    from xxhash import xxh3_64_intdigest

    header = bytearray(content_of(world, path)[:HEADER_BYTES])
    header[8] = 9
    header[-8:] = xxh3_64_intdigest(bytes(header[:-8])).to_bytes(8, "little")
    world.storage.kill()
    file = world.storage.open(path, writable=True)
    file.pwritev([header], 0)
    file.close()
    with pytest.raises(VersionError, match="segment format 9"):
        restart(world)


def test_a_missing_or_cut_replica_is_named(world: World) -> None:
    path = GROUP_DIRECTORY / "disks" / "a.raw"
    world.storage.kill()
    file = world.storage.open(path, writable=True)
    file.truncate(4096)
    file.close()
    with pytest.raises(DamageError, match=r"a.raw: has 4096 bytes, its history says 37376"):
        restart(world)
    world.storage.unlink(path)
    with pytest.raises(DamageError, match=r"the replica of disk 'a' is missing"):
        restart(world)


# -- inbox


def with_unapplied() -> World:
    world = World()
    world.begin_stream(from_zero=True)
    for value in (b"1", b"2", b"3", b"4"):
        world.write("a", 0, value * 5000)
        world.cut()
        world.ship_all()
    world.apply(3)
    return world


def test_rot_in_acknowledged_frames_is_damage() -> None:
    world = with_unapplied()
    path = segments(world, "inbox")[0]
    world.storage.flip(path, HEADER_BYTES + 60)
    with pytest.raises(DamageError, match=path.name):
        restart(world)


def test_rot_that_comes_while_running_is_found_before_it_is_applied() -> None:
    world = with_unapplied()
    restart(world)
    raw = world.raw("a")
    path = segments(world, "inbox")[-1]
    size = len(content_of(world, path))
    world.storage.flip(path, size - 200)
    with pytest.raises(DamageError, match=rf"{path.name} at offset \d+"):
        world.apply_all()
    assert world.raw("a")[:512] in (raw[:512], b"2" * 512, b"3" * 512)


def test_an_inbox_that_ends_too_early_ends_its_stream() -> None:
    """What was acknowledged behind it is lost, and said; the points that are applied stay."""
    world = World()
    world.begin_stream(from_zero=True)
    world.settle()
    for _ in range(4):
        world.write("a", 0, Random(1).randbytes(4000))
        world.ship_all()
    world.apply_all()
    first, *rest = segments(world, "inbox")
    world.storage.kill()
    for path in rest:
        world.storage.unlink(path)
    file = world.storage.open(first, writable=True)
    file.truncate(file.size() - 100)
    file.close()
    restart(world)
    (told,) = [event for event in world.events if event.name == "group.mended"]
    assert "acknowledged" in str(told.fields["why"])
    with pytest.raises(OwnedError, match="being mended"):
        world.group.intake.open_stream(uuid4(), 2, 1 << 20, 0)
    world.apply_all()
    facts = world.group.known.welcome()
    assert (facts.stream, facts.closed_ordinal) == (None, 1)
    restart(world)
    assert not world.group.opening.is_mending, "it is on record"
    world.dead_ordinal = 1
    world.check()


def test_without_its_inbox_a_stream_is_over_and_the_points_stay(world: World) -> None:
    """What an operator may do to go on after damage there."""
    world.storage.kill()
    for path in segments(world, "inbox"):
        world.storage.unlink(path)
    restart(world)
    world.apply_all()
    facts = world.group.known.welcome()
    assert facts.stream is None
    assert facts.closed_ordinal == 1
    world.dead_ordinal = 1
    world.check()
    world.begin_stream(from_zero=False)
    for name, _ in world.disks:
        world.sync_all(name)
    world.cut()
    world.settle()
    world.check()


def test_a_batch_that_was_begun_needs_its_inbox(world: World) -> None:
    world.write("a", 0, b"4" * 4096)
    world.cut()
    world.ship_all()
    leave_half_applied(world)
    world.storage.kill()
    for path in segments(world, "inbox"):
        world.storage.unlink(path)
    with pytest.raises(DamageError, match="a batch was begun and is not applied"):
        restart(world)


def test_images_that_do_not_belong_to_the_inbox_are_damage(world: World) -> None:
    """The replica was put back from somewhere else while a batch was half applied."""
    world.write("a", 0, b"4" * 4096)
    world.cut()
    world.ship_all()
    leave_half_applied(world)
    batch = world.group.history.batch_list.unapplied
    assert batch is not None
    restart(world)
    pending = world.group.applier._pending
    assert pending is not None
    world.group.history.reader.table(pending.batch).starts[:] += (
        1  # as if it were the image of another block
    )
    with pytest.raises(DamageError, match="no before-image of"):
        world.group.apply_next()
