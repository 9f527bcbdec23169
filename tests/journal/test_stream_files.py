# SPDX-License-Identifier: Apache-2.0
"""Segments that are sealed, moved or freed behind the back of an open reader."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journal.reader import LogReader
from journal.seal import FIRST_DIGEST, seal_segment
from journal.segment import HEADER_BYTES, SegmentHeader, pack_header, parse_header
from journal.spool import SegmentFile, free_below
from journal.stream_files import StreamFiles
from replicator.base.errors import DamageError, NotFoundError
from replicator.base.storage import Storage, read_whole
from tests.journal.logs import CHAIN, STREAM, Log, payloads_of
from tests.world.storage import SimStorage

MEMORY, DISK = Path("/memory/g"), Path("/disk/g")


def move(storage: Storage, segment: SegmentFile, to: Path) -> None:
    """As a mover does it: a whole copy first, then the original goes."""
    data = read_whole(storage, segment.path, 1 << 30)
    storage.make_directory(to / STREAM.directory)
    file = storage.create(to / STREAM.directory / segment.path.name)
    assert file.pwritev([data], 0) == len(data)
    file.close()
    storage.unlink(segment.path)


def seal_all_but_the_newest(log: Log) -> None:
    segments = log.segments
    for segment, following in pairwise(segments):
        seal_segment(
            log.storage, segment.path, end_lsn=following.first_lsn, previous_digest=FIRST_DIGEST
        )


@pytest.mark.parametrize("read_before", range(3))
def test_a_segment_that_was_left_and_sealed_since_ends_where_the_next_begins(
    read_before: int,
) -> None:
    log = Log(SimStorage(), segment_bytes=1000)
    log.append(b"a" * 300)
    log.append(b"b" * 300)
    reader = LogReader(log.storage, log.directories, STREAM)
    position, chain = log.ends[0]
    for _ in range(read_before):  # the segment is open, and the newest one
        chunk = reader.read(position, chain, log.writer.end_lsn, 1)
        position, chain = chunk.end_lsn, chunk.chain
    log.append(b"c" * 600)
    assert len(log.segments) == 2
    seal_all_but_the_newest(log)
    seen: list[bytes] = []
    while position < log.writer.end_lsn:
        chunk = reader.read(position, chain, log.writer.end_lsn, 1 << 20)
        seen += [bytes(record.payload) for _, record in chunk.records]
        position, chain = chunk.end_lsn, chunk.chain
    assert seen == log.payloads[read_before:]
    assert chain == log.writer.chain
    reader.close()


def test_a_seal_does_not_hide_that_the_log_ends_too_early() -> None:
    log = Log(SimStorage())
    log.append(b"a" * 300)
    seal_segment(
        log.storage,
        log.segments[0].path,
        end_lsn=log.writer.end_lsn,
        previous_digest=FIRST_DIGEST,
    )
    reader = LogReader(log.storage, log.directories, STREAM)
    with pytest.raises(DamageError, match="file offset 556"):
        reader.read(0, CHAIN, log.writer.end_lsn + 10, 1 << 20)
    reader.close()


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=6, max_size=6))
@settings(deadline=None)
def test_a_reader_finds_segments_wherever_they_have_been_moved(
    moves: Sequence[tuple[int, bool, bool]],
) -> None:
    """Before each read one segment is moved to the other tier, or sealed, or neither."""
    log = Log(SimStorage(), MEMORY, DISK, segment_bytes=1000)
    for payload in payloads_of([800] * 6):
        log.append(payload)
    reader = LogReader(log.storage, log.directories, STREAM)
    position, chain = log.ends[0]
    seen: list[bytes] = []
    for which, moves_one, seals in moves:
        segment = log.segments[which]
        if moves_one:
            move(log.storage, segment, DISK if segment.path.is_relative_to(MEMORY) else MEMORY)
        if seals:
            seal_all_but_the_newest(log)
        chunk = reader.read(position, chain, log.writer.end_lsn, 1 << 20)
        seen += [bytes(record.payload) for _, record in chunk.records]
        position, chain = chunk.end_lsn, chunk.chain
    assert seen == log.payloads
    reader.close()


def test_what_is_freed_is_not_found_and_the_rest_still_is() -> None:
    log = Log(SimStorage(), segment_bytes=1000)
    for payload in payloads_of([800] * 4):
        log.append(payload)
    files = StreamFiles(log.storage, log.directories, STREAM)
    free_below(log.storage, log.directories, STREAM, log.ends[2][0])
    with pytest.raises(NotFoundError, match=r"LSN 5 .*no longer there"):
        files.at(5)
    assert files.first_lsn == log.ends[2][0]
    assert files.at(log.ends[3][0]).path == log.segments[1].path
    files.close()


def test_a_segment_in_the_place_of_another_is_damage() -> None:
    log = Log(SimStorage(), segment_bytes=1000)
    for payload in payloads_of([800] * 2):
        log.append(payload)
    path = log.segments[1].path
    file = log.storage.open(path, writable=True)
    header = parse_header(file.pread(HEADER_BYTES, 0), "")
    for wrong in (
        SegmentHeader(
            header.kind,
            header.group,
            header.stream,
            header.ordinal + 1,
            header.first_lsn,
            header.chain,
            header.created_ns,
            header.known_durable,
        ),
        parse_header(log.storage.open(log.segments[0].path).pread(HEADER_BYTES, 0), ""),
    ):
        file.pwritev([pack_header(wrong)], 0)
        files = StreamFiles(log.storage, log.directories, STREAM)
        with pytest.raises(DamageError, match=f"{path}: segment of another place"):
            files.at(log.ends[1][0])
        files.close()
    file.close()
