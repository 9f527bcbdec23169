# SPDX-License-Identifier: Apache-2.0
"""Records and inbox entries: what goes in comes out, and nothing else passes."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from journal.bodies import BODIES, Cut, Member, decode_body, encode_body
from journal.entry import HEADER_BYTES as ENTRY_HEADER_BYTES
from journal.entry import encode_entry, scan_entries
from journal.format import ENTRIES, RECORDS
from journal.record import (
    HEADER_BYTES,
    NO_DISK,
    PAYLOAD_LIMIT_BYTES,
    Record,
    RecordType,
    encode,
    encode_header,
    first_chain,
    scan,
    scan_whole,
)
from journal.survey import survey_behind
from replicator.base.errors import DamageError

u64 = st.integers(0, (1 << 64) - 1)
WITH_A_RANGE = {
    RecordType.WRITE,
    RecordType.ZERO,
    RecordType.SAME,
    RecordType.PACKED_WRITE,
}
writes = st.builds(
    lambda disk, offset, payload, sequence, time_ns, known, flags: Record(
        RecordType.WRITE, disk, offset, len(payload), sequence, time_ns, payload, flags, known
    ),
    st.integers(0, NO_DISK - 1),
    st.integers(0, 1 << 62),
    st.binary(min_size=1, max_size=600),
    u64,
    u64,
    u64,
    st.integers(0, 255),
)
zeroes = st.builds(
    lambda kind, offset, length, sequence: Record(kind, 1, offset, length, sequence, 0),
    st.sampled_from([RecordType.ZERO, RecordType.SAME]),
    st.integers(0, 1 << 62),
    st.integers(1, 1 << 61),
    u64,
)
others = st.builds(
    lambda kind, payload: Record(kind, NO_DISK, 0, 0, 9, 9, payload),
    st.sampled_from(sorted(set(RecordType) - WITH_A_RANGE)),
    st.binary(max_size=200),
)
packed = st.builds(
    lambda offset, payload, saved: Record(
        RecordType.PACKED_WRITE, 1, offset, len(payload) + saved, 9, 9, payload
    ),
    st.integers(0, 1 << 61),
    st.binary(min_size=1, max_size=200),
    st.integers(1, 1 << 20),
)
kinds = st.one_of(writes, zeroes, others, packed)
records = st.lists(kinds, max_size=8)


def log_of(items: list[Record], chain: int) -> bytes:
    data = b""
    for record in items:
        header, chain = encode(record, chain)
        data += header + bytes(record.payload)
    return data


@given(kinds, u64)
def test_the_search_behind_a_bad_entry_knows_every_record_by_its_look(
    record: Record, chain: int
) -> None:
    header, _ = encode(record, chain)
    assert next(RECORDS.candidates(header, 0)) == 0


@pytest.mark.parametrize(
    "content", [b"\0", b"\1", b"\2" + bytes(7), b"\1\2\3\0", b"\3" + bytes(11), b"text, text. "]
)
def test_the_search_through_a_guests_data_takes_no_second_look_at_most_of_it(
    content: bytes,
) -> None:
    data = content * ((1 << 20) // len(content))
    assert sum(1 for _ in RECORDS.candidates(data, 0)) <= len(data) // 8


@given(records, u64, st.integers(0, 1 << 60))
def test_records_come_back_as_they_were(items: list[Record], chain: int, start_lsn: int) -> None:
    data = log_of(items, chain)
    found = scan_whole(data, start_lsn, chain)
    assert found.end_lsn == start_lsn + len(data)
    lsn = start_lsn
    for (at, record), item in zip(found.records, items, strict=True):
        assert at == lsn
        assert msgspec.structs.replace(record, payload_sum=item.payload_sum) == item
        lsn += record.size
        assert str(RecordType(item.type).name) in str(record)


@given(records, st.binary(max_size=300), u64)
def test_garbage_behind_the_log_ends_it_and_never_raises(
    items: list[Record], garbage: bytes, chain: int
) -> None:
    data = log_of(items, chain)
    found = scan(data + garbage, 0, chain)
    assert len(found.records) == len(items)
    assert found.end_lsn == len(data)
    assert bool(found.problem) == bool(garbage)


def test_a_flipped_bit_ends_the_log_in_front_of_its_record_wherever_it_is() -> None:
    items = [Record(RecordType.WRITE, 0, 0, 90, n, 5, bytes([n]) * 90) for n in range(3)]
    data, size = log_of(items, 1), HEADER_BYTES + 90
    for at in range(len(data)):
        for bit in range(8):
            flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            found = scan(flipped, 0, 1)
            assert found.problem
            assert found.end_lsn == at // size * size


@given(records.filter(bool), u64)
def test_the_chain_of_another_log_is_refused(items: list[Record], chain: int) -> None:
    found = scan(log_of(items, chain), 0, chain ^ 1)
    assert not found.records
    assert "does not follow" in found.problem
    with pytest.raises(DamageError):
        scan_whole(log_of(items, chain), 0, chain ^ 1)


@pytest.mark.parametrize(
    ("kind", "offset", "length", "payload"),
    [
        (RecordType.WRITE, 0, 2, b"x"),
        (RecordType.WRITE, 0, 0, b""),
        (RecordType.WRITE, (1 << 63) - 1, 1, b"x"),
        (RecordType.ZERO, 0, 0, b""),
        (RecordType.ZERO, 0, 1, b"x"),
        (RecordType.SAME, 1 << 63, 1, b""),
        (RecordType.CUT, 1, 0, b"x"),
        (RecordType.DETACH, 0, 1, b"x"),
        (0, 0, 0, b""),
        (255, 0, 0, b""),
    ],
)
def test_a_record_of_impossible_shape_is_refused_though_its_sums_are_right(
    kind: int, offset: int, length: int, payload: bytes
) -> None:
    header, _ = encode_header(kind, 0, offset, length, 0, 0, payload, 0, 5)
    found = scan(header + payload, 0, 5)
    assert not found.records
    assert "malformed" in found.problem
    assert not found.torn


def test_a_payload_above_the_limit_is_refused_before_it_is_waited_for() -> None:
    header, _ = encode_header(
        RecordType.WRITE, 0, 0, PAYLOAD_LIMIT_BYTES + 1, 0, 0, bytes(PAYLOAD_LIMIT_BYTES + 1), 0, 0
    )
    found = scan(header, 0, 0)
    assert "malformed" in found.problem
    assert not found.torn
    assert RECORDS.stated_bytes(header) == HEADER_BYTES + PAYLOAD_LIMIT_BYTES


def test_no_two_streams_start_from_the_same_chain() -> None:
    chains = {
        first_chain(UUID(int=number), ordinal) for number in range(20) for ordinal in range(20)
    }
    assert len(chains) == 400


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), u64, st.integers(0, 1 << 60))
def test_entries_come_back_as_they_were(frames: list[bytes], chain: int, start: int) -> None:
    data, link = b"", chain
    for number, frame in enumerate(frames):
        half = len(frame) // 2
        header, link = encode_entry(
            [frame[:half], frame[half:]], number * 10, number * 10 + 9, start, link
        )
        data += header + frame
    found = scan_entries(data, start, chain)
    assert (found.problem, found.end_lsn, found.chain) == ("", start + len(data), link)
    assert [bytes(entry.frame) for _, entry in found.records] == frames
    assert [entry.start_lsn for _, entry in found.records] == [n * 10 for n in range(len(frames))]
    for size in range(len(data)):
        cut = scan_entries(data[:size], start, chain)
        assert cut.torn or cut.end_lsn == start + size
    for at in range(0, len(data), 7):
        flipped = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        assert scan_entries(flipped, start, chain).problem


def test_an_entry_without_a_range_is_refused() -> None:
    header, _ = encode_entry([b"x"], 5, 5, 0, 1)
    assert "malformed" in scan_entries(header + b"x", 0, 1).problem


def test_good_ones_are_found_behind_a_bad_one_wherever_the_damage_is() -> None:
    items = [Record(RecordType.WRITE, 0, 0, 90, n, 5, bytes(90), 0, n * 154) for n in range(6)]
    data = log_of(items, 1)
    for at in range(HEADER_BYTES + 90):
        flipped = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        behind = survey_behind(RECORDS, flipped, 0, 1, 0)
        assert (behind.entries, behind.known_durable) == (5, 5 * 154)
    wiped = bytes(300) + data[300:]  # two records, one of them in part
    assert survey_behind(RECORDS, wiped, 0, 1, 0).known_durable == 5 * 154


def test_good_entries_are_found_behind_a_bad_one_wherever_the_damage_is() -> None:
    data, chain = b"", 1
    size = ENTRY_HEADER_BYTES + 40
    for number in range(4):
        header, chain = encode_entry([bytes(40)], number, number + 1, number * size, chain)
        data += header + bytes(40)
    for at in range(size):
        flipped = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        behind = survey_behind(ENTRIES, flipped, 0, 1, 0)
        assert (behind.entries, behind.known_durable) == (3, 3 * size)


def test_a_statement_from_another_place_is_not_believed() -> None:
    """A stale run that links up in itself states an LSN beyond its own place."""
    items = [Record(RecordType.WRITE, 0, 0, 90, n, 5, bytes(90), 0, 1 << 50) for n in range(4)]
    behind = survey_behind(RECORDS, bytes(64) + log_of(items, 77), 0, 1, 0)
    assert (behind.entries, behind.known_durable) == (3, 0)


def test_bodies_come_back_as_they_were_and_others_are_damage() -> None:
    cut = Cut("crash", [Member(3, "vda", "i", 512, complete=False)], label="ü", clock_step_ns=-1)
    record = Record(RecordType.CUT, NO_DISK, 0, 0, 0, 0, encode_body(cut))
    assert decode_body(Cut, record, 0) == cut
    for body in (b"", b"\xc1", b"\x80", encode_body(cut)[:-1], encode_body(cut) + b"x"):
        bad = Record(RecordType.CUT, NO_DISK, 0, 0, 0, 0, body)
        with pytest.raises(DamageError, match="LSN 77"):
            decode_body(Cut, bad, 77)
    assert BODIES[RecordType.CUT] is Cut


def test_a_cut_says_how_long_its_point_is_to_be_kept() -> None:
    members = [Member(0, "vda", "i", 512, complete=True)]
    plain, kept = Cut("crash", members), Cut("crash", members, expire_ns=7 * 86400 * 10**9)
    assert b"expire_ns" not in encode_body(plain)
    for cut in (plain, kept):
        record = Record(RecordType.CUT, NO_DISK, 0, 0, 0, 0, encode_body(cut))
        assert decode_body(Cut, record, 0) == cut
    below = msgspec.msgpack.encode({"kind": "crash", "members": [], "expire_ns": -1})
    with pytest.raises(DamageError, match="expire_ns"):
        decode_body(Cut, Record(RecordType.CUT, NO_DISK, 0, 0, 0, 0, below), 5)
