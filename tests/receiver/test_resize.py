# SPDX-License-Identifier: Apache-2.0
"""A disk comes back with another size: a new instance under its name, the old one in the past."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest

from receiver.damage.damage import of_newest
from receiver.fitting.applied import SLOT_BYTES, pack
from receiver.group.parts import Limits
from receiver.history.images import BLOCK_BYTES
from receiver.history.state import GroupState
from receiver.points.evidence import Applied
from receiver.retention.earlier_images import EARLIER_MAX, leftovers, unshown
from receiver.session.admission import check_disks
from replicator.base.errors import (
    DamageError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.wire.messages import Hello, OfferedDisk
from tests.receiver.source import Source, noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World
from tests.world.storage import Stopped

DISKS = GROUP_DIRECTORY / "disks"
OLD = 9 * BLOCK_BYTES + 512
GROWN, SHRUNK = 12 * BLOCK_BYTES, 4 * BLOCK_BYTES + 1024


def before(limits: Limits = SMALL) -> World:
    """Points 1 and 2 of disks `a`, whose last block is short, and `b`."""
    world = World(limits=limits)
    world.begin_stream(from_zero=True)
    world.write("a", 0, noise(1, OLD))
    world.write("b", 0, noise(2, 8192))
    world.cut()
    world.settle()
    world.write("a", 8 * BLOCK_BYTES, noise(3, BLOCK_BYTES + 512))
    world.cut()
    world.settle()
    return world


def synced(world: World) -> None:
    for name, disk in world.plain.disks.items():
        if disk.syncing:
            world.sync_all(name)
    world.cut()
    world.settle()


def after(size: int = GROWN, *, in_stream: bool = False, limits: Limits = SMALL) -> World:
    """And 3, behind the resize."""
    world = before(limits)
    world.resize("a", size, in_stream=in_stream)
    synced(world)
    return world


def restart(world: World) -> None:
    world.crash(power=False)


def images(world: World) -> list[str]:
    return [name for name in world.storage.names(DISKS) if ".raw" in name]


@pytest.mark.parametrize("in_stream", [False, True], ids=["new stream", "in the stream"])
@pytest.mark.parametrize("size", [GROWN, SHRUNK], ids=["grown", "shrunk"])
def test_points_have_the_size_of_their_time(size: int, in_stream: bool) -> None:
    world = after(size, in_stream=in_stream)
    for _ in range(2):
        world.check()
        sizes = [dict(world.group.showing.view(each).disks)["a"] for each in (1, 2, 3)]
        assert sizes == [OLD, OLD, size]
        assert world.group.known.disk_sizes() == {"a": size, "b": 6 * BLOCK_BYTES}
        assert world.group.known.earlier_sizes == {"a": [OLD]}
        world.write("a", size - 512, b"e" * 512)
        world.cut()
        world.settle()
        restart(world)


def test_it_is_told() -> None:
    (told,) = [event for event in after().events if event.name == "disk.resized"]
    assert told.fields == {"disk": "a", "before_bytes": OLD, "size_bytes": GROWN}


def test_there_is_no_point_before_the_new_instance_is_synced() -> None:
    world = before()
    world.resize("a", GROWN, in_stream=True)
    world.write("b", 0, b"b" * 512)
    world.cut()
    world.settle()
    assert [point.sequence for point in world.group.points.all] == [1, 2]
    assert world.group.known.condition == "syncing"
    world.check()


def test_back_to_the_old_size_is_a_third_instance() -> None:
    world = after()
    world.resize("a", OLD, in_stream=True)
    synced(world)
    world.check()
    assert world.group.known.earlier_sizes == {"a": [OLD, GROWN]}
    assert images(world) == ["a.raw", "a@2.raw", "a@3.raw", "b.raw"]


def test_the_state_file_names_the_images() -> None:
    world = after()
    state = json.loads(world._read(DISKS / "state.json"))
    assert state["images"] == {"a": "a@2.raw", "b": "b.raw"}
    assert world.raw("a@2") == world.expected[3]["a"]


def test_the_same_size_again_is_the_same_image() -> None:
    world = before()
    world.begin_stream(from_zero=False)
    synced(world)
    assert images(world) == ["a.raw", "b.raw"]
    assert world.group.known.earlier_sizes == {}


def test_another_size_without_a_detach_is_refused() -> None:
    world = before()
    other = Source([("a", GROWN)], ordinal=2, first_lsn=1 << 30)
    other.sync_begin("a", from_zero=False)
    other.disks[:] = [("gone", 0), ("a", OLD)]
    other.sync_begin("a", from_zero=False)
    world.group.intake.open_stream(other.stream, 2, other.first_lsn, other.first_chain)
    with pytest.raises(UsageError, match="has 37376 bytes at the source, but 49152 in this stream"):
        world.group.intake.accept(other.frame(other.records))


def scrub(world: World) -> None:
    task = world.group.scrub
    task.begin()
    while task.state.is_running:
        segment = task.step()
        if segment is not None:
            task.take_segment(segment, task.read_segment(segment))


# -- rollback


def test_there_is_no_rollback_across_it_and_nothing_is_closed_by_the_refusal() -> None:
    world = after()
    for _ in range(2):
        with pytest.raises(
            UsageError, match="had 37376 bytes at point #2, and has 49152 now"
        ) as no:
            world.group.rolling_back.run(2)
        assert "replicator restore g --at '#2'" in no.value.hint
        with pytest.raises(UsageError, match="had 37376 bytes"):
            world.group.rolling_back.plan(2)
        assert world.group.known.welcome().stream == world.source.stream
    world.write("a", GROWN - 512, b"x" * 512)
    world.cut()
    world.settle()
    world.rollback(3)
    world.check()


def test_the_way_back_of_a_rollback_across_it_is_no_longer_kept() -> None:
    world = before()
    world.rollback(1)
    assert world.group.showing.pins().kept == {3, 4}
    world.resize("a", GROWN, in_stream=False)
    synced(world)
    assert not world.group.showing.pins().kept


# -- the end of the old image


def let_go(world: World, *sequences: int) -> None:
    world.give_up(list(sequences))
    world.tidy(50)


def test_the_old_image_goes_with_the_last_point_that_shows_it() -> None:
    world = after()
    let_go(world, 1)
    assert "a.raw" in images(world)
    let_go(world, 2)
    assert images(world) == ["a@2.raw", "b.raw"]
    assert world.group.known.earlier_sizes == {}
    assert "disk.earlier_image_goes" in {event.name for event in world.events}
    for _ in range(2):
        world.check()
        world.write("a", 0, b"n" * 512)
        world.cut()
        world.settle()
        restart(world)
    assert images(world) == ["a@2.raw", "b.raw"]


def test_an_open_view_keeps_it() -> None:
    world = after()
    world.open_view(2)
    world.retain(1)
    world.tidy(50)
    world.check()
    assert "a.raw" in images(world)
    world.close_view(0)
    world.retain(1)
    world.tidy(50)
    assert "a.raw" not in images(world)


def test_points_that_were_given_up_without_a_word_stay_away_once_it_is_gone() -> None:
    """On a full disk that could not be said. Their batches are still there."""
    world = after(limits=replace(SMALL, history_segment_bytes=1 << 20))
    world.may_be_gone |= {1, 2}
    world.group.history.batch_list.forget([1, 2])
    for point in world.group.points.drop([1, 2]):
        world.forget(point.sequence)
    world.tidy(50)
    assert "a.raw" not in images(world)
    world.may_be_gone.clear()
    restart(world)
    assert [point.sequence for point in world.group.points.all] == [3]
    world.check()


def test_damage_of_the_old_image_is_of_the_points_before_and_goes_with_it() -> None:
    world = after(SHRUNK)  # which has no copy of the block
    world.has_rotted = True
    world.storage.flip(DISKS / "a.raw", 6 * BLOCK_BYTES)
    scrub(world)
    assert sorted(world.group.known.damaged_points()) == [1, 2]
    newest = world.group.points.newest
    assert newest is not None
    assert not of_newest(world.group.known.damage, newest), "the group itself is well"
    with pytest.raises(DamageError, match="disk a: 4096 bytes at 24576"):
        world.group.showing.view(1)
    let_go(world, 1, 2)
    assert not world.group.known.damage


def test_a_group_keeps_so_many_sizes_and_goes_on_when_the_oldest_points_have_gone() -> None:
    world = World(disks=[("a", 4096)])
    world.begin_stream(from_zero=True)
    for number in range(EARLIER_MAX):
        world.cut()
        world.resize("a", 4096 + 512 * (number + 1), in_stream=True)
        world.sync_all("a")
    world.cut()
    world.settle()
    world.check()
    offer = Hello("kvm1", "", "g", "libvirt", 0, [OfferedDisk("a", 1 << 20)])

    def come() -> None:
        check_disks(offer, world.group.known.disk_sizes(), world.group.known.earlier_sizes)

    with pytest.raises(ReplicatorError, match="64 earlier sizes are kept already") as refused:
        come()
    assert "replicator points drop g --older-than" in refused.value.hint
    let_go(world, 1)
    come()
    restart(world)
    world.check()


def test_what_the_replica_holds_can_be_stated_of_as_many_as_there_may_be() -> None:
    """64 disks with the longest names, and 64 earlier images."""
    names = [f"{'d' * 61}{number:02}" for number in range(64)]
    names += [f"{names[0]}@{65_000 + number}" for number in range(EARLIER_MAX)]
    images = dict.fromkeys(names, 1 << 63)
    assert len(pack(Applied(UUID(int=1), 1, 1, 1, 1, 1, images), 1)) < SLOT_BYTES


# -- what lies there


def test_an_old_image_that_is_lost_stops_the_group_until_it_is_accepted() -> None:
    world = after()
    world._die(power=False)
    world.storage.unlink(DISKS / "a.raw")
    world.group = world._new_group()
    with pytest.raises(DamageError, match=r"a\.raw: the replica of disk 'a' is missing") as stop:
        world.group.recover()
    assert "history accept g" in stop.value.hint
    world.group.accept_loss(lambda _done, _total: None)
    assert sorted(world.group.known.damaged_points()) == [1, 2]
    world.has_rotted = True
    world.check_point(world.announced[3])


def test_an_exchanged_old_image_is_unverified() -> None:
    world = after()
    world.settle()
    content = world.raw("a")
    world._die(power=False)
    world.storage.unlink(DISKS / "a.raw")
    file = world.storage.create(DISKS / "a.raw")
    file.pwritev([content], 0)
    file.close()
    world.group = world._new_group()
    world.group.recover()
    assert world.group.opening.unverified == {"a"}
    for sequence in (1, 2):
        with pytest.raises(UnreachableError, match="the replica of disk a may hold another moment"):
            world.group.showing.view(sequence)
    world.check_point(world.announced[3])
    scrub(world)
    world.check()


def test_what_lies_in_the_way_of_an_image_is_kept_under_another_name() -> None:
    """Of a history that is gone, say."""
    world = World()
    file = world.storage.create(DISKS / "a.raw")
    file.pwritev([b"before" * 100], 0)
    file.close()
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"1" * 512)
    world.cut()
    world.settle()
    world.check()
    assert world._read(DISKS / "a.raw.set-aside-1") == b"before" * 100
    (told,) = [event for event in world.events if event.name == "replica.set_aside"]
    assert told.fields["kept_as"] == str(DISKS / "a.raw.set-aside-1")


def test_an_image_whose_batch_never_became_durable_is_made_anew() -> None:
    """A crash at each call of that batch; then the batch comes again, and upkeep behind it."""
    seen = 0
    for at in range(1, 200):
        world = before()
        world.resize("a", GROWN, in_stream=True)
        world.sync_all("a")
        world.cut()
        world.ship_all()
        world.storage.stop_at(at)
        try:
            world.apply_all()
        except Stopped:
            world._die(power=False)
        else:
            world.storage.heal()
            assert seen
            return
        is_made = "a@2.raw" in images(world)
        world.group = world._new_group()
        world.group.recover()
        is_known = "a@2" in world.group.applier.newest_state.disks
        assert ("a@2.raw" in images(world)) is is_known
        seen += is_made and not is_known
        world.apply_all()
        world.tidy(50)
        world.check()
    raise AssertionError("it never came to an end")


def test_whose_image_is_a_leftover() -> None:
    state = GroupState(next_slot=3)
    assert leftovers(["a", "b"], state) == [], "a person put them there, for what is to come"
    world = after()
    state = world.group.applier.applied
    names = ["a", "a@1", "a@2", "a@7", "b", "c"]
    assert leftovers(names, state) == ["a@1", "a@7"]
    del state.disks["a"]
    assert leftovers(names, state) == ["a", "a@1", "a@7"]


def test_an_instance_is_unshown_if_no_point_has_its_slot() -> None:
    world = after()
    earlier = world.group.applier.applied.earlier
    points = world.group.points.all
    assert unshown(earlier, points) == []
    assert unshown(earlier, points[2:]) == earlier
