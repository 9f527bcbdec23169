# SPDX-License-Identifier: Apache-2.0
"""What a client says, byte by byte, and two ways to hear the answers without a socket. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack, unpack_from

from replicator.nbd.constants import Command, Option, OptionReply
from replicator.nbd.exports import Exports
from replicator.nbd.protocol import ServerProtocol
from replicator.nbd.request import Request
from replicator.nbd.transmission import Transmission
from tests.peers.nbd_client_protocol import Answer, ClientProtocol

FLAGS = pack(">I", 3)
GREETING_BYTES = 18
SECTOR = 512


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + pack(">II", number, len(data)) + data


def go(name: str, *infos: int, number: int = Option.GO) -> bytes:
    text = name.encode()
    wanted = b"".join(pack(">H", info) for info in infos)
    return option(number, pack(">I", len(text)) + text + pack(">H", len(infos)) + wanted)


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    cookie: int = 1,
    payload: bytes = b"",
) -> bytes:
    return pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload


def write(offset: int, payload: bytes, *, flags: int = 0, cookie: int = 1) -> bytes:
    length = len(payload)
    return request(Command.WRITE, offset, length, flags=flags, cookie=cookie, payload=payload)


def ok(cookie: int = 1) -> bytes:
    return pack(">IIQ", 0x67446698, 0, cookie)


def simple_error(error: int, cookie: int = 1) -> bytes:
    return pack(">IIQ", 0x67446698, error, cookie)


def feed(protocol: ServerProtocol, data: bytes, *, piece: int = 1 << 30) -> None:
    """Give it bytes as a socket would, at most `piece` at a time; requests stay in the buffer."""
    rest = memoryview(data)
    while rest:
        room = protocol.get_buffer(-1)
        taken = min(len(rest), len(room), piece)
        room[:taken] = rest[:taken]
        rest = rest[taken:]
        protocol.buffer_updated(taken)


def converse(protocol: ServerProtocol, data: bytes, *, piece: int = 1 << 30) -> list[Request]:
    """Feed, and collect all requests with copies of their payloads, as a shell asks for them."""
    seen: list[Request] = []
    rest = memoryview(data)
    while rest:
        room = protocol.get_buffer(-1)
        taken = min(len(rest), len(room), piece)
        room[:taken] = rest[:taken]
        rest = rest[taken:]
        protocol.buffer_updated(taken)
        while batch := protocol.requests():
            for each in batch:
                each.payload = memoryview(bytes(each.payload))
            seen.extend(batch)
            replies(protocol).reply_all([each for each in batch if each.command != Command.READ])
            for each in batch:
                if each.command == Command.READ and not each.answered:
                    replies(protocol).reply_data(each, bytes(each.length))
    return seen


def mid_request(protocol: ServerProtocol) -> bool:
    """As a call, because a type checker takes a property for constant."""
    return protocol.mid_request


def replies(protocol: ServerProtocol) -> Transmission:
    """Where requests are answered."""
    assert protocol.transmission is not None
    return protocol.transmission


def saturated(protocol: ServerProtocol) -> bool:
    return protocol.saturated


def sent(protocol: ServerProtocol) -> bytes:
    return b"".join(protocol.data_to_send())


@dataclass(frozen=True, slots=True)
class Said:
    """One option reply."""

    option: int
    reply: int
    payload: bytes

    @property
    def error(self) -> OptionReply:
        return OptionReply(self.reply)


def option_replies(data: bytes) -> list[Said]:
    """Option replies, which have to fill `data` exactly."""
    found = []
    position = 0
    while position < len(data):
        magic, number, reply, length = unpack_from(">QIII", data, position)
        assert magic == 0x3E889045565A9
        payload = data[position + 20 : position + 20 + length]
        assert len(payload) == length
        found.append(Said(number, reply, payload))
        position += 20 + length
    return found


def in_transmission(exports: Exports, name: str, *, structured: bool = False) -> ServerProtocol:
    """A connection that has just chosen an export; what was said so far is taken away."""
    protocol = ServerProtocol(exports)
    feed(protocol, FLAGS)
    if structured:
        feed(protocol, option(Option.STRUCTURED_REPLY))
    feed(protocol, go(name))
    sent(protocol)
    assert protocol.chosen is not None
    return protocol


class ConnectionPair:
    """Our client and our server, joined by a link that delivers in pieces of `piece` bytes."""

    def __init__(self, exports: Exports, name: str, *, structured: bool, piece: int) -> None:
        self.server = ServerProtocol(exports)
        self.client = ClientProtocol(name, structured=structured)
        self.piece = piece
        self.disk = bytearray()
        self.seen: list[tuple[int, int, int]] = []

    def exchange(self) -> list[Answer]:
        """Carry bytes both ways until both are silent. Answers that the client has got."""
        answers: list[Answer] = []
        quiet = False
        while not quiet:
            to_client = b"".join(self.server.data_to_send())
            to_server = b"".join(self.client.data_to_send())
            quiet = not (to_client or to_server)
            for start in range(0, len(to_client), self.piece):
                self.client.receive_data(to_client[start : start + self.piece])
            answers.extend(self.client.events_received())
            self._serve(to_server)
        return answers

    def _serve(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            room = self.server.get_buffer(-1)
            taken = min(len(rest), len(room), self.piece)
            room[:taken] = rest[:taken]
            rest = rest[taken:]
            self.server.buffer_updated(taken)
            while batch := self.server.requests():
                for each in batch:
                    self._answer(each)

    def _answer(self, each: Request) -> None:
        self.seen.append((each.command, each.offset, each.length))
        if each.answered:
            return
        end = each.offset + each.length
        if each.command == Command.READ:
            replies(self.server).reply_data(each, bytes(self.disk[each.offset : end]))
            return
        if each.command == Command.WRITE:
            self.disk[each.offset : end] = each.payload
        elif each.command in (Command.WRITE_ZEROES, Command.TRIM):
            self.disk[each.offset : end] = bytes(each.length)
        replies(self.server).reply(each)
