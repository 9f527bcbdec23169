# SPDX-License-Identifier: Apache-2.0
"""Whatever a peer sends: the protocol never raises, and never holds more than its bounds.

The inputs are near-misses as much as noise: whole requests and options with wild fields, damaged
conversations, and plain bytes. `converse` answers what it is handed, as an export would.
"""

from __future__ import annotations

from struct import pack

from hypothesis import given
from hypothesis import strategies as st

from replicator.nbd.constants import Command, Info, Option
from replicator.nbd.exports import ExportInfo
from replicator.nbd.limits import (
    HANDSHAKE_BUFFER_BYTES,
    MAX_BLOCK_BYTES,
    MAX_REQUEST_BYTES,
    TRANSMISSION_BUFFER_BYTES,
)
from replicator.nbd.protocol import ServerProtocol
from replicator.nbd.state import State
from tests.nbd.dialogue import FLAGS, converse, go, in_transmission, option, request, sent
from tests.nbd.exports_of_memory import MemoryExport, Shelf
from tests.peers.nbd_client_protocol import ClientProtocol, ClientState

INFO = ExportInfo(
    size_bytes=1 << 20, can_fua=True, can_trim=True, can_write_zeroes=True, max_block_bytes=1 << 19
)
SHELF = Shelf(d=MemoryExport(INFO))

wild_options = st.builds(
    option, st.integers(0, 15) | st.integers(0, (1 << 32) - 1), st.binary(max_size=200)
)
near_options = st.builds(
    go,
    st.sampled_from(["d", "", "x", "é" * 9]),
    st.sampled_from(Info),
    number=st.sampled_from([Option.GO, Option.INFO]),
)
wild_requests = st.builds(
    request,
    st.integers(0, 9) | st.integers(0, 0xFFFF),
    st.sampled_from([0, 512, INFO.size_bytes - 512, INFO.size_bytes])
    | st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 512, 4096, 1 << 20]) | st.integers(0, 0xFFFFFFFF),
    flags=st.sampled_from([0, 1, 2, 4]) | st.integers(0, 0xFFFF),
    cookie=st.integers(0, (1 << 64) - 1),
    payload=st.binary(max_size=600),
)
pieces = st.integers(1, 5000)


def checked(protocol: ServerProtocol, stream: bytes, piece: int) -> None:
    bound = HANDSHAKE_BUFFER_BYTES
    for start in range(0, len(stream), 4096):
        if protocol.state in (State.FAILED, State.LEAVING):
            break
        converse(protocol, stream[start : start + 4096], piece=piece)
        sent(protocol)
        if protocol.transmission is not None:
            bound = TRANSMISSION_BUFFER_BYTES + MAX_REQUEST_BYTES
            if not protocol.mid_request:
                bound = TRANSMISSION_BUFFER_BYTES
        assert protocol.buffer.memory_bytes <= bound
        assert protocol.outstanding == 0
    assert bool(protocol.failure) == (protocol.state is State.FAILED)


@given(
    st.one_of(st.just(FLAGS), st.binary(max_size=8)),
    st.lists(st.one_of(wild_options, near_options, wild_requests, st.binary(max_size=40))),
    pieces,
)
def test_any_handshake(flags: bytes, packets: list[bytes], piece: int) -> None:
    checked(ServerProtocol(SHELF), flags + b"".join(packets), piece)


@given(
    st.lists(st.one_of(wild_requests, wild_requests, wild_requests, st.binary(max_size=60))),
    st.booleans(),
    pieces,
)
def test_any_transmission(packets: list[bytes], structured: bool, piece: int) -> None:
    protocol = in_transmission(SHELF, "d", structured=structured)
    checked(protocol, b"".join(packets), piece)


@given(st.data(), pieces)
def test_a_conversation_with_one_byte_changed(data: st.DataObject, piece: int) -> None:
    honest = bytearray(
        FLAGS
        + option(Option.STRUCTURED_REPLY)
        + go("d", Info.BLOCK_SIZE)
        + request(Command.WRITE, 0, 4096, payload=bytes(4096))
        + request(Command.READ, 0, 4096)
        + request(Command.WRITE_ZEROES, 0, 4096)
        + request(Command.DISC)
    )
    position = data.draw(st.integers(0, len(honest) - 1))
    honest[position] ^= data.draw(st.integers(1, 255))
    checked(ServerProtocol(SHELF), bytes(honest), piece)


GREETING = b"NBDMAGICIHAVEOPT" + pack(">H", 3)
ACKS = pack(">QIII", 0x3E889045565A9, 8, 1, 0) + (
    pack(">QIIIHQH", 0x3E889045565A9, 7, 3, 12, 0, 1 << 20, 1)
    + pack(">QIII", 0x3E889045565A9, 7, 1, 0)
)
wild_chunks = st.builds(
    lambda flags, kind, cookie, length, rest: (
        pack(">IHHQI", 0x668E33EF, flags, kind, cookie, length) + rest
    ),
    st.integers(0, 1),
    st.sampled_from([0, 1, 2, 5, 0x8001, 0x8002]) | st.integers(0, 0xFFFF),
    st.integers(1, 3),
    st.integers(0, 40) | st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=60)
    | st.builds(pack, st.just(">QI"), st.integers(0, 4096), st.integers(0, 4096)),
)


@given(st.lists(st.one_of(wild_chunks, st.binary(max_size=40)), max_size=10), pieces)
def test_any_server(packets: list[bytes], piece: int) -> None:
    client = ClientProtocol("d")
    client.receive_data(GREETING + ACKS)
    client.send_request(Command.READ, offset=0, length=4096)
    client.send_request(Command.FLUSH, offset=0, length=0)
    stream = b"".join(packets)
    for start in range(0, len(stream), piece):
        client.receive_data(stream[start : start + piece])
    for answer in client.events_received():
        assert len(answer.data) in (0, 4096)
    assert (client.failure is not None) == (client.state is ClientState.FAILED)


@given(st.lists(st.binary(max_size=60), max_size=10), st.booleans())
def test_any_greeting(packets: list[bytes], honest: bool) -> None:
    client = ClientProtocol("d")
    if honest:
        client.receive_data(GREETING)
    for packet in packets:
        client.receive_data(packet)
    assert client.export is None
    assert MAX_BLOCK_BYTES >= client.in_flight == 0
