# SPDX-License-Identifier: Apache-2.0
"""Our client and our server joined by a fake link; and our client against servers that lie."""

from __future__ import annotations

import random
from struct import pack

import pytest

from replicator.base.errors import NotFoundError, UnreachableError, VersionError
from replicator.nbd.constants import Command, Option, TransmissionFlag, WireError
from replicator.nbd.exports import ExportInfo
from tests.nbd.dialogue import ConnectionPair
from tests.nbd.exports_of_memory import MemoryExport, Shelf
from tests.peers.nbd_client_protocol import ClientProtocol, ClientState

SIZE = 1 << 20
INFO = ExportInfo(
    size_bytes=SIZE, can_fua=True, can_trim=True, can_write_zeroes=True, max_block_bytes=1 << 18
)
GREETING = b"NBDMAGICIHAVEOPT" + pack(">H", 3)


def reply(option: int, kind: int, payload: bytes = b"") -> bytes:
    return pack(">QIII", 0x3E889045565A9, option, kind, len(payload)) + payload


def pair(*, structured: bool, piece: int, name: str = "web/vda") -> ConnectionPair:
    joined = ConnectionPair(
        Shelf(**{"web/vda": MemoryExport(INFO)}), name, structured=structured, piece=piece
    )
    joined.disk = bytearray(SIZE)
    joined.exchange()
    return joined


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_both_agree_on_the_export(structured: bool, piece: int) -> None:
    client = pair(structured=structured, piece=piece).client
    assert client.state is ClientState.TRANSMISSION
    assert client.export is not None
    assert client.export.size_bytes == SIZE
    assert client.export.structured is structured
    assert client.export.min_block_bytes == 512
    assert client.export.max_block_bytes == 1 << 18
    assert not client.export.read_only
    assert bool(client.export.flags & TransmissionFlag.SEND_DF) is structured


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("piece", [13, 4096, 1 << 20])
def test_random_requests_agree_with_a_plain_disk(structured: bool, piece: int) -> None:
    joined = pair(structured=structured, piece=piece)
    chance = random.Random(piece)
    model = bytearray(SIZE)
    for _ in range(40):
        offset = chance.randrange(SIZE // 512 - 64) * 512
        length = chance.randrange(1, 64) * 512
        command = chance.choice([Command.READ, Command.WRITE, Command.WRITE_ZEROES, Command.TRIM])
        payload = chance.randbytes(length) if command is Command.WRITE else b""
        cookie = joined.client.send_request(command, offset=offset, length=length, payload=payload)
        (answer,) = joined.exchange()
        assert (answer.cookie, answer.error) == (cookie, 0)
        if command is Command.READ:
            assert answer.data == model[offset : offset + length]
        else:
            model[offset : offset + length] = payload or bytes(length)
    assert joined.disk == model


@pytest.mark.parametrize("structured", [False, True])
def test_many_in_flight_and_one_refused(structured: bool) -> None:
    joined = pair(structured=structured, piece=100)
    client = joined.client
    client.send_request(Command.WRITE, offset=0, length=512, payload=b"a" * 512)
    bad = client.send_request(Command.WRITE, offset=SIZE, length=512, payload=b"b" * 512)
    read = client.send_request(Command.READ, offset=0, length=512)
    assert client.in_flight == 3
    answers = {answer.cookie: answer for answer in joined.exchange()}
    assert len(answers) == 3
    assert answers[bad].error == WireError.ENOSPC
    assert answers[bad].text == ("past the end of the export" if structured else "")
    assert answers[read].data == b"a" * 512
    assert client.in_flight == 0


def test_an_unknown_export_has_a_name_in_its_error() -> None:
    client = pair(structured=True, piece=1 << 20, name="web/vdz").client
    assert isinstance(client.failure, NotFoundError)
    assert "web/vdz" in client.failure.message


def test_disc_reaches_the_server_and_nothing_comes_back() -> None:
    joined = pair(structured=True, piece=1)
    joined.client.send_request(Command.DISC, offset=0, length=0)
    assert joined.exchange() == []
    assert joined.server.disc_received
    assert joined.client.in_flight == 0


def test_a_server_without_go_is_asked_the_old_way() -> None:
    client = ClientProtocol("d")
    client.receive_data(GREETING)
    client.receive_data(reply(Option.STRUCTURED_REPLY, 0x80000001))
    client.receive_data(reply(Option.GO, 0x80000001, b"what?"))
    assert b"".join(client.data_to_send()).endswith(b"IHAVEOPT" + pack(">II", 1, 1) + b"d")
    client.receive_data(pack(">QH", SIZE, 1))
    assert client.export is not None
    assert (client.export.size_bytes, client.export.structured) == (SIZE, False)


def test_a_server_that_keeps_the_zeroes_has_them_skipped() -> None:
    client = ClientProtocol("d", structured=False)
    client.receive_data(b"NBDMAGICIHAVEOPT" + pack(">H", 1))
    client.receive_data(reply(Option.GO, 0x80000001))
    client.receive_data(pack(">QH", SIZE, 1) + bytes(123))
    assert client.export is None
    client.receive_data(b"\0")
    assert client.export is not None


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2", UnreachableError, "no NBD server"),
        (b"NBDMAGIC" + pack(">QH", 0x420281861253, 0), VersionError, "old handshake"),
        (b"NBDMAGICIHAVEOPT\0\0", VersionError, "old handshake"),
        (GREETING + reply(7, 1), UnreachableError, "no option of ours"),
        (GREETING + bytes(20), UnreachableError, "no option of ours"),
        (GREETING + pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 31), UnreachableError, "bytes"),
        (GREETING + reply(8, 1) + reply(7, 1), UnreachableError, "no size"),
        (GREETING + reply(8, 1) + reply(7, 3, b"x"), UnreachableError, "short information"),
        (GREETING + reply(8, 1) + reply(7, 3, b"xy") * 65, UnreachableError, "too many"),
        (GREETING + reply(8, 1) + reply(7, 0x80000002, b"no!"), UnreachableError, "no!"),
        (GREETING + reply(8, 1) + reply(7, 9), UnreachableError, "unknown option reply"),
        (
            GREETING
            + reply(8, 1)
            + reply(7, 3, pack(">HQH", 0, SIZE, 1))
            + reply(7, 3, pack(">HIII", 3, 3, 2, 1))
            + reply(7, 1),
            UnreachableError,
            "block sizes",
        ),
    ],
)
def test_a_server_that_talks_nonsense_is_named(said: bytes, kind: type, text: str) -> None:
    client = ClientProtocol("d")
    client.receive_data(said)
    assert type(client.failure) is kind
    assert text in str(client.failure)
    assert client.state is ClientState.FAILED


