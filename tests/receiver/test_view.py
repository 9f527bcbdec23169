# SPDX-License-Identifier: Apache-2.0
"""Views stay where they are while the replica moves on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from receiver.group.group import GroupReplica
from receiver.history.images import BLOCK_BYTES, block_key
from receiver.points.values import PointDisk
from receiver.views.point_view import RENEW_BATCHES, PointView
from replicator.base.clock import SystemClock
from replicator.base.errors import NotFoundError, UnreachableError, UsageError
from replicator.base.storage import SystemStorage
from tests.doubles.memory_catalog import MemoryCatalog
from tests.receiver.machine import real_clock
from tests.receiver.source import Source
from tests.receiver.world import World


@pytest.fixture
def world() -> World:
    world = World()
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"1" * 20_000)
    world.cut()
    world.settle()
    return world


def test_reads_of_any_place_and_length(world: World) -> None:
    world.write("a", 3000, b"2" * 6000)
    world.zero("a", 8192, 4096)
    world.cut()
    world.settle()
    view = world.group.showing.view(1)
    whole = world.expected[1]["a"]
    for offset in (0, 1, 511, 4095, 4096, 8191, 12_288, 36_864, 37_375):
        for length in (0, 1, 512, 4097, 9000):
            length = min(length, len(whole) - offset)
            assert view.read("a", offset, length) == whole[offset : offset + length]
    with pytest.raises(UsageError, match="beyond the end"):
        view.read("a", 37_000, 512)
    with pytest.raises(NotFoundError):
        view.read("c", 0, 1)
    view.close()
    view.close()


def test_a_view_is_not_moved_by_what_is_applied_later(world: World) -> None:
    view = world.group.showing.view(1)
    for number in range(RENEW_BATCHES + 20):
        world.write("a", number % 9 * 4096 + 512, bytes([number]) * 700)
        world.cut()
        world.settle()
        assert view.read("a", 0, 37_376) == world.expected[1]["a"]
    assert view._stack.upto > view._history.batch_list.newest_number - RENEW_BATCHES, (
        "renewed on the way"
    )
    view.close()


def test_a_view_survives_rollbacks(world: World) -> None:
    world.write("a", 0, b"2" * 9000)
    world.cut()
    world.settle()
    views = [world.group.showing.view(sequence) for sequence in (1, 2)]
    world.rollback(1)
    world.rollback(3)
    for view in views:
        assert view.read("a", 0, 37_376) == world.expected[view.point.sequence]["a"]
        view.close()
    world.check()


def test_a_point_is_viewed_when_it_is_applied(world: World) -> None:
    world.write("a", 0, b"2" * 512)
    world.cut()
    world.ship_all()
    with pytest.raises(UnreachableError, match="not applied yet"):
        world.group.showing.view(2)
    with pytest.raises(NotFoundError, match="no point #9"):
        world.group.showing.view(9)


class _Interleaved(PointView):
    """Applies the next batch at the one moment that matters: between the two things a read does."""

    world: World

    def _overlay(self, disk: PointDisk, first: int, end: int, now: bytes) -> bytes:
        self.world.apply()
        return super()._overlay(disk, first, end, now)


class _IndexFirst(PointView):
    """The order that is wrong: what the index says, then the replica."""

    world: World

    def read(self, name: str, offset: int, length: int) -> bytes:
        found = self._images_within(block_key(0, 0), block_key(0, length // BLOCK_BYTES))
        self.world.apply()
        content = self._replica.read(name, offset, length)
        return super().read(name, offset, length) if found else content


@pytest.mark.parametrize(("kind", "is_right"), [(_Interleaved, True), (_IndexFirst, False)])
def test_replica_first_then_index(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: type[PointView], is_right: bool
) -> None:
    world.write("a", 0, b"2" * 4096)
    world.cut()
    world.ship_all()
    monkeypatch.setattr(kind, "world", world, raising=False)
    monkeypatch.setattr("receiver.group.showing.PointView", kind)
    view = world.group.showing.view(1)
    assert (view.read("a", 0, 4096) == b"1" * 4096) is is_right
    assert world.raw("a")[:4096] == b"2" * 4096, "the batch came in between"
    view.close()


def test_many_readers_while_another_thread_applies(tmp_path: Path) -> None:
    group = GroupReplica(
        SystemStorage(),
        SystemClock(),
        tmp_path / "g",
        "g",
        MemoryCatalog(),
        age_clock=real_clock(tmp_path),
    )
    group.recover()
    size = 1 << 20
    source = Source([("d", size)])
    source.start_from_zero()
    source.write("d", 0, b"\1" * size)
    source.cut()
    group.intake.open_stream(source.stream, 1, 0, source.first_chain)
    group.intake.accept(source.frame(source.records))
    group.intake.sync()
    while group.apply_next():
        pass
    view = group.showing.view(1)
    done = threading.Event()
    wrong: list[int] = []

    def read() -> None:
        offset = 0
        while not done.is_set():
            if view.read("d", offset, 65_536) != b"\1" * 65_536:
                wrong.append(offset)
            offset = (offset + 4096 * 7) % (size - 65_536)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for number in range(100):
            at = len(source.records)
            source.write("d", number * 8192 % size, bytes([2 + number]) * 8192)
            source.cut()
            group.intake.accept(source.frame(source.records[at:]))
            group.intake.sync()
            while group.apply_next():
                pass
    finally:
        done.set()
        for reader in readers:
            reader.join()
        view.close()
        group.close()
    assert wrong == []
