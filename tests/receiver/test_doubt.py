# SPDX-License-Identifier: Apache-2.0
"""Images that may be from another moment: what is served of them, and from when on."""

from __future__ import annotations

import pytest

from receiver.damage.doubt import awaited, of_point, refuse, warning
from receiver.points.values import Point, PointDisk
from replicator.base.errors import DamageError, UnreachableError
from tests.receiver.side_by_side import Group
from tests.receiver.world import World
from tests.world.inode import Inode
from tests.world.storage import Stopped


def one_batch_more_in_the_images(*, is_point: bool = True) -> Group:
    """The history put back is shorter by exactly the batch that was being applied, and with the
    inbox its frames are gone: nothing says that the images hold more than the history does."""
    group = Group(points=11, old=11)
    group.then = group.folders()
    group.world.write("a", 3 * 4096, b"x" * 4096)
    if is_point:  # else catalog and audit have seen nothing of it
        group.world.cut()
    group.world.ship_all()
    assert group.world.group.apply_next()
    group.stop()
    group.put_back("history", group.then["history"], in_place=True)
    group.remove("inbox")
    return group


def test_a_history_without_the_batch_being_applied_serves_nothing_false() -> None:
    """Seen as a false point that was served until the scrub had passed."""
    group = one_batch_more_in_the_images()
    group.open()
    group.world.apply_all()
    assert group.served() == []
    group.scrub()
    group.served()
    assert group.world.group.known.damaged_points(), "what the batch has overwritten is lost"
    group.highest = 12
    group.go_on()
    newest = group.world.group.points.newest
    assert newest is not None
    assert newest.sequence in group.served()


@pytest.mark.parametrize("inbox", ["older", "missing"])
def test_an_older_history_and_inbox_that_fit_each_other_serve_nothing_false(inbox: str) -> None:
    """Both are from in front of the batch that was being applied: seen with seed 2132."""
    group = one_batch_more_in_the_images(is_point=False)
    if inbox == "older":
        group.put_back("inbox", group.then["inbox"])
    group.open()
    assert group.world.group.opening.unverified == {"a", "b"}
    group.world.apply_all()
    assert group.served() == []
    group.scrub()
    group.served()


def test_newer_images_beside_all_else_older_serve_nothing_false() -> None:
    """Statement, history and inbox of one moment, at rest; somebody has put newer images back."""
    group = Group(points=9, old=9)
    then = group.folders()
    group.world.write("a", 9 * 4096, b"x" * 4096)  # no point, and where nothing else has been
    group.world.ship_all()
    group.world.apply_all()
    group.stop()
    disks = {path: data for path, data in then["disks"].items() if path.suffix != ".raw"}
    images = {path: data for path, data in group.folders()["disks"].items() if path not in disks}
    for folder in ("history", "inbox", "sums", "index", "fine"):
        group.put_back(folder, then[folder], in_place=True)
    group.put_back("disks", disks | images, in_place=True)
    group.open()
    group.world.apply_all()
    assert group.served() == []
    group.scrub()
    group.served()


def test_a_crash_before_any_call_raises_no_doubt() -> None:
    """A false alarm would cost all points for as long as a scrub takes."""
    for at in range(1, 400):
        for is_power_cut in (False, True):
            world = World(seed=at)
            world.begin_stream(from_zero=True)
            world.write("a", 0, b"1" * 4096)
            world.cut()
            world.settle()
            world.storage.stop_at(at)
            try:
                for number in range(2, 5):
                    world.write("a", number * 4096, bytes([number]) * 4096)
                    world.write("b", 512 * number, bytes([number]) * 600)
                    world.cut()
                    world.ship_all()
                    world.apply()  # and no more: the next one finds it begun or applied
                    if number == 3:
                        world.apply_all()
            except Stopped:
                pass
            else:
                assert at > 20
                return
            if is_power_cut:
                world.storage.power_cut(world.rng)
            else:
                world.storage.kill()
            world.storage.heal()
            for _ in range(2):  # what was begun is done again, and a crash comes before it rests
                world.group = world._new_group()
                world.group.recover()
                assert world.group.opening.unverified == frozenset(), (at, is_power_cut)
                world.apply()
                world.storage.kill()


