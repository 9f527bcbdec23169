# SPDX-License-Identifier: Apache-2.0
"""An image of another moment where the sums are gone that would tell: never taken for proven."""

from __future__ import annotations

import pytest

from replicator.base.storage import write_all
from tests.receiver.side_by_side import Group
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY
from tests.world.storage import Stopped


@pytest.mark.parametrize("in_place", [False, True], ids=["copy", "its own file"])
def test_an_image_exchanged_where_sums_are_gone_is_never_acquitted_unproven(in_place: bool) -> None:
    """What was written once, and of which the history no longer tells, differs in it."""
    group = Group(points=6, old=6)
    world = group.world
    world.write("a", 9 * 4096, noise(5001, 4096))
    world.write("b", 5 * 4096, noise(5000, 4096))
    for number in range(7, 30):
        group.write(number)
        world.settle()
    group.highest = max(world.announced)
    group.retain(9_000)
    disks = group.folders()["disks"]
    path = GROUP_DIRECTORY / "disks" / "b.raw"
    group.stop()
    group.put_back("disks", disks | {path: group.then["disks"][path]}, in_place=in_place)
    group.remove("sums")
    group.open()
    world.apply_all()
    assert group.served() == []
    group.scrub()
    assert group.served() == []
    group.go_on()
    newest = world.group.points.newest
    assert newest is not None
    assert group.served()[-1] == newest.sequence
    group.open()
    assert group.served()[-1] == newest.sequence


@pytest.mark.parametrize("is_compacted", [False, True], ids=["let go", "compacted"])
def test_where_sums_are_gone_a_crash_of_the_opening_acquits_nothing(is_compacted: bool) -> None:
    """Before every call of the first opening, and of what it puts on record."""
    for at in range(1, 1000):
        group = _without_sums(is_compacted=is_compacted)
        world = group.world
        world.storage.stop_at(at)
        try:
            world.group = world._new_group()
            world.group.recover()
            world.apply_all()
        except Stopped:
            group.open()
            group.world.apply_all()
            group.served()
            group.scrub()
            group.served()
        else:
            assert at > 20
            return


def _without_sums(*, is_compacted: bool) -> Group:
    """An image older in its own file, the sums gone that would tell."""
    group = _that_let_go(is_compacted=is_compacted)
    path = GROUP_DIRECTORY / "disks" / "b.raw"
    disks = group.folders()["disks"]
    group.put_back("disks", disks | {path: group.then["disks"][path]}, in_place=True)
    group.remove("sums")
    return group


def _that_let_go(*, is_compacted: bool) -> Group:
    """Stopped. Of a block that was written once, its history tells no longer."""
    group = Group(points=6, old=6)
    world = group.world
    world.write("b", 5 * 4096, noise(5000, 4096))
    for number in range(7, 30):
        group.write(number)
        world.settle()
    group.highest = max(world.announced)
    if is_compacted:
        world.give_up(list(range(2, 25)))
        world.tidy(500)
    else:
        group.retain(9_000)
    group.stop()
    return group


def test_sums_that_were_lost_long_ago_acquit_no_older_image() -> None:
    """It lies in its own file, and lacks what was written last: what has no sum is not proven."""
    group = _that_let_go(is_compacted=False)
    group.remove("sums")
    world, path = group.world, GROUP_DIRECTORY / "disks" / "b.raw"
    older = group.then["disks"][path]
    group.open()
    for number in range(30, 33):
        group.write(number)
        world.settle()
    assert len(group.served()) == 4, "it rested, and nobody had touched it"
    group.stop()
    file = world.storage.open(path, writable=True)
    write_all(file, [older], 0)
    file.datasync()
    group.open()
    assert "b" in world.group.opening.unverified
    world.apply_all()
    group.served()
    group.scrub()
    assert group.served() == []
    group.go_on()
    assert group.served()
