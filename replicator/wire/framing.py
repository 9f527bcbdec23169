# SPDX-License-Identifier: Apache-2.0
"""Messages on the wire: a 16-byte header and a body, cut out of a byte stream. No I/O.

    0 u16 magic 0x5257   2 u8 version   3 u8 type   4 u32 body_bytes   8 u64 sum

little-endian; sum = xxh3-64 of the body, seeded with bytes 0..7 read as an integer, so that it
covers the header too.

The kernel fills our memory: `writable()` hands out where the next bytes go, `written(n)` says how
many came. Small messages are parsed in one buffer of fixed size; a body that does not fit gets
memory of exactly its size, which then belongs to the message, uncopied.

Invariants
* 0 ≤ start ≤ end ≤ len(buffer); a body under way is never full.
* No memory is set aside for a body before its length was checked against `body_limit` of its
  type; that is the caller's rule, so the bound may depend on the state of the session.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from replicator.wire.limits import MESSAGE_HEADER_BYTES, PROTOCOL, RECEIVE_BUFFER_BYTES

MAGIC = 0x5257
_HEADER = struct.Struct("<HBBIQ")
assert _HEADER.size == MESSAGE_HEADER_BYTES
_SEED = struct.Struct("<HBBI")

Piece = bytes | bytearray | memoryview


class FramingError(ValueError):
    """The stream cannot be read on. `version` is the peer's, where it speaks another one."""

    def __init__(self, text: str, *, version: int = PROTOCOL) -> None:
        super().__init__(text)
        self.version = version


@dataclass(frozen=True, slots=True)
class _Pending:
    """A header whose body has not wholly come yet."""

    kind: int
    seed: int
    total: int
    body_bytes: int


def encode_message(kind: int, body: list[Piece]) -> list[Piece]:
    """Header and body, in pieces to be sent back to back. Bodies in several pieces are joined
    only for the checksum's sake when they are small."""
    body_bytes = sum(len(piece) for piece in body)
    seed = _seed(PROTOCOL, kind, body_bytes)
    if len(body) == 1:
        return [_HEADER.pack(MAGIC, PROTOCOL, kind, body_bytes, _sum(body[0], seed)), body[0]]
    whole = b"".join(body)
    return [_HEADER.pack(MAGIC, PROTOCOL, kind, body_bytes, _sum(whole, seed)), whole]


def _seed(version: int, kind: int, body_bytes: int) -> int:
    return int.from_bytes(_SEED.pack(MAGIC, version, kind, body_bytes), "little")


def _sum(body: Piece, seed: int) -> int:
    return xxh3_64_intdigest(body, seed)


class Deframer:
    """Bytes in, (type, body) out. `body_limit(type)` is asked for each header; None refuses it."""

    __slots__ = ("_body", "_body_have", "_body_limit", "_end", "_pending", "_start", "_usual")

    def __init__(self, body_limit: Callable[[int], int | None]) -> None:
        self._body_limit = body_limit
        self._usual = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._pending: _Pending | None = None
        self._body: memoryview | None = None  # memory of its own, for a large body
        self._body_have = 0

    @property
    def memory_bytes(self) -> int:
        """What this holds alive."""
        return len(self._usual) + (len(self._body) if self._body is not None else 0)

    def writable(self) -> memoryview:
        """At least one byte of room. Valid until the next call of anything here."""
        if self._body is not None:
            return self._body[self._body_have :]
        if self._end == len(self._usual):
            held = self._end - self._start
            self._usual[:held] = bytes(self._usual[self._start : self._end])
            self._start, self._end = 0, held
        room = self._usual[self._end :]
        assert len(room), "complete messages were left in the buffer"
        return room

    def written(self, count: int) -> None:
        if self._body is not None:
            self._body_have += count
            assert self._body_have <= len(self._body)
        else:
            self._end += count
            assert self._end <= len(self._usual)

    def messages(self) -> Iterator[tuple[int, Piece]]:
        """All that is complete. Bodies belong to the caller. Raises FramingError, after which
        this must not be used again."""
        while True:
            if self._pending is None:
                if self._end - self._start < MESSAGE_HEADER_BYTES:
                    break
                self._pending = self._parse_header()
            pending = self._pending
            body = self._take_body(pending)
            if body is None:
                break
            if _sum(body, pending.seed) != pending.total:
                raise FramingError(f"message of type {pending.kind} fails its checksum")
            self._pending = None
            yield pending.kind, body
        if self._start == self._end:
            self._start = self._end = 0

    def _parse_header(self) -> _Pending:
        magic, version, kind, body_bytes, total = _HEADER.unpack_from(self._usual, self._start)
        if magic != MAGIC:
            raise FramingError("what came is not this protocol")
        if version != PROTOCOL:
            raise FramingError(f"speaks version {version} of the protocol", version=version)
        limit = self._body_limit(kind)
        if limit is None:
            raise FramingError(f"message of unknown type {kind}")
        if body_bytes > limit:
            raise FramingError(f"message of type {kind} has {body_bytes} bytes, limit {limit}")
        self._start += MESSAGE_HEADER_BYTES
        return _Pending(kind, _seed(version, kind, body_bytes), total, body_bytes)

    def _take_body(self, pending: _Pending) -> Piece | None:
        """The body if all of it is here; else sees to it that the rest has room."""
        if self._body is not None:
            if self._body_have < len(self._body):
                return None
            body, self._body, self._body_have = self._body, None, 0
            return body
        have = self._end - self._start
        if have >= pending.body_bytes:
            whole = bytes(self._usual[self._start : self._start + pending.body_bytes])
            self._start += pending.body_bytes
            return whole
        if pending.body_bytes > len(self._usual) // 2:
            self._body = memoryview(bytearray(pending.body_bytes))
            self._body[:have] = self._usual[self._start : self._end]
            self._body_have = have
            self._start = self._end = 0
        elif self._start:  # make room in front, so that the rest fits
            self._usual[:have] = bytes(self._usual[self._start : self._end])
            self._start, self._end = 0, have
        return None