def test_what_a_person_does_to_the_times_of_an_image_is_no_doubt_of_its_own() -> None:
    """A power cut takes them back: they count where something else has been found."""
    group = Group()
    group.stop()
    for path in group.now["disks"]:
        inode = group.world.storage._find(path)
        assert isinstance(inode, Inode)
        inode.written = inode.changed = inode.made
    group.open()
    assert group.told() == set()
    assert group.served() == list(range(1, 13))


def exchanged() -> Group:
    """The same bytes in other files."""
    group = Group()
    group.stop()
    group.put_back("disks", group.now["disks"])
    group.open()
    group.world.apply_all()
    return group


def test_points_of_images_in_doubt_are_refused_with_what_is_awaited() -> None:
    replica = exchanged().world.group
    orders = (
        lambda: replica.showing.view(12),
        lambda: replica.showing.fine_view(11, 1),
        lambda: replica.rolling_back.plan(12),
        lambda: replica.rolling_back.run(12),
    )
    for order in orders:
        with pytest.raises(UnreachableError, match="not verified yet") as told:
            order()
        assert "disk a, b" in told.value.message
        assert "replicator scrub g --rate" in told.value.hint
    assert replica.known.condition == "complete", "a refused rollback closes no stream"


def test_who_insists_is_served_and_only_where_that_is_offered() -> None:
    replica = exchanged().world.group
    with pytest.raises(UnreachableError) as told:
        replica.showing.view(12, unverified=False)
    assert "--unverified" in told.value.hint
    with pytest.raises(UnreachableError) as told:
        replica.rolling_back.run(12)
    assert "--unverified" not in told.value.hint
    view = replica.showing.view(12, unverified=True)
    assert len(view.read("a", 0, 4096)) == 4096
    view.close()
    fine = replica.showing.fine_view(11, 1, unverified=True)
    assert len(fine.read("a", 0, 4096)) == 4096
    fine.close()


def test_damage_is_refused_whoever_insists() -> None:
    group = one_batch_more_in_the_images()
    group.open()
    group.world.apply_all()
    group.scrub()
    (damaged, *_) = group.world.group.known.damaged_points()
    with pytest.raises(DamageError):
        group.world.group.showing.view(damaged, unverified=True)


def test_a_disk_is_served_as_soon_as_its_image_is_read_back() -> None:
    """The history, which is read behind the images, has checksums of its own."""
    group = exchanged()
    replica, scrub = group.world.group, group.world.group.scrub
    scrub.begin()
    seen = [set(replica.opening.unverified)]
    while scrub.state.is_running:
        segment = scrub.step()
        if set(replica.opening.unverified) != seen[-1]:
            seen.append(set(replica.opening.unverified))
            if not replica.opening.unverified:
                break
        assert segment is None
    assert seen == [{"a", "b"}, {"b"}, set()]
    assert scrub.state.is_running
    assert group.served() == list(range(1, 13))
    group.open()
    assert group.world.group.opening.unverified == frozenset(), "that is on record"


def test_an_open_view_fails_while_its_image_is_in_doubt_and_goes_on_behind_that() -> None:
    group = Group()
    replica = group.world.group
    view = replica.showing.view(6)
    before = view.read("b", 0, 4096)
    replica.opening._voucher.start({"b"})  # as an opening in the same process would
    with pytest.raises(UnreachableError, match="disk b"):
        view.read("b", 0, 4096)
    with pytest.raises(UnreachableError, match="disk b"):
        view.extents("b", 0, 4096)
    view.read("a", 0, 4096)
    replica.opening.scrubbed()
    assert view.read("b", 0, 4096) == before
    view.close()


def test_only_points_that_have_the_disk_are_in_doubt() -> None:
    disks = (PointDisk(0, "a", "", 4096), PointDisk(1, "b", "", 4096))
    both, one = (Point(1, 0, 0, "crash", members=disks[:count]) for count in (2, 1))
    assert of_point({"b"}, both) == ["b"]
    assert of_point({"b"}, one) == []
    refuse({"b"}, one, "g", may_insist=True)
    with pytest.raises(UnreachableError):
        refuse({"b"}, both, "g", may_insist=True)
    assert awaited(set()) == warning([]) == ""
