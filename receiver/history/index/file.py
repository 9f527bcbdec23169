# SPDX-License-Identifier: Apache-2.0
"""An index file: the earliest image of each block in a stretch of sealed segments.

    header | chunk | chunk | … | directory

A chunk is CHUNK_ROWS sorted runs (receiver.history.index.runs), the last one fewer. The directory
has two u64 for each chunk: its first key, and its xxh3-64. It is small enough (16 bytes for 512
runs) to be kept in memory; a look-up reads the one or two chunks that it leads to, and verifies
each.

It is derived: everything in it can be found in the segments again, so whatever is wrong with one
(torn, changed, of another history, of segments that were rewritten) it is removed and made anew,
and never believed. `identity` names what it was made from; the header, the directory and each chunk
have checksums, and the header's covers the identity. It is written under another name, synced, and
takes its own by a rename, so only accidents make a bad one.

A file is opened for each read and closed again: a long history has more of them than a process has
descriptors, and most are never looked at. `ChunkCache` keeps the chunks that were read last.

Concurrency: an IndexFile is immutable, and may be read from any thread. A file that goes while it
is read is missing (OSError); who reads it asks the segments then.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
from xxhash import xxh3_64_intdigest

from receiver.history.images import U64
from receiver.history.index.runs import NO_RUNS, RUN, Rows, Runs
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage, write_all

MAGIC = b"RPLINDEX"
VERSION = 1
CHUNK_ROWS = 512
CHUNK_BYTES = CHUNK_ROWS * RUN.itemsize
NEW_SUFFIX = ".new"
SUFFIX = ".idx"
IDENTITY_BYTES = 16

# magic, version, reserved, rows of a chunk, first position, end position, identity, runs, blocks,
# checksum of the directory, checksum of all this
HEADER = Struct("<8sHHIQQ16sQQQQ")
HEADER_BYTES = HEADER.size
assert HEADER_BYTES == 80
_HEADER_SUM_BYTES = 8


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """History positions [first, end): whole sealed segments."""

    first: int
    end: int

    @property
    def file_name(self) -> str:
        return f"{self.first:016x}-{self.end:016x}{SUFFIX}"


class ChunkCache:
    """The chunks that were read last, up to a number of bytes. Any thread."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._chunks: OrderedDict[tuple[Path, bytes, int], Runs] = OrderedDict()
        self._lock = threading.Lock()
        self.used_bytes = 0
        self.read_bytes = 0
        """Of index files, ever."""

    def get(self, key: tuple[Path, bytes, int]) -> Runs | None:
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                self._chunks.move_to_end(key)
            return chunk

    def put(self, key: tuple[Path, bytes, int], chunk: Runs) -> None:
        with self._lock:
            self.read_bytes += chunk.rows.nbytes
            if key in self._chunks:
                return
            self._chunks[key] = chunk
            self.used_bytes += chunk.size_bytes
            while self.used_bytes > self._bytes_max:
                _, gone = self._chunks.popitem(last=False)
                self.used_bytes -= gone.size_bytes


@dataclass(frozen=True, slots=True)
class IndexFile:
    """One that is there, with its directory. See the head of this file."""

    storage: Storage
    path: Path
    span: Span
    identity: bytes
    run_count: int
    block_count: int
    directory: U64
    """First keys and checksums of the chunks, in turn."""
    cache: ChunkCache

    @property
    def firsts(self) -> U64:
        return self.directory[::2]

    @property
    def memory_bytes(self) -> int:
        return self.directory.nbytes

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + self.run_count * RUN.itemsize + self.directory.nbytes

    def within(self, start: int, end: int) -> Runs:
        """The runs of the keys [start, end). Raises DamageError, OSError."""
        firsts = self.firsts
        low = max(int(np.searchsorted(firsts, np.uint64(start), "right")) - 1, 0)
        high = int(np.searchsorted(firsts, np.uint64(end), "left"))
        if low >= high:
            return NO_RUNS
        if high - low == 1:
            return self._chunk(low).cut(start, end)
        rows = [self._chunk(at).rows for at in range(low, high)]
        return Runs(np.concatenate(rows)).cut(start, end)

    def sequence(self, chunks: int) -> Iterator[tuple[Runs, int | None]]:
        """All runs, so many chunks at a time, each time with the key that the next ones begin at,
        None at the end. Raises DamageError, OSError."""
        firsts = self.firsts
        for low in range(0, len(firsts), chunks):
            high = min(low + chunks, len(firsts))
            yield Runs(self._read(low, high)), int(firsts[high]) if high < len(firsts) else None

    def _chunk(self, number: int) -> Runs:
        key = (self.path, self.identity, number)
        chunk = self.cache.get(key)
        if chunk is None:
            chunk = Runs(self._read(number, number + 1))
            self.cache.put(key, chunk)
        return chunk

    def _read(self, low: int, high: int) -> Rows:
        """The rows of the chunks [low, high), verified."""
        size = min(high * CHUNK_ROWS, self.run_count) * RUN.itemsize - low * CHUNK_BYTES
        with closing(self.storage.open(self.path)) as file:
            data = file.pread(size, HEADER_BYTES + low * CHUNK_BYTES)
        view = memoryview(data)
        for number in range(low, high):
            at = (number - low) * CHUNK_BYTES
            if xxh3_64_intdigest(view[at : at + CHUNK_BYTES]) != int(
                self.directory[2 * number + 1]
            ):
                raise DamageError(f"{self.path}: chunk {number} fails its checksum")
        return np.frombuffer(data, dtype=RUN)


