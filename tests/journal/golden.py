# SPDX-License-Identifier: Apache-2.0
"""Writes the golden files: `python -m tests.journal.golden`. Only ever for a new format version.

They pin the bytes of today's format: a later program must read them, whatever it writes itself.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from journal.appender import LogWriter
from journal.bodies import Cut, DomainXml, Member, SyncBegin, SyncEnd, encode_body
from journal.entry import encode_entry
from journal.record import NO_DISK, Record, RecordType, encode, first_chain
from journal.seal import FIRST_DIGEST, seal_segment
from journal.segment import SegmentKind
from journal.spool import StreamName
from replicator.base.storage import Buffer, SystemStorage, read_whole
from tests.world.storage import SimStorage

HERE = Path(__file__).parent / "golden"
STREAM = StreamName(7, UUID("00112233-4455-6677-8899-aabbccddeeff"))
FIRST_LSN = 7 << 40
INSTANCE = "0f0e0d0c-0b0a-0908-0706-050403020100"
TIME_NS = 1_772_330_584_000_005_000  # 2026-03-01T02:03:04.000005Z

RECORDS = [
    Record(RecordType.SYNC_BEGIN, 0, 0, 0, 1, TIME_NS,
           encode_body(SyncBegin("vda", INSTANCE, 1 << 20, from_zero=True, reason="first"))),
    Record(RecordType.SYNC_END, 0, 0, 0, 2, TIME_NS + 1, encode_body(SyncEnd("vda", INSTANCE))),
    Record(RecordType.DOMAIN_XML, NO_DISK, 0, 0, 3, TIME_NS + 2,
           encode_body(DomainXml("vm", "<domain/>"))),
    Record(RecordType.WRITE, 0, 4096, 512, 4, TIME_NS + 3, bytes(range(256)) * 2),
    Record(RecordType.ZERO, 0, 8192, 65536, 5, TIME_NS + 4),
    Record(RecordType.CUT, NO_DISK, 0, 0, 6, TIME_NS + 5,
           encode_body(Cut("application", [Member(0, "vda", INSTANCE, 1 << 20, True)],
                           label="before upgrade", clock_step_ns=-7))),
]  # fmt: skip


def record_bytes() -> bytes:
    """The WRITE alone, with the chain of the stream's start before it."""
    header, _ = encode(RECORDS[3], first_chain(STREAM.stream, STREAM.ordinal))
    return header + bytes(RECORDS[3].payload)


def segment_bytes(kind: SegmentKind, *, sealed: bool) -> bytes:
    """A segment with all of RECORDS, or an inbox with two frames."""
    storage, directory = SimStorage(), Path("/g")
    first_lsn = 0 if kind is SegmentKind.INBOX else FIRST_LSN
    chain = first_chain(STREAM.stream, STREAM.ordinal)
    writer = LogWriter(
        storage,
        lambda _bytes: directory,
        kind=kind,
        group="golden",
        stream=STREAM.stream,
        ordinal=STREAM.ordinal,
        first_lsn=first_lsn,
        chain=chain,
        segment_bytes=1 << 20,
        now_ns=lambda: TIME_NS,
    )
    buffers: list[Buffer] = []
    if kind is SegmentKind.INBOX:
        for number, frame in enumerate((b"first frame", b"second")):
            start = FIRST_LSN + number * 1000
            header, chain = encode_entry([frame], start, start + 1000, 0, chain)
            buffers += (header, frame)
    else:
        for record in RECORDS:
            header, chain = encode(record, chain)
            buffers += (header, record.payload)
    writer.append(buffers, sum(map(len, buffers)), chain)
    path = writer.segment_path
    assert path is not None
    if sealed:
        seal_segment(storage, path, end_lsn=writer.end_lsn, previous_digest=FIRST_DIGEST)
    writer.close()
    return read_whole(storage, path, 1 << 20)


def files() -> dict[str, bytes]:
    return {
        "record.hex": record_bytes(),
        "log.hex": segment_bytes(SegmentKind.LOG, sealed=False),
        "log-sealed.hex": segment_bytes(SegmentKind.LOG, sealed=True),
        "inbox.hex": segment_bytes(SegmentKind.INBOX, sealed=False),
    }


def read(name: str) -> bytes:
    return bytes.fromhex((HERE / name).read_text())


if __name__ == "__main__":
    SystemStorage().make_directory(HERE)
    for name, data in files().items():
        (HERE / name).write_text(data.hex("\n", 32) + "\n")
