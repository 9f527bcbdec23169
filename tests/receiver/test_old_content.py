# SPDX-License-Identifier: Apache-2.0
"""No checksum is made anew over bytes that were not verified against the one they had: rot that a
batch overwrites, or takes part of, is found then, and never gets a sum that vouches for it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from receiver.damage.damage import Damage, in_replica
from receiver.damage.healing import Healer
from receiver.damage.old_content import OldContent
from tests.receiver.source import noise
from tests.receiver.test_rotting import read_back
from tests.receiver.test_scrub import at_the_source_again, lived, refused, restart, scrub
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World
from tests.world.faults import Failure
from tests.world.storage import SimStorage, Stopped

DISK_A = GROUP_DIRECTORY / "disks" / "a.raw"
BLOCK = 4096


@pytest.fixture
def world() -> World:
    """See tests.receiver.test_scrub: of disk a, block 2 is written by the third point alone."""
    return lived(World(limits=replace(SMALL, batch_bytes=50 * BLOCK)))


def world_with_runs() -> World:
    """One that has hardly any sums in memory."""
    return lived(World(limits=replace(SMALL, batch_bytes=50 * BLOCK, sum_rows=2)))


def names(world: World) -> list[str]:
    return [event.name for event in world.events if event.name.startswith("replica.")]


def written(world: World, offset: int, content: bytes) -> None:
    world.write("a", offset, content)
    world.cut()
    world.settle()


def test_rot_that_is_overwritten_before_a_scrub_costs_the_points_that_need_it(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    written(world, 2 * BLOCK, noise(61, BLOCK))
    assert refused(world) == [3, 4, 5, 6], "the image that was taken is of rot; #7 is good"
    assert names(world) == ["replica.rotten"]
    assert not in_replica(world.group.known.damage)
    assert scrub(world) == []
    restart(world)
    assert refused(world) == [3, 4, 5, 6]
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    assert [bad.points for bad in scrub(world)] == [[7]], "what is there now has a sum of its own"


def test_a_write_into_a_part_of_a_rotten_block_damages_the_newest_state_too(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    written(world, 2 * BLOCK + 512, noise(61, 512))
    assert refused(world) == [3, 4, 5, 6, 7]
    written(world, 0, noise(62, BLOCK))
    written(world, 2 * BLOCK + 1024, noise(63, 512))
    restart(world)
    assert refused(world) == [3, 4, 5, 6, 7, 8, 9], "however often a part is written"
    scrub(world)
    assert refused(world) == [3, 4, 5, 6, 7, 8, 9], "no sum was made that acquits it"
    written(world, 2 * BLOCK, noise(64, BLOCK))
    assert refused(world) == [3, 4, 5, 6, 7, 8, 9], "#10 does not need it"
    world.check_sums()


def test_known_damage_is_taken_over_by_a_write_into_a_part_of_it(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    scrub(world)
    written(world, 2 * BLOCK + 512, noise(61, 512))
    assert refused(world) == [3, 4, 5, 6, 7]
    at_the_source_again(world)
    assert refused(world) == [3, 4, 5, 6, 7]
    assert not in_replica(world.group.known.damage)


def test_writes_that_cover_a_rotten_block_together_are_a_whole_one(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    for at in range(0, BLOCK, 512):
        world.write("a", 2 * BLOCK + at, noise(at, 512))
    world.cut()
    world.settle()
    assert refused(world) == [3, 4, 5, 6]


def test_what_rotted_in_the_page_cache_alone_is_read_again(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77, cached=True)
    written(world, 2 * BLOCK + 512, noise(61, 512))
    assert names(world) == ["replica.read_again"]
    assert not refused(world)
    assert not world.group.known.damage
    assert scrub(world) == []


def test_a_scrub_reads_again_past_the_page_cache(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77, cached=True)
    assert scrub(world) == []
    assert not refused(world)


def test_what_has_a_copy_is_healed_before_its_image_is_taken(world: World) -> None:
    world.storage.flip(DISK_A, 3 * BLOCK + 9)  # what is there was there before, and has an image
    written(world, 3 * BLOCK + 512, noise(61, 512))
    assert names(world) == ["replica.healed"]
    assert not refused(world)
    assert not world.group.known.damage
    assert scrub(world) == []


def test_the_content_that_was_there_heals_it_when_it_is_written_again(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 9)
    written(world, 2 * BLOCK, noise(30, BLOCK))
    assert not refused(world)
    assert not world.group.known.damage
    assert scrub(world) == []


def test_rot_that_happens_to_be_what_is_written_is_no_old_content(world: World) -> None:
    """The new state is right; the old points are lost all the same."""
    rotten = bytearray(noise(30, BLOCK))
    rotten[77] ^= 1
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    written(world, 2 * BLOCK, bytes(rotten))
    assert refused(world) == [3, 4, 5, 6]
    world.check_sums()
    assert scrub(world) == []


def test_zeroes_over_rot(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    world.zero("a", 2 * BLOCK, BLOCK)
    world.cut()
    world.settle()
    assert refused(world) == [3, 4, 5, 6]


def test_zeroes_over_a_part_of_rot(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 3000)
    world.zero("a", 2 * BLOCK, 512)
    world.cut()
    world.settle()
    assert refused(world) == [3, 4, 5, 6, 7]


def test_early_zeroes_over_rot() -> None:
    """More than a batch holds: part of it is zeroed in batches of its own, ahead of its record."""
    world = lived(World(limits=replace(SMALL, batch_bytes=2 * BLOCK)))
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    world.zero("a", 0, 5 * BLOCK)
    world.cut()
    world.settle()
    assert any(batch.kind == "zero" for batch in world.group.history.batch_list.all)
    assert refused(world) == [3, 4, 5, 6]


def test_a_rollback_over_rot(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    world.rollback(2)
    assert refused(world) == [3, 4, 5, 6, 7], "#7 is the state before; #8 is what #2 was"


def punch(world: World) -> None:
    """A hole where block 2 of disk a was."""
    file = world.storage.open(DISK_A, writable=True)
    file.punch(2 * BLOCK, BLOCK)
    file.datasync()
    file.close()


def test_a_hole_where_content_was_is_rot(world: World) -> None:
    punch(world)
    written(world, 2 * BLOCK, noise(61, BLOCK))
    assert refused(world) == [3, 4, 5, 6]


@pytest.mark.parametrize(("length", "lost"), [(BLOCK, [3, 4, 5, 6]), (512, [3, 4, 5, 6, 7])])
@pytest.mark.parametrize("batch_blocks", [50, 2])
def test_zeroes_over_a_hole_where_content_was(
    batch_blocks: int, length: int, lost: list[int]
) -> None:
    """Seen with a copy to heal it from: the zeroes were left out, for the hole looked like them,
    and the scrub brought back what was there before, at each point behind them."""
    limits = replace(SMALL, batch_bytes=batch_blocks * BLOCK)
    for fine_ns in (0, 3600 * 10**9):
        world = lived(World(limits=limits, fine_ns=fine_ns))
        punch(world)
        world.zero("a", 2 * BLOCK, length)
        if length == BLOCK:
            world.zero("a", 0, 5 * BLOCK)
        world.cut()
        world.settle()
        for _ in range(2):
            assert refused(world) == ([] if fine_ns else lost)
            scrub(world)


def test_garbage_where_nothing_was_written_is_cleared(world: World) -> None:
    world.storage.flip(DISK_A, 5 * BLOCK + 77)
    written(world, 5 * BLOCK, noise(61, 512))
    assert names(world) == ["replica.healed"]
    assert not refused(world)
    world.check_sums()


def test_the_short_last_block(world: World) -> None:
    end = 9 * BLOCK
    written(world, end, noise(1, 512))
    world.storage.flip(DISK_A, end + 5)
    written(world, end, noise(2, 512))
    assert refused(world) == [7]
    world.storage.flip(DISK_A, end + 5)
    scrub(world)
    assert refused(world) == [7, 8]


def test_a_block_that_cannot_be_read_is_damage_and_apply_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write("a", 2 * BLOCK, noise(61, BLOCK))
    world.cut()
    world.ship_all()
    for _ in range(2):  # by the batch, and again past the cache
        world.storage.plan(Failure(frozenset(["pread"]), 1, errno.EIO, forever=True, under=DISK_A))
    monkeypatch.setattr(
        Healer,
        "heal_replica",
        lambda _self, _disk, keys, _sums: np.zeros(len(keys), dtype=np.bool_),
    )
    monkeypatch.setattr(OldContent, "overwritten", readable_again(world))
    world.apply_all()
    assert refused(world) == [3, 4, 5, 6]


def readable_again(world: World) -> Callable[..., Damage]:
    """A sector that is written can be read."""
    overwritten = OldContent.overwritten

    def healed(*args: Any) -> Damage:
        world.storage.heal()
        return overwritten(*args)

    return healed


def test_a_redo_does_not_take_what_a_crash_tore_for_rot(world: World) -> None:
    stop = 0
    while True:
        stop += 1
        torn = lived(World(seed=stop, limits=replace(SMALL, batch_bytes=50 * BLOCK)))
        torn.write("a", 2 * BLOCK, noise(61, BLOCK))
        torn.write("a", 3 * BLOCK + 512, noise(62, 512))
        torn.cut()
        torn.ship_all()
        torn.storage.stop_at(stop)
        try:
            torn.apply_all()
        except Stopped:
            torn.crash(power=True)
            torn.apply_all()
            torn.check()
            continue
        torn.storage.heal()
        assert stop > 8
        return


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
@pytest.mark.parametrize(
    ("block", "length", "expected"),
    [(2, BLOCK, [3, 4, 5, 6]), (2, 512, [3, 4, 5, 6, 7]), (3, 512, [])],
    ids=["whole", "part", "healed"],
)
def test_a_crash_anywhere_never_lets_rot_through(
    block: int, length: int, expected: list[int], power: bool
) -> None:
    stop = 0
    while True:
        stop += 1
        world = lived(World(seed=stop, limits=replace(SMALL, batch_bytes=50 * BLOCK)))
        world.storage.flip(DISK_A, block * BLOCK + 600)
        world.write("a", block * BLOCK, noise(61, length))
        world.cut()
        world.ship_all()
        world.storage.stop_at(stop)
        try:
            world.apply_all()
        except Stopped:
            world.crash(power=power)
            world.apply_all()
            read_back(world)
            assert refused(world) == expected
            continue
        world.storage.heal()
        assert stop > 8
        assert refused(world) == expected
        return


def test_sums_are_found_again_after_a_restart() -> None:
    """Those that were in memory alone, and those that were beside the history."""
    world, folder = world_with_runs(), GROUP_DIRECTORY / "sums" / "newest"
    assert world.storage.names(folder)
    restart(world)
    assert world.storage.names(folder)
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    written(world, 2 * BLOCK, noise(61, BLOCK))
    assert refused(world) == [3, 4, 5, 6]


@pytest.mark.parametrize("offset", [70, 20], ids=["rows", "header"])
def test_rot_in_what_was_derived_is_gathered_anew(offset: int) -> None:
    world, folder = world_with_runs(), GROUP_DIRECTORY / "sums" / "newest"
    assert world.storage.names(folder)
    for name in world.storage.names(folder):
        world.storage.flip(folder / name, offset)
    restart(world)
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    written(world, 2 * BLOCK, noise(61, BLOCK))
    assert refused(world) == [3, 4, 5, 6]
    world.check_sums()
    assert scrub(world) == []


def test_what_was_there_before_us_is_unverified() -> None:
    storage, found = SimStorage(), noise(5, 3 * BLOCK)
    storage.make_directory(DISK_A.parent)
    file = storage.create(DISK_A)
    file.truncate(9 * BLOCK + 512)
    file.pwritev([found], 0)
    file.datasync()
    file.close()
    world = World(storage=storage)
    world.guest["a"][: len(found)] = found
    world.begin_stream(from_zero=False)
    world.plain.disks["a"].content[:] = world.guest["a"]
    for name, _ in world.disks:
        world.sync_all(name)
    world.cut()
    world.settle()
    written(world, BLOCK, noise(6, 512))
    assert world.group.known.unverified_bytes == BLOCK
    storage.flip(DISK_A, BLOCK + 9)
    written(world, BLOCK + 1024, noise(7, 512))
    assert world.group.known.unverified_bytes == BLOCK
    assert refused(world) == [2, 3], "it has a sum since #2"


def test_rot_would_get_a_sum_if_old_content_were_not_verified(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OldContent, "verify", lambda *_args, **_named: _args[2].unreadable)
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    written(world, 2 * BLOCK, noise(61, BLOCK))
    with pytest.raises(AssertionError):
        refused(world)


def test_a_tainted_block_would_be_acquitted_if_it_had_a_sum(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.blocks.content.UNKNOWN_SUM", 5)
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    written(world, 2 * BLOCK + 512, noise(61, 512))
    written(world, 2 * BLOCK + 1024, noise(62, 512))
    assert refused(world) == [3, 4, 5, 6, 7, 8]
    assert [bad.points for bad in scrub(world)] == [[8]]


def test_an_image_that_was_rotten_at_birth_is_found_by_a_scrub(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As version 0.1.0 may have left one: its checksum is good."""
    born_rotten(world, monkeypatch, 2)
    (bad,) = scrub(world)
    assert (bad.where, bad.disk, bad.block_offset) == ("image", "a", 2 * BLOCK)
    assert (bad.points, bad.healed) == ([3, 4, 5, 6], False)
    assert refused(world) == [3, 4, 5, 6]
    assert scrub(world) == [], "it is known"
    restart(world)
    assert refused(world) == [3, 4, 5, 6]


