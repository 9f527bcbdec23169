# SPDX-License-Identifier: Apache-2.0
"""What the survey reads from a spool: whether a stream is there from its very first record."""

from __future__ import annotations

from pathlib import Path

from agent.shipping.survey import Live, survey
from journal.record import RecordType
from journal.spool import StreamName, list_segments
from replicator.wire.messages import Welcome
from tests.agent.world import World

KIB = 1024


def nothing() -> Welcome:
    return Welcome("r", 0, None, 0, 0, 0, 0, 0, 0)


def world_of(path: Path) -> World:
    return World(path, [("d0", 256 * KIB)])


def begins(world: World) -> list[bool]:
    return [
        stream.begins_with_sync
        for stream in survey(world.storage, world.directories, None, nothing())
    ]


def test_a_stream_from_its_sync_begin_on(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.source.open_stream()
    world.source.sync_begin(0)
    assert begins(world) == [True]


def test_a_first_record_of_any_other_kind_is_no_beginning(tmp_path: Path) -> None:
    """Our splitter begins no stream so; what lies in a spool may be another's."""
    world = world_of(tmp_path)
    world.source.open_stream()
    world.source.append(RecordType.WRITE, b"x" * 512, disk=0, offset=0, length=512)
    assert begins(world) == [False]


def test_a_stream_whose_first_segment_is_gone_is_not_there_from_its_beginning(
    tmp_path: Path,
) -> None:
    world = world_of(tmp_path)
    world.source.open_stream()
    world.source.sync_begin(0)
    for number in range(12):
        world.source.write(0, 0, bytes([number]) * (64 * KIB))
    assert world.source.stream is not None
    name = StreamName(1, world.source.stream)
    first, *rest = list_segments(world.storage, world.directories, name)
    assert rest
    first.path.unlink()
    assert begins(world) == [False]


def test_a_live_stream_without_a_record_is_among_them(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    world.source.open_stream()
    assert world.source.stream is not None
    live = Live(StreamName(1, world.source.stream), 0)
    (found,) = survey(world.storage, world.directories, live, nothing())
    assert found.live
    assert not found.begins_with_sync
    assert found.first_lsn == found.end_lsn
