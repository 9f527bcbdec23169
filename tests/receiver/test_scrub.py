# SPDX-License-Identifier: Apache-2.0
"""Scrub: rot anywhere is found and named; what it makes unusable is refused, by exactly the right
points; what has a copy is healed. Wrong bytes are never served."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from journal.segment import HEADER_BYTES
from receiver.apply.applier import Applier
from receiver.blocks.content import DiskChange
from receiver.damage import damage as rules
from receiver.history.bodies import DamagedBlocks
from receiver.history.state import GroupState
from receiver.history.sums.base import SumBase
from receiver.scrub.findings import Findings
from receiver.scrub.state import Bad
from replicator.base.errors import DamageError
from tests.receiver.history_of_seed import live
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World
from tests.world.faults import Failure
from tests.world.storage import SimStorage, Stopped

DISK_A = GROUP_DIRECTORY / "disks" / "a.raw"
BLOCK = 4096


@pytest.fixture
def world() -> World:
    """Six points in several segments. Of disk a, block 0 changes at each, block 2 at the third
    alone, block 3 at the second and the fifth, to the same content; block 5 never."""
    return lived(World(limits=replace(SMALL, batch_bytes=50 * BLOCK)))


def lived(world: World) -> World:
    world.begin_stream(from_zero=True)
    for number in range(1, 7):
        world.write("a", 0, noise(number, BLOCK))
        if number == 3:
            world.write("a", 2 * BLOCK, noise(30, BLOCK))
        if number in (2, 4, 5):
            world.write("a", 3 * BLOCK, noise(31 if number == 4 else 32, BLOCK))
        world.cut()
        world.settle()
    return world


def scrub(world: World) -> list[Bad]:
    task = world.group.scrub
    task.begin()
    while task.state.is_running:
        segment = task.step()
        if segment is not None:
            task.take_segment(segment, task.read_segment(segment))
    return task.state.bad


def refused(world: World) -> list[int]:
    """The points that are not served. All others are served right."""
    found: list[int] = []
    for point in world.group.points.all:
        try:
            world.check_point(point)
        except DamageError:
            found.append(point.sequence)
    return found


def restart(world: World) -> None:
    world.storage.kill()
    world.group = world._new_group()
    world.group.recover()


def at_the_source_again(world: World) -> None:
    """A sync: the agent ships what differs."""
    world.begin_stream(from_zero=False)
    for name, _ in world.disks:
        world.plain.disks[name].content[:] = world.raw(name)  # what digests tell the agent
        world.sync_all(name)
    world.cut()
    world.settle()


def images_of(world: World, block: int, disk: str = "a") -> list[tuple[int, Path, int]]:
    """(batch, file, offset of the record) of each before-image of the block."""
    history = world.group.history
    slot = world.group.applier.applied.disks[disk].slot
    found: list[tuple[int, Path, int]] = []
    for batch in history.batch_list.all:
        table = history.reader.table(batch)
        for row in range(len(table)):
            image = table.image(row)
            if image.slot == slot and image.block <= block < image.block + image.blocks:
                place = history.reader.place_of(image)
                found.append((batch.number, place.path, place.offset))
    return found


def test_nothing_is_found_where_nothing_is_wrong(world: World) -> None:
    assert scrub(world) == []
    state = world.group.scrub.state
    assert state.replica_bytes == sum(size for _, size in world.disks)
    assert state.history_bytes > 0
    assert state.unverified_bytes == 0
    assert state.good_ns == state.ended_ns > 0


def test_rot_in_the_replica_costs_the_points_since_the_block_was_written(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 77)
    (bad,) = scrub(world)
    assert (bad.where, bad.file, bad.offset) == ("replica", str(DISK_A), 2 * BLOCK)
    assert (bad.disk, bad.block_offset, bad.length) == ("a", 2 * BLOCK, BLOCK)
    assert bad.points == [3, 4, 5, 6]
    assert not bad.healed
    assert refused(world) == [3, 4, 5, 6]
    with pytest.raises(DamageError, match=r"is damaged: disk a: 4096 bytes at 8192"):
        world.group.showing.view(5)
    with pytest.raises(DamageError, match="is damaged"):
        world.group.rolling_back.run(4)


def test_damage_stays_on_record_and_ends_where_the_block_is_written_anew(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK)
    scrub(world)
    restart(world)
    assert refused(world) == [3, 4, 5, 6]
    world.write("a", 0, noise(60, BLOCK))
    world.cut()
    world.settle()
    assert refused(world) == [3, 4, 5, 6, 7], "a new point stands on the rotten block too"
    world.write("a", 2 * BLOCK, noise(61, BLOCK))
    world.cut()
    world.settle()
    assert refused(world) == [3, 4, 5, 6, 7], "the image that was taken is of rot"
    restart(world)
    assert refused(world) == [3, 4, 5, 6, 7]
    assert scrub(world) == []
    assert refused(world) == [3, 4, 5, 6, 7]


def test_it_stays_on_record_through_compaction(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK)
    scrub(world)
    world.group.history.seal_newest(world.group.applier.applied)
    world.give_up([1, 4])
    world.tidy(1000)
    restart(world)
    assert refused(world) == [3, 5, 6]


def test_a_view_that_was_open_refuses_the_block_and_no_other(world: World) -> None:
    view = world.group.showing.view(5)
    world.storage.flip(DISK_A, 2 * BLOCK)
    scrub(world)
    with pytest.raises(DamageError, match="is damaged here"):
        view.read("a", 2 * BLOCK + 100, 1)
    assert view.read("a", 0, 2 * BLOCK) == world.expected[5]["a"][: 2 * BLOCK]
    view.close()


def test_garbage_in_a_hole_is_found_and_cleared(world: World) -> None:
    world.storage.flip(DISK_A, 5 * BLOCK + 9)
    (bad,) = scrub(world)
    assert (bad.where, bad.block_offset, bad.healed) == ("replica", 5 * BLOCK, True)
    assert not refused(world)
    assert scrub(world) == []


def test_content_that_is_lost_to_a_hole_is_found_though_a_hole_is_not_read(world: World) -> None:
    file = world.storage.open(DISK_A, writable=True)
    file.punch(2 * BLOCK, BLOCK)
    file.datasync()
    file.close()
    (bad,) = scrub(world)
    assert (bad.where, bad.block_offset, bad.points) == ("replica", 2 * BLOCK, [3, 4, 5, 6])
    assert refused(world) == [3, 4, 5, 6]


def test_what_lies_behind_the_end_of_a_file_that_became_short_is_damage(world: World) -> None:
    file = world.storage.open(DISK_A, writable=True)
    file.truncate(2 * BLOCK + 100)
    file.datasync()
    file.close()
    bad = [(each.block_offset, each.healed) for each in scrub(world)]
    assert bad == [(2 * BLOCK, False), (3 * BLOCK, True)]


def test_a_hole_that_is_right_again_is_acquitted(world: World) -> None:
    world.zero("a", 2 * BLOCK, BLOCK)
    world.cut()
    world.settle()
    damage = rules.added((), [DamagedBlocks(0, 2, 1, 8, 0), DamagedBlocks(0, 6, 1, 1, 0)])
    world.group.applier.state_damage(damage)
    assert refused(world)
    assert scrub(world) == []
    assert not refused(world)


def test_an_image_of_another_time_heals_the_replica(world: World) -> None:
    world.storage.flip(DISK_A, 3 * BLOCK + 9)
    (bad,) = scrub(world)
    assert bad.healed
    assert bad.points == [5, 6]
    assert not refused(world)
    assert not world.group.known.damage
    assert scrub(world) == []


def test_another_block_with_the_same_content_heals_the_replica(world: World) -> None:
    world.write("b", 4 * BLOCK, noise(30, BLOCK))
    world.write("b", 5 * BLOCK, noise(30, BLOCK))
    world.cut()
    world.settle()
    world.write("b", 5 * BLOCK, noise(1, BLOCK))  # it does not hold that any more
    world.cut()
    world.settle()
    world.storage.flip(DISK_A, 2 * BLOCK)
    (bad,) = scrub(world)
    assert (bad.block_offset, bad.healed) == (2 * BLOCK, True)
    assert not refused(world)


def test_the_inbox_heals_the_replica(world: World) -> None:
    world.write("a", 2 * BLOCK, noise(30, BLOCK))  # what is there, again
    world.ship_all()
    world.storage.flip(DISK_A, 2 * BLOCK)
    (bad,) = scrub(world)
    assert bad.healed
    world.apply_all()
    assert not refused(world)


def test_a_kept_write_heals_the_replica() -> None:
    """Applied long ago, gone from the inbox, and nowhere else."""
    limits = replace(SMALL, inbox_segment_bytes=100)
    world = lived(World(limits=limits, fine_ns=3600 * 1_000_000_000))
    held = world.group._parts.inbox.every_frame()
    world.storage.flip(DISK_A, 2 * BLOCK)
    (bad,) = scrub(world)
    assert bad.healed
    assert not refused(world)
    assert len(held) <= 1, "the write was not in the inbox"


def test_damaged_kept_writes_heal_nothing_and_stop_nothing() -> None:
    limits = replace(SMALL, inbox_segment_bytes=100)
    world = lived(World(limits=limits, fine_ns=3600 * 1_000_000_000))
    for each in world.group.fine.log._kept:
        world.storage.flip(each.span.path, HEADER_BYTES + 60)
    world.storage.flip(DISK_A, 2 * BLOCK)
    (bad,) = scrub(world)
    assert not bad.healed
    assert refused(world) == [3, 4, 5, 6]


def test_a_sync_from_the_source_heals_the_replica(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK)
    assert not scrub(world)[0].healed
    at_the_source_again(world)
    assert not refused(world), "what the sync shipped fits the sum of what was there"
    assert not world.group.known.damage
    assert scrub(world) == []


def test_a_sync_that_heals_one_block_leaves_the_others_on_record(world: World) -> None:
    """Of one that took over rot no sum is known, so nothing but the record tells."""
    world.storage.flip(DISK_A, 2000)
    scrub(world)
    world.write("a", 0, b"7" * 512)
    world.cut()
    world.settle()
    assert refused(world) == [6, 7]
    world.storage.flip(DISK_A, 2 * BLOCK)
    scrub(world)
    at_the_source_again(world)
    assert refused(world) == [6, 7], "block 2 is healed, what block 0 held is lost"


def test_newer_points_are_good_after_a_sync_that_ships_something_else(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK)
    scrub(world)
    world.guest["a"][2 * BLOCK : 3 * BLOCK] = noise(99, BLOCK)
    at_the_source_again(world)
    assert refused(world) == [3, 4, 5, 6]
    restart(world)
    assert refused(world) == [3, 4, 5, 6]


def test_a_block_that_cannot_be_read_is_bad(world: World) -> None:
    for nth in (1, 1, 4):  # the whole step, its first block by itself, and that again
        world.storage.plan(Failure(frozenset(["pread"]), nth, errno.EIO, under=DISK_A))
    bad = scrub(world)
    assert [each.block_offset for each in bad] == [0]
    world.storage.heal()
    assert scrub(world) == []
    assert not refused(world)


def test_rot_in_an_image_costs_the_points_between_writer_and_batch(world: World) -> None:
    images = images_of(world, 3)
    number, path, offset = images[1]  # taken when point 4 was made: what point 2 wrote
    world.storage.flip(path, offset + 64 + 300)
    bad = scrub(world)
    assert [(each.where, each.file, each.offset) for each in bad] == [("image", str(path), offset)]
    assert bad[0].points == [2, 3]
    assert bad[0].healed, "the replica holds the same content"
    assert not refused(world)
    assert scrub(world) == [], "the digest is right again"
    assert number == 4


def test_an_image_without_a_copy_stays_damaged(world: World) -> None:
    (_, path, offset) = images_of(world, 0)[2]  # what point 2 wrote, replaced by point 3
    world.storage.flip(path, offset + 64 + 5)
    (bad,) = scrub(world)
    assert (bad.where, bad.disk, bad.block_offset) == ("image", "a", 0)
    assert (bad.points, bad.healed) == ([2], False)
    assert refused(world) == [2], "older points have images of their own"


def test_rot_in_a_header_of_the_history_is_found(world: World) -> None:
    batch = world.group.history.batch_list.all[2]
    segment = next(
        each
        for each in world.group.history.segment_set.sealed
        if each.first <= batch.begin < each.end
    )
    offset = HEADER_BYTES + batch.begin - segment.first
    world.storage.flip(segment.path, offset + 70)
    (bad,) = scrub(world)
    assert (bad.where, bad.file, bad.offset) == ("history", str(segment.path), offset)
    assert bad.points == [1, 2]
    assert not bad.healed


@pytest.mark.parametrize("back", [8, 40, 100, 150], ids=["digest", "previous", "chain", "index"])
def test_rot_in_a_seal_is_found(world: World, back: int) -> None:
    segment = world.group.history.segment_set.sealed[0]
    file = world.storage.open(segment.path)
    size = file.size()
    file.close()
    world.storage.flip(segment.path, size - back)
    bad = scrub(world)
    assert bad
    assert {(each.where, each.file) for each in bad} == {("history", str(segment.path))}


def test_rot_in_the_base_of_sums_is_found_and_costs_no_point(world: World) -> None:
    world.give_up([1, 2, 3, 4])
    world.tidy(1000)
    folder = GROUP_DIRECTORY / "sums"
    (name, *_) = world.storage.names(folder)
    world.storage.flip(folder / name, 70)
    (bad,) = scrub(world)
    assert (bad.where, bad.file, bad.points) == ("sums", str(folder / name), [])
    assert world.group.scrub.state.unverified_bytes > 0
    assert not refused(world)


def test_blocks_of_removed_batches_are_still_checked(world: World) -> None:
    world.group.history.seal_newest(world.group.applier.applied)
    world.give_up([1, 2, 3, 4, 5])
    world.tidy(1000)
    assert world.group.history.segment_set.sealed[0].first > 0
    assert scrub(world) == []
    world.storage.flip(DISK_A, 2 * BLOCK)
    (bad,) = scrub(world)
    assert (bad.block_offset, bad.points) == (2 * BLOCK, [6])


def test_an_image_that_was_there_before_us_is_unverified() -> None:
    storage, found = SimStorage(), bytes(BLOCK) + noise(5, 3 * BLOCK)
    storage.make_directory(DISK_A.parent)
    file = storage.create(DISK_A)
    size = 9 * BLOCK + 512
    file.truncate(size)
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
    storage.flip(DISK_A, BLOCK)
    assert scrub(world) == []
    assert world.group.scrub.state.unverified_bytes == 3 * BLOCK


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
@pytest.mark.parametrize("block", [2, 3, 5], ids=["lost", "healed", "hole"])
def test_a_crash_anywhere_in_a_scrub_never_lets_rot_through(block: int, power: bool) -> None:
    stop = 0
    while True:
        stop += 1
        world = lived(World(limits=replace(SMALL, batch_bytes=50 * BLOCK)))
        world.storage.flip(DISK_A, block * BLOCK + 1)
        world.storage.stop_at(stop)
        try:
            scrub(world)
        except Stopped:
            if power:
                world.storage.power_cut(Random(stop))
            else:
                world.storage.kill()
            world.group = world._new_group()
            world.group.recover()
            world.apply_all()
            scrub(world)
            assert refused(world) == ([3, 4, 5, 6] if block == 2 else [])
            continue
        world.storage.heal()
        assert stop > 10
        return


@pytest.mark.parametrize("seed", range(12))
def test_flips_anywhere_never_serve_wrong_bytes(seed: int) -> None:
    """Whatever is hit: after a scrub each point is served right, or refused."""
    rng = Random(seed)
    world = lived(World(limits=replace(SMALL, batch_bytes=50 * BLOCK)))
    images = [each for block in (0, 2, 3) for each in images_of(world, block)]
    for _ in range(rng.randrange(1, 4)):
        if rng.getrandbits(1):
            world.storage.flip(DISK_A, rng.randrange(7 * BLOCK))
        else:
            _, path, offset = rng.choice(images)
            world.storage.flip(path, offset + 64 + rng.randrange(500))
    bad = scrub(world)
    named = {point for each in bad if not each.healed for point in each.points}
    assert set(refused(world)) <= named
    at_the_source_again(world)
    world.write("a", 2 * BLOCK, noise(70, BLOCK))
    world.cut()
    world.settle()
    assert set(refused(world)) <= named
    assert world.group.points.all[-1].sequence not in refused(world)


@pytest.mark.parametrize("seed", range(30))
def test_sums_that_were_gathered_are_the_same(seed: int) -> None:
    """Whatever is applied, given up and tidied meanwhile."""
    world = live(seed)
    sums, rng = world.group._parts.sums, Random(seed)
    for number in range(6):
        while rng.getrandbits(1) and sums.gather():
            pass
        world.check_sums()
        world.begin_stream(from_zero=bool(number % 2))
        for name, _ in world.disks:
            if not number % 2:
                world.sync_all(name)
            world.write(name, rng.randrange(5) * BLOCK, noise(seed * 10 + number, BLOCK))
        world.cut()
        world.settle()
        points = [point.sequence for point in world.group.points.all[:-1] if not point.label]
        world.give_up([each for each in points if rng.getrandbits(1)])
        world.tidy(rng.randrange(8))
        world.check_sums()
    assert scrub(world) == []


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_a_crash_anywhere_in_a_healing_sync(power: bool) -> None:
    """What heals a block is durable before the batch is that says so."""
    stop = 0
    while True:
        stop += 1
        world = lived(World(seed=stop, limits=replace(SMALL, batch_bytes=50 * BLOCK)))
        world.storage.flip(DISK_A, 2 * BLOCK + 1)
        scrub(world)
        world.storage.stop_at(stop)
        try:
            at_the_source_again(world)
        except Stopped:
            world.crash(power=power)
            world.storage.heal()
            world.settle()
            assert set(refused(world)) <= {3, 4, 5, 6, 7}
            assert scrub(world) == []
            assert not refused(world)
            continue
        world.storage.heal()
        assert stop > 10
        assert not refused(world)
        return


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_a_crash_anywhere_while_an_image_is_healed(power: bool) -> None:
    stop = 0
    while True:
        stop += 1
        world = lived(World(seed=stop, limits=replace(SMALL, batch_bytes=50 * BLOCK)))
        _, path, offset = images_of(world, 3)[1]
        world.storage.flip(path, offset + 64 + 300)
        world.storage.stop_at(stop)
        try:
            scrub(world)
        except Stopped:
            world.crash(power=power)
            assert set(refused(world)) <= {2, 3}
            world.apply_all()
            scrub(world)
            assert not refused(world)
            continue
        world.storage.heal()
        assert stop > 10
        return


def test_what_can_be_read_again_is_acquitted(world: World) -> None:
    _, path, offset = images_of(world, 0)[2]
    world.storage.flip(path, offset + 64 + 5)
    assert not scrub(world)[0].healed
    world.storage.flip(path, offset + 64 + 5)  # the file is put back from a copy
    assert refused(world) == [2]
    assert scrub(world) == []
    assert not refused(world)
    assert not world.group.known.damage


def damaged_and_written_over(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK + 8)
    scrub(world)
    world.write("a", 2 * BLOCK, noise(61, BLOCK))
    world.cut()
    world.settle()


def test_rot_would_be_served_if_batches_were_not_told_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the record alone: it would end with the block that it is about."""
    monkeypatch.setattr(Applier, "_note_overwritten", forget_instead)
    damaged_and_written_over(world)
    with pytest.raises(AssertionError):
        refused(world)


