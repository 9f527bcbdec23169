# SPDX-License-Identifier: Apache-2.0
"""What an append costs, where segments go, and readers that follow a live log."""

from __future__ import annotations

import errno
import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from journal.appender import AppendError
from journal.format import RECORDS
from journal.reader import EntryReader, LogReader
from journal.record import HEADER_BYTES
from journal.reopen import reopen
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import Seal, SegmentKind, pack_seal, parse_header
from journal.spool import (
    StreamName,
    free_below,
    list_segments,
    list_streams,
    remove_stream,
    stream_name,
)
from journal.stream_files import read_seal
from replicator.base.errors import DamageError, VersionError
from replicator.base.storage import IOV_MAX, read_whole
from tests.journal.logs import CHAIN, DIRECTORY, STREAM, Inbox, Log, payloads_of
from tests.world.faults import Failure
from tests.world.storage import SimStorage

MEMORY, DISK = Path("/memory/g"), Path("/disk/g")


def test_a_batch_is_one_call_and_nothing_else() -> None:
    storage = SimStorage()
    log = Log(storage)
    log.append(b"opens the segment")
    before = storage.calls.copy()
    log.append(*payloads_of([512] * (IOV_MAX // 2)))
    assert storage.calls - before == {"pwritev": 1}
    log.append(*payloads_of([512] * (IOV_MAX // 2 + 1)))
    assert storage.calls - before == {"pwritev": 3}


def test_a_sync_syncs_each_open_segment_once_its_directory_if_new_and_then_nothing() -> None:
    storage = SimStorage()
    log = Log(storage, segment_bytes=1000)
    for payload in payloads_of([900] * 3):
        log.append(payload)
    before = storage.calls.copy()
    log.sync()
    assert storage.calls - before == {"datasync": 3, "sync_directory": 1}
    log.sync()
    assert storage.calls - before == {"datasync": 3, "sync_directory": 1}
    log.append(b"x")
    log.sync()
    assert log.durable == log.writer.end_lsn == log.writer.known_durable


@pytest.mark.parametrize("call", ["datasync", "sync_directory"])
def test_a_sync_that_failed_once_condemns_the_log(call: str) -> None:
    """The kernel may have dropped the pages, and would call the next sync good."""
    storage = SimStorage()
    log = Log(storage)
    log.append(b"x")
    storage.plan(Failure(frozenset({call}), 1, errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        log.sync()
    assert log.writer.known_durable == 0
    with pytest.raises(OSError, match="condemned"):
        log.sync()
    with pytest.raises(AppendError):
        log.append(b"y")
    assert log.writer.known_durable == 0


def test_without_syncs_a_full_segment_is_closed_as_it_is_left() -> None:
    storage = SimStorage()
    log = Log(storage, segment_bytes=1000, synced=False)
    for payload in payloads_of([900] * 20):
        log.append(payload)
    assert storage.calls["datasync"] == storage.calls["sync_directory"] == 0
    assert log.read_all() == log.payloads
    log.writer.close()


@given(st.lists(st.lists(st.integers(1, 900), min_size=1, max_size=5), max_size=12))
def test_no_batch_is_ever_split_and_segments_go_on_where_the_last_ended(
    batches: list[list[int]],
) -> None:
    storage = SimStorage()
    log = Log(storage, segment_bytes=1500)
    starts = [log.append(*payloads_of(sizes)) - sum(sizes) - 64 * len(sizes) for sizes in batches]
    segments = log.segments
    assert {segment.first_lsn for segment in segments} <= set(starts)
    for segment, following in pairwise(segments):
        size = len(read_whole(storage, segment.path, 1 << 20)) - SEGMENT_HEADER_BYTES
        assert following.first_lsn == segment.first_lsn + size
        within = [lsn for lsn in starts if segment.first_lsn <= lsn < following.first_lsn]
        assert size <= 1500 or len(within) == 1
    if batches:
        assert log.read_all() == log.payloads


def test_each_segment_goes_where_the_caller_says_and_is_read_from_there() -> None:
    storage = SimStorage()
    log = Log(storage, MEMORY, DISK, segment_bytes=1000)
    for number, payload in enumerate(payloads_of([900] * 6)):
        log.directories[:] = [MEMORY, DISK] if number < 3 else [DISK, MEMORY]
        log.append(payload)
    log.directories[:] = [MEMORY, DISK]
    assert [segment.path.is_relative_to(MEMORY) for segment in log.segments] == [True] * 3 + [
        False
    ] * 3
    assert log.read_all() == log.payloads
    assert list_streams(storage, [MEMORY, DISK]) == [STREAM]
    remove_stream(storage, [MEMORY, DISK], STREAM)
    assert storage.names(MEMORY) == storage.names(DISK) == []


def test_a_segment_that_is_being_moved_is_seen_once_and_freed_twice() -> None:
    storage = SimStorage()
    log = Log(storage, MEMORY, DISK, segment_bytes=1000)
    for payload in payloads_of([900] * 3):
        log.append(payload)
    first = log.segments[0]
    copy = DISK / STREAM.directory / first.path.name
    storage.make_directory(copy.parent)
    storage.create(copy).close()
    assert log.segments[0] == first
    assert len(log.segments) == 3
    inside = log.ends[1][0] - 1
    assert free_below(storage, [MEMORY, DISK], STREAM, inside) == []
    assert set(free_below(storage, [MEMORY, DISK], STREAM, inside + 1)) == {first.path, copy}
    assert len(list_segments(storage, [MEMORY, DISK], STREAM)) == 2


def test_names_that_fit_nothing_are_left_alone() -> None:
    storage = SimStorage()
    log = Log(storage)
    log.append(b"x")
    for name in ("notes", "0000000000000003", "0" * 15 + "g-" + "0" * 32, "7-" + "0" * 32):
        storage.make_directory(DIRECTORY / name)
        assert stream_name(name) is None
    storage.create(DIRECTORY / STREAM.directory / "0.seg").close()
    storage.create(DIRECTORY / STREAM.directory / (("0" * 16) + ".seg.new")).close()
    assert list_streams(storage, [DIRECTORY]) == [STREAM]
    assert len(log.segments) == 1
    remove_stream(storage, [DIRECTORY], STREAM)
    assert len(storage.names(DIRECTORY / STREAM.directory)) == 2


def test_streams_sort_by_ordinal() -> None:
    storage = SimStorage()
    for ordinal in (300, 2, 17):
        name = StreamName(ordinal, STREAM.stream)
        assert stream_name(name.directory) == name
        storage.make_directory(DIRECTORY / name.directory)
    assert [name.ordinal for name in list_streams(storage, [DIRECTORY])] == [2, 17, 300]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.booleans())),
    st.sampled_from([1, 100, 2000, 1 << 20]),
    st.sampled_from([900, 5000, 1 << 20]),
)
def test_a_reader_follows_a_live_log_whatever_the_sizes(
    batches: list[tuple[list[int], bool]], max_bytes: int, segment_bytes: int
) -> None:
    storage = SimStorage()
    log = Log(storage, segment_bytes=segment_bytes)
    reader = LogReader(storage, log.directories, STREAM)
    position, chain = log.ends[0]
    seen: list[bytes] = []
    for sizes, reads in batches:
        end = log.append(*payloads_of(sizes))
        while reads and position < end:
            chunk = reader.read(position, chain, end, max_bytes)
            assert chunk.records
            assert len(chunk.data) <= max_bytes or len(chunk.records) == 1
            assert chunk.end_lsn == position + len(chunk.data)
            seen += [bytes(record.payload) for _, record in chunk.records]
            position, chain = chunk.end_lsn, chunk.chain
            free_below(storage, log.directories, STREAM, position)
        if reads:
            assert seen == log.payloads
            assert chain == log.writer.chain
    reader.close()


def test_following_the_tail_costs_no_look_at_the_directory() -> None:
    storage = SimStorage()
    log = Log(storage)
    log.append(b"first")
    reader = LogReader(storage, log.directories, STREAM)
    position, chain = log.ends[0]
    chunk = reader.read(position, chain, log.writer.end_lsn, 1 << 20)
    before = storage.calls.copy()
    for _ in range(10):
        end = log.append(b"more")
        chunk = reader.read(chunk.end_lsn, chunk.chain, end, 1 << 20)
        assert len(chunk.records) == 1
    assert storage.calls - before == {"pwritev": 10, "pread": 10}
    reader.close()


def test_an_inbox_is_read_by_position() -> None:
    storage = SimStorage()
    inbox = Inbox(storage, segment_bytes=1000)
    for payload in payloads_of([300] * 9):
        inbox.append(payload)
    reader = EntryReader(storage, inbox.directories, STREAM)
    position, chain = 0, CHAIN
    found: list[bytes] = []
    while position < inbox.writer.end_lsn:
        run = reader.read(position, chain, inbox.writer.end_lsn, 1)
        ((at, entry),) = run.records
        assert (at, entry.start_lsn) == (position, len(found) * 100)
        found.append(bytes(entry.frame))
        position, chain = run.end_lsn, run.chain
    assert found == inbox.payloads
    assert reader.chain_at(inbox.ends[4][0]) == inbox.ends[4][1]
    assert reader.verified_end(0, CHAIN) == (*inbox.ends[-1], "")
    reader.close()


def test_bytes_that_look_like_a_seal_at_the_end_of_a_guests_write_are_data() -> None:
    """A guest may write what it likes, so a seal counts only behind the last entry."""
    storage = SimStorage()
    log = Log(storage)
    payload = bytes(1000)
    end_lsn = HEADER_BYTES + len(payload)  # where a seal would begin
    log.append(payload + pack_seal(Seal(1, end_lsn, 7, 0, bytes(32), bytes(32))))
    file = storage.open(log.segments[0].path)
    assert read_seal(file, 0) is not None
    file.close()
    reader = LogReader(storage, log.directories, STREAM)
    assert reader.verified_end(*log.ends[0]) == (*log.ends[-1], "")
    assert reopen(storage, log.directories, STREAM, RECORDS).verdict.label == "clean"
    end = log.append(b"next")
    assert reader.verified_end(*log.ends[0])[0] == end
    assert log.read_all() == log.payloads
    reader.close()


def test_a_segment_of_another_format_version_is_no_damage() -> None:
    storage = SimStorage()
    log = Log(storage)
    log.append(b"x")
    data = bytearray(read_whole(storage, log.segments[0].path, 1 << 20)[:SEGMENT_HEADER_BYTES])
    assert parse_header(bytes(data), "here").kind is SegmentKind.LOG
    data[8] = 2
    with pytest.raises(DamageError, match="checksum"):
        parse_header(bytes(data), "here")
    data[184:192] = xxh3_64_intdigest(bytes(data[:184])).to_bytes(8, "little")
    with pytest.raises(VersionError, match="format 2, this program reads 1"):
        parse_header(bytes(data), "here")
