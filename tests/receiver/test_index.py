# SPDX-License-Identifier: Apache-2.0
"""The index of a real history: what it answers, what is left of it after crashes and rot."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from receiver.group.parts import Limits
from receiver.history import writer
from receiver.history.images import EarliestImages
from receiver.history.index.file import HEADER_BYTES, Span
from receiver.history.index.runs import KEY_MAX
from receiver.history.index.stack import ImageStack
from receiver.history.log import HistoryLog
from tests.receiver.source import noise
from tests.receiver.test_reclaim import thinned
from tests.receiver.test_runs import blocks_of
from tests.receiver.world import GROUP_DIRECTORY, World
from tests.world.storage import Stopped

FOLDER = GROUP_DIRECTORY / "index"
TINY = Limits(
    history_segment_bytes=6_000,
    inbox_segment_bytes=6_000,
    batch_bytes=5 * 4096,
    step_blocks=3,
    cache_bytes=8_000,
)


def grown(cuts: int, *, seed: int = 0) -> World:
    """A world with a point for each cut; the index is not made yet."""
    world = World(seed=seed, limits=TINY)
    world.begin_stream(from_zero=True)
    rng = Random(seed)
    for number in range(cuts):
        name = rng.choice("ab")
        world.write(name, rng.randrange(6) * 4096, noise(number, rng.randrange(512, 9000)))
        if rng.random() < 0.2:
            world.zero(name, rng.randrange(5) * 4096, 4096)
        world.cut()
        world.settle()
    return world


def history_of(world: World) -> HistoryLog:
    return world.group.history


def index_all(world: World) -> None:
    while history_of(world).segment_set.index.step():
        pass


def files(world: World) -> list[str]:
    return world.storage.names(FOLDER)


def model(history: HistoryLog, number: int) -> dict[int, object]:
    tables = [history.reader.table(batch) for batch in history.batch_list.after(number)]
    return dict(blocks_of(EarliestImages(tables).within(0, KEY_MAX)))


def check_all(world: World) -> None:
    """Every batch's stack tells what the model does, in whole, in windows and in order."""
    history = history_of(world)
    for batch in history.batch_list.all:
        stack = history.segment_set.stack_behind(batch)
        expected = model(history, batch.number)
        assert blocks_of(stack.within(0, KEY_MAX)) == expected
        walked: dict[int, object] = {}
        for runs in stack.walk():
            walked.update(blocks_of(runs.images()))
        assert walked == expected
        windows: dict[int, object] = {}
        for slot in (0, 1):
            for block in range(0, 65, 5):
                low = slot << 48 | block
                windows.update(blocks_of(stack.within(low, low + 5)))
        assert windows == expected


def test_each_segment_has_a_file_and_neighbours_are_merged() -> None:
    world = grown(60)
    index_all(world)
    history = history_of(world)
    spans = {Span(each.first, each.end) for each in history.segment_set.sealed}
    assert len(spans) > 16
    assert spans <= set(history.segment_set.index.files)
    assert len(history.segment_set.index.files) > len(spans), "some were merged"
    assert files(world) == sorted(span.file_name for span in history.segment_set.index.files)
    check_all(world)
    first = history.segment_set.stack_behind(history.batch_list.all[0])
    assert len(first._files) < len(spans) / 2


def test_a_stack_is_made_before_there_is_an_index() -> None:
    world = grown(20)
    assert files(world) == []
    check_all(world)
    asked = len(history_of(world).segment_set.sealed) - 1  # no point is in front of the first
    assert len(files(world)) == asked, "those that it needed"


def test_a_stack_is_renewed_while_segments_are_sealed_and_indexed() -> None:
    world = grown(7)
    history = history_of(world)
    stacks = {
        batch.number: history.segment_set.stack_behind(batch) for batch in history.batch_list.all
    }
    for number in range(40):
        world.write("a", number % 7 * 4096, noise(number, 5000))
        world.cut()
        world.settle()
        if number % 3 == 0:
            history.segment_set.index.step()
        for first, stack in stacks.items():
            stacks[first] = renewed = stack.renewed(history.segment_set.snapshot(stack.upto))
            assert renewed.upto == history.batch_list.newest_number
            assert blocks_of(renewed.within(0, KEY_MAX)) == model(history, first)
        last = history.batch_list.all[-1]
        stacks[last.number] = history.segment_set.stack_behind(last)
    check_all(world)


def test_after_a_restart_it_is_as_it_was_and_nothing_is_made_again() -> None:
    world = grown(40)
    index_all(world)
    before = files(world)
    world.crash(power=False)
    assert files(world) == before
    assert not history_of(world).segment_set.index.step()
    check_all(world)
    world.check()


# -- crashes


@pytest.mark.parametrize("power", [False, True])
def test_a_crash_at_any_step_leaves_an_index_that_tells_the_truth(power: bool) -> None:
    for at in range(0, 1000, 5 if power else 7):
        world = grown(26)
        world.storage.stop_at(at)
        try:
            index_all(world)
        except Stopped:
            died = True
        else:
            died = False
            world.storage.heal()
        world.crash(power=power)
        assert all(name.endswith(".idx") for name in files(world))
        check_all(world)
        index_all(world)
        check_all(world)
        if not died:
            assert at > 50
            return
    raise AssertionError("never came to its end")


