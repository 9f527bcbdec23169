# SPDX-License-Identifier: Apache-2.0
"""Reads from the spool what a plan needs to know of each stream.

Only headers and first records are read, and for the stream that the receiver holds the one
segment in which its durable LSN lies. A stream that cannot be read at all (a torn first segment,
files that vanish because the splitter freed them) counts as one without records: a plan then
never ships it from its start, and says so if it is the live one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.shipping.resume import SpoolStream
from journal.reader import LogReader
from journal.record import HEADER_BYTES, RecordType, first_chain
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import parse_header
from journal.spool import StreamName, list_segments, list_streams
from replicator.base.errors import DamageError, NotFoundError
from replicator.base.storage import Storage
from replicator.wire.messages import Welcome


@dataclass(frozen=True, slots=True)
class Live:
    """The stream that the splitter has open, and the end that it has published."""

    name: StreamName
    end_lsn: int


def survey(
    storage: Storage, directories: Sequence[Path], live: Live | None, welcome: Welcome
) -> list[SpoolStream]:
    """All streams of the group, by ordinal. A live stream without a segment is among them."""
    names = set(list_streams(storage, directories))
    if live is not None:
        names.add(live.name)
    return [_stream(storage, directories, name, live, welcome) for name in sorted(names)]


def _stream(
    storage: Storage,
    directories: Sequence[Path],
    name: StreamName,
    live: Live | None,
    welcome: Welcome,
) -> SpoolStream:
    is_live = live is not None and live.name == name
    published = live.end_lsn if live is not None and is_live else None
    try:
        first_lsn, chain = _first(storage, directories, name)
        end_lsn = _end(storage, directories, name) if published is None else published
        begins = (
            chain == first_chain(name.stream, name.ordinal)
            and first_lsn < end_lsn
            and _begins_with_sync(storage, directories, name, first_lsn, chain, end_lsn)
        )
        at_durable = None
        if welcome.stream == str(name.stream):
            at_durable = _chain_at(storage, directories, name, welcome.durable_lsn)
    except (DamageError, NotFoundError, FileNotFoundError):
        at = published or 0
        return SpoolStream(name, at, at, 0, False, None, is_live)
    return SpoolStream(name, first_lsn, end_lsn, chain, begins, at_durable, is_live)


def _first(storage: Storage, directories: Sequence[Path], name: StreamName) -> tuple[int, int]:
    """(first LSN there, chain at it)."""
    segments = list_segments(storage, directories, name)
    if not segments:
        raise NotFoundError(f"stream {name.directory} has no segment")
    file = storage.open(segments[0].path)
    try:
        header = parse_header(file.pread(SEGMENT_HEADER_BYTES, 0), str(segments[0].path))
    finally:
        file.close()
    return header.first_lsn, header.chain


def _end(storage: Storage, directories: Sequence[Path], name: StreamName) -> int:
    """At most so far goes a dead stream: the size of its last segment, a seal included."""
    last = list_segments(storage, directories, name)[-1]
    file = storage.open(last.path)
    try:
        return last.first_lsn + max(0, file.size() - SEGMENT_HEADER_BYTES)
    finally:
        file.close()


def _begins_with_sync(
    storage: Storage,
    directories: Sequence[Path],
    name: StreamName,
    first_lsn: int,
    chain: int,
    end_lsn: int,
) -> bool:
    reader = LogReader(storage, directories, name)
    try:
        chunk = reader.read(first_lsn, chain, end_lsn, HEADER_BYTES)
    except DamageError:  # torn right at the start
        return False
    finally:
        reader.close()
    return chunk.records[0][1].type == RecordType.SYNC_BEGIN


def _chain_at(
    storage: Storage, directories: Sequence[Path], name: StreamName, lsn: int
) -> int | None:
    reader = LogReader(storage, directories, name)
    try:
        return reader.chain_at(lsn)
    except NotFoundError:
        return None
    finally:
        reader.close()
