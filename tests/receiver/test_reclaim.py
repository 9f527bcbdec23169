# SPDX-License-Identifier: Apache-2.0
"""Compaction in steps: between batches, beside views, and through every kind of fault."""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from journal.seal import seal_segment
from journal.segment import Seal
from journal.stream_files import read_seal
from receiver.group.parts import Limits
from receiver.history import compaction
from receiver.history.compaction import Compaction, _NewSegment
from receiver.history.opening import NEW_SUFFIX
from receiver.retention import reclaim
from receiver.retention.reclaim import removed_together
from replicator.base.errors import DamageError
from tests.receiver.world import GROUP_DIRECTORY, World
from tests.world.faults import Failure
from tests.world.storage import SimFile, SimStorage, Stopped

LIMITS = Limits(history_segment_bytes=60_000, inbox_segment_bytes=6_000, step_blocks=8)
DISKS = [("a", 64 * 4096), ("b", 16 * 4096)]


def world_with(count: int, *, limits: Limits = LIMITS) -> World:
    """Points 1 to `count`; each replaces some of the same blocks with what does not compress."""
    world = World(limits=limits, disks=DISKS)
    rng = Random(5)
    world.begin_stream(from_zero=True)
    world.settle()
    for _ in range(count):
        for _ in range(6):
            world.write("a", rng.randrange(60) * 4096, rng.randbytes(4096 * rng.randint(1, 3)))
        world.cut()
        world.settle()
    return world


def image_bytes(world: World) -> int:
    return sum(batch.images.record_bytes for batch in world.group.history.batch_list.all)


def new_files(world: World) -> list[str]:
    folder = world.group.history.segment_set.folder
    return [name for name in world.storage.names(folder) if name.endswith(NEW_SUFFIX)]


def thinned(count: int = 24, every: int = 6) -> World:
    """Most points given up, nothing freed yet."""
    world = world_with(count)
    world.give_up([each for each in range(1, count) if each % every])
    return world


