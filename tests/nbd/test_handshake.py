# SPDX-License-Identifier: Apache-2.0
"""The handshake: every option, every way to get it wrong, cut at every byte."""

from __future__ import annotations

from struct import pack, unpack

import pytest

from replicator.nbd.constants import Info, Option, OptionReply, TransmissionFlag
from replicator.nbd.exports import ExportInfo
from replicator.nbd.limits import HANDSHAKE_BUFFER_BYTES, MAX_LISTS, MAX_NAME_BYTES, MAX_OPTIONS
from replicator.nbd.protocol import ServerProtocol
from replicator.nbd.state import State
from tests.nbd.dialogue import (
    FLAGS,
    GREETING_BYTES,
    Said,
    converse,
    feed,
    go,
    ok,
    option,
    option_replies,
    sent,
    write,
)
from tests.nbd.exports_of_memory import MemoryExport, Shelf

INFO = ExportInfo(
    size_bytes=1 << 20,
    can_write_zeroes=True,
    max_block_bytes=4 << 20,
    description="the first disk of web",
)


@pytest.fixture
def protocol() -> ServerProtocol:
    protocol = ServerProtocol(Shelf(**{"web/vda": MemoryExport(INFO), "db": MemoryExport(INFO)}))
    assert sent(protocol) == b"NBDMAGICIHAVEOPT" + pack(">H", 3)
    return protocol


def haggle(protocol: ServerProtocol, *options: bytes) -> list[Said]:
    feed(protocol, FLAGS + b"".join(options))
    return option_replies(sent(protocol))


def test_go_tells_what_was_asked_for_and_opens(protocol: ServerProtocol) -> None:
    said = haggle(
        protocol, go("web/vda", Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE, Info.NAME, 99)
    )
    flags = INFO.transmission_flags(structured=False)
    assert [each.payload for each in said] == [
        pack(">HQH", Info.EXPORT, 1 << 20, flags),
        pack(">H", Info.NAME) + b"web/vda",
        pack(">H", Info.DESCRIPTION) + b"the first disk of web",
        pack(">HIII", Info.BLOCK_SIZE, 512, 4096, 4 << 20),
        b"",
    ]
    assert [each.reply for each in said] == [OptionReply.INFO] * 4 + [OptionReply.ACK]
    assert protocol.state is State.TRANSMISSION
    assert protocol.chosen is not None
    assert protocol.chosen.name == "web/vda"


def test_a_client_that_asks_for_nothing_is_served_too(protocol: ServerProtocol) -> None:
    said = haggle(protocol, go("db"))
    assert [each.reply for each in said] == [OptionReply.INFO, OptionReply.ACK]
    assert len(converse(protocol, write(0, bytes(512)))) == 1


def test_info_tells_the_same_and_haggling_goes_on(protocol: ServerProtocol) -> None:
    asked = haggle(protocol, go("db", Info.BLOCK_SIZE, number=Option.INFO))
    assert protocol.state is State.HAGGLING
    feed(protocol, go("db", Info.BLOCK_SIZE))
    assert [each.payload for each in option_replies(sent(protocol))] == [
        each.payload for each in asked
    ]


def test_the_empty_name_is_the_default_export(protocol: ServerProtocol) -> None:
    haggle(protocol, go(""))
    assert protocol.chosen is not None
    assert protocol.chosen.name == ""


def test_an_unknown_export_is_an_error_and_no_end(protocol: ServerProtocol) -> None:
    said = haggle(protocol, go("nothing"), go("db"))
    assert said[0].error is OptionReply.ERR_UNKNOWN
    assert b"nothing" in said[0].payload
    assert protocol.state is State.TRANSMISSION


def test_list_names_all_exports(protocol: ServerProtocol) -> None:
    said = haggle(protocol, option(Option.LIST))
    assert [(each.reply, each.payload) for each in said] == [
        (OptionReply.SERVER, pack(">I", 7) + b"web/vda"),
        (OptionReply.SERVER, pack(">I", 2) + b"db"),
        (OptionReply.ACK, b""),
    ]


