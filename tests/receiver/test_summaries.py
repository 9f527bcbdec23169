# SPDX-License-Identifier: Apache-2.0
"""Summaries of sealed segments: what they say, what an opening costs, how they are made."""

from __future__ import annotations

import errno
import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from receiver.history import summary, units, writer
from receiver.history.batches import Batch
from receiver.history.bodies import Held, StandsFor
from receiver.history.images import ImageFigures
from receiver.history.log import HistoryLog
from receiver.history.summary import SegmentIdentity, Summary, pack, parse
from receiver.points.values import Point, PointDisk
from tests.receiver.source import noise
from tests.receiver.summarized import (
    FOLDER,
    HISTORY,
    content,
    files,
    grown,
    history_of,
    put,
    said_by,
    same,
    sealed,
    started_anew,
    summarize,
    summary_file,
)
from tests.receiver.world import SMALL
from tests.world.faults import Failure
from tests.world.storage import SimFile, Stopped

# -- the format


def test_a_summary_says_what_the_segment_says() -> None:
    world = grown(20)
    for at, segment in enumerate(sealed(world)):
        assert summary_file(world, at)[2] == said_by(world, segment)


def test_every_field_of_a_batch_and_its_point_is_told() -> None:
    """A field that comes later is told as well, and raises the version: else a summary from before
    would be believed without it."""
    count = itertools.count(2)

    def filled(kind: Any) -> Any:
        special = {
            "kind": {Point: "rollback", Batch: "zero"}.get(kind),
            "consistent": False,
            "label": "a label",
            "members": (filled(PointDisk), filled(PointDisk)) if kind is Point else (),
            "domains": {"a domain": "its digest"},
            "images": filled(ImageFigures) if kind is Batch else None,
            "point": filled(Point) if kind is Batch else None,
            "held": Held(next(count), next(count), next(count)),
        }
        values = {}
        for field in fields(kind):
            is_text = field.type == "str"
            value = f"text {next(count)}" if is_text else next(count)
            values[field.name] = special.get(field.name, value)
        return kind(**values)

    point = filled(Point)
    unsaid = {"is_restamped": False, "stood_ns": 0, "until_ns": point.time_ns}  # known by others
    batch = replace(filled(Batch), point=replace(point, **unsaid))
    every = Summary(StandsFor(9, 8, b"7" * 32), 5, {"a": "b"}, frozenset([3, 4]), [batch])
    identity = SegmentIdentity(1, 2, b"d" * 32)
    assert parse(pack(identity, every), identity) == every
    assert (summary.VERSION, len(fields(Point)), len(fields(PointDisk))) == (1, 17, 5)
    assert (len(fields(Batch)), len(fields(ImageFigures)), len(fields(Summary))) == (11, 3, 5)


def test_what_cannot_be_told_whole_is_not_put_down(monkeypatch: pytest.MonkeyPatch) -> None:
    world = grown(12, summarized=False)
    monkeypatch.setattr("receiver.history.summaries.parse", lambda *_: None)
    summarize(world)
    assert files(world) == []
    world.crash(power=False)
    world.check()