@pytest.mark.parametrize(("count", "together"), [(0, 0), (1, 1), (2, 1), (4, 1)])
def test_of_segments_with_many_batches_one_goes_in_a_step(
    count: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = thinned().group.history
    segments, batches = history.segment_set.sealed, history.batch_list.all
    assert removed_together(segments, batches, count) == count
    monkeypatch.setattr(reclaim, "BATCHES_REMOVED_TOGETHER", 1)
    assert removed_together(segments, batches, count) == together


def test_what_lies_between_kept_points_becomes_one_step_by_step() -> None:
    world = thinned()
    before, used = image_bytes(world), world.group.history.segment_set.used_bytes
    steps = 0
    while world.group.tidy():
        steps += 1
        world.check()
    assert steps > 5, "it is done in steps"
    assert image_bytes(world) < before * 0.6
    assert world.group.history.segment_set.used_bytes < used * 0.6
    assert not world.group.tidy()
    world.crash(power=True)
    world.check()


def test_batches_are_applied_between_the_steps() -> None:
    world = thinned()
    for value in range(12):
        assert world.group.tidy()
        world.write("a", 4096 * value, bytes([value]) * 4096)
        world.write("b", 0, bytes([value]) * 4096)
        world.cut()
        world.settle()
        world.check()
    while world.group.tidy():
        world.check()
    world.crash(power=True)
    world.check()


def test_a_view_that_is_opened_meanwhile_ends_it_and_stays_right() -> None:
    world = thinned()
    while not new_files(world):
        assert world.group.tidy()
    view = world.group.showing.view(6)
    world.tidy(100)
    assert not new_files(world)
    for name, size in view.disks:
        assert view.read(name, 0, size) == world.expected[6][name]
    view.close()
    before = world.group.history.segment_set.used_bytes
    world.tidy(100)
    assert world.group.history.segment_set.used_bytes < before
    world.check()


def test_before_the_oldest_point_nothing_is_kept() -> None:
    world = world_with(20)
    world.give_up(list(range(1, 19)))
    world.tidy(100)
    oldest = world.group.history.batch_list.of_point(19)
    assert oldest is not None
    kept = [batch for batch in world.group.history.batch_list.all if batch.begin < oldest.begin]
    assert all(batch.begin >= world.group.history.segment_set.sealed[0].first for batch in kept)
    assert sum(batch.images.block_count for batch in kept) <= 40, "a part of one segment at most"
    world.check()


def test_what_is_not_worth_while_is_looked_at_once() -> None:
    world = world_with(24)
    world.give_up([7])
    world.tidy(100)
    calls = world.storage.calls["pread"]
    world.tidy(100)
    assert world.storage.calls["pread"] == calls


@pytest.mark.parametrize("call", ["create", "pwritev", "datasync", "replace"])
def test_a_full_disk_leaves_all_as_it_was(call: str) -> None:
    world = thinned()
    used = world.group.history.segment_set.used_bytes
    folder = world.group.history.segment_set.folder
    world.storage.plan(Failure(frozenset([call]), 1, errno.ENOSPC, under=folder))
    world.tidy(1)
    while new_files(world) and world.group.tidy():
        pass
    world.storage.heal()
    assert not new_files(world)
    world.check()
    world.crash(power=True)
    world.check()
    world.tidy(200)
    assert world.group.history.segment_set.used_bytes < used
    world.check()


def test_rot_that_it_meets_is_told_and_stops_nothing() -> None:
    world = thinned()
    history = world.group.history
    kept = history.batch_list.of_point(12)
    assert kept is not None
    batch = history.batch_list.after(kept.number)[
        0
    ]  # its images are the earliest behind that point
    segment = next(
        each for each in history.segment_set.sealed if each.first <= batch.begin < each.end
    )
    world.storage.flip(
        segment.path, 192 + history.reader.table(batch).image(0).position - segment.first + 70
    )
    world.tidy(200)
    told = [event for event in world.events if event.name == "compaction.failed"]
    assert len(told) == 1, "once"
    assert segment.path.name in str(told[0].fields["error"])
    world.write("a", 0, b"x" * 4096)
    world.cut()
    world.settle()
    world.check_point(world.group.points.all[-1])


def test_memory_is_bounded_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group much larger than a part is written in parts, none larger than it may be."""
    world = thinned(count=30, every=29)
    sizes: list[int] = []
    step = Compaction.step

    def measured(compaction: Compaction) -> bool:
        already = len(compaction._batches)
        more = step(compaction)
        sizes.extend(batch.images.block_count for batch in compaction._batches[already:])
        return more

    monkeypatch.setattr(Compaction, "step", measured)
    world.tidy(300)
    assert sizes
    assert max(sizes) <= LIMITS.step_blocks
    world.check()


def test_a_compacted_segment_goes_on_from_the_one_before_and_is_sealed() -> None:
    world = thinned()
    world.tidy(300)
    previous = b""
    for segment in world.group.history.segment_set.sealed:
        file = world.storage.open(segment.path)
        seal = read_seal(file, segment.first)
        file.close()
        assert seal is not None
        assert seal.previous_digest == previous or not previous
        previous = segment.digest  # the last of those that it stands for
    assert GROUP_DIRECTORY in world.group.history.segment_set.folder.parents


def crash_anywhere() -> None:
    """In a tidy, at each storage call of it, both kinds of crash."""
    for stop in range(1, _calls_of_a_tidy() + 1):
        for power in (False, True):
            world = thinned(count=10, every=4)
            world.storage.stop_at(stop)
            with suppress(Stopped):
                world.tidy(100)
            world.crash(power=power)
            world.check()
            world.tidy(100)
            world.check()


def test_a_crash_anywhere_in_it_changes_no_point() -> None:
    crash_anywhere()


def test_a_segment_that_is_not_durable_before_it_replaces_others_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A test of the test before."""
    monkeypatch.setattr(_NewSegment, "finish", lambda new: new._close())
    monkeypatch.setattr(compaction, "seal_segment", _seal_unsynced)
    with pytest.raises((AssertionError, DamageError)):
        crash_anywhere()


def _seal_unsynced(
    storage: SimStorage, path: Path, *, end_lsn: int, previous_digest: bytes
) -> Seal:
    with pytest.MonkeyPatch.context() as inner:
        inner.setattr(SimFile, "datasync", lambda _file: None)
        return seal_segment(storage, path, end_lsn=end_lsn, previous_digest=previous_digest)


def _calls_of_a_tidy() -> int:
    world = thinned(count=10, every=4)
    before = sum(world.storage.calls.values())
    world.tidy(100)
    return sum(world.storage.calls.values()) - before


def test_limits_do_not_change_what_is_kept() -> None:
    seen = []
    for step_blocks in (1, 7, 1000):
        world = world_with(20, limits=replace(LIMITS, step_blocks=step_blocks))
        world.give_up([each for each in range(1, 20) if each % 5])
        world.tidy(1000)
        world.check()
        seen.append(sum(batch.images.block_count for batch in world.group.history.batch_list.all))
    assert len(set(seen)) == 1
