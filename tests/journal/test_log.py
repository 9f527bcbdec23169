# SPDX-License-Identifier: Apache-2.0
"""Appending and reading a log on a real filesystem."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import pytest

from journal.appender import AppendError, LogWriter
from journal.reader import LogReader
from journal.record import RecordType, encode_header, first_chain
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import SegmentKind
from journal.spool import StreamName, free_below, list_segments, list_streams, used_bytes
from replicator.base.errors import DamageError, NotFoundError
from replicator.base.storage import Buffer, File, SystemFile, SystemStorage

STREAM = StreamName(3, UUID(int=77))
START = (STREAM.stream, STREAM.ordinal)
FIRST_LSN = 1 << 40


class ShortFile(SystemFile):
    """Writes at most `room` more bytes, then says that the disk is full."""

    room = 1 << 60
    can_truncate = True

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)[: self.room]
        if not data:
            raise OSError(errno.ENOSPC, "no space")
        self.room -= len(data)
        return super().pwritev([data], offset)

    def truncate(self, size: int) -> None:
        if not self.can_truncate:
            raise OSError(errno.EIO, "no truncate")
        super().truncate(size)


class ShortStorage(SystemStorage):
    """Hands out ShortFiles and remembers the last."""

    last: ShortFile

    def create(self, path: Path) -> File:
        made = super().create(path)
        assert isinstance(made, SystemFile)
        self.last = ShortFile(path, made._fd)
        return self.last


class Log:
    """A writer with its directory, and the records that it was given."""

    def __init__(self, directory: Path, segment_bytes: int = 1 << 20) -> None:
        self.directory = directory
        self.storage = ShortStorage()
        self.writer = LogWriter(
            self.storage,
            lambda _bytes: directory,
            kind=SegmentKind.LOG,
            group="g",
            stream=STREAM.stream,
            ordinal=STREAM.ordinal,
            first_lsn=FIRST_LSN,
            chain=first_chain(STREAM.stream, STREAM.ordinal),
            segment_bytes=segment_bytes,
            now_ns=lambda: 5,
        )
        self.payloads: list[bytes] = []

    def write(self, *payloads: bytes) -> int:
        buffers: list[Buffer] = []
        chain = self.writer.chain
        for number, payload in enumerate(payloads, start=len(self.payloads)):
            header, chain = encode_header(
                RecordType.WRITE, 0, number * 4096, len(payload), number, 9, payload, 0, chain
            )
            buffers += (header, payload)
        end = self.writer.append(buffers, sum(map(len, buffers)), chain)
        self.payloads += payloads
        return end

    def reader(self) -> LogReader:
        return LogReader(self.storage, [self.directory], STREAM)

    def read_all(self, max_bytes: int = 1 << 20) -> list[bytes]:
        reader = self.reader()
        position, chain = FIRST_LSN, first_chain(STREAM.stream, STREAM.ordinal)
        found: list[bytes] = []
        while position < self.writer.end_lsn:
            chunk = reader.read(position, chain, self.writer.end_lsn, max_bytes)
            found += [bytes(record.payload) for _, record in chunk.records]
            position, chain = chunk.end_lsn, chunk.chain
        assert chain == self.writer.chain
        reader.close()
        return found


def test_what_was_appended_is_read_back_over_rotations(tmp_path: Path) -> None:
    log = Log(tmp_path, segment_bytes=10_000)
    for number in range(40):
        log.write(*[bytes([number]) * (512 + number)] * (1 + number % 3))
    assert len(list_segments(log.storage, [tmp_path], STREAM)) > 5
    for max_bytes in (1, 700, 1 << 20):
        assert log.read_all(max_bytes) == log.payloads
    log.writer.close()


def test_a_batch_is_one_system_call_and_more_than_iov_max_buffers_still_one_batch(
    tmp_path: Path,
) -> None:
    log = Log(tmp_path, segment_bytes=1 << 30)
    log.write(*[b"x" * 8] * 3000)  # 6000 buffers
    assert log.read_all() == [b"x" * 8] * 3000
    assert log.writer.appends == 1
    log.writer.close()


def test_a_follower_reads_up_to_the_published_end_and_on_in_the_next_segment(
    tmp_path: Path,
) -> None:
    log = Log(tmp_path, segment_bytes=3000)
    reader = log.reader()
    position, chain = FIRST_LSN, first_chain(STREAM.stream, STREAM.ordinal)
    for number in range(20):
        end = log.write(bytes([number]) * 1000)
        chunk = reader.read(position, chain, end, 1 << 20)
        assert [bytes(record.payload) for _, record in chunk.records] == [log.payloads[-1]]
        position, chain = chunk.end_lsn, chunk.chain
        assert reader.read(position, chain, end, 1 << 20).data == b""
    reader.close()
    log.writer.close()


def test_the_chain_at_any_record_boundary_is_found_and_nowhere_else(tmp_path: Path) -> None:
    log = Log(tmp_path, segment_bytes=3000)
    chains = {FIRST_LSN: log.writer.chain}
    for number in range(9):
        end = log.write(bytes([number]) * 900)
        chains[end] = log.writer.chain
    reader = log.reader()
    for lsn, chain in chains.items():
        assert reader.chain_at(lsn) == chain
    for lsn in (FIRST_LSN + 1, log.writer.end_lsn + 64, FIRST_LSN - 5):
        with pytest.raises(NotFoundError):
            reader.chain_at(lsn)
    reader.close()
    log.writer.close()


def test_a_short_append_is_taken_back_whole(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(b"a" * 512)
    end, chain = log.writer.end_lsn, log.writer.chain
    for room in (0, 1, 63, 64, 65, 575):
        log.storage.last.room = room
        with pytest.raises(AppendError) as failed:
            log.write(b"b" * 512)
        assert not failed.value.broken
        assert (log.writer.end_lsn, log.writer.chain) == (end, chain)
        assert log.storage.last.size() == SEGMENT_HEADER_BYTES + end - FIRST_LSN
    log.storage.last.room = 1 << 60
    log.write(b"c" * 512)
    assert log.read_all() == [b"a" * 512, b"c" * 512]
    log.writer.close()


def test_a_segment_with_a_torn_record_that_stays_is_abandoned(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(b"a" * 512)
    log.storage.last.room, log.storage.last.can_truncate = 100, False
    with pytest.raises(AppendError) as failed:
        log.write(b"b" * 512)
    assert failed.value.broken
    log.storage.last.room, log.storage.last.can_truncate = 1 << 60, True
    with pytest.raises(AppendError):
        log.write(b"c" * 512)  # nothing is appended behind the torn record
    reader = log.reader()
    start = (FIRST_LSN, first_chain(STREAM.stream, STREAM.ordinal))
    end, chain, problem = reader.verified_end(*start)
    assert (end, chain) == (log.writer.end_lsn, log.writer.chain)
    assert "cut short" in problem
    reader.close()
    log.writer.close()


def test_the_end_of_a_dead_log_is_verified_at_every_length(tmp_path: Path) -> None:
    log = Log(tmp_path, segment_bytes=2000)
    ends = [(FIRST_LSN, log.writer.chain)]
    for number in range(4):
        ends.append((log.write(bytes([number]) * 600), log.writer.chain))
    log.writer.close()
    last = list_segments(log.storage, [tmp_path], STREAM)[-1]
    whole = last.path.read_bytes()
    for size in range(SEGMENT_HEADER_BYTES, len(whole) + 1):
        last.path.write_bytes(whole[:size])
        end_lsn = last.first_lsn + size - SEGMENT_HEADER_BYTES
        reader = log.reader()
        found_end, found_chain, problem = reader.verified_end(*ends[0])
        assert (found_end, found_chain) == max(end for end in ends if end[0] <= end_lsn)
        assert (problem == "") == (found_end == end_lsn)
        reader.close()


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    log = Log(tmp_path)
    log.write(b"a" * 300, b"b" * 300)
    log.writer.close()
    path = list_segments(log.storage, [tmp_path], STREAM)[0].path
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        reader = log.reader()
        with pytest.raises(DamageError) as found:
            reader.read(FIRST_LSN, first_chain(*START), log.writer.end_lsn, 1 << 20)
        assert str(path) in found.value.message
        reader.close()


def test_freeing_goes_by_whole_segments_and_spares_the_last(tmp_path: Path) -> None:
    log = Log(tmp_path, segment_bytes=2000)
    ends = [log.write(bytes([number]) * 1900) for number in range(5)]
    before = used_bytes(log.storage, tmp_path)
    assert len(free_below(log.storage, [tmp_path], STREAM, ends[1] + 5)) == 2
    assert used_bytes(log.storage, tmp_path) < before
    reader = log.reader()
    assert reader.first_lsn == ends[1]
    with pytest.raises(NotFoundError):
        reader.read(FIRST_LSN, 0, ends[4], 100)
    assert len(free_below(log.storage, [tmp_path], STREAM, 1 << 62)) == 2
    assert len(list_segments(log.storage, [tmp_path], STREAM)) == 1
    assert list_streams(log.storage, [tmp_path]) == [STREAM]
    reader.close()
    log.writer.close()


def test_a_missing_segment_in_the_middle_is_damage(tmp_path: Path) -> None:
    log = Log(tmp_path, segment_bytes=2000)
    ends = [log.write(bytes([number]) * 1900) for number in range(3)]
    segments = list_segments(log.storage, [tmp_path], STREAM)
    segments[1].path.unlink()
    reader = log.reader()
    chain = first_chain(STREAM.stream, STREAM.ordinal)
    chunk = reader.read(FIRST_LSN, chain, ends[2], 1 << 20)
    with pytest.raises(DamageError):
        reader.read(chunk.end_lsn, chunk.chain, ends[2], 1 << 20)
    reader.close()
    log.writer.close()