@pytest.mark.parametrize(
    "number",
    [
        Option.STARTTLS,
        Option.LIST_META_CONTEXT,
        Option.SET_META_CONTEXT,
        Option.EXTENDED_HEADERS,
        4,
        0,
        12345,
    ],
)
@pytest.mark.parametrize("data", [b"", b"\0" * 100])
def test_what_is_not_understood_is_unsupported_and_no_end(
    protocol: ServerProtocol, number: int, data: bytes
) -> None:
    said = haggle(protocol, option(number, data), go("db"))
    assert said[0].option == number
    assert said[0].error is OptionReply.ERR_UNSUP
    assert protocol.state is State.TRANSMISSION


@pytest.mark.parametrize(
    "malformed",
    [
        option(Option.GO),
        option(Option.GO, b"\0\0\0\0\0"),
        option(Option.GO, pack(">I", 5) + b"db" + pack(">H", 0)),
        option(Option.GO, pack(">I", 2) + b"db" + pack(">H", 1)),
        option(Option.GO, pack(">I", 2) + b"db" + pack(">HHH", 1, 3, 3)),
        option(Option.GO, pack(">I", 0xFFFFFFFF) + b"db" + pack(">H", 0)),
        option(Option.INFO, pack(">I", 2) + b"\xff\xfe" + pack(">H", 0)),
        option(Option.LIST, b"x"),
        option(Option.STRUCTURED_REPLY, b"x"),
    ],
)
def test_malformed_options_are_invalid_and_no_end(
    protocol: ServerProtocol, malformed: bytes
) -> None:
    said = haggle(protocol, malformed, go("db"))
    assert said[0].error is OptionReply.ERR_INVALID
    assert protocol.state is State.TRANSMISSION


def test_the_longest_name_fits_and_a_longer_one_is_too_big(protocol: ServerProtocol) -> None:
    said = haggle(protocol, go("n" * MAX_NAME_BYTES), go("n" * (MAX_NAME_BYTES + 1)))
    assert [each.error for each in said] == [OptionReply.ERR_UNKNOWN, OptionReply.ERR_TOO_BIG]


def test_structured_replies_once(protocol: ServerProtocol) -> None:
    ask = option(Option.STRUCTURED_REPLY)
    said = haggle(protocol, ask, ask, go("db"))
    assert said[0].reply == OptionReply.ACK
    assert said[1].error is OptionReply.ERR_INVALID
    (_, _, flags) = unpack(">HQH", said[2].payload)
    assert flags & TransmissionFlag.SEND_DF
    assert protocol.chosen is not None
    assert protocol.chosen.structured


def test_abort_is_acknowledged_and_what_follows_is_dropped(protocol: ServerProtocol) -> None:
    said = haggle(protocol, option(Option.ABORT), go("db"))
    assert [each.reply for each in said] == [OptionReply.ACK]
    assert protocol.state is State.LEAVING
    feed(protocol, bytes(100_000))
    assert protocol.buffer.memory_bytes == HANDSHAKE_BUFFER_BYTES


@pytest.mark.parametrize(("flags", "zeroes"), [(3, 0), (1, 124)])
def test_export_name_with_and_without_zeroes(
    protocol: ServerProtocol, flags: int, zeroes: int
) -> None:
    feed(protocol, pack(">I", flags) + option(Option.EXPORT_NAME, b"db"))
    expected = pack(">QH", 1 << 20, INFO.transmission_flags(structured=False))
    assert sent(protocol) == expected + bytes(zeroes)
    assert protocol.state is State.TRANSMISSION


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pack(">I", 7), "client flags"),
        (FLAGS + b"IHAVEOPS" + bytes(8), "option magic"),
        (FLAGS + b"IHAVEOPT" + pack(">II", Option.GO, 0xFFFFFFFF), "4294967295 bytes"),
        (FLAGS + b"IHAVEOPT" + pack(">II", Option.GO, HANDSHAKE_BUFFER_BYTES), "8192 bytes"),
        (FLAGS + option(Option.EXPORT_NAME, b"nothing"), "nothing"),
        (FLAGS + option(Option.EXPORT_NAME, b"\xff"), "UTF-8"),
        (FLAGS + option(99) * (MAX_OPTIONS + 1), "options"),
        (FLAGS + option(Option.LIST) * (MAX_LISTS + 1), "LIST"),
    ],
)
def test_what_no_reply_can_answer_fails_the_connection(
    protocol: ServerProtocol, data: bytes, reason: str
) -> None:
    feed(protocol, data)
    assert protocol.state is State.FAILED
    assert reason in protocol.failure
    assert protocol.buffer.memory_bytes == HANDSHAKE_BUFFER_BYTES
    assert protocol.requests() == []


