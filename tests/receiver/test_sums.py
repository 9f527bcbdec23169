# SPDX-License-Identifier: Apache-2.0
"""Sums of the replica: from the history, and from the base when the history has let them go. That
they are right in every life is checked by tests.receiver.world after each step."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.history.batches import imageless_upto
from receiver.history.sums import layers as sum_layers
from receiver.history.sums import sums as latest_sums
from receiver.history.sums.base import SumBase
from receiver.history.sums.layers import SumLayers
from receiver.history.sums.runs import CHUNK_ROWS, RunFacts, SumRun, write_run
from receiver.retention.reclaim import Pins
from replicator.base.errors import DamageError
from tests.receiver import actions
from tests.receiver.source import noise
from tests.receiver.world import SMALL, World
from tests.world.faults import Failure
from tests.world.storage import SimStorage, Stopped

FOLDER = Path("/data/sums")
Row = tuple[int, int]


def base_on(storage: SimStorage) -> SumBase:
    base = SumBase(storage, FOLDER)
    base.open()
    return base


def absorb(base: SumBase, rows: dict[int, int], upto: int) -> None:
    keys = np.array(sorted(rows), dtype=np.uint64)
    sums = np.array([rows[key] for key in sorted(rows)], dtype=np.uint64)
    base.absorb([(keys, sums)], upto=upto, first=0, end=upto * 10)


def read(base: SumBase, start: int = 0, end: int = 1 << 63) -> dict[int, int]:
    found, bad = base.read(start, end)
    assert not bad
    rows: dict[int, int] = {}
    for keys, sums in found:
        rows.update(zip(keys.tolist(), sums.tolist(), strict=True))
    return rows


def files(storage: SimStorage) -> list[str]:
    return sorted(storage.names(FOLDER))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 60), st.integers(0, 1 << 64 - 1), max_size=20)),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_the_latest_sum_of_each_block_wins(
    parts: list[dict[int, int]], low: int, high: int
) -> None:
    storage, expected = SimStorage(), dict[int, int]()
    base = base_on(storage)
    for upto, rows in enumerate(parts, start=1):
        absorb(base, rows, upto)
        expected.update(rows)
    for again in (base, base_on(storage)):
        assert again.upto == len(parts)
        assert read(again) == expected
        within = {key: value for key, value in expected.items() if low <= key < high}
        assert read(again, low, max(low, high)) == within


def test_runs_are_merged_so_that_few_are_left() -> None:
    storage = SimStorage()
    base = base_on(storage)
    for upto in range(1, 65):
        absorb(base, {upto * 1000 + at: upto for at in range(10)}, upto)
    assert len(files(storage)) <= 7
    assert len(read(base)) == 640


def test_a_long_run_is_read_in_parts(tmp_path: Path) -> None:
    storage, path = SimStorage(), FOLDER / "run"
    storage.make_directory(FOLDER)
    keys = np.arange(0, 3 * CHUNK_ROWS * 2, 2, dtype=np.uint64)[: 3 * CHUNK_ROWS - 5]
    parts = [(each, each + np.uint64(1)) for each in np.array_split(keys, 7)]
    write_run(storage, path, RunFacts(1, 1, is_whole=True), parts)
    run = SumRun.open(storage, path)
    found, sums, bad = run.read(CHUNK_ROWS * 2 - 3, CHUNK_ROWS * 2 + 3)
    assert found.tolist() == [CHUNK_ROWS * 2 + shift for shift in (-2, 0, 2)]
    assert (sums == found + np.uint64(1)).all()
    assert not bad


def test_rot_in_rows_costs_their_range_and_says_where() -> None:
    storage = SimStorage()
    base = base_on(storage)
    absorb(base, dict.fromkeys(range(3 * CHUNK_ROWS), 7), 1)
    (name,) = files(storage)
    offset = 64 + (CHUNK_ROWS + 9) * 16
    storage.flip(FOLDER / name, offset)
    base = base_on(storage)
    found, (bad,) = base.read(0, 4 * CHUNK_ROWS)
    assert (bad.start, bad.end) == (CHUNK_ROWS, 2 * CHUNK_ROWS)
    assert (bad.path.name, bad.offset) == (name, 64 + CHUNK_ROWS * 16)
    assert sum(len(keys) for keys, _ in found) == 2 * CHUNK_ROWS


@pytest.mark.parametrize("offset", [3, 20, 60, -5], ids=["magic", "upto", "checksum", "directory"])
def test_rot_elsewhere_costs_the_run_and_the_claim_to_know_all(offset: int) -> None:
    storage = SimStorage()
    absorb(base_on(storage), {1: 2}, 1)
    (name,) = files(storage)
    size = 64 + 16 + 16
    storage.flip(FOLDER / name, offset % size)
    base = base_on(storage)
    (damage,) = base.damage
    assert isinstance(damage, DamageError)
    assert name in damage.message
    assert not base.reaches(0)


def test_what_was_lost_is_known_to_be_unknown() -> None:
    storage = SimStorage()
    base = base_on(storage)
    absorb(base, {1: 2}, 1)
    assert base.reaches(10)
    assert not base.reaches(11), "the history has lost something that is not here"
    base.give_up()
    assert not files(storage)
    assert not base.reaches(10)
    base.absorb([], upto=5, first=40, end=50)
    assert not base.reaches(50), "there was a gap"


def test_a_base_from_another_time_shows_by_what_the_history_let_go_of() -> None:
    storage = SimStorage()
    base = base_on(storage)
    absorb(base, {1: 2}, 3)
    assert not base.lacks(30, 3)
    assert base.lacks(31, 3), "older than the history's beginning"
    assert base.lacks(30, 4), "a batch lost its images since"
    base.begin_anew(31, 4)
    for again in (base, base_on(storage)):
        assert not again.lacks(31, 4), "said once"
        assert not again.reaches(31)
        assert not read(again)


def test_a_base_from_another_time_goes_on_a_full_disk_as_well() -> None:
    storage = SimStorage()
    base = base_on(storage)
    absorb(base, {1: 2}, 3)
    storage.plan(Failure(frozenset(["pwritev"]), 1, errno.ENOSPC, under=FOLDER))
    base.begin_anew(31, 4)
    storage.heal()
    assert not read(base)
    assert not base.reaches(31)
    storage.plan(Failure(frozenset(["pwritev"]), 1, errno.ENOSPC, under=FOLDER))
    with pytest.raises(OSError, match="space"):
        base.begin_anew(0, 4)  # an empty one would say that nothing is missing


@pytest.mark.parametrize(
    ("merged", "stays"), [([(3, 7)], False), ([(1, 5), (6, 9)], True), ([(5, 6)], False)]
)
def test_own_runs_from_before_a_merge_are_not_taken_up(
    merged: list[tuple[int, int]], stays: bool
) -> None:
    """Its batches share their blocks anew under the old numbers."""
    storage = SimStorage()
    own = SumBase(storage, FOLDER / "newest")
    layers = SumLayers(base_on(storage), own)
    layers.open(9)
    layers.put(np.array([1], np.uint64), np.array([2], np.uint64), upto=5, end=50)
    layers.write_down()
    layers.open(9, merged)
    assert layers.own_upto == (5 if stays else 0)


def test_of_a_quiet_guest_little_is_in_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all headers since the last run would be read before the first batch after a start."""
    monkeypatch.setattr(sum_layers, "BATCHES_MAX", 4)
    storage = SimStorage()
    own = SumBase(storage, FOLDER / "newest")
    own.open()
    layers = SumLayers(base_on(storage), own)
    layers.open(0)
    one = np.array([7], dtype=np.uint64)
    for number in range(1, 12):
        layers.put(one, one, upto=number, end=10 * number)
        assert number - own.upto < 4
    assert own.upto == 8


