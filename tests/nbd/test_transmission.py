# SPDX-License-Identifier: Apache-2.0
"""Transmission without a socket: batches, refusals, replies, bounds."""

from __future__ import annotations

from struct import pack

import pytest

from replicator.nbd.constants import Command, CommandFlag, WireError
from replicator.nbd.exports import ExportInfo
from replicator.nbd.limits import (
    MAX_BLOCK_BYTES,
    MAX_DISCARD_BYTES,
    MAX_OUTSTANDING_READ_BYTES,
    MAX_OUTSTANDING_REQUESTS,
    MAX_REQUEST_BYTES,
    TRANSMISSION_BUFFER_BYTES,
)
from replicator.nbd.protocol import ServerProtocol
from replicator.nbd.state import State
from tests.nbd.dialogue import (
    converse,
    feed,
    in_transmission,
    mid_request,
    ok,
    replies,
    request,
    saturated,
    sent,
    simple_error,
    write,
)
from tests.nbd.exports_of_memory import MemoryExport, Shelf

SIZE = 64 << 20
ABLE = ExportInfo(size_bytes=SIZE, can_fua=True, can_trim=True, can_write_zeroes=True)
PLAIN = ExportInfo(size_bytes=SIZE, can_flush=False)
READ_ONLY = ExportInfo(size_bytes=SIZE, read_only=True, can_trim=True, can_write_zeroes=True)


def opened(info: ExportInfo = ABLE, *, structured: bool = False) -> ServerProtocol:
    return in_transmission(Shelf(d=MemoryExport(info)), "d", structured=structured)


def test_all_complete_requests_come_at_once_in_order_and_the_rest_waits() -> None:
    protocol = opened()
    data = write(0, b"a" * 512, cookie=7) + request(Command.FLUSH, cookie=8)
    feed(protocol, data + write(512, b"b" * 512, cookie=9)[:-1])
    batch = protocol.requests()
    assert [(each.command, each.cookie[-1]) for each in batch] == [(1, 7), (3, 8)]
    assert bytes(batch[0].payload) == b"a" * 512
    assert protocol.outstanding == 2
    assert mid_request(protocol)
    replies(protocol).reply_all(batch)
    feed(protocol, b"b")
    (last,) = protocol.requests()
    assert bytes(last.payload) == b"b" * 512
    assert not mid_request(protocol)
    replies(protocol).reply(last)
    assert protocol.outstanding == 0
    assert sent(protocol) == ok(7) + ok(8) + ok(9)


def test_requests_cut_at_every_byte_are_the_same_requests() -> None:
    data = (
        write(0, b"a" * 512, cookie=1)
        + write(SIZE, b"refused" + bytes(505), cookie=2)
        + request(Command.READ, 512, 512, cookie=3)
        + write(512, b"b" * 512, flags=CommandFlag.FUA, cookie=4)
    )
    whole = opened()
    expected = [(repr(each), bytes(each.payload)) for each in converse(whole, data)]
    assert len(expected) == 4
    replies = (ok(1), simple_error(WireError.ENOSPC, 2), ok(3), ok(4))
    for piece in (1, 2, 3, 27, 28, 29, 539, 540, 541):
        protocol = opened()
        got = [(repr(each), bytes(each.payload)) for each in converse(protocol, data, piece=piece)]
        assert got == expected, piece
        answer = sent(protocol)
        assert len(answer) == 4 * 16 + 512
        assert all(reply in answer for reply in replies), piece


def test_flags_are_told_per_request() -> None:
    protocol = opened()
    data = write(0, bytes(512), flags=CommandFlag.FUA) + request(
        Command.WRITE_ZEROES, 0, 512, flags=CommandFlag.NO_HOLE
    )
    first, second = converse(protocol, data)
    assert (first.fua, first.flags & CommandFlag.NO_HOLE) == (True, 0)
    assert (second.fua, second.flags) == (False, CommandFlag.NO_HOLE)
    assert repr(second) == "<WRITE_ZEROES 0+512 flags 0x2>"


CACHE, BLOCK_STATUS, UNKNOWN = Command.CACHE, Command.BLOCK_STATUS, 77