def born_rotten(world: World, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    world.storage.flip(DISK_A, block * BLOCK + 77)
    with monkeypatch.context() as patch:
        patch.setattr(OldContent, "verify", lambda *args, **_named: args[2].unreadable)
        written(world, block * BLOCK, noise(61, BLOCK))
    world.group.history.seal_newest(world.group.applier.applied)


def test_an_image_that_was_rotten_at_birth_is_made_anew_where_a_copy_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(world, 0, noise(32, BLOCK))  # what block 3 holds
    born_rotten(world, monkeypatch, 3)
    (bad,) = scrub(world)
    assert (bad.where, bad.points, bad.healed) == ("image", [5, 6, 7], True)
    assert not refused(world)
    assert not world.group.known.damage
    assert scrub(world) == []
    restart(world)
    assert not refused(world)
    assert scrub(world) == []
    world.check_sums()


def test_what_a_view_reads_is_not_made_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    written(world, 0, noise(32, BLOCK))
    born_rotten(world, monkeypatch, 3)
    view = world.group.showing.view(1)
    (bad,) = scrub(world)
    assert not bad.healed
    assert refused(world) == [5, 6, 7]
    view.close()
    (bad,) = scrub(world)
    assert bad.healed
    assert not refused(world)


def test_known_rot_of_an_image_is_healed_when_a_copy_comes(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    written(world, 2 * BLOCK, noise(61, BLOCK))
    written(world, 0, noise(30, BLOCK))  # what it was
    world.group.history.seal_newest(world.group.applier.applied)
    (bad,) = scrub(world)
    assert (bad.where, bad.healed) == ("image", True)
    assert not refused(world)
    assert not world.group.known.damage


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_a_crash_anywhere_while_a_segment_is_made_anew(
    power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = 0
    while True:
        stop += 1
        world = lived(World(seed=stop, limits=replace(SMALL, batch_bytes=50 * BLOCK)))
        written(world, 0, noise(32, BLOCK))
        born_rotten(world, monkeypatch, 3)
        world.storage.stop_at(stop)
        try:
            scrub(world)
        except Stopped:
            world.crash(power=power)
            world.apply_all()
            scrub(world)
            assert not refused(world)
            continue
        world.storage.heal()
        assert stop > 15
        return


def test_images_of_removed_and_merged_batches_are_no_false_alarm(world: World) -> None:
    world.group.history.seal_newest(world.group.applier.applied)
    world.give_up([1, 3])
    world.tidy(1000)
    assert scrub(world) == []
    restart(world)
    assert scrub(world) == []
