# SPDX-License-Identifier: Apache-2.0
"""A point in new images: whole, sparse, and nothing overwritten."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from receiver.point_view import PointView
from receiver.restore import restore_view
from replicator.base.errors import DamageError, NoSpaceError, UsageError
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, World
from tests.world.faults import Failure

TARGET = Path("/restored/here")


def progress(_done: int, _total: int) -> None:
    """Nobody looks."""


@pytest.fixture
def world() -> World:
    world = World(disks=[("a", 9 << 20), ("b", 6 * 4096)])
    world.begin_stream(from_zero=True)
    world.log(world.source.domain_xml("vm", "<domain>ä</domain>"))
    world.write("a", 5 << 20, noise(1, 70_000))
    world.write("b", 0, b"1" * 600)
    world.cut()
    world.settle()
    world.write("a", 5 << 20, b"2" * 70_000)
    world.zero("b", 0, 4096)
    world.cut()
    world.settle()
    return world


@pytest.fixture
def view(world: World) -> PointView:
    return world.group.view(1)


def test_images_and_domain(world: World, view: PointView) -> None:
    told: list[tuple[int, int]] = []
    files = restore_view(
        view, TARGET, lambda done, total: told.append((done, total)), world.storage
    )
    assert files == [TARGET / "a.raw", TARGET / "b.raw", TARGET / "vm.xml"]
    for name in ("a", "b"):
        assert world._read(TARGET / f"{name}.raw") == world.expected[1][name]
    assert world._read(TARGET / "vm.xml").decode() == "<domain>ä</domain>"
    assert world.storage.allocated_bytes(TARGET / "a.raw") <= 3 * 65_536
    total = sum(size for _, size in world.disks)
    assert told[-1] == (total, total)
    assert told == sorted(told)
    assert all(world.storage.is_synced(path) for path in files)


def test_nothing_is_overwritten(world: World, view: PointView) -> None:
    world.storage.make_directory(TARGET)
    world.storage.create(TARGET / "b.raw").close()
    with pytest.raises(UsageError, match=r"b.raw exists already"):
        restore_view(view, TARGET, progress, world.storage)
    assert world.storage.names(TARGET) == ["b.raw"]


def test_a_full_disk_leaves_nothing(world: World, view: PointView) -> None:
    world.storage.plan(Failure(frozenset(["pwritev"]), 2, errno.ENOSPC, under=TARGET))
    with pytest.raises(NoSpaceError):
        restore_view(view, TARGET, progress, world.storage)
    assert not world.storage.exists(TARGET)


def test_damage_leaves_nothing(world: World, view: PointView) -> None:
    folder = GROUP_DIRECTORY / "history"
    (stream,) = world.storage.names(folder)
    for name in world.storage.names(folder / stream):
        content = world._read(folder / stream / name)
        if noise(1, 4096) in content:
            world.storage.flip(folder / stream / name, content.index(noise(1, 4096)))
    with pytest.raises(DamageError, match="before-image at offset"):
        restore_view(view, TARGET, progress, world.storage)
    assert not world.storage.exists(TARGET)


def test_an_end_ordered_from_outside_leaves_nothing(world: World, view: PointView) -> None:
    def stop(done: int, _total: int) -> None:
        if done > 5 << 20:
            raise UsageError("enough")

    with pytest.raises(UsageError, match="enough"):
        restore_view(view, TARGET, stop, world.storage)
    assert not world.storage.exists(TARGET)
