# SPDX-License-Identifier: Apache-2.0
"""The inbox: frames as they came, durable before they are acknowledged, until they are applied.

    inbox/%016x-STREAMHEX/%016x.seg      (ordinal, stream; first position)

An entry is a 48-byte header (journal.entry) and the frame in the very bytes that crossed the wire.
Streams come one after the other: frames go to the newest one, and are applied from the oldest one
on. Positions count entry bytes within a stream.

Durability: `append` writes, `sync` makes durable what was appended; only what is durable is
acknowledged, numbered and applied. A segment is left only when it is durable as a whole, so a torn
tail lies in the newest segment alone. On opening every segment and directory is synced before
an end is reported: the page cache may hold what the disk does not.

Failure of a sync: nothing since the last good one counts as received any more. It is cut off
(journal.durable_log), and the source sends it again.

A segment is left when everything in it is applied *and* that is durable: `leave` may take it
over by moving it elsewhere (receiver.writes.log), otherwise it is unlinked; the newest segment of
the newest stream stays, as the place to go on. Segments go oldest first, each unlink durable before
the next, so a crash leaves no gap.

Concurrency: the intake thread calls begin_stream, append, sync; the apply thread calls frames_from,
read, free, remove_closed. Both may run at once: what they share is the list of
frames and of segments, under one lock that is never held over I/O.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from journal.durable_log import DurableLog
from journal.entry import HEADER_BYTES as ENTRY_HEADER_BYTES
from journal.entry import Entry, encode_entry
from journal.format import ENTRIES
from journal.record import first_chain
from journal.reopen import Reopened, reopen
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import SegmentKind
from journal.spool import StreamName, list_segments, list_streams
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage
from replicator.wire.frames import Frame, FrameHeader, FrameOpener, OpenedFrame

FRAMES_AT_ONCE = 4096
Leave = Callable[[StreamName, int, Path], bool]
"""Of a stream, the segment with that first position: whether it was taken over."""


def leave_none(_stream: StreamName, _first: int, _path: Path) -> bool:
    """Nobody wants what is applied."""
    return False


@dataclass(frozen=True, slots=True)
class InboxFrame:
    """Where a frame lies, and which part of the log it is."""

    position: int
    size_bytes: int
    start_lsn: int
    end_lsn: int


@dataclass(slots=True)
class _Segment:
    first: int
    path: Path
    size_bytes: int = 0
    end_lsn: int = 0  # of the last frame in it


@dataclass(slots=True)
class StreamInbox:
    """One stream's part. `frames` are those not freed, oldest first; `durable_frames` says how many
    of them, from the front, are durable. `chain` is the log's at `received_lsn`."""

    name: StreamName
    received_lsn: int
    durable_lsn: int
    chain: int
    durable_chain: int
    frames: list[InboxFrame] = field(default_factory=list)
    durable_frames: int = 0
    segments: list[_Segment] = field(default_factory=list)