def test_headers_are_gathered_a_bounded_number_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(limits=replace(SMALL, sum_rows=1000))
    world.begin_stream(from_zero=True)
    for number in range(9):
        world.write("a", 0, noise(number, 4096))
        world.cut()
        world.settle()
    world.crash(power=False)
    monkeypatch.setattr(latest_sums, "GATHER_BATCHES", 2)
    steps = 0
    while world.group._parts.sums.gather():
        steps += 1
    assert steps == -(-world.group.history.batch_list.newest_number // 2)
    world.check()


def test_a_history_says_which_batches_have_lost_their_images() -> None:
    """So that sums from before that show; also where the segment is written anew."""
    world = World(seed=3, limits=replace(SMALL, history_segment_bytes=1 << 20))
    world.begin_stream(from_zero=True)
    for value in range(1, 20):
        world.write("a", value % 5 * 4096, noise(value, 4096))
        world.write("b", value % 3 * 4096, noise(100 + value, 4096))
        world.cut()
        world.settle()
    history = world.group.history
    history.seal_newest(world.group.applier.newest_state)
    assert not history.segment_set.sealed[0].imageless
    oldest = history.batch_list.of_point(13)
    assert oldest is not None
    world.give_up(list(range(1, 13)))
    world.tidy(100)
    said = max(each.imageless for each in history.segment_set.sealed)
    assert said == oldest.number
    assert not world.group._parts.sum_base.lacks(history.segment_set.sealed[0].first, said)
    (segment,) = [each for each in history.segment_set.sealed if each.imageless]
    world.group._parts.reclaim.rewrite(segment, {}, Pins(frozenset(), frozenset()))
    actions.crash(world, actions.rng_draw(Random(1)))
    assert imageless_upto(world.group.history.opened.segments) == said
    world.check()


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
def test_a_crash_anywhere_leaves_all_that_was_absorbed(power: bool) -> None:
    stop = 0
    while True:
        stop += 1
        storage = SimStorage()
        base, durable, tried = base_on(storage), dict[int, int](), dict[int, int]()
        storage.stop_at(stop)
        try:
            for upto in range(1, 6):
                tried = {**durable, upto: upto * 10, 100: upto}
                absorb(base, {upto: upto * 10, 100: upto}, upto)
                durable = tried
        except Stopped:
            if power:
                storage.power_cut(Random(stop))
            else:
                storage.kill()
            again = base_on(storage)
            assert not again.damage
            assert read(again) in (durable, tried)
            again.close()
            continue
        storage.heal()
        assert stop > 30
        return


def test_a_full_disk_changes_nothing() -> None:
    for nth in range(1, 12):
        storage = SimStorage()
        base = base_on(storage)
        absorb(base, {1: 1}, 1)
        storage.plan(Failure(frozenset(["pwritev", "create"]), nth, errno.ENOSPC, under=FOLDER))
        try:
            absorb(base, {1: 2, 2: 2}, 2)
        except OSError:
            expected = {1: 1}
        else:
            expected = {1: 2, 2: 2}
        storage.heal()
        assert read(base) == expected
        assert read(base_on(storage)) == expected


def test_images_stay_where_a_full_disk_has_no_room_for_their_sums() -> None:
    """At the very beginning of a history an empty base cannot say that something is missing."""
    for nth in range(1, 25):
        world = World(seed=nth)
        world.begin_stream(from_zero=True)
        world.write("b", 5 * 4096, noise(1, 4096))  # by the first batch alone
        for value in range(1, 8):
            world.write("a", 0, noise(value, 4096))
            world.write("b", value % 3 * 4096, noise(value, 4096))
            world.cut()
            world.settle()
        world.give_up([1, 2])
        world.storage.plan(Failure(frozenset(["datasync"]), nth, errno.ENOSPC))
        world.tidy(12)
        world.storage.heal()
        world.check()
