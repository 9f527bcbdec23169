# SPDX-License-Identifier: Apache-2.0
"""History and replica of different times beside each other: what cannot be made is not made."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from receiver.check.places import find_histories
from receiver.fitting.applied import pack, read_applied
from receiver.offline.extract import extract
from receiver.offline.reading import read_index
from replicator.base.errors import DamageError, NoPointError
from replicator.base.storage import SystemStorage, write_all
from tests.offline.copies import export
from tests.offline.test_extract import contents
from tests.receiver.side_by_side import Group
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World


def moved(world: World) -> World:
    """A group whose every block is overwritten, point by point."""
    for value in range(8):
        world.write("a", 0, noise(value, 8192))
        world.cut()
        world.settle()
    return world


def copied(world: World, to: Path) -> Path:
    export(world, to)
    return to


def test_a_history_that_is_older_than_its_replica_makes_no_point(tmp_path: Path) -> None:
    world = World(limits=SMALL)
    world.begin_stream(from_zero=True)
    older = copied(moved(world), tmp_path / "older")
    newer = copied(moved(world), tmp_path / "newer")
    shutil.rmtree(newer / "history")
    shutil.copytree(older / "history", newer / "history")
    (place,) = find_histories(SystemStorage(), newer)
    index = read_index(SystemStorage(), place)
    for point in index.kept_points():
        with pytest.raises(DamageError, match=r"ends before what .* holds") as refused:
            extract(SystemStorage(), place, index, point, tmp_path / "out")
        assert refused.value.hint == "put the newer history beside it"
    assert not (tmp_path / "out").exists()


def test_a_replica_that_is_older_makes_the_points_of_its_time(tmp_path: Path) -> None:
    world = World(limits=SMALL)
    world.begin_stream(from_zero=True)
    older = copied(moved(world), tmp_path / "older")
    of_its_time = len(world.group.points.all)
    newer = copied(moved(world), tmp_path / "newer")
    shutil.rmtree(newer / "disks")
    shutil.copytree(older / "disks", newer / "disks")
    (place,) = find_histories(SystemStorage(), newer)
    index = read_index(SystemStorage(), place)
    made = 0
    for point in index.kept_points():
        out = tmp_path / f"out{point.sequence}"
        try:
            files = extract(SystemStorage(), place, index, point, out)
        except NoPointError:
            continue
        made += 1
        assert contents(files) == {
            name: bytes(content) for name, content in world.expected[point.sequence].items()
        }
    assert of_its_time <= made <= of_its_time + 1


def test_an_image_that_a_receiver_had_in_doubt_makes_no_point(tmp_path: Path) -> None:
    group = Group()
    path = GROUP_DIRECTORY / "disks" / "b.raw"
    group.stop()
    world = group.world
    file = world.storage.open(path, writable=True)
    write_all(file, [group.then["disks"][path]], 0)
    file.datasync()
    group.open()
    world.apply_all()
    assert world.group.opening.unverified == {"b"}
    here = copied(world, tmp_path / "here")
    storage = SystemStorage()
    (place,) = find_histories(storage, here)
    index = read_index(storage, place)
    newest = index.kept_points()[-1]
    with pytest.raises(NoPointError, match="replica of disk b may hold another moment"):
        extract(storage, place, index, newest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    files = extract(storage, place, index, newest, tmp_path / "out", only=["a"])
    assert contents(files) == {"a": bytes(world.expected[newest.sequence]["a"])}


def test_another_groups_disks_make_no_point(tmp_path: Path) -> None:
    world = World(limits=SMALL)
    world.begin_stream(from_zero=True)
    here = copied(moved(world), tmp_path / "here")
    storage = SystemStorage()
    path = here / "disks/applied"
    stated = read_applied(storage, path)
    assert stated is not None
    path.write_bytes(pack(replace(stated, history=uuid4()), 1))
    (place,) = find_histories(storage, here)
    index = read_index(storage, place)
    with pytest.raises(DamageError, match="another group's"):
        extract(storage, place, index, index.kept_points()[-1], tmp_path / "out")