def forget_instead(_: Applier, state: GroupState, changes: list[DiskChange]) -> None:
    for change in changes:
        state.damage = rules.healed(state.damage, change.keys, replaced=0)


def test_rot_would_be_served_if_it_were_only_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Findings, "put_on_record", lambda _self, _damage: None)
    world.storage.flip(DISK_A, 2 * BLOCK + 8)
    scrub(world)
    with pytest.raises(AssertionError):
        refused(world)


def test_a_removed_batch_would_take_its_sums_along(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else knows what the block must hold; that it is not known is known."""
    monkeypatch.setattr(SumBase, "absorb", lambda *_args, **_named: None)
    world.group.history.seal_newest(world.group.applier.applied)
    world.give_up([1, 2, 3, 4, 5])
    world.tidy(1000)
    restart(world)
    world.storage.flip(DISK_A, 2 * BLOCK)
    assert scrub(world) == []
    assert world.group.scrub.state.unverified_bytes > 0


def test_a_full_disk_stops_a_scrub_and_nothing_is_forgotten(world: World) -> None:
    world.storage.flip(DISK_A, 2 * BLOCK)
    history = GROUP_DIRECTORY / "history"
    world.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.ENOSPC, under=history))
    with pytest.raises(OSError, match="No space"):
        scrub(world)
    world.storage.heal()
    (bad,) = scrub(world)
    assert bad.points == [3, 4, 5, 6]
    assert refused(world) == [3, 4, 5, 6]
