# SPDX-License-Identifier: Apache-2.0
"""What a sync of one disk need not ship, because the replica holds it already. No I/O.

A sync writes the whole disk through the log. The receiver states a digest for each 64-KiB block
of its replica (keyed blake2b-128, key per sync and session, so that a hostile guest cannot make
two blocks look alike); a block that is written whole and has the stated digest ships as `same`,
without its payload.

Rules, each of which a random model shows to be needed
* A digest is usable only if no record that touches the block lies behind its LSN. This filter sees
  every record from `base_lsn` on, so: the digest's LSN is at least base_lsn, and no byte of the
  block was shipped since (here: the block is not *touched*).
* A shipped byte voids the block's digest, whether it came before or after it.
* A zero does not touch: the receiver keeps zeroes of a sync aside until its end. A `same` is
  shipped even so, because it takes the block out of those zeroes.
* Nothing is dropped because of where it lies: background copy and guest writes look the same.
  The last block of a disk may be short; it is whole when it is covered up to the disk's end.

Waiting. Digests come in disk order, up to the block that the agent has asked for (`wanted_end`):
that bounds what lies here. A whole write of a block whose digest is on its way waits for it; one
far beyond what was asked for (a guest write, while the copy is elsewhere) does not wait.

Memory: 4 KiB of states for each 256 MiB of the disk that is under way, 64 KiB of digests for each
of at most MAX_DIGEST_CHUNKS of these; beyond that the lowest ones are given up (they ship in full).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from hashlib import blake2b

from replicator.base.errors import UsageError
from replicator.wire.limits import DIGEST_BLOCK_BYTES, DIGEST_BYTES

BLOCK_BYTES = DIGEST_BLOCK_BYTES
CHUNK_BLOCKS = 4096
LOOKAHEAD_BLOCKS = 64 * 1024  # 4 GiB of the disk, 1 MiB of digests
MAX_DIGEST_CHUNKS = 256  # 64 GiB of the disk, 16 MiB of digests
assert LOOKAHEAD_BLOCKS // CHUNK_BLOCKS < MAX_DIGEST_CHUNKS

_ZEROES = bytes(BLOCK_BYTES)
_UNKNOWN, _KNOWN, _ZERO, _TOUCHED = range(4)


class PieceKind(Enum):
    SHIP = auto()
    SAME = auto()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a write, in bytes of the disk."""

    kind: PieceKind
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class WaitFor:
    """The write cannot be judged before the digest of this block has come."""

    block: int


class _Chunk:
    """States of CHUNK_BLOCKS blocks, and their digests while any is known."""

    __slots__ = ("digests", "states", "touched")

    def __init__(self, state: int = _UNKNOWN) -> None:
        self.states = bytearray([state]) * CHUNK_BLOCKS
        self.digests: bytearray | None = None
        self.touched = 0


