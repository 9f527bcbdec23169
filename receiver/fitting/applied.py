# SPDX-License-Identifier: Apache-2.0
"""`disks/applied`: which batch of which history the replica holds, in two checksummed slots.

    slot (at 0 and at 32 KiB): magic 8 | sequence u64 | payload bytes u32 | 0 u32 | xxh3-64 of
    magic, sequence, length and payload u64 | payload: the msgpack map of Applied

The slots are written in turn; the whole one with the higher sequence counts. So a slot that a crash
tore leaves the one before, which says less, never what is wrong.

It says what the replica holds *at least*: before a batch touches the replica, the batch in front of
it is stated here, durable. That costs one more fdatasync a batch, beside the one of the batch's
images (`begin` starts it, `ensure` waits for it, and does it again where it failed).

Failure. A sync that failed proves nothing: the same slot is written anew, the other one stays.

Concurrency: the group's apply thread; what runs `beside` touches nothing but the file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from struct import Struct
from uuid import UUID

import msgspec
from xxhash import xxh3_64_intdigest

from receiver.points.evidence import Applied
from receiver.tasks.beside import Beside
from replicator.base.storage import File, Storage, write_all, write_durably

NAME = "applied"
SLOT_BYTES = 32 * 1024
"""A group of 64 disks with names of 64 characters takes a sixth of it."""
_MAGIC = b"RPLAPPL1"
_FRONT = Struct("<8sQII")
_SUM = Struct("<Q")
HEADER_BYTES = _FRONT.size + _SUM.size
assert HEADER_BYTES == 32


class _Body(msgspec.Struct, frozen=True):
    history: bytes
    number: int
    position: int
    chain: int
    next_point: int
    generation: int
    images: dict[str, int]
    sums_upto: int = 0
    own_sums_upto: int = 0
    resting: bool = False
    begun: tuple[int, int] = (0, 0)
    times: dict[str, tuple[int, int]] = {}


class AppliedSlots:
    """See the head of this file. `open` comes first."""

    def __init__(self, storage: Storage, path: Path, beside: Beside) -> None:
        self._storage = storage
        self._path = path
        self._beside = beside
        self._file: File | None = None
        self._sequence = 0
        self._writing: tuple[Applied, Callable[[], None]] | None = None
        self.durable: Applied | None = None
        self.is_unreadable = False
        """The file is there, and says nothing."""

    def open(self) -> Applied | None:
        """What it says; None where there is none, or none that can be read. Raises OSError."""
        self.close()
        self.durable, self._sequence, self.is_unreadable = None, 0, False
        if not self._storage.exists(self._path):
            return None
        self._file = self._storage.open(self._path, writable=True)
        self._file.datasync()  # the page cache may hold what the disk does not
        found = [self._read(slot) for slot in (0, 1)]
        known = [each for each in found if each is not None]
        if known:
            self._sequence, self.durable = max(known, key=lambda each: each[0])
        self.is_unreadable = not known
        return self.durable

    def begin(self, applied: Applied) -> None:
        """Starts making that durable. What fails is left to `ensure`."""
        assert self._writing is None
        if applied == self.durable or self._file is None:
            return
        with suppress(OSError):
            self._put(self._file, applied)
            self._writing = applied, self._beside.start(self._file.datasync)

    def settle(self) -> None:
        """Whatever was begun has ended, well or not."""
        with suppress(OSError):
            self._end()

    def ensure(self, applied: Applied) -> None:
        """Durable when this returns. Raises OSError."""
        self.settle()
        if applied == self.durable:
            return
        if self._file is None or self.is_unreadable:
            self._make(applied)
        else:
            self._put(self._file, applied)
            self._file.datasync()
        self._took(applied)

    def close(self) -> None:
        self.settle()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            applied, wait = writing
            wait()
            self._took(applied)

    def _took(self, applied: Applied) -> None:
        self.durable = applied
        self._sequence += 1

    def _put(self, file: File, applied: Applied) -> None:
        sequence = self._sequence + 1
        write_all(file, [pack(applied, sequence)], sequence % 2 * SLOT_BYTES)

    def _make(self, applied: Applied) -> None:
        """A file with room for both slots, so that later ones change nothing but bytes."""
        self.close()
        sequence = self._sequence + 1
        slots = [bytes(SLOT_BYTES), bytes(SLOT_BYTES)]
        slots[sequence % 2] = pack(applied, sequence).ljust(SLOT_BYTES, b"\0")
        write_durably(self._storage, self._path, b"".join(slots))
        self._file = self._storage.open(self._path, writable=True)
        self.is_unreadable = False

    def _read(self, slot: int) -> tuple[int, Applied] | None:
        assert self._file is not None
        return unpack(self._file.pread(SLOT_BYTES, slot * SLOT_BYTES))


def read_applied(storage: Storage, path: Path) -> Applied | None:
    """As `open`, for who only looks. Raises OSError."""
    if not storage.exists(path):
        return None
    with closing(storage.open(path)) as file:
        found = [unpack(file.pread(SLOT_BYTES, slot * SLOT_BYTES)) for slot in (0, 1)]
    known = [each for each in found if each is not None]
    return max(known, key=lambda each: each[0])[1] if known else None


def pack(applied: Applied, sequence: int) -> bytes:
    body = _Body(
        applied.history.bytes,
        applied.number,
        applied.position,
        applied.chain,
        applied.next_point,
        applied.generation,
        dict(applied.images),
        applied.sums_upto,
        applied.own_sums_upto,
        applied.is_resting,
        applied.begun,
        dict(applied.times),
    )
    payload = msgspec.msgpack.encode(body)
    assert HEADER_BYTES + len(payload) <= SLOT_BYTES
    front = _FRONT.pack(_MAGIC, sequence, len(payload), 0)
    return front + _SUM.pack(xxh3_64_intdigest(front + payload)) + payload


def unpack(data: bytes) -> tuple[int, Applied] | None:
    """(sequence, what it says), if it is whole."""
    if len(data) < HEADER_BYTES:
        return None
    magic, sequence, size, _ = _FRONT.unpack_from(data)
    payload = data[HEADER_BYTES : HEADER_BYTES + size]
    (total,) = _SUM.unpack_from(data, _FRONT.size)
    if magic != _MAGIC or len(payload) != size:
        return None
    if xxh3_64_intdigest(data[: _FRONT.size] + payload) != total:
        return None
    try:
        body = msgspec.msgpack.decode(payload, type=_Body)
        history = UUID(bytes=body.history)
    except (msgspec.DecodeError, ValueError):
        return None
    return sequence, Applied(
        history,
        body.number,
        body.position,
        body.chain,
        body.next_point,
        body.generation,
        body.images,
        body.sums_upto,
        body.own_sums_upto,
        body.resting,
        body.begun,
        body.times,
    )
