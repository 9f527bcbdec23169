# SPDX-License-Identifier: Apache-2.0
"""base:allocation without a socket: who may choose it, what is answered, what never offers it."""

from __future__ import annotations

from itertools import pairwise
from struct import pack, unpack_from

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.nbd.block_status import ALLOCATION, status_reply
from replicator.nbd.constants import Command, CommandFlag, Option, OptionReply, WireError
from replicator.nbd.exports import ExportInfo
from replicator.nbd.limits import MAX_STATUS_EXTENTS
from replicator.nbd.protocol import ServerProtocol
from replicator.nbd.state import State
from tests.nbd.dialogue import FLAGS, Said, feed, go, option, option_replies, request, sent
from tests.nbd.exports_of_memory import MemoryExport, Shelf

SIZE = 1 << 33
STRUCTURED = option(Option.STRUCTURED_REPLY)
KNOWS = MemoryExport(ExportInfo(size_bytes=1 << 20, can_block_status=True, min_block_bytes=1))


class Wide(MemoryExport):
    """Says that it is large, and holds nothing."""

    def __init__(self, info: ExportInfo) -> None:
        super().__init__(ExportInfo(size_bytes=1 << 20))
        self.info = info


def shelf() -> Shelf:
    info = ExportInfo(size_bytes=SIZE, can_block_status=True, min_block_bytes=1)
    return Shelf(**{"view": Wide(info), "target": MemoryExport(ExportInfo(size_bytes=1 << 20))})


def context(number: int, name: str, *queries: str) -> bytes:
    text = name.encode()
    asked = b"".join(pack(">I", len(query)) + query.encode() for query in queries)
    return option(number, pack(">I", len(text)) + text + pack(">I", len(queries)) + asked)


def choose(name: str, *queries: str) -> bytes:
    return context(Option.SET_META_CONTEXT, name, *queries)


def haggle(protocol: ServerProtocol, *options: bytes) -> list[Said]:
    feed(protocol, FLAGS)
    sent(protocol)
    for each in options:
        feed(protocol, each)
    return option_replies(sent(protocol))


def opened(*options: bytes) -> ServerProtocol:
    protocol = ServerProtocol(shelf())
    haggle(protocol, *options)
    assert protocol.state is State.TRANSMISSION
    return protocol


def test_a_client_that_chooses_it_may_ask() -> None:
    protocol = ServerProtocol(shelf())
    said = haggle(protocol, STRUCTURED, choose("view", ALLOCATION, "x:y"), go("view"))
    assert said[1].reply == OptionReply.META_CONTEXT
    assert said[1].payload == pack(">I", 1) + ALLOCATION.encode()
    assert said[2].reply == OptionReply.ACK
    feed(protocol, request(Command.BLOCK_STATUS, 4096, 3 << 30, cookie=5))
    (asked,) = protocol.requests()
    assert not asked.answered
    assert protocol.transmission is not None
    protocol.transmission.reply_status(asked, [(1 << 30, True), (1 << 30, True), (1 << 31, False)])
    assert sent(protocol) == pack(">IHHQI", 0x668E33EF, 1, 5, 5, 20) + pack(
        ">IIIII", 1, 1 << 31, 3, 1 << 30, 0
    )


@pytest.mark.parametrize(
    "options",
    [
        (STRUCTURED, go("view")),
        (STRUCTURED, choose("view", "base:"), go("view")),
        (STRUCTURED, choose("view"), go("view")),
        (STRUCTURED, choose("target", ALLOCATION), go("view")),
        (STRUCTURED, choose("view", ALLOCATION), choose("view", "qemu:dirty"), go("view")),
        (STRUCTURED, choose("view", ALLOCATION), choose("nothing", ALLOCATION), go("view")),
        (STRUCTURED, choose("view", ALLOCATION), go("target")),
        (choose("view", ALLOCATION), STRUCTURED, go("view")),
    ],
)
def test_whoever_has_not_chosen_it_is_refused(options: tuple[bytes, ...]) -> None:
    protocol = opened(*options)
    feed(protocol, request(Command.BLOCK_STATUS, 0, 4096))
    (refused,) = protocol.requests()
    assert refused.error == WireError.EINVAL


