# SPDX-License-Identifier: Apache-2.0
"""One group of a receiver without its daemon, fed from memory: what history benchmarks measure.

The log is made as it is needed and kept nowhere. Content is half random, half one byte: what zstd
makes half of. Every byte that is written at the DR site is counted, at the last call before the
kernel (inbox, history, replica, state file; not the catalog, and not what the filesystem adds).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from uuid import UUID

from journal.bodies import Cut, Member, SyncBegin, SyncEnd, encode_body
from journal.record import NO_DISK, RecordType, encode_header, first_chain
from receiver.group.group import GroupReplica
from replicator.base.clock import SystemClock
from replicator.base.storage import Buffer, File, SystemStorage
from replicator.base.units import KIB, MIB
from replicator.wire.frames import FrameBuilder
from tests.doubles.memory_catalog import MemoryCatalog
from tests.receiver.machine import real_clock

STREAM = UUID(int=7)
INSTANCE = str(UUID(int=1))
FRAME_BYTES = 256 * KIB
ACKNOWLEDGE_BYTES = 8 * MIB
_POOL_BYTES = 32 * MIB
_SECOND_NS = 1_000_000_000


class CountedFile:
    """A file whose written bytes are counted by its storage."""

    def __init__(self, file: File, storage: CountedStorage) -> None:
        self._file = file
        self._storage = storage

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)

    def datasync(self) -> None:
        if self._storage.is_durable:
            self._file.datasync()

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        done = self._file.pwritev(buffers, offset)
        self._storage.written_bytes += done
        return done


class CountedStorage(SystemStorage):
    """Counts what is written through it. Not durable: for making large histories to read."""

    def __init__(self, *, is_durable: bool) -> None:
        self.written_bytes = 0
        self.is_durable = is_durable

    def create(self, path: Path) -> File:
        return CountedFile(super().create(path), self)  # type: ignore[return-value]

    def open(self, path: Path, *, writable: bool = False) -> File:
        return CountedFile(super().open(path, writable=writable), self)  # type: ignore[return-value]

    def sync_directory(self, path: Path) -> None:
        if self.is_durable:
            super().sync_directory(path)


class Feed:
    """A group with one disk, complete and all zeroes. See `fed`."""

    def __init__(self, home: Path, disk_bytes: int, *, is_durable: bool) -> None:
        self.storage = CountedStorage(is_durable=is_durable)
        self.home = home
        self.disk_bytes = disk_bytes
        self.replica_path = home / "g" / "disks" / "disk.raw"
        self.group = self._opened()
        self._builder = FrameBuilder()
        self._chain = first_chain(STREAM, 1)
        self._lsn = 0
        self._time_ns = 1_780_000_000 * _SECOND_NS
        self._raw: list[bytes] = []
        self._raw_bytes = 0
        self._unacknowledged = 0
        self._frame_start = (self._lsn, self._chain)
        self._pool = Random(3).randbytes(_POOL_BYTES)
        self._at = 0
        self.group.intake.open_stream(STREAM, 1, 0, self._chain)
        self._add(
            RecordType.SYNC_BEGIN,
            0,
            encode_body(SyncBegin("disk", INSTANCE, disk_bytes, from_zero=True)),
        )
        self._add(RecordType.SYNC_END, 0, encode_body(SyncEnd("disk", INSTANCE)))
        self.cut()

    def write(self, offset: int, length: int) -> None:
        """Content that was not there before."""
        half = length // 2
        self._at = (self._at + half + 61) % (_POOL_BYTES - length)
        content = self._pool[self._at : self._at + half] + bytes([self._at & 255]) * (length - half)
        self._add(RecordType.WRITE, 0, content, offset, length)

    def cut(self) -> None:
        self._time_ns += _SECOND_NS
        members = [Member(0, "disk", INSTANCE, self.disk_bytes, True)]
        self._add(RecordType.CUT, NO_DISK, encode_body(Cut("crash", members)))

    def writes(self, offsets: Iterable[int], length: int, *, per_cut: int) -> int:
        """Into the inbox, durable; the bytes of it. A cut after each `per_cut`, and at the end."""
        total = 0
        for count, offset in enumerate(offsets, start=1):
            self.write(offset, length)
            total += length
            if count % per_cut == 0:
                self.cut()
        self.cut()
        self.acknowledge()
        return total

    def acknowledge(self) -> None:
        self._ship()
        self.group.intake.sync()
        self._unacknowledged = 0

    def apply_all(self) -> None:
        while self.group.apply_next():
            pass

    def give_up(self, sequences: list[int]) -> None:
        """Points go; what they needed stays until the group is tidied up."""
        group = self.group
        group.history.drop_points(sequences, group.applier.newest_state)
        group.points.drop(sequences)

    def restart(self) -> None:
        self.group.close()
        self.group = self._opened()

    def _opened(self) -> GroupReplica:
        group = GroupReplica(
            self.storage,
            SystemClock(),
            self.home / "g",
            "g",
            MemoryCatalog(),
            age_clock=real_clock(self.home),
        )
        group.recover()
        return group

    def _add(self, kind: int, disk: int, payload: bytes, offset: int = 0, length: int = 0) -> None:
        header, self._chain = encode_header(
            kind, disk, offset, length, 1, self._time_ns, payload, 0, self._chain
        )
        self._raw += (header, payload)
        self._raw_bytes += len(header) + len(payload)
        self._lsn += len(header) + len(payload)
        if self._raw_bytes >= FRAME_BYTES:
            self._ship()
        if self._unacknowledged >= ACKNOWLEDGE_BYTES:
            self.acknowledge()

    def _ship(self) -> None:
        if not self._raw:
            return
        start_lsn, chain = self._frame_start
        self.group.intake.accept(
            self._builder.build(
                b"".join(self._raw),
                start_lsn=start_lsn,
                end_lsn=self._lsn,
                chain_start=chain,
                chain_end=self._chain,
            )
        )
        self._unacknowledged += self._raw_bytes
        self._raw, self._raw_bytes = [], 0
        self._frame_start = (self._lsn, self._chain)


@contextmanager
def fed(disk_bytes: int, *, is_durable: bool = True) -> Iterator[Feed]:
    """A group in a folder of its own, gone at the end."""
    home = Path(tempfile.mkdtemp(prefix="rpl-bench-", dir="/var/tmp"))
    try:
        feed = Feed(home, disk_bytes, is_durable=is_durable)
        try:
            yield feed
        finally:
            feed.group.close()
    finally:
        shutil.rmtree(home)


def scattered(count: int, length: int, span_bytes: int, *, seed: int) -> list[int]:
    """Different offsets in random order, as long as there are enough of them."""
    places = span_bytes // length
    rng = Random(seed)
    if count <= places:
        return [place * length for place in rng.sample(range(places), count)]
    return [rng.randrange(places) * length for _ in range(count)]