class SyncFilter:
    """One disk in one sync and one session. `base_lsn`: every record of the log at or behind it
    passes through this filter, none before it."""

    def __init__(self, *, size: int, sync_lsn: int, base_lsn: int) -> None:
        assert size > 0
        self.sync_lsn = sync_lsn
        self._size = size
        self._base_lsn = base_lsn
        self._blocks = (size + BLOCK_BYTES - 1) // BLOCK_BYTES
        self._key: bytes | None = None
        self._received_end = 0
        self._wanted_end = min(LOOKAHEAD_BLOCKS, self._blocks)
        self._done = False
        # None: every block of the chunk is touched (or given up). Absent: nothing is known.
        self._chunks: dict[int, _Chunk | None] = {}
        self._digest_chunks: dict[int, None] = {}  # those that hold digests, oldest first
        self.passed_bytes = 0
        self.same_bytes = 0

    # -- what the receiver says

    def set_key(self, key: bytes) -> None:
        self._key = key

    @property
    def wanted_end(self) -> int:
        """Digests of blocks below this may be sent. Only rises."""
        return self._wanted_end

    def offer_digests(self, first_block: int, lsn: int, digests: bytes) -> None:
        """Raises UsageError for what no honest receiver sends."""
        count, rest = divmod(len(digests), DIGEST_BYTES)
        if rest:
            raise UsageError("the receiver sent a piece of a digest")
        self._expect(first_block, count)
        usable = lsn >= self._base_lsn
        for number in range(count):
            block = first_block + number
            if usable:
                self._learn(block, digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])
            else:
                self._touch(block)

    def offer_zeroes(self, first_block: int, lsn: int, count: int) -> None:
        """The blocks hold only zeroes at the replica. Raises UsageError."""
        count = min(count, self._blocks - first_block)
        self._expect(first_block, count)
        block, end = first_block, first_block + count
        while block < end:
            index, at = divmod(block, CHUNK_BLOCKS)
            here = min(CHUNK_BLOCKS - at, end - block)
            if lsn < self._base_lsn:
                for number in range(here):
                    self._touch(block + number)
            elif here == CHUNK_BLOCKS and index not in self._chunks:
                self._chunks[index] = _Chunk(_ZERO)
            else:
                self._learn_zeroes(index, at, here)
            block += here

    def done(self) -> None:
        """No more digests will come: what is unknown ships in full."""
        self._done = True

    # -- what the log says

    def judge(
        self, offset: int, payload: bytes | memoryview, *, patient: bool = True
    ) -> WaitFor | list[Piece]:
        """What to ship of a write, in order, adjacent pieces of a kind joined. With WaitFor nothing
        has changed. Not `patient`: what is not known now ships in full."""
        first, last = offset // BLOCK_BYTES, (offset + len(payload) - 1) // BLOCK_BYTES
        self._raise_wanted(last)
        if patient:
            for block in range(first, last + 1):
                if self._is_whole(block, offset, len(payload)) and self._is_coming(block):
                    return WaitFor(block)
        pieces: list[Piece] = []
        view = memoryview(payload)
        for block in range(first, last + 1):
            start = max(offset, block * BLOCK_BYTES)
            end = min(offset + len(payload), (block + 1) * BLOCK_BYTES)
            content = view[start - offset : end - offset]
            if self._is_whole(block, offset, len(payload)) and self._equals(block, content):
                kind = PieceKind.SAME
                self.same_bytes += end - start
            else:
                kind = PieceKind.SHIP
                self._touch(block)
            _join(pieces, Piece(kind, start, end - start))
        self.passed_bytes += len(payload)
        return pieces

    @property
    def memory_bytes(self) -> int:
        """What the states and digests take."""
        live = [chunk for chunk in self._chunks.values() if chunk is not None]
        return sum(
            CHUNK_BLOCKS * (1 + (DIGEST_BYTES if chunk.digests is not None else 0))
            for chunk in live
        )

    # -- inside

    def _is_whole(self, block: int, offset: int, length: int) -> bool:
        start = block * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, self._size)
        return offset <= start and offset + length >= end

    def _is_coming(self, block: int) -> bool:
        if self._done or not self._received_end <= block < self._wanted_end:
            return False
        return self._state(block) == _UNKNOWN

    def _raise_wanted(self, block: int) -> None:
        """Keeps the receiver ahead of a copy that comes in disk order; a jump moves nothing."""
        if block < self._wanted_end + LOOKAHEAD_BLOCKS:
            ahead = min(self._blocks, block + LOOKAHEAD_BLOCKS)
            if ahead - self._wanted_end >= LOOKAHEAD_BLOCKS // 2 or ahead == self._blocks:
                self._wanted_end = max(self._wanted_end, ahead)

    def _expect(self, first_block: int, count: int) -> None:
        end = first_block + count
        if first_block != self._received_end or count <= 0 or end > self._wanted_end:
            raise UsageError(
                f"the receiver sent digests [{first_block}, {end}) of a disk where"
                f" [{self._received_end}, {self._wanted_end}) were awaited"
            )
        if self._key is None:
            raise UsageError("the receiver sent digests before their key")
        self._received_end = end

    def _state(self, block: int) -> int:
        index, at = divmod(block, CHUNK_BLOCKS)
        if index not in self._chunks:
            return _UNKNOWN
        chunk = self._chunks[index]
        return _TOUCHED if chunk is None else chunk.states[at]

    def _chunk(self, index: int) -> _Chunk | None:
        if index not in self._chunks:
            self._chunks[index] = _Chunk()
        return self._chunks[index]

    def _learn(self, block: int, digest: bytes) -> None:
        index, at = divmod(block, CHUNK_BLOCKS)
        chunk = self._chunk(index)
        if chunk is None or chunk.states[at] == _TOUCHED:
            return
        if chunk.digests is None:
            self._make_room_for_digests()
            chunk.digests = bytearray(CHUNK_BLOCKS * DIGEST_BYTES)
            self._digest_chunks[index] = None
        chunk.states[at] = _KNOWN
        chunk.digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] = digest

    def _learn_zeroes(self, index: int, at: int, count: int) -> None:
        chunk = self._chunk(index)
        if chunk is None:
            return
        for number in range(at, at + count):
            if chunk.states[number] != _TOUCHED:
                chunk.states[number] = _ZERO

    def _make_room_for_digests(self) -> None:
        while len(self._digest_chunks) >= MAX_DIGEST_CHUNKS:
            self._give_up(next(iter(self._digest_chunks)))

    def _give_up(self, index: int) -> None:
        self._chunks[index] = None
        self._digest_chunks.pop(index, None)

    def _touch(self, block: int) -> None:
        index, at = divmod(block, CHUNK_BLOCKS)
        chunk = self._chunk(index)
        if chunk is None or chunk.states[at] == _TOUCHED:
            return
        chunk.states[at] = _TOUCHED
        chunk.touched += 1
        if chunk.touched == CHUNK_BLOCKS:
            self._give_up(index)

    def _equals(self, block: int, content: memoryview) -> bool:
        state = self._state(block)
        if state == _ZERO:
            return bytes(content) == _ZEROES[: len(content)]
        if state != _KNOWN:
            return False
        assert self._key is not None
        chunk = self._chunks[block // CHUNK_BLOCKS]
        assert chunk is not None
        assert chunk.digests is not None
        at = block % CHUNK_BLOCKS * DIGEST_BYTES
        found = blake2b(content, digest_size=DIGEST_BYTES, key=self._key).digest()
        return found == chunk.digests[at : at + DIGEST_BYTES]


def _join(pieces: list[Piece], piece: Piece) -> None:
    if pieces and pieces[-1].kind is piece.kind:
        last = pieces.pop()
        piece = Piece(piece.kind, last.offset, last.length + piece.length)
    pieces.append(piece)