def test_a_crash_while_segments_are_compacted_leaves_no_stale_file() -> None:
    """What a file tells of segments that were rewritten would be false."""
    rewritten = 0
    for at in range(0, 1000, 4):
        world = thinned(12, 4)
        index_all(world)
        before = [each.end for each in history_of(world).segment_set.sealed]
        world.storage.stop_at(at)
        try:
            world.tidy(1000)
        except Stopped:
            died = True
        else:
            died = False
            world.storage.heal()
        world.crash(power=bool(at // 4 % 2))
        rewritten += [each.end for each in history_of(world).segment_set.sealed] != before
        check_all(world)
        world.check()
        if not died:
            assert rewritten > 3
            return
    raise AssertionError("never came to its end")


# -- rot


def rot(world: World, name: str, place: int) -> None:
    world.storage.flip(FOLDER / name, place)


@pytest.mark.parametrize("place", [0, 20, 40, HEADER_BYTES + 3])
def test_a_bad_file_is_noticed_and_made_anew(place: int) -> None:
    world = grown(30)
    index_all(world)
    good = {name: world.storage.open(FOLDER / name).pread(1 << 20, 0) for name in files(world)}
    for name in good:
        rot(world, name, place)
    history = history_of(world)
    stacks: list[tuple[int, ImageStack]] = [
        (
            batch.number,
            ImageStack.behind(
                history.segment_set._reading, batch, history.segment_set.snapshot(batch.number)
            ),
        )
        for batch in history.batch_list.all
    ]
    for number, stack in stacks:
        assert blocks_of(stack.within(0, KEY_MAX)) == model(history, number)
        walked = {k: v for runs in stack.walk() for k, v in blocks_of(runs.images()).items()}
        assert walked == model(history, number)
    world.crash(power=False)
    index_all(world)
    check_all(world)
    index_all(world)
    for name in files(world):
        if not name.startswith("0" * 16):  # nobody has asked what lies in front of the first point
            assert world.storage.open(FOLDER / name).pread(1 << 20, 0) == good[name]


def test_a_file_of_another_history_is_not_taken() -> None:
    world, other = grown(30, seed=1), grown(30, seed=2)
    index_all(world)
    index_all(other)
    name = files(world)[0]
    foreign = other.storage.open(FOLDER / files(other)[0]).pread(1 << 20, 0)
    assert foreign != world.storage.open(FOLDER / name).pread(1 << 20, 0)
    file = world.storage.open(FOLDER / name, writable=True)
    file.truncate(0)
    file.pwritev([foreign], 0)
    world.crash(power=False)
    assert name not in files(world)
    check_all(world)


def test_files_of_nothing_are_removed() -> None:
    world = grown(10)
    index_all(world)
    for name in ("0000.idx", "stray", f"{Span(1, 2).file_name}.new"):
        world.storage.create(FOLDER / name).close()
    world.crash(power=False)
    assert files(world) == sorted(
        Span(each.first, each.end).file_name for each in history_of(world).segment_set.sealed
    )


def test_a_view_goes_on_when_its_files_vanish() -> None:
    world = grown(30)
    index_all(world)
    view = world.group.showing.view(2)
    for name in files(world):
        world.storage.unlink(Path(FOLDER / name))
    whole = {name: view.read(name, 0, size) for name, size in view.disks}
    assert whole == world.expected[2]
    assert world.group.tidy(), "they are made again"
    view.close()
    check_all(world)


def test_a_view_of_a_point_that_nothing_is_left_in_front_of() -> None:
    """Every sealed segment goes, and the one that is written goes on and is sealed in turn."""
    world = grown(6)
    history = history_of(world)
    view = world.group.showing.view(6)
    world.give_up([1, 2, 3, 4, 5])
    world.tidy(100)
    assert history.segment_set.sealed == []
    for number in range(12):
        world.write("a", number % 5 * 4096, noise(90 + number, 6000))
        world.cut()
        world.settle()
        for name, size in view.disks:
            assert view.read(name, 0, size) == world.expected[6][name]
        history.segment_set.index.step()
    assert len(history.segment_set.sealed) > 2
    view.close()
    check_all(world)


def test_a_segment_holds_no_more_batches_than_a_view_should_read_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BATCHES_MAX", 5)
    world = World(limits=Limits(history_segment_bytes=1 << 30))
    world.begin_stream(from_zero=True)
    for value in range(1, 9):
        world.write("a", 0, bytes([value]) * 512)
        world.cut()
        world.settle()
    world.crash(power=False)
    for value in range(9, 14):
        world.write("a", 0, bytes([value]) * 512)
        world.cut()
        world.settle()
    history = world.group.history
    bounds = [
        *(segment.first for segment in history.segment_set.sealed),
        history.segment_set.newest_first,
    ]
    inside = [
        sum(low <= batch.begin < high for batch in history.batch_list.all)
        for low, high in pairwise([*bounds, 1 << 62])
    ]
    assert max(inside) == 5, "the count goes on behind a restart"
    world.check()