def test_the_largest_option_is_taken(protocol: ServerProtocol) -> None:
    said = haggle(protocol, option(99, bytes(HANDSHAKE_BUFFER_BYTES - 16)))
    assert said[0].error is OptionReply.ERR_UNSUP


def test_a_handshake_cut_at_every_byte_says_the_same() -> None:
    conversation = (
        FLAGS
        + option(Option.STRUCTURED_REPLY)
        + option(Option.LIST)
        + go("nothing")
        + go("db", Info.BLOCK_SIZE)
        + write(512, b"a" * 512)
    )

    def answers(*pieces: bytes) -> bytes:
        protocol = ServerProtocol(Shelf(db=MemoryExport(INFO)))
        said = b""
        for piece in pieces:
            converse(protocol, piece)
            said += sent(protocol)
        return said

    whole = answers(conversation)
    assert whole.endswith(ok())
    assert whole.startswith(b"NBDMAGIC")
    assert len(whole) > GREETING_BYTES
    for cut in range(1, len(conversation)):
        assert answers(conversation[:cut], conversation[cut:]) == whole, cut


def test_an_end_in_mid_handshake_is_no_failure(protocol: ServerProtocol) -> None:
    feed(protocol, FLAGS + b"IHAVE")
    protocol.eof_received()
    assert protocol.state is State.ENDED
    assert protocol.failure == ""
    assert not protocol.mid_request


# -- TLS


@pytest.fixture
def secret() -> ServerProtocol:
    protocol = ServerProtocol(Shelf(d=MemoryExport(INFO)), needs_tls=True)
    sent(protocol)
    return protocol


def test_before_tls_nothing_is_said_about_exports(secret: ServerProtocol) -> None:
    asked = [option(Option.LIST), go("d"), option(Option.STRUCTURED_REPLY), option(99)]
    said = haggle(secret, *asked)
    assert [each.error for each in said] == [OptionReply.ERR_TLS_REQD] * 4
    assert secret.chosen is None
    feed(secret, option(Option.EXPORT_NAME, b"d"))
    assert secret.state is State.FAILED


def test_starttls_hands_over_and_haggling_goes_on_behind_it(secret: ServerProtocol) -> None:
    (said,) = haggle(secret, option(Option.STARTTLS))
    assert (said.option, said.reply) == (Option.STARTTLS, OptionReply.ACK)
    assert secret.state is State.SECURING
    secret.secured()
    (again,) = _more(secret, option(Option.STARTTLS))
    assert again.error == OptionReply.ERR_INVALID
    feed(secret, go("d"))
    assert secret.chosen is not None


def _more(protocol: ServerProtocol, *options: bytes) -> list[Said]:
    feed(protocol, b"".join(options))
    return option_replies(sent(protocol))


def test_words_put_into_the_clients_mouth_before_tls_end_it(secret: ServerProtocol) -> None:
    feed(secret, FLAGS)
    packet = option(Option.STARTTLS) + go("d")
    secret.get_buffer()[: len(packet)] = packet
    secret.buffer_updated(len(packet))
    assert secret.state is State.FAILED
    assert "between STARTTLS and" in secret.failure
    assert secret.chosen is None


def test_a_server_without_tls_says_that_it_has_none(protocol: ServerProtocol) -> None:
    (said,) = haggle(protocol, option(Option.STARTTLS))
    assert said.error == OptionReply.ERR_UNSUP
