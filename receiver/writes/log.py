# SPDX-License-Identifier: Apache-2.0
"""Frames that are applied and kept all the same, so that single writes can be had back.

    fine/%016x-STREAMHEX/%016x-%016x.seg      (ordinal, stream; first position, when it was left)

A segment that the inbox has no more need of is moved here by one rename instead of being unlinked,
in the very bytes it had. So nothing here can be taken for something that is yet to be applied, and
the frames of a stream that a rollback closed stay readable and are never applied again. When it was
left stands in its name, by the receiver's counted clock: no frame in it is younger than that. It
goes when that is longer ago than `keep_ns`, or sooner where the budget needs the room, oldest
first. One with a name from the future (the clock of an earlier version had jumped) gets another.

While a rollback to a write is under way `keep_ns` is None, and everything is kept: its frames must
not go before it has ended.

Failure. A crash between the rename and its sync leaves the segment in either place, or in both,
or, after a power cut, nowhere: what is here is of no need to anything that was promised. A full
disk that has no room for a name has the segment unlinked.

Concurrency: the group's apply thread; `used_bytes` is for any.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from journal.entry import FRAME_LIMIT_BYTES, HEADER, MAGIC
from journal.entry import HEADER_BYTES as ENTRY_HEADER_BYTES
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.spool import StreamName, list_streams
from receiver.counted.ages import AgeClock, moved_ns
from replicator.base.errors import DamageError
from replicator.base.mishaps import is_full
from replicator.base.storage import File, Storage
from replicator.wire.frames import Frame, FrameOpener, OpenedFrame

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.seg", re.ASCII)


@dataclass(frozen=True, slots=True)
class Span:
    """A file of frames of one stream: `size_bytes` of entries from position `first` on."""

    first: int
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Kept:
    left_ns: int
    stream: StreamName
    span: Span


class FineLog:
    """See the head of this file. `live_spans` are the durable parts of a stream's segments that
    are still in the inbox."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        clock: AgeClock,
        live_spans: Callable[[int], Sequence[Span]],
        keep_ns: int,
    ) -> None:
        self.keep_ns: int | None = keep_ns
        self._storage = storage
        self._directory = directory
        self._clock = clock
        self._are_stamps_seen = False
        self._live_spans = live_spans
        self._kept: list[_Kept] = []  # in the order in which they go
        self._opener = FrameOpener()

    def open(self) -> None:
        """Takes up what is there. Raises OSError."""
        found: dict[tuple[StreamName, int], _Kept] = {}
        for stream in list_streams(self._storage, [self._directory]):
            folder = self._directory / stream.directory
            for name in sorted(self._storage.names(folder)):
                if parts := _NAME.fullmatch(name):
                    first, left_ns = int(parts[1], 16), int(parts[2], 16)
                    size = self._size(folder / name)
                    found[stream, first] = _Kept(left_ns, stream, Span(first, folder / name, size))
        self._kept = sorted(found.values(), key=_age)

    # -- what is kept

    @property
    def used_bytes(self) -> int:
        return sum(SEGMENT_HEADER_BYTES + each.span.size_bytes for each in list(self._kept))

    @property
    def oldest_ns(self) -> int | None:
        """When what has been kept longest was left."""
        kept = list(self._kept)
        return kept[0].left_ns if kept else None

    def ends(self) -> dict[StreamName, int]:
        """Where what is kept of each stream ends, as an LSN. Reads the entries of its newest
        segment. Raises DamageError, OSError."""
        newest: dict[StreamName, Span] = {}
        for each in self._kept:
            known = newest.get(each.stream)
            if each.span.size_bytes and (known is None or known.first < each.span.first):
                newest[each.stream] = each.span
        return {stream: self._end_lsn(span) for stream, span in newest.items()}

    def _end_lsn(self, span: Span) -> int:
        with closing(self._storage.open(span.path)) as file:
            return max(end_lsn for _, _, end_lsn in _entries(file, span))

    def take(self, stream: StreamName, first: int, path: Path) -> bool:
        """The inbox leaves that segment, which is at rest. False: it is not wanted. Raises OSError
        with the segment where it was, or here."""
        if self.keep_ns == 0:
            return False
        left_ns = self._clock.stamp_ns()
        folder = self._directory / stream.directory
        target = _path(folder, first, left_ns)
        try:
            size = self._size(path)
            if size == 0:
                return False
            self._storage.make_directory(folder)
            self._storage.replace(path, target)
            kept = _Kept(left_ns, stream, Span(first, target, size))
            self._kept = sorted([*self._kept, kept], key=_age)
            self._storage.sync_directory(folder)
        except FileNotFoundError:
            return True  # an earlier call came so far
        except OSError as error:
            if not is_full(error):
                raise
            self._kept = [each for each in self._kept if each.span.path != target]
            with suppress(FileNotFoundError):
                self._storage.unlink(target)
            return False
        return True

    def expire(self) -> None:
        """What is older than `keep_ns` goes. Raises OSError."""
        ages = self._clock.ages()
        if not self._are_stamps_seen:
            self._mend_stamps(ages.counted_ns)
            self._are_stamps_seen = True
        if self.keep_ns is None:
            return
        last_ns = ages.now_ns - self.keep_ns
        self._drop([each for each in self._kept if moved_ns(each.left_ns, ages.lags) <= last_ns])

    def _mend_stamps(self, counted_ns: int) -> None:
        """What was left later than now, was left now: in its name, so in later lives as well."""
        for each in [each for each in self._kept if each.left_ns > counted_ns]:
            path = _path(each.span.path.parent, each.span.first, counted_ns)
            self._storage.replace(each.span.path, path)
            self._storage.sync_directory(path.parent)
            span = Span(each.span.first, path, each.span.size_bytes)
            self._kept = [other for other in self._kept if other is not each]
            self._kept = sorted([*self._kept, _Kept(counted_ns, each.stream, span)], key=_age)

    def shrink(self, need_bytes: int) -> int:
        """The oldest go, until so many bytes are free, or nothing is left. How many it were.
        Raises OSError."""
        freed, gone = 0, []
        for each in self._kept:
            if freed >= need_bytes:
                break
            gone.append(each)
            freed += SEGMENT_HEADER_BYTES + each.span.size_bytes
        self._drop(gone)
        return freed

    def _drop(self, gone: Sequence[_Kept]) -> None:
        for each in gone:
            folder = each.span.path.parent
            with suppress(FileNotFoundError):
                self._storage.unlink(each.span.path)
            self._kept = [other for other in self._kept if other is not each]
            if not self._storage.names(folder):
                self._storage.remove_directory(folder)

    def _size(self, path: Path) -> int:
        """Of the entries in a segment; one that was cut off in its header has none."""
        with closing(self._storage.open(path)) as file:
            return max(file.size() - SEGMENT_HEADER_BYTES, 0)

    # -- reading

    def frames_from(self, ordinal: int, lsn: int) -> Iterator[OpenedFrame]:
        """The durable frames of a stream that reach beyond `lsn`, in order, applied or not. Frames
        that are gone leave gaps: whoever reads compares the ranges. Raises DamageError, OSError."""
        spans = {span.first: span for span in self._live_spans(ordinal)}
        spans |= {  # where the inbox has yet to be told that a segment has left it
            each.span.first: each.span for each in self._kept if each.stream.ordinal == ordinal
        }
        ordered = [spans[first] for first in sorted(spans) if spans[first].size_bytes]
        start = bisect_right(ordered, lsn, key=self._start_lsn) - 1
        for span in ordered[max(start, 0) :]:
            with closing(self._storage.open(span.path)) as file:
                for offset, size, end_lsn in _entries(file, span):
                    if end_lsn > lsn:
                        yield self._opened(file, span, offset, size)

    def newest_frames(self, most_bytes: int) -> Iterator[OpenedFrame]:
        """Of what is kept, by the segments that were left last, of so many bytes in all. A segment
        that is damaged, or cannot be read, ends where that is found."""
        for each in reversed(self._kept):
            most_bytes -= each.span.size_bytes
            if most_bytes < 0:
                return
            with (
                suppress(DamageError, OSError),
                closing(self._storage.open(each.span.path)) as file,
            ):
                for offset, size, _ in _entries(file, each.span):
                    yield self._opened(file, each.span, offset, size)

    def _start_lsn(self, span: Span) -> int:
        with closing(self._storage.open(span.path)) as file:
            _, start_lsn, _ = _header(file, span, SEGMENT_HEADER_BYTES)
        return start_lsn

    def _opened(self, file: File, span: Span, offset: int, size: int) -> OpenedFrame:
        try:
            return self._opener.open(Frame.parse(file.pread(size, offset)))
        except DamageError as error:
            raise DamageError(f"{span.path} at offset {offset}: {error.message}") from error


def _entries(file: File, span: Span) -> Iterator[tuple[int, int, int]]:
    """(offset in the file, bytes, end LSN) of each frame."""
    offset, end = SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES + span.size_bytes
    while offset < end:
        size, _, end_lsn = _header(file, span, offset)
        yield offset + ENTRY_HEADER_BYTES, size, end_lsn
        offset += ENTRY_HEADER_BYTES + size


def _header(file: File, span: Span, offset: int) -> tuple[int, int, int]:
    """(bytes of the frame, start LSN, end LSN) of the entry there."""
    data = file.pread(ENTRY_HEADER_BYTES, offset)
    if len(data) == ENTRY_HEADER_BYTES:
        magic, size, start_lsn, end_lsn, *_ = HEADER.unpack(data)
        if magic == MAGIC and 0 < size <= FRAME_LIMIT_BYTES and start_lsn < end_lsn:
            return size, start_lsn, end_lsn
    raise DamageError(f"{span.path} at offset {offset}: no frame lies there")


def _path(folder: Path, first: int, left_ns: int) -> Path:
    return folder / f"{first:016x}-{left_ns:016x}.seg"


def _age(kept: _Kept) -> tuple[int, int, int]:
    return kept.left_ns, kept.stream.ordinal, kept.span.first
