# SPDX-License-Identifier: Apache-2.0
"""A point in new images: whole, sparse, and nothing overwritten."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from receiver.restore.restore import RestoreOrder, restore_view
from receiver.views.point_view import PointView
from replicator.base.errors import DamageError, NoSpaceError, UsageError
from tests.receiver.restored_checksum import checksum_by_hand
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, World
from tests.world.faults import Failure

TARGET = Path("/restored/here")
ORDER = RestoreOrder("vm")


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
    return world.group.showing.view(1)


def test_images_and_domain(world: World, view: PointView) -> None:
    told: list[tuple[int, int]] = []
    done = restore_view(
        view, TARGET, lambda done, total: told.append((done, total)), ORDER, world.storage
    )
    files = done.files
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
        restore_view(view, TARGET, progress, ORDER, world.storage)
    assert world.storage.names(TARGET) == ["b.raw"]


def test_a_full_disk_leaves_nothing(world: World, view: PointView) -> None:
    world.storage.plan(Failure(frozenset(["pwritev"]), 2, errno.ENOSPC, under=TARGET))
    with pytest.raises(NoSpaceError):
        restore_view(view, TARGET, progress, ORDER, world.storage)
    assert not world.storage.exists(TARGET)


def test_damage_leaves_nothing(world: World, view: PointView) -> None:
    folder = GROUP_DIRECTORY / "history"
    (stream,) = world.storage.names(folder)
    for name in world.storage.names(folder / stream):
        content = world._read(folder / stream / name)
        if noise(1, 4096) in content:
            world.storage.flip(folder / stream / name, content.index(noise(1, 4096)))
    with pytest.raises(DamageError, match="before-image at offset"):
        restore_view(view, TARGET, progress, ORDER, world.storage)
    assert not world.storage.exists(TARGET)


def test_an_end_ordered_from_outside_leaves_nothing(world: World, view: PointView) -> None:
    def stop(done: int, _total: int) -> None:
        if done > 5 << 20:
            raise UsageError("enough")

    with pytest.raises(UsageError, match="enough"):
        restore_view(view, TARGET, stop, ORDER, world.storage)
    assert not world.storage.exists(TARGET)


# -- verified


def test_each_image_is_read_back_and_its_checksum_told(world: World, view: PointView) -> None:
    done = restore_view(view, TARGET, progress, ORDER, world.storage)
    assert [(image.disk, image.path, image.size) for image in done.images] == [
        (name, TARGET / f"{name}.raw", size) for name, size in world.disks
    ]
    for image in done.images:
        assert image.checksum == checksum_by_hand(world.expected[1][image.disk])
        assert image.verified
        assert image.format == "raw"


def test_reading_back_can_be_left_out(world: World, view: PointView) -> None:
    before = world.storage.calls["pread"]
    done = restore_view(view, TARGET, progress, replace(ORDER, verify=False), world.storage)
    assert not any(image.verified for image in done.images)
    assert done.images[0].checksum == checksum_by_hand(world.expected[1]["a"])
    without = world.storage.calls["pread"] - before
    restore_view(view, TARGET / "again", progress, ORDER, world.storage)
    assert world.storage.calls["pread"] - before > 2 * without


def test_a_byte_that_is_read_back_otherwise_is_damage(world: World, view: PointView) -> None:
    def flip_when_written(done: int, _total: int) -> None:
        if done * 2 >= 9 << 20 and not flipped:
            flipped.append(done)
            world.storage.flip(TARGET / "a.raw.partial", (5 << 20) + 7)

    flipped: list[int] = []
    with pytest.raises(DamageError, match=rf"a.raw.partial: bytes {4 << 20} to {8 << 20} are not"):
        restore_view(view, TARGET, flip_when_written, ORDER, world.storage, piece_bytes=4 << 20)
    assert flipped
    assert not world.storage.exists(TARGET)


def test_too_little_room_is_said_before_anything_is_written(
    world: World, view: PointView, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated = sum(
        world.storage.allocated_bytes(GROUP_DIRECTORY / "disks" / f"{name}.raw")
        for name, _ in world.disks
    )
    monkeypatch.setattr(world.storage, "free_bytes", lambda _path: allocated - 1)
    before = world.storage.changing_calls
    with pytest.raises(NoSpaceError, match="are free"):
        restore_view(view, TARGET, progress, ORDER, world.storage)
    assert world.storage.changing_calls == before
    monkeypatch.setattr(world.storage, "free_bytes", lambda _path: allocated)
    assert restore_view(view, TARGET, progress, ORDER, world.storage).files
