# SPDX-License-Identifier: Apache-2.0
"""Frames: what is built can be opened; what is forged, cut or damaged cannot, and costs little."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import replace

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from journal.record import RecordType
from replicator.base.errors import DamageError
from replicator.wire.frames import Frame, FrameBuilder, FrameFlag, FrameHeader, FrameOpener
from replicator.wire.limits import FRAME_HEADER_BYTES, RAW_LIMIT_BYTES
from tests.wire.logs import Log

BUILDER = FrameBuilder()
OPENER = FrameOpener()


def frame_of(log: Log, *, reduced: bool = False) -> Frame:
    return BUILDER.build(
        bytes(log.data),
        start_lsn=log.start_lsn,
        end_lsn=log.end_lsn,
        chain_start=log.chains[log.start_lsn],
        chain_end=log.chain,
        reduced=reduced,
    )


def forged(frame: Frame, data: bytes, **changes: int) -> Frame:
    """The frame with other data and a header that fits it in every sum."""
    sums = {"data_sum": xxh3_64_intdigest(data), "data_bytes": len(data)} | changes
    return Frame(replace(frame.header, **sums), data)


def some_log() -> Log:
    log = Log(start_lsn=1000)
    for number in range(20):
        log.write(0, number * 4096, bytes([number]) * 4096)
    log.zero(1, 0, 1 << 40)
    log.append(RecordType.CUT, b"\x80")
    return log


def test_a_frame_survives_the_wire_and_yields_its_records() -> None:
    log = some_log()
    frame = frame_of(log)
    assert frame.header.data_bytes < len(log.data) // 10
    again = Frame.parse(frame.header.pack() + bytes(frame.data))
    assert again.header == frame.header
    opened = OPENER.open(again)
    assert [lsn for lsn, _ in opened.records] == sorted(log.chains)[:-1]
    assert opened.records[3][1].payload == bytes([3]) * 4096


def test_what_does_not_shrink_is_stored() -> None:
    log = Log()
    log.write(0, 0, os.urandom(300_000))
    frame = frame_of(log)
    assert frame.header.stored
    assert frame.size == FRAME_HEADER_BYTES + len(log.data)
    assert OPENER.open(frame).records[0][1].length == 300_000


def test_a_small_frame_that_grows_is_stored() -> None:
    frame = BUILDER.build(os.urandom(64), start_lsn=0, end_lsn=64, chain_start=0, chain_end=0)
    assert frame.header.stored
    assert frame.header.data_bytes == 64


@pytest.mark.parametrize("at", range(0, FRAME_HEADER_BYTES, 3))
def test_a_changed_header_is_refused(at: int) -> None:
    packed = bytearray(frame_of(some_log()).header.pack())
    packed[at] ^= 4
    with pytest.raises(DamageError):
        FrameHeader.parse(packed)


def test_each_changed_byte_of_the_data_is_refused() -> None:
    frame = frame_of(some_log())
    for at in range(0, len(frame.data), 7):
        data = bytearray(frame.data)
        data[at] ^= 1
        with pytest.raises(DamageError):
            OPENER.open(Frame(frame.header, bytes(data)))


@given(st.binary(max_size=400))
def test_forged_data_never_yields_records(data: bytes) -> None:
    frame = frame_of(some_log())
    if data == bytes(frame.data):
        return
    with pytest.raises(DamageError):
        OPENER.open(forged(frame, data))


@pytest.mark.parametrize("stated", [True, False])
def test_a_bomb_is_refused_before_it_costs_memory(stated: bool) -> None:
    """python-zstandard would allocate what the data states, whatever limit it is given."""
    frame = frame_of(some_log())
    huge = 256 << 20
    compressor = zstandard.ZstdCompressor(level=1, write_content_size=stated)
    if stated:
        bomb = compressor.compress(bytes(huge))
    else:
        parts = compressor.compressobj()
        bomb = b"".join(parts.compress(bytes(1 << 20)) for _ in range(256)) + parts.flush()
    tracemalloc.start()
    with pytest.raises(DamageError):
        OPENER.open(forged(frame, bomb))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_data_that_states_less_than_it_holds_is_refused() -> None:
    frame = frame_of(some_log())
    whole = bytearray(zstandard.ZstdCompressor().compress(bytes(frame.header.raw_bytes + 4096)))
    honest = zstandard.frame_content_size(bytes(whole))
    at = bytes(whole).index((honest - 256 if honest < 65792 else honest).to_bytes(4, "little"))
    whole[at : at + 4] = frame.header.raw_bytes.to_bytes(4, "little")
    assert zstandard.frame_content_size(bytes(whole)) == frame.header.raw_bytes
    with pytest.raises(DamageError, match="decompress"):
        OPENER.open(forged(frame, bytes(whole)))


def test_data_behind_the_end_is_refused() -> None:
    frame = frame_of(some_log())
    with pytest.raises(DamageError):
        OPENER.open(forged(frame, bytes(frame.data) + b"more"))


def test_raw_bytes_beyond_the_limit_are_refused_by_the_header_alone() -> None:
    header = replace(
        frame_of(some_log()).header,
        raw_bytes=RAW_LIMIT_BYTES + 1,
        end_lsn=1000 + RAW_LIMIT_BYTES + 1,
    )
    with pytest.raises(DamageError, match="bounds"):
        FrameHeader.parse(header.pack())


@pytest.mark.parametrize("change", [{"chain_start": 5}, {"chain_end": 5}, {"start_lsn": 936}])
def test_a_frame_at_another_place_of_the_chain_is_refused(change: dict[str, int]) -> None:
    frame = frame_of(some_log())
    header = replace(frame.header, **change)
    if "start_lsn" in change:
        with pytest.raises(DamageError, match="do not fill"):
            FrameHeader.parse(header.pack())
    else:
        with pytest.raises(DamageError):
            OPENER.open(Frame(header, frame.data))


def test_a_reduced_frame_covers_a_longer_range_and_its_records_carry_its_start() -> None:
    log = Log(start_lsn=500)
    log.append(RecordType.SAME, disk=0, offset=0, length=1 << 20)
    log.write(0, 1 << 20, b"x" * 4096)
    frame = BUILDER.build(
        bytes(log.data),
        start_lsn=500,
        end_lsn=9_000_000,
        chain_start=log.chains[500],
        chain_end=77,
        reduced=True,
    )
    opened = OPENER.open(Frame.parse(frame.header.pack() + bytes(frame.data)))
    assert [(lsn, record.type) for lsn, record in opened.records] == [(500, 6), (500, 1)]
    assert opened.header.chain_end == 77


def test_a_cut_in_a_reduced_frame_is_refused() -> None:
    log = some_log()
    frame = frame_of(log, reduced=True)
    with pytest.raises(DamageError, match="alone"):
        OPENER.open(frame)


def test_the_largest_record_fits_a_frame_that_was_nearly_full() -> None:
    log = Log()
    log.write(0, 0, b"a" * (190 << 10))
    log.write(0, 1 << 30, bytes(32 << 20))
    frame = frame_of(log)
    assert not frame.header.flags & FrameFlag.STORED
    assert len(OPENER.open(frame).records) == 2
