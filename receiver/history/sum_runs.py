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
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from receiver.history.images import U64
from replicator.base.errors import DamageError
from replicator.base.storage import File, Storage, write_all

ROW = np.dtype([("key", "<u8"), ("sum", "<u8")])
assert ROW.itemsize == 16
CHUNK_ROWS = 4096
SUFFIX = ".sums"
NEW_SUFFIX = ".new"
_MAGIC = b"RPLSUMS1"
# magic, rows, upto, end, whole, checksum of the directory, nothing, checksum of this header
_HEADER = Struct("<8sQQQQQ8xQ")
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


class SumRun:
    """One file, open for reading. Any thread."""

    def __init__(
        self, file: File, path: Path, facts: RunFacts, count: int, directory: Rows
    ) -> None:
        self.path = path
        self.facts = facts
        self.count = count
        self._file = file
        self._first_keys: U64 = directory["key"].astype(np.uint64)
        self._checksums = directory["checksum"].tolist()

    @classmethod
    def open(cls, storage: Storage, path: Path) -> SumRun:
        """Raises DamageError."""
        file = storage.open(path)
        try:
            facts, count, directory = _read_front(file, path)
        except DamageError:
            file.close()
            raise
        return cls(file, path, facts, count, directory)

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
        """All rows, in order. Raises DamageError."""
        for chunk in range(len(self._checksums)):
            rows = self._chunk(chunk)
            if rows is None:
                raise DamageError(f"{self.path}: sums at offset {self._offset(chunk)} are damaged")
            yield rows["key"].astype(np.uint64), rows["sum"].astype(np.uint64)

    def close(self) -> None:
        self._file.close()

    def _chunk(self, chunk: int) -> Rows | None:
        count = min(CHUNK_ROWS, self.count - chunk * CHUNK_ROWS)
        data = self._file.pread(count * ROW.itemsize, self._offset(chunk))
        if len(data) != count * ROW.itemsize or xxh3_64_intdigest(data) != self._checksums[chunk]:
            return None
        return np.frombuffer(data, dtype=ROW)

    def _offset(self, chunk: int) -> int:
        return _HEADER_BYTES + chunk * CHUNK_ROWS * ROW.itemsize

    def _bad(self, chunk: int, start: int, end: int) -> BadRange:
        low = int(self._first_keys[chunk])
        following = chunk + 1
        high = int(self._first_keys[following]) if following < len(self._first_keys) else end
        return BadRange(max(low, start), min(high, end), self.path, self._offset(chunk))


def _read_front(file: File, path: Path) -> tuple[RunFacts, int, Rows]:
    header = file.pread(_HEADER_BYTES, 0)
    if len(header) != _HEADER_BYTES:
        raise DamageError(f"{path}: is too short for a run of sums")
    magic, count, upto, end, whole, directory_sum, checksum = _HEADER.unpack(header)
    if magic != _MAGIC or xxh3_64_intdigest(header[:-8]) != checksum:
        raise DamageError(f"{path}: is no run of sums, or its header is damaged")
    size = -(-count // CHUNK_ROWS) * _DIRECTORY.itemsize
    if _HEADER_BYTES + count * ROW.itemsize + size != file.size():
        raise DamageError(f"{path}: has another size than its header says")
    data = file.pread(size, _HEADER_BYTES + count * ROW.itemsize)
    if xxh3_64_intdigest(data) != directory_sum:
        raise DamageError(f"{path}: its directory is damaged")
    return RunFacts(upto, end, bool(whole)), count, np.frombuffer(data, dtype=_DIRECTORY)


def write_run(
    storage: Storage, path: Path, facts: RunFacts, parts: Iterable[tuple[U64, U64]]
) -> None:
    """`parts` are (keys, sums), sorted over all of them. Durable when it returns. OSError: nothing
    is there, but for a leftover that the next opening removes."""
    new = path.with_name(path.name + NEW_SUFFIX)
    if storage.exists(new):
        storage.unlink(new)
    file = storage.create(new)
    try:
        _write(file, facts, parts)
        file.datasync()
    except OSError:
        file.close()
        with suppress(OSError):
            storage.unlink(new)
        raise
    file.close()
    storage.replace(new, path)
    storage.sync_directory(path.parent)


def _write(file: File, facts: RunFacts, parts: Iterable[tuple[U64, U64]]) -> None:
    directory: list[tuple[int, int]] = []
    count = 0
    for rows in _in_chunks(parts):
        data = rows.tobytes()
        directory.append((int(rows["key"][0]), xxh3_64_intdigest(data)))
        write_all(file, [data], _HEADER_BYTES + count * ROW.itemsize)
        count += len(rows)
    packed = np.array(directory, dtype=_DIRECTORY).tobytes()
    if packed:
        write_all(file, [packed], _HEADER_BYTES + count * ROW.itemsize)
    header = _HEADER.pack(
        _MAGIC, count, facts.upto, facts.end, facts.is_whole, xxh3_64_intdigest(packed), 0
    )[:-8]
    write_all(file, [header + xxh3_64_intdigest(header).to_bytes(8, "little")], 0)


def _in_chunks(parts: Iterable[tuple[U64, U64]]) -> Iterator[Rows]:
    waiting: Rows = np.empty(0, dtype=ROW)
    for keys, sums in parts:
        rows = np.empty(len(keys), dtype=ROW)
        rows["key"], rows["sum"] = keys, sums
        waiting = np.concatenate([waiting, rows])
        whole = len(waiting) // CHUNK_ROWS * CHUNK_ROWS
        for at in range(0, whole, CHUNK_ROWS):
            yield waiting[at : at + CHUNK_ROWS]
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
