# SPDX-License-Identifier: Apache-2.0
"""Runs of sums: files of (block key, sum) pairs, sorted, verified chunk by chunk, never changed.

    header (64 bytes) | rows: key u64, sum u64 | directory: for each chunk of rows its first key
    and the xxh3-64 of its bytes

A run says what blocks hold behind batch number `upto`: of each block that a batch up to there has
changed since the run before. `is_whole`: this and the runs before it know *every* block that was
ever changed up to there, so that one which is in none of them was never written. `end` is the
position in the history up to which that reaches.

Written beside, synced, then renamed: a run is there as a whole or not at all. A chunk that fails
its checksum costs what it says of its range of keys, and no more.

A look-up (`find`) searches the directory, which is in memory, then the chunk that it leads to, for
all keys at once. A chunk is small, for keys that are scattered over a large disk need one each; the
rows of a chunk stand in the header (those of 0.1.0, 4096, as 0).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from receiver.history.images import U64, Bools
from receiver.history.index.runs import KEY_MAX
from replicator.base.errors import DamageError
from replicator.base.storage import READ_ERRORS, File, Storage, write_all

ROW = np.dtype([("key", "<u8"), ("sum", "<u8")])
assert ROW.itemsize == 16
CHUNK_ROWS = 512
_CHUNK_ROWS_BEFORE = 4096
"""Of a run whose header does not say."""
_CHUNK_ROWS_MAX = 1 << 16
_MERGE_ROWS = 1 << 15
_FIND_CHUNKS = 1024
"""What one search has in memory at once."""
SUFFIX = ".sums"
NEW_SUFFIX = ".new"
_MAGIC = b"RPLSUMS1"
# magic, rows, upto, end, whole, checksum of the directory, rows of a chunk (0: 4096), checksum of
# this header
_HEADER = Struct("<8sQQQQQQQ")
_HEADER_BYTES = 64
assert _HEADER.size == _HEADER_BYTES
_DIRECTORY = np.dtype([("key", "<u8"), ("checksum", "<u8")])

Rows = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the header says besides sizes."""

    upto: int
    end: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class BadRange:
    """Keys [start, end) of which a run could say something, had it not rotted."""

    start: int
    end: int
    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class Found:
    """Of each key asked for: its sum where the run has it (`is_there`); `is_bad`: it may have had
    it, and has rotted there."""

    sums: U64
    is_there: Bools
    is_bad: Bools