def chunk(kind: int, body: bytes, *, flags: int = 1, cookie: int = 1) -> bytes:
    return pack(">IHHQI", 0x668E33EF, flags, kind, cookie, len(body)) + body


def reading(*, structured: bool = True) -> ClientProtocol:
    """A client that waits for 1024 bytes at 512, with cookie 1."""
    client = ClientProtocol("d", structured=structured)
    client.receive_data(GREETING + (reply(8, 1) if structured else b""))
    client.receive_data(reply(7, 3, pack(">HQH", 0, SIZE, 1)) + reply(7, 1))
    client.send_request(Command.READ, offset=512, length=1024)
    return client


def test_a_read_may_come_in_pieces_and_holes() -> None:
    client = reading()
    client.receive_data(chunk(1, pack(">Q", 1024) + b"b" * 256, flags=0))
    client.receive_data(chunk(2, pack(">QI", 1280, 256), flags=0))
    client.receive_data(chunk(1, pack(">Q", 512) + b"a" * 512))
    (answer,) = client.events_received()
    assert answer.data == b"a" * 512 + b"b" * 256 + bytes(256)


def test_an_error_after_data_is_an_error() -> None:
    client = reading()
    client.receive_data(chunk(1, pack(">Q", 512) + b"a" * 1024, flags=0))
    client.receive_data(chunk(0x8002, pack(">IH", 5, 3) + b"bad" + pack(">Q", 512)))
    (answer,) = client.events_received()
    assert (answer.error, answer.text, len(answer.data)) == (5, "bad", 0)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (chunk(1, pack(">Q", 0) + b"a" * 512), "nobody asked"),
        (chunk(1, pack(">Q", 1024) + b"a" * 1024), "nobody asked"),
        (chunk(1, pack(">Q", 512) + b"a" * 512, flags=0) * 3, "nobody asked"),
        (chunk(2, pack(">QI", 512, 0xFFFFFFFF)), "nobody asked"),
        (chunk(1, pack(">Q", 512) + b"a" * 512), "short by 512"),
        (chunk(1, pack(">Q", 512)), "without data"),
        (chunk(0, b""), "short by 1024"),
        (chunk(0, b"", flags=0), "type 0"),
        (chunk(5, bytes(12)), "type 5"),
        (chunk(0x8001, bytes(5)), "error chunk"),
        (chunk(0x8001, pack(">IH", 0, 0)), "does not add up"),
        (chunk(0x8001, pack(">IH", 5, 9) + b"short"), "does not add up"),
        (chunk(0x8001, bytes(5000)), "5000 bytes"),
        (chunk(0, b"", cookie=9), "no request of ours"),
        (pack(">IIQ", 0x67446698, 0, 1), "simple reply to a read"),
        (pack(">IIQ", 0x67446698, 0, 9), "no request of ours"),
        (b"HTTP/1.1", "wrong reply magic"),
    ],
)
def test_answers_that_lie_end_the_connection(said: bytes, text: str) -> None:
    client = reading()
    client.receive_data(said)
    assert client.state is ClientState.FAILED
    assert client.failure is not None
    assert text in client.failure.message
    assert client.events_received() == []


def test_the_end_of_the_server_is_told() -> None:
    client = reading(structured=False)
    client.receive_eof()
    assert isinstance(client.failure, UnreachableError)
