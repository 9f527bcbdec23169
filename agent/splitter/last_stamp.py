# SPDX-License-Identifier: Apache-2.0
"""What a group's spool knows of the time: the stamp of the last record in it.

A splitter that is started anew has no clock to compare the wall clock with: while nobody ran, that
may have been set back, and points would bear times that were given already. The newest segment of
the newest stream still lies in the spool as a rule, whatever has been shipped of it; of what was
shipped and freed, the agent tells (`above_time_ns` of its orders). Best effort, read once at the
start: a stamp that nobody knows any more costs the receiver's points their distance, never their
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from journal.record import HEADER_BYTES as RECORD_BYTES
from journal.record import PAYLOAD_LIMIT_BYTES, scan
from journal.segment import HEADER_BYTES, SegmentHeader, parse_header
from journal.spool import list_segments, list_streams
from replicator.base.errors import DamageError, VersionError
from replicator.base.storage import File, Storage
from replicator.base.units import MIB

WINDOW_BYTES = 1 * MIB
_RECORD_BYTES_MAX = RECORD_BYTES + PAYLOAD_LIMIT_BYTES


def last_stamp_ns(storage: Storage, directories: Sequence[Path]) -> int:
    """Of the last whole record; 0 where none can be read. `directories` are the group's."""
    streams = list_streams(storage, directories)
    if not streams:
        return 0
    newest = max(streams, key=lambda stream: stream.ordinal)
    for segment in reversed(list_segments(storage, directories, newest)):
        try:
            with closing(storage.open(segment.path)) as file:
                header = parse_header(file.pread(HEADER_BYTES, 0), str(segment.path))
                stamp_ns = _last_in(file, header)
        except (DamageError, VersionError, OSError):
            continue
        if stamp_ns:
            return stamp_ns
    return 0


def _last_in(file: File, header: SegmentHeader) -> int:
    """Reads in windows, each from a record's start on, until what follows is no whole record."""
    stamp_ns, lsn, chain = 0, header.first_lsn, header.chain
    wanted = WINDOW_BYTES
    while True:
        data = file.pread(wanted, HEADER_BYTES + lsn - header.first_lsn)
        found = scan(data, lsn, chain)
        if found.records:
            stamp_ns = found.records[-1][1].time_ns
            lsn, chain, wanted = found.end_lsn, found.chain, WINDOW_BYTES
            continue
        if not found.torn or len(data) < wanted or wanted >= _RECORD_BYTES_MAX:
            return stamp_ns
        wanted = _RECORD_BYTES_MAX  # one larger than the window
