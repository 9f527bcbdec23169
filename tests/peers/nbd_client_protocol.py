# SPDX-License-Identifier: Apache-2.0
"""One NBD connection as the client sees it, without a socket. No I/O.

    receive_data(bytes) → events_received() → data_to_send()

The parser is a generator that yields the memory it wants filled next and goes on when it is full.
So a reply's data is copied once, from the socket's bytes to where the reader will find it, and
nothing that the server claims is believed before it fits a request of ours.

Negotiates structured replies and block sizes if the server knows them; falls back to EXPORT_NAME
for servers that do not know GO. What the server sends never makes it raise: it fails itself and
remembers why (`failure`).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, auto

from replicator.base.errors import NotFoundError, ReplicatorError, UnreachableError, VersionError
from replicator.base.units import KIB
from replicator.nbd.constants import (
    CHUNK,
    CHUNK_DONE,
    CHUNK_ERROR,
    CHUNK_HOLE,
    CHUNK_OFFSET,
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    INFO_TYPE,
    INIT_MAGIC,
    NAME_LENGTH,
    OPTION_HEADER,
    OPTION_MAGIC,
    OPTION_REPLY_HEADER,
    OPTION_REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
    WireError,
)
from replicator.nbd.limits import (
    MAX_BLOCK_BYTES,
    MAX_NAME_BYTES,
    PREFERRED_BLOCK_BYTES,
)
from replicator.nbd.request import Sendable
from replicator.nbd.state import RemoteError

MAX_OPTION_REPLY_BYTES = 64 * KIB
MAX_OPTION_REPLIES = 64
MAX_ERROR_TEXT_BYTES = 4096

_COOKIE_BYTES = 8
_OPTION_REPLY_ERROR_BIT = 1 << 31
_CHUNK_ERROR_BIT = 1 << 15
_MAGIC = NAME_LENGTH  # the first 32 bits of a reply tell its layout
_SIMPLE_REST = SIMPLE_REPLY.size - _MAGIC.size
_CHUNK_REST = CHUNK.size - _MAGIC.size

Reading = Generator[memoryview, None, bytearray]
Steps = Generator[memoryview, None, None]


class ClientState(Enum):
    HANDSHAKE = auto()
    TRANSMISSION = auto()
    FAILED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteExport:
    """What the server told about the export."""

    size_bytes: int
    flags: TransmissionFlag
    structured: bool
    min_block_bytes: int = 1
    preferred_block_bytes: int = PREFERRED_BLOCK_BYTES
    max_block_bytes: int = MAX_BLOCK_BYTES

    @property
    def read_only(self) -> bool:
        return bool(self.flags & TransmissionFlag.READ_ONLY)


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one request. `data` is what a READ got."""

    cookie: bytes
    error: int
    text: str
    data: bytearray


