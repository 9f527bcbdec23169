# SPDX-License-Identifier: Apache-2.0
"""The server's half of the fixed newstyle handshake, until an export is chosen. No I/O.

Greeting, client flags, options; each option is answered in order. Understood: EXPORT_NAME, ABORT,
LIST, INFO, GO, STRUCTURED_REPLY, STARTTLS where the server speaks TLS, and LIST_META_CONTEXT and
SET_META_CONTEXT where it has an export that knows its holes (replicator.nbd.block_status). All
others are answered ERR_UNSUP: meta contexts of a mirror's target among them (base:allocation would
make QEMU believe that a fresh target is all zero, and skip areas), and extended headers, which QEMU
from 8.2 on asks for first.

A server that speaks TLS demands it (FORCEDTLS): until then everything but STARTTLS and ABORT is
answered ERR_TLS_REQD, and nothing is said about exports. What was agreed on before is forgotten. A
byte behind STARTTLS and before the TLS handshake is an attempt to put words into the client's
mouth, and ends the connection.

A client that does not ask for the block sizes is served all the same, and gets EINVAL for what is
unaligned. What an error reply can say is said with one; RemoteError is for the rest: a wrong
magic, unknown client flags, an absurd length, too many options, EXPORT_NAME for what is not there
(the specification knows no error reply there).
"""

from __future__ import annotations

from dataclasses import dataclass

from replicator.nbd.block_status import (
    ALLOCATION_ID,
    MalformedContextError,
    context_reply,
    is_chosen,
    is_listed,
    parse_meta_context,
)
from replicator.nbd.constants import (
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES,
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
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
)
from replicator.nbd.exports import Export, ExportInfo, Exports
from replicator.nbd.limits import MAX_LISTS, MAX_NAME_BYTES, MAX_OPTION_BYTES, MAX_OPTIONS
from replicator.nbd.state import Event, RemoteError

# A plain number, because the complement of an IntFlag holds only the flags that it knows.
_OFFERED = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the handshake leads to."""

    name: str
    export: Export
    info: ExportInfo
    structured: bool
    allocation: bool = False
    """Whether the client may ask for its holes."""


class OptionError(Exception):
    """An option that is answered with an error; haggling goes on."""

    def __init__(self, reply: OptionReply, text: str) -> None:
        super().__init__(text)
        self.reply = reply
        self.text = text


def greeting() -> bytes:
    """The first words are the server's."""
    return GREETING.pack(INIT_MAGIC, OPTION_MAGIC, _OFFERED)


