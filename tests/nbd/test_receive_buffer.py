# SPDX-License-Identifier: Apache-2.0
"""The receive buffer against a plain model: no byte lost, none moved while it is handed out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.nbd.receive_buffer import ReceiveBuffer


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=30),
    st.lists(st.integers(1, 90), min_size=1, max_size=10),
)
def test_packets_of_any_length_come_out_whole_from_pieces_of_any_length(
    lengths: list[int], pieces: list[int]
) -> None:
    packets = [bytes([number % 256]) * length for number, length in enumerate(lengths)]
    stream = b"".join(packets)
    buffer = ReceiveBuffer(64)
    got: list[bytes] = []
    turn = 0
    while len(got) < len(packets):
        room = buffer.writable(len(packets[len(got)]))
        assert len(room) >= 1
        taken = min(len(room), pieces[turn % len(pieces)], len(stream))
        room[:taken], stream = stream[:taken], stream[taken:]
        buffer.filled(taken)
        turn += 1
        while len(got) < len(packets) and len(buffer) >= len(packets[len(got)]):
            behind = buffer.start + len(packets[len(got)])
            got.append(bytes(buffer.view[buffer.start : behind]))
            buffer.consume_to(behind)
        large = len(packets[len(got)]) if len(got) < len(packets) else 0
        assert buffer.memory_bytes <= max(64, large)
    assert got == packets
    assert len(buffer) == 0


def test_large_memory_goes_with_the_request_that_needed_it() -> None:
    buffer = ReceiveBuffer(64)
    room = buffer.writable(10_000)
    assert len(room) == 10_000
    assert buffer.memory_bytes == 10_000
    room[:] = b"x" * 10_000
    buffer.filled(10_000)
    payload = buffer.view[28:10_000]
    buffer.consume_to(10_000)
    assert buffer.memory_bytes == 0
    buffer.writable(28)[:] = b"y" * 64
    assert bytes(payload) == b"x" * 9_972, "who holds the payload still has it"


def test_what_is_unparsed_survives_the_change_to_larger_usual_memory() -> None:
    buffer = ReceiveBuffer(16)
    buffer.writable(16)[:10] = b"0123456789"
    buffer.filled(10)
    buffer.consume_to(4)
    buffer.grow_usual(100)
    assert bytes(buffer.view[buffer.start : buffer.end]) == b"456789"
    assert buffer.memory_bytes == 100
