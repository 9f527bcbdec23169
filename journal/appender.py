# SPDX-License-Identifier: Apache-2.0
"""Appending to a log: one `pwritev` per batch, whole batches or nothing.

`LogWriter` writes the segments of one stream in order. A batch is a list of buffers that make up
whole entries; it lands in one segment (a new one is opened first when the current one is full),
so an entry never spans two. Entries are opaque here: records, or frames with their entry header.

Invariants
* `end_lsn` is behind the last byte that was appended whole; nothing lies behind a torn entry.
* `chain` belongs to `end_lsn`; the caller computes it and hands it in with the batch.

Failures
* A short or failed append is truncated back to `end_lsn`, and AppendError is raised: the log is as
  it was, and the caller may try again or give up. If even that fails the segment is *abandoned*
  (`broken` is true): every later append raises, for whatever was appended behind a torn record
  would be buried by it.
* The directory entry of a new segment is not synced here: whoever promises durability calls
  `sync()`, which syncs the data of all segments opened since and then their directories.
* A sync that fails condemns the log (`broken` too): the kernel may have dropped the pages, and
  a second sync that succeeds would prove nothing.

Concurrency: one caller at a time. Batches of more than IOV_MAX buffers take one call per IOV_MAX.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

from journal.segment import HEADER_BYTES, SegmentHeader, SegmentKind, pack_header, segment_name
from journal.spool import StreamName
from replicator.base.mishaps import placed, reason
from replicator.base.storage import IOV_MAX, Buffer, File, Storage


class AppendError(Exception):
    """Nothing of the batch is in the log. `broken`: nothing can be appended any more."""

    def __init__(self, path: Path, cause: OSError, *, broken: bool) -> None:
        super().__init__(f"{path}: {reason(cause)}")
        self.path = path
        self.cause = placed(cause, "appending", path)
        self.errno = cause.errno
        self.broken = broken


class LogWriter:
    """The one writer of a stream's log.

    `place(bytes)` chooses the directory for the next segment, given what is about to be appended;
    it may raise to say that there is no room. `segment_bytes` is where a segment is full; a
    batch larger than that gets a segment of its own. `synced`: the owner calls `sync()`, so full
    segments stay open until then; without, they are closed as they are left.
    """

    def __init__(
        self,
        storage: Storage,
        place: Callable[[int], Path],
        *,
        kind: SegmentKind,
        group: str,
        stream: UUID,
        ordinal: int,
        first_lsn: int,
        chain: int,
        segment_bytes: int,
        now_ns: Callable[[], int],
        synced: bool = True,
    ) -> None:
        self._storage = storage
        self._synced = synced
        self._place = place
        self._kind = kind
        self._group = group
        self._name = StreamName(ordinal, stream)
        self._segment_bytes = segment_bytes
        self._now_ns = now_ns
        self._file: File | None = None
        self._base_lsn = first_lsn  # LSN at file position HEADER_BYTES
        self._unsynced: list[File] = []
        self._new_directories: set[Path] = set()
        self.first_lsn = first_lsn
        self.end_lsn = first_lsn
        self.chain = chain
        self.known_durable = first_lsn
        self.broken = False
        self.appends = 0

    def continue_in(self, path: Path, base_lsn: int, end_lsn: int, chain: int) -> None:
        """Goes on in an existing segment whose verified end is `end_lsn`: anything behind it is
        cut off. For owners that reopen their log after a crash."""
        assert self._file is None, "already appending"
        file = self._storage.open(path, writable=True)
        file.truncate(HEADER_BYTES + end_lsn - base_lsn)
        self._file, self._base_lsn, self.end_lsn, self.chain = file, base_lsn, end_lsn, chain
        self._unsynced.append(file)
        self._new_directories.add(path.parent)

    @property
    def segment_path(self) -> Path | None:
        """The segment that is appended to now."""
        return None if self._file is None else self._file.path

    @property
    def segment_first(self) -> int:
        """Where that one begins, or the next one will."""
        return self.end_lsn if self._file is None else self._base_lsn

    def append(self, buffers: Sequence[Buffer], total_bytes: int, chain: int) -> int:
        """Appends whole entries of `total_bytes` altogether; returns the new end.

        `chain` is the chain behind the last of them. Raises AppendError, or what `place` raises.
        """
        if self.broken:
            raise AppendError(
                self._current_path(), OSError(errno.EIO, "segment abandoned"), broken=True
            )
        if self._file is None or self._is_full(total_bytes):
            self._open_segment(total_bytes)
        assert self._file is not None
        at = HEADER_BYTES + self.end_lsn - self._base_lsn
        self._write(self._file, buffers, total_bytes, at)
        self.end_lsn += total_bytes
        self.chain = chain
        self.appends += 1
        return self.end_lsn

    def rotate(self) -> None:
        """The next append opens a new segment. One that has no entry yet is removed."""
        file = self._file
        if file is None:
            return
        if self.end_lsn == self._base_lsn:
            self._storage.unlink(file.path)
            if file in self._unsynced:
                self._unsynced.remove(file)
            file.close()
            self._file = None
        else:
            self._leave_segment()

    def sync(self) -> int:
        """Makes everything appended so far durable; returns `end_lsn` of that.

        An OSError condemns the log: `broken` is set, the sync is never tried again.
        """
        if self.broken:
            condemned = OSError(errno.EIO, "condemned, as an earlier sync failed")
            raise placed(condemned, "syncing", self._current_path())
        end_lsn = self.end_lsn
        if end_lsn == self.known_durable and not self._new_directories:
            return end_lsn
        try:
            for file in self._unsynced:
                file.datasync()
            for directory in sorted(self._new_directories):
                self._storage.sync_directory(directory)
        except OSError:
            self.broken = True
            raise
        self._new_directories.clear()
        for file in self._unsynced:
            if file is not self._file:
                file.close()
        self._unsynced = [] if self._file is None else [self._file]
        self.known_durable = end_lsn
        return end_lsn

    def close(self) -> None:
        for file in self._unsynced:
            file.close()
        if self._file is not None:
            self._file.close()
        self._file, self._unsynced, self.broken = None, [], True

    def _current_path(self) -> Path:
        return self._file.path if self._file is not None else Path(self._name.directory)

    def _is_full(self, more: int) -> bool:
        used = self.end_lsn - self._base_lsn
        return used > 0 and used + more > self._segment_bytes

    def _leave_segment(self) -> None:
        if self._file is not None and not self._synced:
            self._file.close()
        self._file = None

    def _open_segment(self, first_batch_bytes: int) -> None:
        directory = self._place(HEADER_BYTES + first_batch_bytes) / self._name.directory
        self._leave_segment()
        header = SegmentHeader(
            self._kind,
            self._group,
            self._name.stream,
            self._name.ordinal,
            self.end_lsn,
            self.chain,
            self._now_ns(),
            self.known_durable,
        )
        path = directory / segment_name(self.end_lsn)
        try:
            self._storage.make_directory(directory)
            if self._storage.exists(path):  # an earlier append failed in its first batch
                self._storage.unlink(path)
            file = self._storage.create(path)
        except OSError as error:
            raise AppendError(path, error, broken=False) from error
        try:
            if file.pwritev([pack_header(header)], 0) != HEADER_BYTES:
                raise OSError(errno.ENOSPC, "no room for the header of a segment")
        except OSError as error:
            file.close()
            self._remove(path)
            raise AppendError(path, error, broken=False) from error
        self._file, self._base_lsn = file, self.end_lsn
        if self._synced:
            self._unsynced.append(file)
            self._new_directories.add(directory)

    def _write(self, file: File, buffers: Sequence[Buffer], total_bytes: int, at: int) -> None:
        try:
            if len(buffers) <= IOV_MAX:
                written = file.pwritev(buffers, at)
            else:
                written = self._write_slices(file, buffers, at)
            if written != total_bytes:
                short = f"{written} of {total_bytes} bytes were taken"
                raise placed(OSError(errno.ENOSPC, short), "appending", file.path, at)
        except OSError as error:
            self._take_back(file, at)
            raise AppendError(file.path, error, broken=self.broken) from error

    def _write_slices(self, file: File, buffers: Sequence[Buffer], at: int) -> int:
        written = 0
        for start in range(0, len(buffers), IOV_MAX):
            some = buffers[start : start + IOV_MAX]
            done = file.pwritev(some, at + written)
            written += done
            if done != sum(map(len, some)):
                break
        return written

    def _remove(self, path: Path) -> None:
        """Removes a segment that never came to be, so that readers do not find it."""
        try:
            self._storage.unlink(path)
        except OSError:
            return  # the next append tries again, and reopening knows it for a torn one

    def _take_back(self, file: File, at: int) -> None:
        try:
            file.truncate(at)
        except OSError:
            self.broken = True
