# SPDX-License-Identifier: Apache-2.0
"""What of an export is a hole: the meta context `base:allocation` and its replies. No I/O.

A client may ask which contexts there are (LIST_META_CONTEXT) and chooses among them
(SET_META_CONTEXT) for one export, after structured replies were agreed on; each such option undoes
what was chosen before. What it chose holds if it then enters that very export by GO. From then on
BLOCK_STATUS is a command.

A reply is one chunk: the context's id, then (length, flags) of neighbouring extents from the
request's offset on, at least one, together no longer than the request. It may stop short: there are
at most MAX_STATUS_EXTENTS, and exactly one with REQ_ONE. The client asks again for the rest.

Only an export that says `can_block_status` has the context; asked about another one, the server
does not know these options at all. A mirror's target must never have it: QEMU would believe that
what is fresh there is zero, and skip it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from struct import Struct

from replicator.nbd.constants import CHUNK, CHUNK_DONE, NAME_LENGTH, STRUCTURED_REPLY_MAGIC, Chunk
from replicator.nbd.limits import MAX_STATUS_EXTENTS

ALLOCATION = "base:allocation"
_NAMESPACE = "base:"
ALLOCATION_ID = 1
HOLE = 1 << 0
ZERO = 1 << 1
_CONTEXT = Struct(">I")
_EXTENT = Struct(">II")
_LENGTH_MAX = (1 << 32) - 1

Extents = Iterable[tuple[int, bool]]
"""(length, whether it is a hole, which reads as zeroes) of neighbouring ranges."""


class MalformedContextError(ValueError):
    """Lengths that do not add up, or text that is none."""


def parse_meta_context(data: bytes) -> tuple[str, list[str]]:
    """(export, queries) of LIST_META_CONTEXT and SET_META_CONTEXT. Raises MalformedContextError."""
    name, at = _string(data, 0)
    if at + NAME_LENGTH.size > len(data):
        raise MalformedContextError
    (count,) = NAME_LENGTH.unpack_from(data, at)
    at += NAME_LENGTH.size
    queries: list[str] = []
    for _ in range(count):
        query, at = _string(data, at)
        queries.append(query)
    if at != len(data):
        raise MalformedContextError
    return name, queries


def _string(data: bytes, at: int) -> tuple[str, int]:
    """(the string at `at`, the place behind it)"""
    if at + NAME_LENGTH.size > len(data):
        raise MalformedContextError
    (length,) = NAME_LENGTH.unpack_from(data, at)
    start = at + NAME_LENGTH.size
    if start + length > len(data):
        raise MalformedContextError
    try:
        return data[start : start + length].decode(), start + length
    except UnicodeDecodeError:
        raise MalformedContextError from None


def is_listed(queries: Sequence[str]) -> bool:
    """Whether the answer to LIST names our context. No query asks for all that there are."""
    return not queries or ALLOCATION in queries or _NAMESPACE in queries


def is_chosen(queries: Sequence[str]) -> bool:
    """Whether SET chooses it: by its name alone."""
    return ALLOCATION in queries


def context_reply(context_id: int) -> bytes:
    return _CONTEXT.pack(context_id) + ALLOCATION.encode()


def status_reply(cookie: bytes, length: int, extents: Extents, *, only_one: bool) -> bytes:
    """The whole answer to a request of `length` bytes. `extents` cover at least its beginning."""
    merged = islice(_fitted(extents, length), 1 if only_one else MAX_STATUS_EXTENTS)
    packed = b"".join(_EXTENT.pack(size, HOLE | ZERO if hole else 0) for size, hole in merged)
    assert packed, "an answer has at least one extent"
    body = _CONTEXT.pack(ALLOCATION_ID) + packed
    kind = Chunk.BLOCK_STATUS
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, kind, cookie, len(body)) + body


def _fitted(extents: Extents, length: int) -> Iterable[tuple[int, bool]]:
    """Neighbours of one kind together, cut at the request's end, each fit for 32 bits."""
    assert length <= _LENGTH_MAX
    waiting, kind = 0, False
    for size, hole in extents:
        size = min(size, length)
        length -= size
        if size and hole is not kind and waiting:
            yield waiting, kind
            waiting = 0
        if size:
            waiting, kind = waiting + size, hole
        if not length:
            break
    if waiting:
        yield waiting, kind