def test_no_bit_and_no_end_of_it_may_be_another() -> None:
    path, identity, _ = summary_file(world := grown(8), 1)
    data = content(world.storage, path)
    for at in range(8 * len(data)):
        spoilt = bytearray(data)
        spoilt[at // 8] ^= 1 << at % 8
        assert parse(bytes(spoilt), identity) is None
    for end in range(len(data)):
        assert parse(data[:end], identity) is None
    assert parse(data + b"\0", identity) is None


def test_one_of_another_segment_or_version_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    world = grown(12)
    _, identity, found = summary_file(world, 0)
    data = pack(identity, found)
    assert parse(data, identity) == found
    for other in (
        replace(identity, first=identity.first + 1),
        replace(identity, end=identity.end + 1),
        replace(identity, digest=summary_file(world, 1)[1].digest),
    ):
        assert parse(data, other) is None
    monkeypatch.setattr(summary, "VERSION", 2)
    assert parse(data, identity) is None


# -- what an opening costs


class _Counts:
    """Of an opening: records that were parsed, and bytes that were read of each file."""

    def __init__(self) -> None:
        self.records = 0
        self.bytes: dict[Path, int] = {}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> _Counts:
    found = _Counts()
    read_record, pread = units._read_record, SimFile.pread

    def parsing(*arguments: object) -> object:
        found.records += 1
        return read_record(*arguments)  # type: ignore[arg-type]

    def reading(self: SimFile, size: int, offset: int) -> bytes:
        data = pread(self, size, offset)
        found.bytes[self.path] = found.bytes.get(self.path, 0) + len(data)
        return data

    monkeypatch.setattr(units, "_read_record", parsing)
    monkeypatch.setattr(SimFile, "pread", reading)
    return found


@pytest.mark.parametrize("batches", [4, 16, 64])
def test_an_opening_costs_segments_and_not_batches(
    batches: int, counts: _Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BATCHES_MAX", batches)
    world = grown(6 * batches, limits=replace(SMALL, history_segment_bytes=1 << 20))
    history = HistoryLog(world.storage, HISTORY, "g", lambda: 0, 1 << 20)
    counts.records, counts.bytes = 0, {}
    history.open()
    assert len(history.batch_list.all) >= 6 * batches
    count = len(sealed(world))
    assert count >= 5
    assert counts.records <= count + 2, "the first record of each, and the end of the newest batch"
    for segment in sealed(world):
        assert counts.bytes[segment.path] <= SEGMENT_HEADER_BYTES + 4096 + 128
    summaries = [counts.bytes[path] for path in files(world)]
    assert sum(summaries) < 200 * len(history.batch_list.all) + 400 * count
    history.close()


def test_without_them_each_batch_is_read_once_and_then_never_again(counts: _Counts) -> None:
    world = grown(24, summarized=False)
    world.storage.kill()
    for path in files(world):
        world.storage.unlink(path)
    history = HistoryLog(world.storage, HISTORY, "g", lambda: 0, 1 << 20)
    counts.records = 0
    history.open()
    without = counts.records
    history.close()
    counts.records = 0
    history.open()
    assert counts.records <= len(history.opened.segments) + 2 < without / 3
    assert len(files(world)) == len(history.opened.segments) - 1
    history.close()


# -- beside replication


def test_each_segment_gets_one_and_what_is_gone_loses_its_own() -> None:
    world = grown(24)
    before = set(files(world))
    world.give_up(list(range(4, 20)))
    world.tidy(200)
    assert len(files(world)) == len(sealed(world))
    assert set(files(world)) != before
    there = files(world)
    assert any(each.data_end != each.end for each in sealed(world)), "one was compacted"
    world.crash(power=False)
    summarize(world)
    assert files(world) == there
    world.check()


def test_it_is_made_a_bounded_part_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.history.summaries.UNITS_PER_STEP", 3)
    world = grown(20, limits=replace(SMALL, history_segment_bytes=40_000), summarized=False)
    steps = 0
    while history_of(world).summaries.step():
        steps += 1
        assert steps < 200
    said = sum(2 * len(said_by(world, each).batches) + 1 for each in sealed(world))
    assert steps >= said // 3
    assert len(files(world)) == len(sealed(world))


@pytest.mark.parametrize("call", ["create", "pwritev", "make_directory", "unlink"])
def test_a_disk_that_takes_none_stops_nothing(call: str) -> None:
    world = grown(6, summarized=False)
    for path in files(world)[:1]:
        put(world.storage, path, b"torn")
    failure = Failure(frozenset([call]), 1, errno.ENOSPC, forever=True, under=FOLDER)
    world.storage.plan(failure)
    for number in range(6, 14):
        world.write("a", number % 6 * 4096, noise(number, 4096))
        world.cut()
        world.settle()
        world.tidy(20)
    world.storage.kill()
    world.group = world._new_group()
    world.group.recover()
    world.check()
    world.storage.heal()
    world.crash(power=False)
    summarize(world)
    same(world.storage)
    assert len(files(world)) == len(sealed(world))


@pytest.mark.parametrize("call", ["open", "pread"])
def test_one_that_cannot_be_read_is_as_good_as_none(call: str) -> None:
    world = grown(12)
    world.storage.plan(Failure(frozenset([call]), 1, errno.EIO, forever=True, under=FOLDER))
    world.crash(power=False)
    world.check()


@pytest.mark.parametrize("power", [False, True])
def test_a_crash_before_each_call_of_making_and_of_opening(power: bool) -> None:
    at = 1
    while True:
        world = grown(12, seed=at, summarized=False)
        world.give_up([2, 3, 5, 6])
        world.storage.stop_at(at)
        try:
            world.tidy(200)
        except Stopped:
            pass
        else:
            world.storage.heal()
            break
        world.crash(power=power, recover_stop=1 + at % 7)
        world.check()
        summarize(world)
        same(world.storage)
        at += 1
    assert at > 12


def test_what_was_believed_is_gone_through_once_behind_the_opening(counts: _Counts) -> None:
    world = grown(20)
    started_anew(world)
    counts.records = 0
    summarize(world)
    said = sum(2 * len(said_by(world, each).batches) + 1 for each in sealed(world))
    assert counts.records >= said
    counts.records = 0
    summarize(world)
    assert counts.records == 0
