# SPDX-License-Identifier: Apache-2.0
"""The bytes on disk are those of the golden files, and field by field what docs/formats.md says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from journal.bodies import Cut, decode_body
from journal.entry import scan_entries
from journal.record import RecordType, first_chain, scan
from journal.seal import FIRST_DIGEST, verify_segment
from journal.segment import HEADER_BYTES, SegmentKind, parse_header, parse_seal
from replicator.base.storage import SystemStorage
from tests.journal import golden

CHAIN = first_chain(golden.STREAM.stream, golden.STREAM.ordinal)


@pytest.mark.parametrize("name", sorted(golden.files()))
def test_what_is_written_today_is_what_is_on_file(name: str) -> None:
    assert golden.files()[name] == golden.read(name)


def test_the_record_by_hand() -> None:
    data = golden.read("record.hex")
    fields = struct.unpack_from("<BBHIQQQQQQQ", data)
    payload = bytes(range(256)) * 2
    assert fields[:9] == (
        1, 0, 0, 512, 4096, 512, 4, golden.TIME_NS + 3, xxh3_64_intdigest(payload)
    )  # fmt: skip
    assert fields[9:] == (0, xxh3_64_intdigest(data[:56], CHAIN))
    assert data[64:] == payload


def test_the_first_chain_by_hand() -> None:
    assert xxh3_64_intdigest(golden.STREAM.stream.bytes + struct.pack("<Q", 7)) == CHAIN


def test_the_log_of_the_golden_file_is_read_back() -> None:
    data = golden.read("log.hex")
    header = parse_header(data, "golden")
    assert (header.kind, header.group) == (SegmentKind.LOG, "golden")
    assert (header.stream, header.ordinal) == (golden.STREAM.stream, 7)
    assert (header.first_lsn, header.chain) == (golden.FIRST_LSN, CHAIN)
    assert (header.created_ns, header.known_durable) == (golden.TIME_NS, golden.FIRST_LSN)
    assert data[:8] == b"RPLSEG1\0"
    assert data[136:184] == bytes(48)
    assert data[184:192] == struct.pack("<Q", xxh3_64_intdigest(data[:184]))
    found = scan(data[HEADER_BYTES:], header.first_lsn, header.chain)
    assert not found.problem
    assert [record.type for _, record in found.records] == [r.type for r in golden.RECORDS]
    assert [bytes(record.payload) for _, record in found.records] == [
        bytes(record.payload) for record in golden.RECORDS
    ]
    lsn, last = found.records[-1]
    assert last.type == RecordType.CUT
    assert decode_body(Cut, last, lsn).label == "before upgrade"


def test_the_sealed_golden_segment_verifies(tmp_path: Path) -> None:
    data = golden.read("log-sealed.hex")
    path = tmp_path / "sealed"
    path.write_bytes(data)
    seal = verify_segment(SystemStorage(), path, previous_digest=FIRST_DIGEST)
    assert seal == parse_seal(data[-128:])
    assert (seal.entries, seal.index_entries) == (6, 1)
    cut_lsn, time_ns = struct.unpack_from("<QQ", data, len(data) - 128 - 16)
    assert time_ns == golden.TIME_NS + 5
    assert data[HEADER_BYTES + cut_lsn - golden.FIRST_LSN] == RecordType.CUT


def test_the_inbox_of_the_golden_file_is_read_back() -> None:
    data = golden.read("inbox.hex")
    header = parse_header(data, "golden")
    assert (header.kind, header.first_lsn) == (SegmentKind.INBOX, 0)
    found = scan_entries(data[HEADER_BYTES:], 0, header.chain)
    assert not found.problem
    assert [bytes(entry.frame) for _, entry in found.records] == [b"first frame", b"second"]
    assert data[192:196] == b"RPLE"
    assert found.records[1][1].end_lsn == golden.FIRST_LSN + 2000
