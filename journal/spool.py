# SPDX-License-Identifier: Apache-2.0
"""Where the segments of a group's streams lie, and which of them may go.

    DIRECTORY/GROUP/%016x-STREAMHEX/%016x.seg        (ordinal, stream; first LSN)

A stream's segments may be spread over several directories (the spool: tmpfs first, then disk).
Two directories hold the same segment only while it is moved from one to the other, as whole copies.
The receiver's inbox has the same layout in one directory. Names that fit nothing are left alone.

Freeing unlinks whole segments, oldest first, and never the one that is appended to. A crash
between two unlinks leaves a shorter log of the same stream, which is what freeing means anyway.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from journal.segment import first_lsn_of
from replicator.base.storage import Storage

_STREAM = re.compile(r"([0-9a-f]{16})-([0-9a-f]{32})")


@dataclass(frozen=True, slots=True, order=True)
class StreamName:
    """A stream as its directory states it. Sorts by ordinal."""

    ordinal: int
    stream: UUID

    @property
    def directory(self) -> str:
        return f"{self.ordinal:016x}-{self.stream.hex}"


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """One segment of a stream, in whichever directory it lies."""

    first_lsn: int
    path: Path


def stream_name(directory: str) -> StreamName | None:
    """What a directory's name states; None for one that is no stream's."""
    found = _STREAM.fullmatch(directory)
    return StreamName(int(found[1], 16), UUID(hex=found[2])) if found else None


def list_streams(storage: Storage, directories: Sequence[Path]) -> list[StreamName]:
    """Streams under any of the group's directories, by ordinal."""
    found = {
        name
        for directory in directories
        for text in storage.names(directory)
        if (name := stream_name(text)) is not None
    }
    return sorted(found)


def list_segments(
    storage: Storage, directories: Sequence[Path], stream: StreamName
) -> list[SegmentFile]:
    """The stream's segments in LSN order. Of a segment that lies in two directories, since it was
    being moved, the one in the earlier directory."""
    found: dict[int, SegmentFile] = {}
    for first_lsn, path in _copies(storage, directories, stream):
        found.setdefault(first_lsn, SegmentFile(first_lsn, path))
    return [found[first_lsn] for first_lsn in sorted(found)]


def _copies(
    storage: Storage, directories: Sequence[Path], stream: StreamName
) -> list[tuple[int, Path]]:
    return [
        (first_lsn, directory / stream.directory / name)
        for directory in directories
        for name in storage.names(directory / stream.directory)
        if (first_lsn := first_lsn_of(name)) is not None
    ]


def used_bytes(storage: Storage, directory: Path) -> int:
    """Bytes that all streams of a group take in one directory, as the filesystem counts them.

    Files that vanish meanwhile count as nothing: the agent frees while the splitter counts.
    """
    total = 0
    for text in storage.names(directory):
        if stream_name(text) is None:
            continue
        for name in storage.names(directory / text):
            try:
                total += storage.allocated_bytes(directory / text / name)
            except FileNotFoundError:
                continue
    return total


def free_below(
    storage: Storage, directories: Sequence[Path], stream: StreamName, lsn: int
) -> list[Path]:
    """Unlinks the segments that end at or below `lsn`; returns them. Never the last one."""
    copies = sorted(_copies(storage, directories, stream))
    begins = sorted({first_lsn for first_lsn, _ in copies})
    whole = {begin for begin, following in pairwise(begins) if following <= lsn}
    freed = [path for first_lsn, path in copies if first_lsn in whole]
    for path in freed:
        storage.unlink(path)
    return freed


def remove_stream(storage: Storage, directories: Sequence[Path], stream: StreamName) -> None:
    """Removes a stream that nobody appends to and nobody needs any more."""
    for _, path in sorted(_copies(storage, directories, stream)):
        storage.unlink(path)
    for directory in directories:
        folder = directory / stream.directory
        if storage.exists(folder) and not storage.names(folder):
            storage.remove_directory(folder)
