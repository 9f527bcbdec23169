# SPDX-License-Identifier: Apache-2.0
"""Frames as they came: durable before they count, kept until they are applied for good."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from journal.spool import StreamName
from receiver.intake.inbox import Inbox
from replicator.base.errors import NoSpaceError
from replicator.wire.frames import FrameOpener
from tests.receiver.source import Source
from tests.receiver.world import SMALL, World
from tests.world.faults import Failure
from tests.world.storage import SimStorage

FOLDER = Path("/inbox")


def new_inbox(storage: SimStorage, *, cache_bytes: int = 0) -> Inbox:
    inbox = Inbox(
        storage,
        FOLDER,
        "g",
        lambda: 1,
        segment_bytes=SMALL.inbox_segment_bytes,
        cache_bytes=cache_bytes,
    )
    inbox.open()
    return inbox


def stream_of(ordinal: int, records: int = 6) -> Source:
    source = Source([("a", 1 << 20)], ordinal=ordinal, first_lsn=ordinal << 20)
    source.sync_begin("a", from_zero=True)
    rng = Random(ordinal)  # so that frames do not shrink
    for number in range(records - 1):
        source.write("a", number * 4096, rng.randbytes(4096))
    return source


def feed(inbox: Inbox, source: Source, records: slice = slice(None)) -> None:
    for record in source.records[records]:
        frame = source.frame([record])
        inbox.append(frame, FrameOpener().open(frame))


def begin(inbox: Inbox, source: Source) -> None:
    name = StreamName(source.ordinal, source.stream)
    inbox.begin_stream(name, source.first_lsn, source.first_chain)


def test_frames_come_back_in_order_after_a_power_cut_if_they_were_synced() -> None:
    world = World()  # for its rng
    storage = SimStorage()
    inbox, source = new_inbox(storage), stream_of(1)
    begin(inbox, source)
    feed(inbox, source, slice(0, 4))
    inbox.sync()
    feed(inbox, source, slice(4, 6))
    assert [frame.end_lsn for frame in inbox.frames_from(1, 0)] == [
        record.end_lsn for record in source.records[:4]
    ], "what is not durable is not applied"
    storage.power_cut(world.rng)
    inbox = new_inbox(storage)
    stream = inbox.newest
    assert stream is not None
    assert stream.durable_lsn >= source.records[3].end_lsn
    assert stream.durable_lsn == stream.received_lsn
    assert stream.durable_chain == source.chain_at(stream.durable_lsn)
    frames = inbox.frames_from(1, source.records[1].end_lsn)
    assert [frame.start_lsn for frame in frames][:2] == [
        record.lsn for record in source.records[2:4]
    ]
    opened = inbox.read(1, frames[0])
    assert bytes(opened.records[0][1].payload) == source.records[2].payload


def test_segments_go_when_all_in_them_is_applied_and_the_last_one_stays() -> None:
    storage = SimStorage()
    inbox, source = new_inbox(storage), stream_of(1, records=30)
    begin(inbox, source)
    for at in range(0, 30, 3):
        feed(inbox, source, slice(at, at + 3))
        inbox.sync()
    folder = FOLDER / StreamName(1, source.stream).directory
    count = len(storage.names(folder))
    assert count > 4
    inbox.free(1, source.records[14].end_lsn)
    assert 1 < len(storage.names(folder)) < count
    assert inbox.frames_from(1, 0)[0].end_lsn == source.records[15].end_lsn
    inbox.free(1, source.end_lsn)
    assert len(storage.names(folder)) == 1
    again = new_inbox(storage)
    assert again.newest is not None
    assert again.newest.durable_lsn == source.end_lsn


def test_streams_follow_each_other_and_go_when_a_later_one_is_applied() -> None:
    storage = SimStorage()
    inbox, first, second = new_inbox(storage), stream_of(1), stream_of(2)
    begin(inbox, first)
    feed(inbox, first)
    inbox.sync()
    begin(inbox, second)
    assert inbox.stream_after(1) is None, "nothing of it is durable"
    feed(inbox, second)
    inbox.sync()
    assert inbox.stream_after(1) == (StreamName(2, second.stream), second.first_lsn)
    inbox = new_inbox(storage)
    assert len(inbox.frames_from(1, 0)) == len(inbox.frames_from(2, 0)) == 6
    inbox.free(2, second.first_lsn)
    assert storage.names(FOLDER) == [StreamName(2, second.stream).directory]


def test_a_failed_sync_takes_back_what_was_not_durable() -> None:
    storage = SimStorage()
    inbox, source = new_inbox(storage), stream_of(1)
    begin(inbox, source)
    feed(inbox, source, slice(0, 2))
    inbox.sync()
    feed(inbox, source, slice(2, 4))
    storage.plan(Failure(frozenset(["datasync"]), 1, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        inbox.sync()
    stream = inbox.newest
    assert stream is not None
    assert stream.received_lsn == stream.durable_lsn == source.records[1].end_lsn
    feed(inbox, source, slice(2, 6))
    inbox.sync()
    inbox = new_inbox(storage)
    assert len(inbox.frames_from(1, 0)) == 6


def test_what_is_left_after_a_failed_sync_has_its_own_chain() -> None:
    """By the chain the source proves that it goes on with the same stream."""
    storage = SimStorage()
    inbox, source = new_inbox(storage), stream_of(1)
    begin(inbox, source)
    feed(inbox, source, slice(0, 2))
    inbox.sync()
    feed(inbox, source, slice(2, 4))
    storage.plan(Failure(frozenset(["datasync"]), 1, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        inbox.sync()
    inbox.sync()  # nothing has come since
    stream = inbox.newest
    assert stream is not None
    known = source.chain_at(source.records[1].end_lsn)
    assert (stream.chain, stream.durable_chain) == (known, known)


def test_what_a_failed_sync_left_does_not_come_back() -> None:
    """By the time of a power cut the source may be elsewhere."""
    for seed in range(20):
        world = World(seed=seed)
        storage = SimStorage()
        inbox, source = new_inbox(storage), stream_of(1)
        begin(inbox, source)
        feed(inbox, source)
        storage.plan(Failure(frozenset(["sync_directory"]), 1, errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            inbox.sync()
        storage.power_cut(world.rng)
        assert new_inbox(storage).newest is None


def test_a_full_disk_refuses_the_frame_and_keeps_the_rest() -> None:
    world = World()
    world.begin_stream(from_zero=True)
    world.settle()
    world.write("a", 0, b"1" * 4096)
    world.cut()
    world.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.ENOSPC, forever=True))
    with pytest.raises(NoSpaceError, match="the disk under the inbox of group 'g' is full"):
        world.ship(9)
    world.storage.heal()
    world.settle()
    world.check()
    assert len(world.group.points.all) == 1


def test_opened_frames_are_kept_within_bounds() -> None:
    storage = SimStorage()
    inbox, source = new_inbox(storage, cache_bytes=9000), stream_of(1)
    begin(inbox, source)
    feed(inbox, source)
    inbox.sync()
    assert sum(each.header.raw_bytes for each in inbox._cache.values()) <= 9000
    for frame, record in zip(inbox.frames_from(1, 0), source.records, strict=True):
        assert inbox.read(1, frame).records[0][0] == record.lsn
    inbox.free(1, source.end_lsn)
    assert inbox._cache == {}
    assert inbox._cache_room == 9000
