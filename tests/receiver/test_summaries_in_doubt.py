# SPDX-License-Identifier: Apache-2.0
"""Summaries that are old, foreign, torn or forged, and segments that rot behind them: never a false
point."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from receiver.history.batches import Segment
from receiver.history.summary import pack
from receiver.points.policy import HistoryPolicy
from replicator.base.errors import DamageError
from tests.receiver import actions
from tests.receiver.history_of_seed import FINE_NS
from tests.receiver.side_by_side import FOLDERS, Group
from tests.receiver.source import noise
from tests.receiver.summarized import (
    LIVES,
    TINY,
    Watched,
    content,
    files,
    grown,
    history_of,
    opened,
    put,
    same,
    sealed,
    started_anew,
    summarize,
    summary_file,
)
from tests.receiver.world import GROUP_DIRECTORY, World

# -- what is not believed


def spoil(world: World, rng: Random, seen: dict[Path, bytes]) -> None:
    """Whatever may lie in that folder."""
    storage = world.storage
    there = {path: content(storage, path) for path in files(world)}
    seen.update(there)
    for path, data in there.items():
        match rng.randrange(8):
            case 0:
                storage.unlink(path)
            case 1 if data:
                spoilt = bytearray(data)
                spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
                put(storage, path, bytes(spoilt))
            case 2:
                put(storage, path, data[: rng.randrange(len(data) + 1)])
            case 3:
                put(storage, path, rng.choice(list(seen.values())))
            case 4:
                put(storage, path, bytes(len(data)))
            case _:
                pass
    for path in rng.sample(sorted(seen), min(2, len(seen))):  # of an older history
        if not storage.exists(path):
            put(storage, path, seen[path])


@pytest.mark.parametrize("seed", range(LIVES))
def test_whatever_becomes_of_them_an_opening_finds_the_same(seed: int) -> None:
    rng = Random(seed)
    draw = actions.rng_draw(rng)
    world = Watched(seed=seed, limits=TINY, fine_ns=FINE_NS[seed % 3])
    actions.start(world, draw)
    names = list(actions.ACTIONS)
    weights = [actions.ACTIONS[name][0] for name in names]
    seen: dict[Path, bytes] = {}
    for _ in range(50):
        (name,) = rng.choices(names, weights)
        if rng.randrange(12) == 0:
            actions.crash_in(world, name, draw)
        else:
            actions.perform(world, name, draw)
        if rng.randrange(4) == 0:
            spoil(world, rng, seen)
        if rng.randrange(8) == 0:
            world.crash(power=bool(rng.randrange(2)))
            world.check()
    world.finish_rollback()
    world.apply_all()
    world.check()


def test_a_folder_of_another_group_is_not_believed_and_goes() -> None:
    world, other = grown(12), grown(12, seed=500)
    for path in files(world):
        world.storage.unlink(path)
    for path in files(other):
        put(world.storage, path, content(other.storage, path))
    world.crash(power=False)
    world.check()
    summarize(world)
    same(world.storage)
    assert len(files(world)) == len(sealed(world))


def test_a_newest_segment_that_was_being_made_leaves_the_state_to_the_one_before() -> None:
    world = grown(16)
    storage = world.storage
    newest = history_of(world).segment_set.newest
    assert newest is not None
    storage.kill()
    storage.unlink(newest.path)
    put(storage, newest.path, b"")
    one, other = opened(storage, by_summaries=True), opened(storage, by_summaries=False)
    assert one.contents is not None
    assert other.contents is not None
    assert one.contents.begins == other.contents.begins
    assert one.contents.state == other.contents.state
    assert one.contents.begins


# -- what is looked at behind the opening


def spoil_header(world: World, at: int) -> Segment:
    """Of a batch in a sealed segment."""
    segment = sealed(world)[at]
    batch = next(each for each in history_of(world).batch_list.all if each.begin >= segment.first)
    file = world.storage.open(segment.path, writable=True)
    offset = SEGMENT_HEADER_BYTES + batch.begin - segment.first + 80
    byte = file.pread(1, offset)
    file.pwritev([bytes([byte[0] ^ 1])], offset)
    file.datasync()
    file.close()
    return segment


def tidied(world: World) -> None:
    while world.group.tidy():
        pass


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("sum_rows", [2, 1000], ids=["sums known", "sums to be gathered"])
def test_a_header_that_rotted_stops_the_group_behind_the_opening_at_the_latest(
    at: int, sum_rows: int
) -> None:
    world = grown(20, limits=replace(TINY, sum_rows=sum_rows))
    tidied(world)
    segment = spoil_header(world, at)
    with suppress(DamageError):  # what was written last is read at the opening
        started_anew(world)
        for point in world.group.points.all:
            with suppress(DamageError):
                world.check_point(point)  # true, or refused
        for _ in range(2):
            with pytest.raises(DamageError, match=f"{segment.path.name}: record at offset"):
                tidied(world)
    for path in files(world):
        world.storage.unlink(path)
    with pytest.raises(DamageError, match=f"{segment.path.name}: record at offset"):
        started_anew(world)


@pytest.mark.parametrize("what", ["batches", "dropped", "texts"])
def test_a_forged_summary_stops_the_group_and_is_gone_with_the_next_start(what: str) -> None:
    world = grown(16)
    path, identity, found = summary_file(world, 1)
    forged = {
        "batches": found.batches[1:],
        "dropped": found.dropped | {2},
        "texts": {**found.texts, "a digest": "<domain/>"},
    }
    other: Any = {what: forged[what]}
    put(world.storage, path, pack(identity, replace(found, **other)))
    started_anew(world)
    for _ in range(2):
        with pytest.raises(DamageError, match="says otherwise than its summary"):
            summarize(world)
    assert not world.storage.exists(path)
    started_anew(world)
    summarize(world)
    same(world.storage)
    world.check()


def test_a_point_that_a_segment_gives_up_is_given_up_by_its_summary() -> None:
    world = grown(8)
    world.give_up([2, 3])
    for number in range(8):
        world.write("a", number % 6 * 4096, noise(900 + number, 4096))
        world.cut()
        world.settle()
    world.group.retain(HistoryPolicy(1 << 30))
    summarize(world)
    world.crash(power=True)
    assert not {2, 3} & {each.sequence for each in world.group.points.all}
    world.check()


@pytest.mark.parametrize("how", ["older", "missing", "newer"])
def test_summaries_are_made_anew(how: str) -> None:
    """None is believed of another history's segment: they go by its digest."""
    group = Group()
    while group.world.group.tidy():
        pass
    then, now = group._files(GROUP_DIRECTORY / "summaries"), group.folders()
    assert len(then) > 3
    group.retain(20_000)
    for number in range(13, 25):
        group.write(number)
        group.world.settle()
    while group.world.group.tidy():
        pass
    newest = group._files(GROUP_DIRECTORY / "summaries")
    group.stop()
    if how == "missing":
        group.remove("summaries")
    elif how == "older":
        group.put_back("summaries", then)
    else:
        for folder in FOLDERS:
            group.put_back(folder, now[folder])
        group.put_back("summaries", newest)
    group.open()
    group.highest = 24
    assert len(group.check()) > 3
    while group.world.group.tidy():
        pass
    made = group._files(GROUP_DIRECTORY / "summaries")
    assert len(made) == len(group.world.group.history.segment_set.sealed)