def test_the_target_of_a_mirror_never_offers_it() -> None:
    """Not even that the option exists, where no export knows its holes."""
    protocol = ServerProtocol(Shelf(d=MemoryExport(ExportInfo(size_bytes=1 << 20))))
    said = haggle(protocol, STRUCTURED, choose("d", ALLOCATION), option(Option.LIST_META_CONTEXT))
    assert [each.reply for each in said[1:]] == [OptionReply.ERR_UNSUP] * 2
    said = haggle(ServerProtocol(shelf()), STRUCTURED, choose("target", ALLOCATION))
    assert said[1].error is OptionReply.ERR_UNSUP


@pytest.mark.parametrize(
    ("queries", "named"),
    [((), True), (("base:",), True), ((ALLOCATION,), True), (("qemu:",), False)],
)
def test_list_names_it_and_chooses_nothing(queries: tuple[str, ...], named: bool) -> None:
    protocol = ServerProtocol(shelf())
    asked = context(Option.LIST_META_CONTEXT, "view", *queries)
    said = haggle(protocol, STRUCTURED, asked, go("view"))
    assert (said[1].reply == OptionReply.META_CONTEXT) is named
    feed(protocol, request(Command.BLOCK_STATUS, 0, 4096))
    assert protocol.requests()[0].error == WireError.EINVAL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pack(">I", 4) + b"view",
        pack(">I", 99) + b"view" + pack(">I", 0),
        pack(">I", 4) + b"view" + pack(">I", 1),
        pack(">I", 4) + b"view" + pack(">II", 1, 5) + b"base",
        pack(">I", 4) + b"view" + pack(">I", 0) + b"x",
        pack(">I", 4) + b"view" + pack(">II", 1, 2) + b"\xff\xfe",
        pack(">I", 4) + b"view" + pack(">I", 0xFFFFFFFF),
    ],
)
def test_what_does_not_add_up_is_invalid_and_no_end(data: bytes) -> None:
    protocol = ServerProtocol(shelf())
    said = haggle(protocol, STRUCTURED, option(Option.SET_META_CONTEXT, data), go("view"))
    assert said[1].error is OptionReply.ERR_INVALID
    assert protocol.state is State.TRANSMISSION


@pytest.mark.parametrize(
    ("offset", "length", "flags"),
    [(0, 0, 0), (SIZE - 10, 11, 0), (SIZE, 1, 0), (0, 1, CommandFlag.DF), (0, 1, 1 << 9)],
)
def test_what_cannot_be_answered_is_refused(offset: int, length: int, flags: int) -> None:
    protocol = opened(STRUCTURED, choose("view", ALLOCATION), go("view"))
    feed(protocol, request(Command.BLOCK_STATUS, offset, length, flags=flags))
    assert protocol.requests()[0].error == WireError.EINVAL


def parsed(reply: bytes) -> list[tuple[int, int]]:
    assert unpack_from(">I", reply, 20) == (1,)
    return [unpack_from(">II", reply, at) for at in range(24, len(reply), 8)]


def test_one_extent_where_one_is_asked_for() -> None:
    extents = [(4096, False), (1 << 31, True), (1 << 31, True), (1 << 31, True)]
    assert parsed(status_reply(bytes(8), 8192, extents, only_one=True)) == [(4096, 0)]
    assert parsed(status_reply(bytes(8), 1 << 31, extents[1:], only_one=True)) == [(1 << 31, 3)]


def test_an_answer_is_bounded() -> None:
    extents = [(512, bool(at % 2)) for at in range(2 * MAX_STATUS_EXTENTS)]
    found = parsed(status_reply(bytes(8), 1 << 31, extents, only_one=False))
    assert len(found) == MAX_STATUS_EXTENTS


@given(
    st.lists(st.tuples(st.integers(0, 9000), st.booleans()), min_size=1, max_size=20),
    st.integers(1, 30_000),
    st.booleans(),
)
def test_an_answer_says_what_is_there_and_stays_within_the_request(
    extents: list[tuple[int, bool]], length: int, only_one: bool
) -> None:
    extents = [(1, False), *extents]
    model = b"".join(bytes([3 if hole else 0]) * size for size, hole in extents)[:length]
    found = parsed(status_reply(bytes(8), length, extents, only_one=only_one))
    said = b"".join(bytes([flags]) * size for size, flags in found)
    assert model.startswith(said)
    assert said == model or only_one
    assert all(low != high for (_, low), (_, high) in pairwise(found))
    assert len(found) == 1 or not only_one