@pytest.mark.parametrize(
    ("info", "command", "offset", "length", "flags", "error"),
    [
        (ABLE, Command.READ, SIZE, 512, 0, WireError.EINVAL),
        (ABLE, Command.READ, SIZE - 512, 1024, 0, WireError.EINVAL),
        (ABLE, Command.READ, (1 << 64) - 512, 512, 0, WireError.EINVAL),
        (ABLE, Command.WRITE, SIZE, 512, 0, WireError.ENOSPC),
        (ABLE, Command.WRITE, SIZE - 512, 1024, 0, WireError.ENOSPC),
        (ABLE, Command.WRITE, (1 << 64) - 512, 512, 0, WireError.ENOSPC),
        (ABLE, Command.WRITE_ZEROES, SIZE, 512, 0, WireError.ENOSPC),
        (ABLE, Command.TRIM, SIZE, 512, 0, WireError.EINVAL),
        (ABLE, Command.READ, 1, 512, 0, WireError.EINVAL),
        (ABLE, Command.WRITE, 0, 100, 0, WireError.EINVAL),
        (ABLE, Command.WRITE, 256, 512, 0, WireError.EINVAL),
        (ABLE, Command.TRIM, 0, 513, 0, WireError.EINVAL),
        (ABLE, Command.READ, 0, 0, 0, WireError.EINVAL),
        (ABLE, Command.WRITE, 0, 0, 0, WireError.EINVAL),
        (ABLE, Command.WRITE_ZEROES, 0, 0, 0, WireError.EINVAL),
        (ABLE, Command.READ, 0, MAX_BLOCK_BYTES + 512, 0, WireError.EINVAL),
        (ABLE, Command.READ, 0, 0xFFFFFE00, 0, WireError.EINVAL),
        (ABLE, Command.WRITE, 0, MAX_BLOCK_BYTES + 512, 0, WireError.EINVAL),
        (ABLE, CACHE, 0, 512, 0, WireError.EINVAL),
        (ABLE, BLOCK_STATUS, 0, 512, 0, WireError.EINVAL),
        (ABLE, UNKNOWN, 0, 512, 0, WireError.EINVAL),
        (ABLE, Command.WRITE, 0, 512, CommandFlag.NO_HOLE, WireError.EINVAL),
        (ABLE, Command.WRITE_ZEROES, 0, 512, CommandFlag.FAST_ZERO, WireError.EINVAL),
        (ABLE, Command.READ, 0, 512, CommandFlag.NO_HOLE, WireError.EINVAL),
        (ABLE, Command.FLUSH, 0, 0, CommandFlag.NO_HOLE, WireError.EINVAL),
        (ABLE, Command.WRITE, 0, 512, 0x8000, WireError.EINVAL),
        (PLAIN, Command.WRITE, 0, 512, CommandFlag.FUA, WireError.EINVAL),
        (PLAIN, Command.FLUSH, 0, 0, 0, WireError.EINVAL),
        (PLAIN, Command.TRIM, 0, 512, 0, WireError.EINVAL),
        (PLAIN, Command.WRITE_ZEROES, 0, 512, 0, WireError.EINVAL),
        (READ_ONLY, Command.WRITE, 0, 512, 0, WireError.EPERM),
        (READ_ONLY, Command.WRITE, SIZE, 512, 0, WireError.EPERM),
        (READ_ONLY, Command.WRITE_ZEROES, 0, 512, 0, WireError.EPERM),
        (READ_ONLY, Command.TRIM, 0, 512, 0, WireError.EPERM),
    ],
)
@pytest.mark.parametrize("structured", [False, True])
def test_the_right_error_and_the_connection_goes_on(
    *,
    info: ExportInfo,
    command: int,
    offset: int,
    length: int,
    flags: int,
    error: WireError,
    structured: bool,
) -> None:
    protocol = opened(info, structured=structured)
    payload = bytes(length) if command == Command.WRITE else b""
    bad = request(command, offset, length, flags=flags, cookie=5, payload=payload)
    refused, good = converse(protocol, bad + request(Command.READ, 0, 512, cookie=6))
    assert (refused.error, refused.answered) == (error, True)
    assert (good.command, good.error) == (Command.READ, 0)
    answer = sent(protocol)
    if structured:
        assert answer[:16] == pack(">IHHQ", 0x668E33EF, 1, 0x8001, 5)
        assert int.from_bytes(answer[20:24]) == error
    else:
        assert answer[:16] == simple_error(error, 5)
    assert protocol.outstanding == 0


def test_df_is_unknown_without_structured_replies() -> None:
    protocol = opened()
    (read,) = converse(protocol, request(Command.READ, 0, 512, flags=CommandFlag.DF))
    assert read.error == WireError.EINVAL


def test_zeroes_and_trims_may_be_longer_than_any_payload() -> None:
    protocol = opened()
    data = request(Command.WRITE_ZEROES, 0, SIZE) + request(Command.TRIM, 0, SIZE)
    assert [each.error for each in converse(protocol, data)] == [0, 0]


def test_a_flush_is_a_flush_whatever_its_range_says() -> None:
    (flush,) = converse(opened(), request(Command.FLUSH, 1, 3))
    assert (flush.command, flush.error) == (Command.FLUSH, 0)