class SumRun:
    """One file, open for reading. Any thread."""

    def __init__(self, file: File, path: Path, front: _Front) -> None:
        self.path = path
        self.facts = front.facts
        self.count = front.count
        self._chunk_rows = front.chunk_rows
        self._file = file
        self._first_keys: U64 = front.directory["key"].astype(np.uint64)
        self._checksums = front.directory["checksum"].tolist()

    @classmethod
    def open(cls, storage: Storage, path: Path) -> SumRun:
        """Raises DamageError."""
        file = storage.open(path)
        try:
            front = _read_front(file, path)
        except DamageError:
            file.close()
            raise
        return cls(file, path, front)

    def find(self, keys: U64) -> Found:
        """`keys` are sorted. Raises OSError."""
        found = Found(
            np.zeros(len(keys), dtype=np.uint64),
            np.zeros(len(keys), dtype=np.bool_),
            np.zeros(len(keys), dtype=np.bool_),
        )
        chunks = np.searchsorted(self._first_keys, keys, "right").astype(np.int64) - 1
        at = int(np.searchsorted(chunks, 0))  # what lies in front of the first row
        bounds = np.flatnonzero(np.diff(chunks[at:], prepend=-1)) + at
        for low in range(0, len(bounds), _FIND_CHUNKS):
            starts = bounds[low : low + _FIND_CHUNKS]
            behind = low + _FIND_CHUNKS
            end = int(bounds[behind]) if behind < len(bounds) else len(keys)
            self._find_in(chunks[starts].tolist(), keys, slice(int(starts[0]), end), found)
        return found

    def _find_in(self, chunks: list[int], keys: U64, span: slice, found: Found) -> None:
        """Those of `span`, which lie in these chunks."""
        parts: list[bytes] = []
        for chunk in chunks:
            data = self._bytes_of(chunk)
            if data is None:
                low, high = self._keys_of(chunk)
                at = np.searchsorted(keys[span], np.array([low, high], dtype=np.uint64))
                found.is_bad[span][at[0] : at[1]] = True
            else:
                parts.append(data)
        rows = np.frombuffer(b"".join(parts), dtype=ROW)
        if not len(rows):
            return
        there = np.ascontiguousarray(rows["key"])
        places = np.minimum(np.searchsorted(there, keys[span]), len(rows) - 1)
        found.is_there[span] = there[places] == keys[span]
        found.sums[span] = rows["sum"][places]

    def _keys_of(self, chunk: int) -> tuple[int, int]:
        """[first, end) of what the chunk could tell of."""
        following = chunk + 1
        is_last = following == len(self._first_keys)
        return int(self._first_keys[chunk]), KEY_MAX if is_last else int(
            self._first_keys[following]
        )

    def read(self, start: int, end: int) -> tuple[U64, U64, list[BadRange]]:
        """(keys, sums, what could not be read) of the keys [start, end)."""
        first = max(int(np.searchsorted(self._first_keys, np.uint64(start), "right")) - 1, 0)
        last = int(np.searchsorted(self._first_keys, np.uint64(end), "left"))
        parts: list[Rows] = []
        bad: list[BadRange] = []
        for chunk in range(first, last):
            rows = self._chunk(chunk)
            if rows is None:
                bad.append(self._bad(chunk, start, end))
            else:
                parts.append(rows)
        rows = np.concatenate([np.empty(0, dtype=ROW), *parts])
        keys = rows["key"].astype(np.uint64)
        wanted = (keys >= np.uint64(start)) & (keys < np.uint64(end))
        return keys[wanted], rows["sum"].astype(np.uint64)[wanted], bad

    def chunks(self) -> Iterator[tuple[U64, U64]]:
        """All rows, in order, many chunks at a time. Raises DamageError."""
        together = max(_MERGE_ROWS // self._chunk_rows, 1)
        for low in range(0, len(self._checksums), together):
            parts: list[Rows] = []
            for chunk in range(low, min(low + together, len(self._checksums))):
                rows = self._chunk(chunk)
                if rows is None:
                    raise DamageError(
                        f"{self.path}: sums at offset {self._offset(chunk)} are damaged"
                    )
                parts.append(rows)
            rows = np.concatenate(parts)
            yield rows["key"].astype(np.uint64), rows["sum"].astype(np.uint64)

    def close(self) -> None:
        self._file.close()

    def _chunk(self, chunk: int) -> Rows | None:
        data = self._bytes_of(chunk)
        return None if data is None else np.frombuffer(data, dtype=ROW)

    def _bytes_of(self, chunk: int) -> bytes | None:
        """Verified; None if it has rotted."""
        size = min(self._chunk_rows, self.count - chunk * self._chunk_rows) * ROW.itemsize
        try:
            data = self._file.pread(size, self._offset(chunk))
        except OSError as error:
            if error.errno not in READ_ERRORS:
                raise
            return None
        is_good = len(data) == size and xxh3_64_intdigest(data) == self._checksums[chunk]
        return data if is_good else None

    def _offset(self, chunk: int) -> int:
        return _HEADER_BYTES + chunk * self._chunk_rows * ROW.itemsize

    def _bad(self, chunk: int, start: int, end: int) -> BadRange:
        low, high = self._keys_of(chunk)
        return BadRange(max(low, start), min(high, end), self.path, self._offset(chunk))


@dataclass(frozen=True, slots=True)
class _Front:
    facts: RunFacts
    count: int
    chunk_rows: int
    directory: Rows


def _read_front(file: File, path: Path) -> _Front:
    header = file.pread(_HEADER_BYTES, 0)
    if len(header) != _HEADER_BYTES:
        raise DamageError(f"{path}: is too short for a run of sums")
    magic, count, upto, end, whole, directory_sum, rows, checksum = _HEADER.unpack(header)
    if magic != _MAGIC or xxh3_64_intdigest(header[:-8]) != checksum:
        raise DamageError(f"{path}: is no run of sums, or its header is damaged")
    rows = rows or _CHUNK_ROWS_BEFORE
    if rows > _CHUNK_ROWS_MAX:
        raise DamageError(f"{path}: has chunks of {rows} rows")
    size = -(-count // rows) * _DIRECTORY.itemsize
    if _HEADER_BYTES + count * ROW.itemsize + size != file.size():
        raise DamageError(f"{path}: has another size than its header says")
    data = file.pread(size, _HEADER_BYTES + count * ROW.itemsize)
    if xxh3_64_intdigest(data) != directory_sum:
        raise DamageError(f"{path}: its directory is damaged")
    directory = np.frombuffer(data, dtype=_DIRECTORY)
    return _Front(RunFacts(upto, end, bool(whole)), count, rows, directory)


def write_run(
    storage: Storage, path: Path, facts: RunFacts, parts: Iterable[tuple[U64, U64]]
) -> None:
    """`parts` are (keys, sums), sorted over all of them. Durable when it returns. OSError: nothing
    is there, but for a leftover that the next opening removes."""
    for _ in writing(storage, path, facts, parts):
        pass


def writing(
    storage: Storage, path: Path, facts: RunFacts, parts: Iterable[tuple[U64, U64]]
) -> Generator[int, None, None]:
    """The same in steps: yields the rows written, part by part. Given up (closed) before its end,
    nothing is there."""
    new = path.with_name(path.name + NEW_SUFFIX)
    if storage.exists(new):
        storage.unlink(new)
    file = storage.create(new)
    try:
        yield from _write(file, facts, parts)
        file.datasync()
    except (OSError, DamageError, GeneratorExit):
        file.close()
        with suppress(OSError):
            storage.unlink(new)
        raise
    file.close()
    storage.replace(new, path)
    storage.sync_directory(path.parent)


def _write(file: File, facts: RunFacts, parts: Iterable[tuple[U64, U64]]) -> Iterator[int]:
    directory: list[tuple[int, int]] = []
    count = 0
    for rows in _in_chunks(parts):
        data = rows.tobytes()
        for at in range(0, len(rows), CHUNK_ROWS):
            chunk = data[at * ROW.itemsize : (at + CHUNK_ROWS) * ROW.itemsize]
            directory.append((int(rows["key"][at]), xxh3_64_intdigest(chunk)))
        write_all(file, [data], _HEADER_BYTES + count * ROW.itemsize)
        count += len(rows)
        yield count
    packed = np.array(directory, dtype=_DIRECTORY).tobytes()
    if packed:
        write_all(file, [packed], _HEADER_BYTES + count * ROW.itemsize)
    header = _HEADER.pack(
        _MAGIC,
        count,
        facts.upto,
        facts.end,
        facts.is_whole,
        xxh3_64_intdigest(packed),
        CHUNK_ROWS,
        0,
    )[:-8]
    write_all(file, [header + xxh3_64_intdigest(header).to_bytes(8, "little")], 0)


def _in_chunks(parts: Iterable[tuple[U64, U64]]) -> Iterator[Rows]:
    """Whole chunks, as many as there are together; at the end what is left."""
    waiting: Rows = np.empty(0, dtype=ROW)
    for keys, sums in parts:
        rows = np.empty(len(keys), dtype=ROW)
        rows["key"], rows["sum"] = keys, sums
        waiting = np.concatenate([waiting, rows])
        whole = len(waiting) // CHUNK_ROWS * CHUNK_ROWS
        if whole:
            yield waiting[:whole]
        waiting = waiting[whole:]
    if len(waiting):
        yield waiting


def merged(older: SumRun, newer: SumRun) -> Iterator[tuple[U64, U64]]:
    """The rows of both; where both know a block, the newer is right. Raises DamageError."""
    low, high = _Rest(older.chunks()), _Rest(newer.chunks())
    while low.fill() and high.fill():
        limit = min(int(low.keys[-1]), int(high.keys[-1]))
        old_keys, old_sums = low.take(limit)
        new_keys, new_sums = high.take(limit)
        keys, first = np.unique(np.concatenate([new_keys, old_keys]), return_index=True)
        yield keys, np.concatenate([new_sums, old_sums])[first]
    for rest in (low, high):
        while rest.fill():
            yield rest.take(int(rest.keys[-1]))


class _Rest:
    """What is left of a run while it is merged."""

    def __init__(self, chunks: Iterator[tuple[U64, U64]]) -> None:
        self._chunks = chunks
        self.keys: U64 = np.empty(0, dtype=np.uint64)
        self._sums: U64 = self.keys

    def fill(self) -> bool:
        """False at the end."""
        if not len(self.keys):
            following = next(self._chunks, None)
            if following is None:
                return False
            self.keys, self._sums = following
        return True

    def take(self, upto: int) -> tuple[U64, U64]:
        count = int(np.searchsorted(self.keys, np.uint64(upto), "right"))
        keys, sums = self.keys[:count], self._sums[:count]
        self.keys, self._sums = self.keys[count:], self._sums[count:]
        return keys, sums