class _Pending:
    """A request on the wire."""

    __slots__ = ("data", "error", "length", "missing", "offset", "text")

    def __init__(self, command: int, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length if command == Command.READ else 0
        self.data = bytearray(self.length)
        self.missing = self.length  # bytes that no chunk has brought
        self.error = 0
        self.text = ""


class ClientProtocol:
    """See the head of this file. `export` is known once the state is TRANSMISSION."""

    def __init__(self, export_name: str, *, structured: bool = True) -> None:
        self.state = ClientState.HANDSHAKE
        self.failure: ReplicatorError | None = None
        self.export: RemoteExport | None = None
        self._name = export_name.encode()
        if len(self._name) > MAX_NAME_BYTES:
            raise ValueError("the export name is too long")
        self._want_structured = structured
        self._pending: dict[bytes, _Pending] = {}
        self._next_cookie = 1
        self._out: list[Sendable] = []
        self._events: list[Answer] = []
        self._steps = self._converse()
        self._target = next(self._steps)
        self._filled = 0

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    # Three verbs.

    def receive_data(self, data: bytes | memoryview) -> None:
        """Bytes from the server, in whatever pieces."""
        view = memoryview(data)
        while view and self.state is not ClientState.FAILED:
            taken = min(len(view), len(self._target) - self._filled)
            self._target[self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            view = view[taken:]
            if self._filled == len(self._target):
                self._step()

    def receive_eof(self) -> None:
        """The server has closed the connection."""
        self._fail(UnreachableError("the NBD server closed the connection"))

    def events_received(self) -> list[Answer]:
        """Answers, in the order in which they were completed; taken by this call."""
        events, self._events = self._events, []
        return events

    def data_to_send(self) -> list[Sendable]:
        """What is to be sent, in order; taken by this call."""
        out, self._out = self._out, []
        return out

    def send_request(
        self, command: Command, *, offset: int, length: int, flags: int = 0, payload: Sendable = b""
    ) -> bytes:
        """Its cookie. `payload` must not change until it has been sent. DISC gets no answer."""
        assert self.state is ClientState.TRANSMISSION, "no export is open"
        assert len(payload) == (length if command is Command.WRITE else 0)
        cookie = self._next_cookie.to_bytes(_COOKIE_BYTES, "big")
        self._next_cookie += 1
        self._out.append(REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length))
        if payload:
            self._out.append(payload)
        if command is not Command.DISC:
            self._pending[cookie] = _Pending(command, offset, length)
        return cookie

    # The conversation. Each generator yields the memory it wants filled.

    def _step(self) -> None:
        self._filled = 0
        try:
            self._target = next(self._steps)
        except ReplicatorError as error:
            self._fail(error)
        except RemoteError as error:
            self._fail(UnreachableError(f"the NBD server broke the protocol: {error}"))

    def _fail(self, error: ReplicatorError) -> None:
        if self.state is not ClientState.FAILED:
            self.state = ClientState.FAILED
            self.failure = error

    def _converse(self) -> Steps:
        no_zeroes = yield from self._greet()
        structured = False
        if self._want_structured:
            structured = yield from self._ask_structured()
        export = yield from self._go(structured=structured)
        if export is None:
            export = yield from self._export_name(no_zeroes=no_zeroes, structured=structured)
        self.export = export
        self.state = ClientState.TRANSMISSION
        while True:
            yield from self._reply()

    def _greet(self) -> Generator[memoryview, None, bool]:
        init, magic, flags = GREETING.unpack((yield from _read(GREETING.size)))
        if init != INIT_MAGIC:
            raise RemoteError("this is no NBD server")
        if magic != OPTION_MAGIC or not flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise VersionError("the NBD server knows only the old handshake")
        taken = flags & (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
        self._out.append(CLIENT_FLAGS.pack(taken))
        return bool(taken & HandshakeFlag.NO_ZEROES)

    def _ask_structured(self) -> Generator[memoryview, None, bool]:
        self._send_option(Option.STRUCTURED_REPLY)
        reply, _ = yield from self._option_reply(Option.STRUCTURED_REPLY)
        return reply == OptionReply.ACK

    def _go(self, *, structured: bool) -> Generator[memoryview, None, RemoteExport | None]:
        """None if the server does not know GO."""
        wanted = INFO_TYPE.pack(1) + INFO_TYPE.pack(Info.BLOCK_SIZE)
        self._send_option(Option.GO, NAME_LENGTH.pack(len(self._name)) + self._name + wanted)
        told: dict[int, bytes] = {}
        for _ in range(MAX_OPTION_REPLIES):
            reply, payload = yield from self._option_reply(Option.GO)
            match reply:
                case OptionReply.INFO:
                    if len(payload) < INFO_TYPE.size:
                        raise RemoteError("short information")
                    told[INFO_TYPE.unpack_from(payload)[0]] = payload
                case OptionReply.ACK:
                    return _remote_export(told, structured=structured)
                case OptionReply.ERR_UNSUP:
                    return None
                case _:
                    raise self._refusal(reply, payload)
        raise RemoteError("too many replies to GO")

    def _refusal(self, reply: int, payload: bytes) -> ReplicatorError:
        text = payload[:MAX_ERROR_TEXT_BYTES].decode(errors="replace")
        name = self._name.decode()
        if reply == OptionReply.ERR_UNKNOWN:
            return NotFoundError(f"the NBD server has no export {name!r}")
        return UnreachableError(f"the NBD server refused export {name!r}: {text or hex(reply)}")

    def _export_name(
        self, *, no_zeroes: bool, structured: bool
    ) -> Generator[memoryview, None, RemoteExport]:
        self._send_option(Option.EXPORT_NAME, self._name)
        answer = yield from _read(EXPORT_NAME_REPLY.size)
        size, flags = EXPORT_NAME_REPLY.unpack(answer)
        if not no_zeroes:
            yield from _read(124)
        return RemoteExport(size_bytes=size, flags=TransmissionFlag(flags), structured=structured)

    def _send_option(self, option: Option, data: bytes = b"") -> None:
        self._out.append(OPTION_HEADER.pack(OPTION_MAGIC, option, len(data)) + data)

    def _option_reply(self, asked: Option) -> Generator[memoryview, None, tuple[int, bytes]]:
        header = yield from _read(OPTION_REPLY_HEADER.size)
        magic, option, reply, length = OPTION_REPLY_HEADER.unpack(header)
        if magic != OPTION_REPLY_MAGIC or option != asked:
            raise RemoteError("a reply to no option of ours")
        if length > MAX_OPTION_REPLY_BYTES:
            raise RemoteError(f"an option reply of {length} bytes")
        payload = yield from _read(length)
        if not reply & _OPTION_REPLY_ERROR_BIT and reply not in (OptionReply.ACK, OptionReply.INFO):
            raise RemoteError(f"unknown option reply {reply}")
        return reply, bytes(payload)

    # Transmission.

    def _reply(self) -> Steps:
        (magic,) = _MAGIC.unpack((yield from _read(_MAGIC.size)))
        if magic == SIMPLE_REPLY_MAGIC:
            yield from self._simple_reply()
        elif magic == STRUCTURED_REPLY_MAGIC:
            yield from self._chunk()
        else:
            raise RemoteError("wrong reply magic")

    def _simple_reply(self) -> Steps:
        rest = yield from _read(_SIMPLE_REST)
        _, error, cookie = SIMPLE_REPLY.unpack(_MAGIC.pack(SIMPLE_REPLY_MAGIC) + rest)
        pending = self._find(cookie)
        if pending.length:
            if self.export is not None and self.export.structured:
                raise RemoteError("a simple reply to a read, with structured replies agreed on")
            if not error:
                yield memoryview(pending.data)
                pending.missing = 0
        pending.error = error
        self._complete(cookie, pending)

    def _chunk(self) -> Steps:
        rest = yield from _read(_CHUNK_REST)
        _, flags, kind, cookie, length = CHUNK.unpack(_MAGIC.pack(STRUCTURED_REPLY_MAGIC) + rest)
        pending = self._find(cookie)
        if kind & _CHUNK_ERROR_BIT:
            yield from self._error_chunk(kind, pending, length)
        elif kind == Chunk.OFFSET_DATA:
            yield from self._data_chunk(pending, length)
        elif kind == Chunk.OFFSET_HOLE and length == CHUNK_HOLE.size:
            offset, size = CHUNK_HOLE.unpack((yield from _read(length)))
            hole = self._part(pending, offset, size)
            hole[:] = bytes(len(hole))
        elif kind != Chunk.NONE or length or not flags & CHUNK_DONE:
            raise RemoteError(f"chunk of type {kind} and {length} bytes")
        if flags & CHUNK_DONE:
            self._complete(cookie, pending)

    def _data_chunk(self, pending: _Pending, length: int) -> Steps:
        if length <= CHUNK_OFFSET.size:
            raise RemoteError("a data chunk without data")
        (offset,) = CHUNK_OFFSET.unpack((yield from _read(CHUNK_OFFSET.size)))
        yield self._part(pending, offset, length - CHUNK_OFFSET.size)

    def _error_chunk(self, kind: int, pending: _Pending, length: int) -> Steps:
        if not CHUNK_ERROR.size <= length <= MAX_ERROR_TEXT_BYTES:
            raise RemoteError(f"an error chunk of {length} bytes")
        body = yield from _read(length)
        error, text_bytes = CHUNK_ERROR.unpack_from(body)
        if CHUNK_ERROR.size + text_bytes > length or not error:
            raise RemoteError("an error chunk that does not add up")
        text = body[CHUNK_ERROR.size : CHUNK_ERROR.size + text_bytes]
        pending.error = error
        pending.text = text.decode(errors="replace")

    def _part(self, pending: _Pending, offset: int, length: int) -> memoryview:
        """The memory of a chunk, which has to lie within what was asked for."""
        start = offset - pending.offset
        if start < 0 or start + length > pending.length or length > pending.missing:
            raise RemoteError("data that nobody asked for")
        pending.missing -= length
        return memoryview(pending.data)[start : start + length]

    def _find(self, cookie: bytes) -> _Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise RemoteError("a reply to no request of ours")
        return pending

    def _complete(self, cookie: bytes, pending: _Pending) -> None:
        if pending.missing and not pending.error:
            raise RemoteError(f"a read is short by {pending.missing} bytes")
        del self._pending[cookie]
        data = bytearray() if pending.error else pending.data
        self._events.append(Answer(cookie, pending.error, pending.text, data))


def _read(count: int) -> Reading:
    """Exactly `count` bytes; the callers have bounded it."""
    data = bytearray(count)
    if count:
        yield memoryview(data)
    return data


def _remote_export(told: dict[int, bytes], *, structured: bool) -> RemoteExport:
    """Raises RemoteError if what was told is incomplete or makes no sense."""
    if len(told.get(Info.EXPORT, b"")) != INFO_EXPORT.size:
        raise RemoteError("no size was told")
    _, size, flags = INFO_EXPORT.unpack(told[Info.EXPORT])
    low, middle, high = 1, PREFERRED_BLOCK_BYTES, MAX_BLOCK_BYTES
    if Info.BLOCK_SIZE in told:
        if len(told[Info.BLOCK_SIZE]) != INFO_BLOCK_SIZE.size:
            raise RemoteError("malformed block sizes")
        _, low, middle, high = INFO_BLOCK_SIZE.unpack(told[Info.BLOCK_SIZE])
        if not 1 <= low <= middle <= high or low & (low - 1) or low > MAX_BLOCK_BYTES:
            raise RemoteError(f"block sizes {low}, {middle}, {high}")
    return RemoteExport(
        size_bytes=size,
        flags=TransmissionFlag(flags),
        structured=structured,
        min_block_bytes=low,
        preferred_block_bytes=middle,
        max_block_bytes=min(high, MAX_BLOCK_BYTES) // low * low,
    )


def describe(error: int) -> str:
    """`ENOSPC`, or the number where the protocol has no name for it."""
    return WireError(error).name if error in set(WireError) else f"error {error}"