def test_the_largest_write_grows_the_buffer_which_shrinks_right_behind_it() -> None:
    protocol = opened()
    payload = bytes(range(256)) * (MAX_BLOCK_BYTES // 256)
    assert converse(protocol, write(0, payload)[:-1]) == []
    assert protocol.buffer.memory_bytes <= MAX_REQUEST_BYTES + TRANSMISSION_BUFFER_BYTES
    feed(protocol, payload[-1:])
    (large,) = protocol.requests()
    assert large.payload == payload
    assert protocol.buffer.memory_bytes == 0
    protocol.get_buffer()
    assert protocol.buffer.memory_bytes == TRANSMISSION_BUFFER_BYTES


def test_a_refused_write_costs_no_memory_and_one_that_is_absurd_ends_it() -> None:
    protocol = opened()
    head = request(Command.WRITE, 0, MAX_DISCARD_BYTES)
    feed(protocol, head)
    (refused,) = protocol.requests()
    assert refused.error == WireError.EINVAL
    assert mid_request(protocol)
    for _ in range(MAX_DISCARD_BYTES >> 20):
        assert converse(protocol, bytes(1 << 20)) == []
        assert protocol.buffer.memory_bytes == TRANSMISSION_BUFFER_BYTES
    assert not mid_request(protocol)
    assert len(converse(protocol, request(Command.FLUSH))) == 1
    feed(protocol, request(Command.WRITE, 0, MAX_DISCARD_BYTES + 512))
    assert protocol.requests() == []
    assert protocol.state is State.FAILED
    assert str(MAX_DISCARD_BYTES + 512) in protocol.failure


def test_a_wrong_magic_ends_it() -> None:
    protocol = opened()
    feed(protocol, write(0, bytes(512)) + b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
    assert protocol.requests() == []
    assert (protocol.state, protocol.failure) == (State.FAILED, "wrong request magic")


def test_disc_is_the_last_request_and_wants_no_answer() -> None:
    protocol = opened()
    feed(protocol, write(0, bytes(512)) + request(Command.DISC) + write(0, bytes(512)))
    first, last = protocol.requests()
    assert (last.command, last.answered) == (Command.DISC, True)
    assert protocol.disc_received
    assert protocol.outstanding == 1
    replies(protocol).reply_all([first, last])
    assert sent(protocol) == ok()
    feed(protocol, bytes(1000))
    assert protocol.requests() == []
    protocol.eof_received()
    assert protocol.state is State.ENDED


def test_structured_reads_are_one_chunk_and_structured_writes_a_simple_reply() -> None:
    protocol = opened(structured=True)
    read = request(Command.READ, 1024, 512, flags=CommandFlag.DF, cookie=3)
    converse(protocol, read + write(0, bytes(512), cookie=4))
    expected = pack(">IHHQIQ", 0x668E33EF, 1, 1, 3, 8 + 512, 1024) + bytes(512)
    answer = sent(protocol)
    assert sorted([answer[:16], answer[16:]]) == sorted([ok(4), expected])


def test_an_export_s_own_error_is_carried_in_both_styles() -> None:
    for structured in (False, True):
        protocol = opened(structured=structured)
        feed(protocol, request(Command.READ, 0, 512, cookie=2))
        (read,) = protocol.requests()
        replies(protocol).reply(read, WireError.EIO)
        answer = sent(protocol)
        if structured:
            assert answer == pack(">IHHQIIH", 0x668E33EF, 1, 0x8001, 2, 6, 5, 0)
        else:
            assert answer == simple_error(WireError.EIO, 2)
        assert protocol.outstanding == 0


def test_replies_may_come_in_any_order_and_each_once() -> None:
    protocol = opened()
    feed(protocol, write(0, bytes(512), cookie=1) + write(0, bytes(512), cookie=2))
    first, second = protocol.requests()
    replies(protocol).reply(second)
    replies(protocol).reply(first, WireError.ENOSPC)
    assert sent(protocol) == ok(2) + simple_error(WireError.ENOSPC, 1)
    with pytest.raises(AssertionError, match="answered once"):
        replies(protocol).reply(first)
    with pytest.raises(AssertionError, match="only READ"):
        replies(protocol).reply_data(second, b"")


def test_unanswered_requests_are_bounded() -> None:
    protocol = opened()
    data = b"".join(
        request(Command.WRITE_ZEROES, 0, 512, cookie=n) for n in range(MAX_OUTSTANDING_REQUESTS + 5)
    )
    feed(protocol, data)
    batch = protocol.requests()
    assert len(batch) == MAX_OUTSTANDING_REQUESTS
    assert saturated(protocol)
    assert mid_request(protocol)
    assert protocol.requests() == []
    replies(protocol).reply_all(batch[:2])
    assert [each.cookie for each in protocol.requests()] == [
        (MAX_OUTSTANDING_REQUESTS + n).to_bytes(8, "big") for n in range(2)
    ]
    replies(protocol).reply_all(batch[2:])
    assert len(protocol.requests()) == 3
    assert not saturated(protocol)
    assert not mid_request(protocol)


def test_bytes_of_unanswered_reads_are_bounded() -> None:
    protocol = opened()
    count = MAX_OUTSTANDING_READ_BYTES // MAX_BLOCK_BYTES
    feed(protocol, request(Command.READ, 0, MAX_BLOCK_BYTES) * (count + 1))
    batch = protocol.requests()
    assert len(batch) == count
    assert saturated(protocol)
    replies(protocol).reply(batch[0], WireError.EIO)
    assert len(protocol.requests()) == 1
    assert not saturated(protocol)


def test_one_largest_read_is_always_taken() -> None:
    info = ExportInfo(size_bytes=SIZE)
    protocol = opened(info)
    feed(protocol, request(Command.READ, 0, MAX_BLOCK_BYTES))
    assert len(protocol.requests()) == 1