class Inbox:
    """See the head of this file. `cache_bytes` of opened frames are kept for the apply thread, so
    that it need not read and unpack again what has just come."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        group: str,
        now_ns: Callable[[], int],
        *,
        segment_bytes: int,
        cache_bytes: int,
        leave: Leave = leave_none,
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._leave = leave
        self._lock = threading.Lock()
        self._streams: list[StreamInbox] = []
        self._log = DurableLog(
            storage, directory, SegmentKind.INBOX, group, now_ns, lost=self._forget_unsynced
        )
        self._file: tuple[Path, File] | None = None
        self._opener = FrameOpener()
        self._cache: OrderedDict[tuple[int, int], OpenedFrame] = OrderedDict()
        self._cache_room = cache_bytes
        self.cut_reports: list[str] = []

    # -- opening

    def open(self) -> None:
        """Takes up what is there; what it reports is durable. May be called again. Raises
        DamageError with file and offset."""
        self.close()
        self._streams, self.cut_reports = [], []
        for key in list(self._cache):
            self._cache_room += _cost(self._cache.pop(key))
        self._storage.make_directory(self._directory)
        for name in list_streams(self._storage, [self._directory]):
            stream, reopened = self._open_stream(name)
            if not stream.frames:
                self._remove(stream)
                continue
            self._streams.append(stream)
            self._log.take_up(name, reopened)
        self._storage.sync_directory(self._directory)

    def _open_stream(self, name: StreamName) -> tuple[StreamInbox, Reopened]:
        stream = StreamInbox(name, 0, 0, 0, 0)

        def visit(position: int, entry: Entry) -> None:
            header = FrameHeader.parse(entry.frame)
            if (header.start_lsn, header.end_lsn) != (entry.start_lsn, entry.end_lsn):
                raise DamageError(
                    f"{self._directory / name.directory}: the entry at {position} says"
                    f" [{entry.start_lsn}, {entry.end_lsn}), its frame"
                    f" [{header.start_lsn}, {header.end_lsn})"
                )
            if stream.frames and stream.frames[-1].end_lsn != entry.start_lsn:
                raise DamageError(
                    f"{self._directory / name.directory}: the entry at {position} starts at LSN"
                    f" {entry.start_lsn}, the one before ends at {stream.frames[-1].end_lsn}"
                )
            stream.frames.append(InboxFrame(position, entry.size, entry.start_lsn, entry.end_lsn))
            stream.chain = header.chain_end

        reopened = reopen(self._storage, [self._directory], name, ENTRIES, visit=visit)
        if reopened.cut_bytes:
            self.cut_reports.append(
                f"{name.directory}: {reopened.verdict.label}, {reopened.cut_bytes} bytes cut"
            )
        for file in list_segments(self._storage, [self._directory], name):
            stream.segments.append(_Segment(file.first_lsn, file.path))
        self._sort_into_segments(stream)
        stream.durable_frames = len(stream.frames)
        if stream.frames:
            stream.received_lsn = stream.durable_lsn = stream.frames[-1].end_lsn
            stream.durable_chain = stream.chain
        return stream, reopened

    def _sort_into_segments(self, stream: StreamInbox) -> None:
        at = 0
        for frame in stream.frames:
            while at + 1 < len(stream.segments) and stream.segments[at + 1].first <= frame.position:
                at += 1
            segment = stream.segments[at]
            segment.end_lsn = frame.end_lsn
            segment.size_bytes = frame.position + frame.size_bytes - segment.first

    # -- what there is

    @property
    def newest(self) -> StreamInbox | None:
        streams = self._streams
        return streams[-1] if streams else None

    def find(self, ordinal: int) -> StreamInbox | None:
        with self._lock:
            return next((each for each in self._streams if each.name.ordinal == ordinal), None)

    @property
    def streams(self) -> list[StreamInbox]:
        """Oldest first."""
        with self._lock:
            return list(self._streams)

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return sum(
                SEGMENT_HEADER_BYTES + segment.size_bytes
                for stream in self._streams
                for segment in stream.segments
            )

    def unapplied_bytes(self, ordinal: int, lsn: int) -> int:
        """Log that is received behind a place."""
        with self._lock:
            return sum(
                stream.received_lsn
                - max(lsn if stream.name.ordinal == ordinal else 0, _start(stream))
                for stream in self._streams
                if stream.name.ordinal >= ordinal and stream.frames
            )

    # -- intake

    def begin_stream(self, name: StreamName, start_lsn: int, chain: int) -> None:
        """Frames of a new stream follow. What came of the one before must be durable."""
        before = self.newest
        if before is not None:
            self._log.make_sound()
        assert before is None or before.durable_lsn == before.received_lsn
        assert before is None or before.name < name
        with self._lock:
            if before is not None and not before.segments:
                self._streams.pop()  # nothing ever came of it
            self._streams.append(StreamInbox(name, start_lsn, start_lsn, chain, chain))
        self._log.begin_at(name, 0, first_chain(name.stream, name.ordinal))

    def append(self, frame: Frame, opened: OpenedFrame) -> None:
        """Takes in the next frame of the newest stream. OSError: nothing was taken in, and what
        was not durable before may be gone with it."""
        stream, log = self._streams[-1], self._log
        log.make_sound()
        buffers = [frame.header.pack(), frame.data]
        position = log.end
        header, chain = encode_entry(
            buffers, frame.header.start_lsn, frame.header.end_lsn, log.known_durable, log.chain
        )
        size = ENTRY_HEADER_BYTES + frame.size
        log.append([header, *buffers], size, chain)
        path = log.segment_path
        assert path is not None
        taken = InboxFrame(position, size, frame.header.start_lsn, frame.header.end_lsn)
        with self._lock:
            if not stream.segments or stream.segments[-1].path != path:
                stream.segments.append(_Segment(position, path))
            segment = stream.segments[-1]
            segment.end_lsn = taken.end_lsn
            segment.size_bytes += size
            stream.frames.append(taken)
            stream.received_lsn, stream.chain = taken.end_lsn, frame.header.chain_end
            self._keep(stream.name.ordinal, position, opened)

    def sync(self) -> None:
        """Everything received is durable. OSError: what was not durable before is gone, and the
        source has to send it again."""
        stream = self.newest
        if stream is None:
            return
        self._log.sync()
        with self._lock:
            stream.durable_lsn, stream.durable_chain = stream.received_lsn, stream.chain
            stream.durable_frames = len(stream.frames)
            full = bool(stream.segments) and stream.segments[-1].size_bytes >= self._segment_bytes
        if full:
            self._log.rotate()

    def drop_unsynced(self) -> None:
        """Whatever is received and not durable is gone."""
        if self._streams:
            self._log.cut_back()

    def _forget_unsynced(self) -> None:
        """The log goes back to its durable end, and we with it."""
        stream, durable = self._streams[-1], self._log.durable_end
        with self._lock:
            del stream.frames[stream.durable_frames :]
            stream.received_lsn, stream.chain = stream.durable_lsn, stream.durable_chain
            ordinal = stream.name.ordinal
            for key in [key for key in self._cache if key[0] == ordinal and key[1] >= durable]:
                self._cache_room += _cost(self._cache.pop(key))
            if stream.segments and stream.segments[-1].first >= durable:
                stream.segments.pop()
            elif stream.segments:
                last = stream.segments[-1]
                last.size_bytes = durable - last.first
                last.end_lsn = stream.durable_lsn

    # -- apply

    def frames_from(self, ordinal: int, lsn: int) -> list[InboxFrame]:
        """The durable frames of a stream that reach beyond `lsn`, in order; the first of them,
        where there are very many."""
        with self._lock:
            for stream in self._streams:
                if stream.name.ordinal == ordinal:
                    first = bisect_right(stream.frames, lsn, key=lambda frame: frame.end_lsn)
                    end = min(stream.durable_frames, first + FRAMES_AT_ONCE)
                    return stream.frames[first:end]
        return []

    def spans(self, ordinal: int) -> list[tuple[int, Path, int]]:
        """(first position, path, bytes of entries) of each segment of a stream, as far as it is
        durable; what is applied of it is there as well."""
        with self._lock:
            found = [
                (segment.first, segment.path, segment.size_bytes)
                for stream in self._streams
                if stream.name.ordinal == ordinal
                for segment in stream.segments
            ]
            is_newest = bool(self._streams) and self._streams[-1].name.ordinal == ordinal
            durable = self._log.durable_end if is_newest else 1 << 63
        return [(first, path, min(size, durable - first)) for first, path, size in found]

    def every_frame(self) -> list[tuple[int, InboxFrame]]:
        """(ordinal of its stream, frame) of all durable frames that are there, applied or not."""
        with self._lock:
            return [
                (stream.name.ordinal, frame)
                for stream in self._streams
                for frame in stream.frames[: stream.durable_frames]
            ]

    def stream_after(self, ordinal: int) -> tuple[StreamName, int] | None:
        """The next stream that has durable frames, and where it starts."""
        with self._lock:
            for stream in self._streams:
                if stream.name.ordinal > ordinal and stream.durable_frames:
                    return stream.name, stream.frames[0].start_lsn
        return None

    def read(self, ordinal: int, frame: InboxFrame) -> OpenedFrame:
        """The frame's records, each verified. Raises DamageError."""
        with self._lock:
            cached = self._cache.get((ordinal, frame.position))
            stream = next(each for each in self._streams if each.name.ordinal == ordinal)
            segment = next(
                each for each in reversed(stream.segments) if each.first <= frame.position
            )
        if cached is not None:
            return cached
        offset = SEGMENT_HEADER_BYTES + frame.position - segment.first
        data = self._open_file(segment.path).pread(frame.size_bytes, offset)
        try:
            stored = Frame.parse(memoryview(data)[ENTRY_HEADER_BYTES:])
            if (stored.header.start_lsn, stored.header.end_lsn) != (frame.start_lsn, frame.end_lsn):
                raise DamageError("another frame lies there")
            return self._opener.open(stored)
        except DamageError as error:
            raise DamageError(
                f"{segment.path} at offset {offset}: {error.message}",
                hint="the frame was acknowledged; give the stream up with a resync",
            ) from error

    def free(self, ordinal: int, lsn: int) -> None:
        """Everything below `lsn` of that stream, and all of those before it, is applied for good.
        OSError: some of it is still there, and goes the next time."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            if stream.name.ordinal < ordinal:
                self._remove(stream)
            elif stream.name.ordinal == ordinal:
                self._free_frames(stream, lsn)
                self._free_segments(stream, lsn)

    def remove_closed(self, ordinal: int) -> None:
        """Streams up to that ordinal are closed for ever, and what came of them is applied."""
        newest = self.newest
        if newest is not None and newest.name.ordinal <= ordinal:
            self._log.close()
        for stream in [each for each in self._streams if each.name.ordinal <= ordinal]:
            self._remove(stream)

    def _free_frames(self, stream: StreamInbox, lsn: int) -> None:
        with self._lock:
            count = 0
            while count < stream.durable_frames and stream.frames[count].end_lsn <= lsn:
                self._uncache(stream.name.ordinal, stream.frames[count].position)
                count += 1
            if count:
                stream.frames = stream.frames[count:]
                stream.durable_frames -= count

    def _free_segments(self, stream: StreamInbox, lsn: int) -> None:
        while len(stream.segments) > 1 and stream.segments[0].end_lsn <= lsn:
            if stream.durable_lsn <= stream.segments[0].end_lsn:
                return  # a power cut may take the segments behind it, and with them where we were
            self._leave_segment(stream.name, stream.segments[0].first, stream.segments[0].path)
            with self._lock:
                stream.segments.pop(0)

    def _remove(self, stream: StreamInbox) -> None:
        folder = self._directory / stream.name.directory
        for segment in list_segments(self._storage, [self._directory], stream.name):
            self._leave_segment(stream.name, segment.first_lsn, segment.path)
        with self._lock:
            if stream in self._streams:
                self._streams.remove(stream)
            for key in [key for key in self._cache if key[0] == stream.name.ordinal]:
                self._cache_room += _cost(self._cache.pop(key))
        if self._storage.exists(folder) and not self._storage.names(folder):
            self._storage.remove_directory(folder)
            self._storage.sync_directory(self._directory)

    def _leave_segment(self, name: StreamName, first: int, path: Path) -> None:
        self._close_file(path)
        if self._leave(name, first, path):
            self._storage.sync_directory(path.parent)
        else:
            self._unlink(path)

    def _unlink(self, path: Path) -> None:
        self._close_file(path)
        with suppress(FileNotFoundError):
            self._storage.unlink(path)
        self._storage.sync_directory(path.parent)

    def _close_file(self, path: Path) -> None:
        if self._file is not None and self._file[0] == path:
            self._file[1].close()
            self._file = None

    def _open_file(self, path: Path) -> File:
        if self._file is None or self._file[0] != path:
            if self._file is not None:
                self._file[1].close()
                self._file = None
            self._file = path, self._storage.open(path)
        return self._file[1]

    # -- the cache; the lock is held

    def _keep(self, ordinal: int, position: int, opened: OpenedFrame) -> None:
        cost = _cost(opened)
        if cost <= self._cache_room:
            self._cache_room -= cost
            self._cache[ordinal, position] = opened

    def _uncache(self, ordinal: int, position: int) -> None:
        opened = self._cache.pop((ordinal, position), None)
        if opened is not None:
            self._cache_room += _cost(opened)

    def close(self) -> None:
        self._log.close()
        if self._file is not None:
            self._file[1].close()
            self._file = None


def _cost(opened: OpenedFrame) -> int:
    return opened.header.raw_bytes


def _start(stream: StreamInbox) -> int:
    return stream.frames[0].start_lsn if stream.frames else stream.received_lsn
