# SPDX-License-Identifier: Apache-2.0
"""A world whose history has summaries, and what must be true of every opening by them.

The oracle is the history itself: what an opening takes by summaries must be, value for value, what
it takes without any (`same`). `Watched` asks that behind every opening of every life."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from journal.spool import SegmentFile, list_segments
from receiver.group.parts import Limits
from receiver.history import units
from receiver.history.batches import Segment
from receiver.history.log import HistoryLog
from receiver.history.opening import Opened, open_history
from receiver.history.summaries import SUFFIX, Summaries, identity_of
from receiver.history.summary import SegmentIdentity, Summary, parse
from receiver.history.writer import history_name
from replicator.base.storage import write_all
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World
from tests.world.storage import SimStorage

FOLDER = GROUP_DIRECTORY / "summaries"
HISTORY = GROUP_DIRECTORY / "history"
LIVES = 40
TINY = replace(SMALL, history_segment_bytes=6_000)


def opened(storage: SimStorage, *, by_summaries: bool) -> Opened:
    name = history_name("g")
    files = list_segments(storage, [HISTORY], name)
    given = Summaries(storage, FOLDER, list) if by_summaries else None
    return open_history(storage, HISTORY / name.directory, files, given)


def same(storage: SimStorage) -> None:
    one, other = opened(storage, by_summaries=True), opened(storage, by_summaries=False)
    for name in ("segments", "batches", "dropped", "texts", "newest", "contents"):
        assert getattr(one, name) == getattr(other, name), name


class Watched(World):
    """See the head of this file."""

    def _recover(self) -> None:
        super()._recover()
        same(self.storage)


def history_of(world: World) -> HistoryLog:
    return world.group.history


def sealed(world: World) -> list[Segment]:
    return history_of(world).segment_set.sealed


def summarize(world: World) -> None:
    while history_of(world).summaries.step():
        pass


def files(world: World) -> list[Path]:
    return [FOLDER / name for name in world.storage.names(FOLDER)]


def content(storage: SimStorage, path: Path) -> bytes:
    file = storage.open(path)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()


def put(storage: SimStorage, path: Path, data: bytes) -> None:
    if storage.exists(path):
        storage.unlink(path)
    file = storage.create(path)
    write_all(file, [data], 0)
    file.close()


def grown(cuts: int, *, limits: Limits = TINY, seed: int = 0, summarized: bool = True) -> World:
    """A point for each cut, and a summary for each sealed segment."""
    world = Watched(seed=seed, limits=limits)
    world.begin_stream(from_zero=True)
    for number in range(cuts):
        world.write("ab"[number % 2], number % 6 * 4096, noise(seed + number, 4096))
        world.cut()
        world.settle()
    if summarized:
        summarize(world)
        assert len(files(world)) == len(sealed(world)) > 1
    return world


def summary_file(world: World, at: int) -> tuple[Path, SegmentIdentity, Summary]:
    segment = sealed(world)[at]
    path = FOLDER / f"{segment.seal_digest.hex()}{SUFFIX}"
    found = parse(content(world.storage, path), identity_of(segment))
    assert found is not None
    return path, identity_of(segment), found


def said_by(world: World, segment: Segment) -> Summary:
    """By the segment itself."""
    place = SegmentFile(segment.first, segment.path)
    file = world.storage.open(segment.path)
    try:
        return units.summary_of(units.read_units(file, place, segment.data_end), place)
    finally:
        file.close()


def started_anew(world: World) -> None:
    world.storage.kill()
    world.group = world._new_group()
    world.group.recover()