def open_index(storage: Storage, path: Path, cache: ChunkCache) -> IndexFile:
    """Reads header and directory. Raises DamageError, OSError."""
    with closing(storage.open(path)) as file:
        head = file.pread(HEADER_BYTES, 0)
        if len(head) < HEADER_BYTES:
            raise DamageError(f"{path}: no index of a history")
        magic, version, _, chunk_rows, first, end, identity, runs, blocks, of_directory, total = (
            HEADER.unpack(head)
        )
        if (
            (magic, version, chunk_rows) != (MAGIC, VERSION, CHUNK_ROWS)
            or xxh3_64_intdigest(head[:-_HEADER_SUM_BYTES]) != total
            or path.name != Span(first, end).file_name
        ):
            raise DamageError(f"{path}: no index of a history, or of another version")
        size = -(-runs // CHUNK_ROWS) * 16
        at = HEADER_BYTES + runs * RUN.itemsize
        data = file.pread(size, at) if file.size() == at + size else b""
    if len(data) != size or xxh3_64_intdigest(data) != of_directory:
        raise DamageError(f"{path}: its directory fails its checksum")
    directory = np.frombuffer(data, dtype="<u8").astype(np.uint64)
    return IndexFile(storage, path, Span(first, end), identity, runs, blocks, directory, cache)


class IndexWriter:
    """Writes an index file from front to end. What is not finished is discarded, or removed when
    the history is opened again."""

    def __init__(self, storage: Storage, directory: Path, span: Span, identity: bytes) -> None:
        """Raises OSError."""
        assert len(identity) == IDENTITY_BYTES
        self._storage = storage
        self._target = directory / span.file_name
        self._path = directory / (span.file_name + NEW_SUFFIX)
        self._span = span
        self._identity = identity
        self._directory: list[int] = []
        self._pending: Rows = np.empty(0, dtype=RUN)
        self._last_end = 0
        self._runs = 0
        self._blocks = 0
        if storage.exists(self._path):
            storage.unlink(self._path)
        self._file: File | None = storage.create(self._path)

    def add(self, runs: Runs) -> None:
        """Those that follow. Raises OSError."""
        if not len(runs):
            return
        assert int(runs.starts[0]) >= self._last_end, "runs are added in order"
        self._last_end = int(runs.starts[-1]) + int(runs.rows[-1]["blocks"])
        self._blocks += runs.block_count
        rows = np.concatenate([self._pending, runs.rows])
        whole = len(rows) // CHUNK_ROWS * CHUNK_ROWS
        self._write(rows[:whole])
        self._pending = rows[whole:]

    def _write(self, rows: Rows) -> None:
        assert self._file is not None
        if not len(rows):
            return
        data = memoryview(rows.tobytes())
        for at in range(0, len(rows), CHUNK_ROWS):
            chunk = data[at * RUN.itemsize : at * RUN.itemsize + CHUNK_BYTES]
            self._directory += [int(rows[at]["start"]), xxh3_64_intdigest(chunk)]
        write_all(self._file, [data], HEADER_BYTES + self._runs * RUN.itemsize)
        self._runs += len(rows)

    def finish(self, cache: ChunkCache) -> IndexFile:
        """Durable, and in its place, when this returns. Raises OSError."""
        self._write(self._pending)
        assert self._file is not None
        directory = np.array(self._directory, dtype="<u8")
        data = directory.tobytes()
        head = HEADER.pack(
            MAGIC,
            VERSION,
            0,
            CHUNK_ROWS,
            self._span.first,
            self._span.end,
            self._identity,
            self._runs,
            self._blocks,
            xxh3_64_intdigest(data),
            0,
        )[:-_HEADER_SUM_BYTES]
        head += xxh3_64_intdigest(head).to_bytes(_HEADER_SUM_BYTES, "little")
        write_all(self._file, [data], HEADER_BYTES + self._runs * RUN.itemsize)
        write_all(self._file, [head], 0)
        self._file.datasync()
        self._close()
        self._storage.replace(self._path, self._target)
        self._storage.sync_directory(self._target.parent)
        return IndexFile(
            self._storage,
            self._target,
            self._span,
            self._identity,
            self._runs,
            self._blocks,
            directory.astype(np.uint64),
            cache,
        )

    def discard(self) -> None:
        """Idempotent; after `finish` too."""
        self._close()
        with suppress(OSError):
            self._storage.unlink(self._path)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