class Handshake:
    """Takes client flags and options one at a time; `out` collects the answers."""

    def __init__(self, exports: Exports, *, needs_tls: bool = False) -> None:
        self._exports = exports
        self._needs_tls = needs_tls
        self._speaks_tls = needs_tls
        self._no_zeroes = False
        self._structured = False
        self._allocation_of: str | None = None  # the export of which the client chose it
        self._options = 0
        self._lists = 0
        self.out: list[bytes] = []
        self.chosen: Chosen | None = None

    def client_flags(self, data: memoryview) -> None:
        (flags,) = CLIENT_FLAGS.unpack(data)
        if flags & ~_OFFERED:
            raise RemoteError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)

    def option_bytes(self, header: memoryview) -> int:
        """Length of the option with this header, header included. Raises RemoteError."""
        magic, option, length = OPTION_HEADER.unpack(header)
        if magic != OPTION_MAGIC:
            raise RemoteError("wrong option magic")
        if length > MAX_OPTION_BYTES:
            raise RemoteError(f"option {option} of {length} bytes")
        return OPTION_HEADER.size + int(length)

    def option(self, packet: memoryview) -> Event | None:
        """Answer one whole option. CHOSEN, ABORT, or None if haggling goes on."""
        self._options += 1
        if self._options > MAX_OPTIONS:
            raise RemoteError(f"more than {MAX_OPTIONS} options")
        _, option, _ = OPTION_HEADER.unpack_from(packet)
        data = bytes(packet[OPTION_HEADER.size :])
        try:
            return self._answer(option, data)
        except OptionError as error:
            self._reply(option, error.reply, error.text.encode())
            return None

    def secured(self) -> None:
        """TLS has begun."""
        self._needs_tls = False
        self._structured = False
        self._allocation_of = None

    def _answer(self, option: int, data: bytes) -> Event | None:
        if self._needs_tls and option not in (Option.STARTTLS, Option.ABORT):
            if option == Option.EXPORT_NAME:
                raise RemoteError("EXPORT_NAME without TLS")
            raise OptionError(OptionReply.ERR_TLS_REQD, "this server serves over TLS alone")
        match option:
            case Option.STARTTLS if self._speaks_tls:
                return self._start_tls(data)
            case Option.EXPORT_NAME:
                return self._export_name(data)
            case Option.ABORT:
                self._reply(option, OptionReply.ACK)
                return Event.ABORT
            case Option.GO | Option.INFO:
                return self._info(option, data)
            case Option.LIST:
                self._list(data)
            case Option.STRUCTURED_REPLY:
                self._structured_reply(data)
            case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT if self._knows_holes():
                self._meta_context(option, data)
            case _:
                raise OptionError(OptionReply.ERR_UNSUP, "not supported")
        return None

    def _start_tls(self, data: bytes) -> Event:
        if data or not self._needs_tls:
            why = "STARTTLS carries no data" if data else "TLS is on already"
            raise OptionError(OptionReply.ERR_INVALID, why)
        self._reply(Option.STARTTLS, OptionReply.ACK)
        return Event.STARTTLS

    def _export_name(self, data: bytes) -> Event:
        try:
            name = _text(data)
            export = self._find(name)
        except OptionError as error:
            raise RemoteError(f"EXPORT_NAME: {error.text}") from None
        info = export.info
        flags = info.transmission_flags(structured=self._structured)
        self.out.append(EXPORT_NAME_REPLY.pack(info.size_bytes, flags))
        if not self._no_zeroes:
            self.out.append(EXPORT_NAME_ZEROES)
        self.chosen = Chosen(name, export, info, self._structured)
        return Event.CHOSEN

    def _info(self, option: int, data: bytes) -> Event | None:
        name, wanted = _parse_info_request(data)
        export = self._find(name)
        info = export.info
        flags = info.transmission_flags(structured=self._structured)
        self._reply(option, OptionReply.INFO, INFO_EXPORT.pack(Info.EXPORT, info.size_bytes, flags))
        for kind in wanted:
            self._reply_info(option, kind, name, info)
        self._reply(option, OptionReply.ACK)
        if option == Option.INFO:
            return None
        allocation = info.can_block_status and self._allocation_of == name
        self.chosen = Chosen(name, export, info, self._structured, allocation)
        return Event.CHOSEN

    def _reply_info(self, option: int, kind: int, name: str, info: ExportInfo) -> None:
        """Unknown kinds of information are passed over, as the specification wants it."""
        match kind:
            case Info.NAME:
                payload = INFO_TYPE.pack(kind) + name.encode()
            case Info.DESCRIPTION if info.description:
                payload = INFO_TYPE.pack(kind) + info.description.encode()
            case Info.BLOCK_SIZE:
                payload = INFO_BLOCK_SIZE.pack(
                    kind, info.min_block_bytes, info.preferred_block_bytes, info.max_block_bytes
                )
            case _:
                return
        self._reply(option, OptionReply.INFO, payload)

    def _list(self, data: bytes) -> None:
        if data:
            raise OptionError(OptionReply.ERR_INVALID, "LIST carries no data")
        self._lists += 1
        if self._lists > MAX_LISTS:
            raise RemoteError(f"more than {MAX_LISTS} times LIST")
        for name in self._exports.names():
            text = name.encode()
            self._reply(Option.LIST, OptionReply.SERVER, NAME_LENGTH.pack(len(text)) + text)
        self._reply(Option.LIST, OptionReply.ACK)

    def _structured_reply(self, data: bytes) -> None:
        if data:
            raise OptionError(OptionReply.ERR_INVALID, "STRUCTURED_REPLY carries no data")
        if self._structured:
            raise OptionError(OptionReply.ERR_INVALID, "structured replies are on already")
        self._structured = True
        self._reply(Option.STRUCTURED_REPLY, OptionReply.ACK)

    def _knows_holes(self) -> bool:
        exports = [self._exports.find(name) for name in self._exports.names()]
        return any(export is not None and export.info.can_block_status for export in exports)

    def _meta_context(self, option: int, data: bytes) -> None:
        """What was chosen before is undone in any case."""
        is_set = option == Option.SET_META_CONTEXT
        if is_set:
            self._allocation_of = None
        if not self._structured:
            raise OptionError(OptionReply.ERR_INVALID, "structured replies come first")
        try:
            name, queries = parse_meta_context(data)
        except MalformedContextError:
            raise OptionError(OptionReply.ERR_INVALID, "lengths do not add up") from None
        if not self._find(name).info.can_block_status:
            raise OptionError(OptionReply.ERR_UNSUP, "this export does not know its holes")
        if is_chosen(queries) if is_set else is_listed(queries):
            context = context_reply(ALLOCATION_ID if is_set else 0)
            self._reply(option, OptionReply.META_CONTEXT, context)
            if is_set:
                self._allocation_of = name
        self._reply(option, OptionReply.ACK)

    def _find(self, name: str) -> Export:
        export = self._exports.find(name)
        if export is None:
            raise OptionError(OptionReply.ERR_UNKNOWN, f"no export {name!r}"[:MAX_NAME_BYTES])
        return export

    def _reply(self, option: int, reply: OptionReply, payload: bytes = b"") -> None:
        self.out.append(OPTION_REPLY_HEADER.pack(OPTION_REPLY_MAGIC, option, reply, len(payload)))
        if payload:
            self.out.append(payload)


def _text(data: bytes) -> str:
    if len(data) > MAX_NAME_BYTES:
        raise OptionError(OptionReply.ERR_TOO_BIG, "the name is too long")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise OptionError(OptionReply.ERR_INVALID, "the name is not UTF-8") from None


def _parse_info_request(data: bytes) -> tuple[str, list[int]]:
    """INFO and GO: 32-bit length, name, 16-bit count, that many 16-bit kinds, and no byte more.

    A kind asked for twice is told once.
    """
    malformed = OptionError(OptionReply.ERR_INVALID, "lengths do not add up")
    if len(data) < NAME_LENGTH.size + INFO_TYPE.size:
        raise malformed
    (name_bytes,) = NAME_LENGTH.unpack_from(data)
    count_at = NAME_LENGTH.size + name_bytes
    if count_at + INFO_TYPE.size > len(data):
        raise malformed
    (count,) = INFO_TYPE.unpack_from(data, count_at)
    kinds = data[count_at + INFO_TYPE.size :]
    if len(kinds) != count * INFO_TYPE.size:
        raise malformed
    wanted = dict.fromkeys(kind for (kind,) in INFO_TYPE.iter_unpack(kinds))
    return _text(data[NAME_LENGTH.size : count_at]), list(wanted)
