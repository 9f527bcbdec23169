# SPDX-License-Identifier: Apache-2.0
"""The session without a socket: moves, faults, bounds. Whatever a peer sends, nothing raises."""

from __future__ import annotations

import struct
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.base.errors import (
    DamageError,
    FencedError,
    OwnedError,
    UnreachableError,
    UsageError,
    VersionError,
)
from replicator.wire.frames import Frame, FrameBuilder
from replicator.wire.framing import MAGIC, encode_message
from replicator.wire.limits import (
    MAX_FRAME_BODY_BYTES,
    POINTS_PER_ACK,
    RECEIVE_BUFFER_BYTES,
    UNGREETED_BODY_BYTES,
)
from replicator.wire.messages import (
    Ack,
    AskLabel,
    Digests,
    DigestsDone,
    DigestsWanted,
    Error,
    Hello,
    Hold,
    LabelState,
    Message,
    MessageType,
    Opened,
    Ping,
    Point,
    Pong,
    SyncingDisk,
    SyncKey,
    encode_body,
    type_of,
)
from replicator.wire.protocol import MOVES, PeerClocks, Role, State, Whose, WireProtocol
from tests.wire.exchange import exchange
from tests.wire.logs import HELLO, INSTANCE, OPEN, WELCOME, Log, ends, streaming

SECOND = 1_000_000_000


def a_frame(*, payload: bytes = b"y" * 5000) -> Frame:
    log = Log()
    log.write(0, 0, payload)
    return FrameBuilder().build(
        bytes(log.data),
        start_lsn=0,
        end_lsn=log.end_lsn,
        chain_start=log.chains[0],
        chain_end=log.chain,
    )


EVERY: list[Message] = [
    HELLO,
    WELCOME,
    Error("owned", "taken", "wait"),
    OPEN,
    Opened(5, [SyncingDisk(0, "d", 4096, 0)]),
    a_frame(),
    Ack(5, 3, [Point(1, 2, "crash", 5, "label", 9)], 1),
    Hold(5, 10),
    SyncKey(0, 0, b"k" * 32),
    Digests(0, 0, 7, 3, b"d" * 64),
    Digests(0, 0, 7, 3, zero_blocks=1 << 20),
    DigestsWanted(0, 0, 99),
    DigestsDone(0, 0),
    AskLabel("before upgrade"),
    LabelState("before upgrade", True),
    Ping(),
    Ping(1_772_330_584 * SECOND, 5 * SECOND, INSTANCE),
    Pong(),
]


def encoded(message: Message) -> bytes:
    return b"".join(encode_message(type_of(message), encode_body(message)))


def same(one: Message, other: Message) -> bool:
    if isinstance(one, Frame) and isinstance(other, Frame):
        return one.header == other.header and bytes(one.data) == bytes(other.data)
    return one == other


def brought_to(state: State, role: Role) -> WireProtocol:
    """An end of that role in that state."""
    agent, receiver = ends()
    script: dict[State, tuple[WireProtocol, Message]] = {
        State.WELCOMING: (agent, HELLO),
        State.CHOOSING: (receiver, WELCOME),
        State.OPENING: (agent, OPEN),
        State.STREAMING: (receiver, Opened(0)),
    }
    end = agent if role is Role.AGENT else receiver
    for reached, (speaker, message) in script.items():
        if end.state is state:
            break
        speaker.send(message)
        exchange(agent, receiver)
        assert end.state is reached
    end.events_received()
    return end


def test_every_type_has_a_message_and_comes_through_whole() -> None:
    assert {type_of(message) for message in EVERY} == set(MessageType)
    agent, receiver = streaming()
    for message in EVERY:
        for speaker, hearer in ((agent, receiver), (receiver, agent)):
            if (State.STREAMING, speaker.role, type_of(message)) not in MOVES:
                continue
            if type_of(message) in (MessageType.ERROR, MessageType.OPEN):
                continue  # these change the state; they have tests of their own
            speaker.send(message)
            exchange(agent, receiver)
            heard = hearer.events_received()
            if not isinstance(message, Ping | Pong):
                assert len(heard) == 1
                assert same(heard[0], message)


@pytest.mark.parametrize(
    ("state", "role", "message"),
    [
        (state, role, message)
        for state, role, message in product(
            [state for state in State if state is not State.CLOSED], Role, EVERY
        )
    ],
)
def test_what_the_table_lacks_ends_the_session_and_blames_the_peer(
    state: State, role: Role, message: Message
) -> None:
    end = brought_to(state, role)
    end.data_to_send()
    end.receive_data(encoded(message), now_ns=0)
    after = MOVES.get((state, role.other, type_of(message)))
    if after is not None:
        assert end.state is after
        return
    assert end.fault is not None
    assert end.fault.whose is Whose.PEER
    assert isinstance(end.fault.error, UsageError)
    assert end.events_received() == []
    assert b"".join(end.data_to_send())[3] == MessageType.ERROR


def test_our_own_illegal_move_is_a_bug() -> None:
    agent, _ = ends()
    with pytest.raises(AssertionError):
        agent.send(OPEN)


@settings(max_examples=200)
@given(st.data())
def test_a_session_reads_the_same_however_it_is_cut(data: st.DataObject) -> None:
    said: list[Message] = [
        HELLO,
        OPEN,
        a_frame(),
        Hold(1, 2),
        a_frame(payload=bytes(range(256)) * 1000),
    ]
    whole = b"".join(encoded(message) for message in said)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=12).map(sorted))
    receiver = ends()[1]
    answers: dict[type, Message] = {Hello: WELCOME, type(OPEN): Opened(0)}
    heard: list[Message] = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        # A peer that does not wait for our answers is out of turn, so go message by message.
        piece = whole[start:end]
        while piece:
            step = min(len(piece), 1 if receiver.state is not State.STREAMING else len(piece))
            receiver.receive_data(piece[:step], now_ns=0)
            piece = piece[step:]
            for message in receiver.events_received():
                heard.append(message)
                if type(message) in answers:
                    receiver.send(answers[type(message)])
    assert receiver.fault is None
    assert len(heard) == len(said)
    assert all(same(one, other) for one, other in zip(heard, said, strict=True))


def test_every_split_of_a_frame_in_two() -> None:
    message = encoded(a_frame(payload=bytes(range(256)) * 300))
    for at in range(0, len(message), 97):
        _, receiver = streaming()
        receiver.receive_data(message[:at], now_ns=0)
        assert receiver.events_received() == []
        receiver.receive_data(message[at:], now_ns=0)
        assert len(receiver.events_received()) == 1


@settings(max_examples=400)
@given(
    st.sampled_from([state for state in State if state is not State.CLOSED]),
    st.sampled_from(Role),
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from([encoded(message) for message in EVERY]),
            st.tuples(st.sampled_from(MessageType), st.binary(max_size=100)).map(
                lambda pair: b"".join(encode_message(pair[0], [pair[1]]))
            ),
        ),
        max_size=8,
    ),
)
def test_no_bytes_make_it_raise_or_hold_much(state: State, role: Role, junk: list[bytes]) -> None:
    end = brought_to(state, role)
    for piece in junk:
        end.receive_data(piece, now_ns=0)
        assert end.memory_bytes <= RECEIVE_BUFFER_BYTES + MAX_FRAME_BODY_BYTES
        if not end.closed:
            assert len(end.data_to_send()) < 4
    if end.closed:
        assert end.fault is not None


@settings(max_examples=300)
@given(st.sampled_from(range(len(EVERY))), st.data())
def test_a_changed_byte_never_comes_through(which: int, data: st.DataObject) -> None:
    message = EVERY[which]
    whole = bytearray(encoded(message))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    for role in Role:
        end = brought_to(State.STREAMING, role)
        end.receive_data(bytes(whole), now_ns=0)
        assert end.events_received() == []


def test_an_ungreeted_peer_gets_no_memory() -> None:
    _, receiver = ends()
    before = receiver.memory_bytes
    header = struct.pack("<HBBIQ", MAGIC, 1, MessageType.HELLO, UNGREETED_BODY_BYTES + 1, 0)
    receiver.receive_data(header, now_ns=0)
    assert receiver.fault is not None
    assert receiver.memory_bytes == before
    assert before <= RECEIVE_BUFFER_BYTES


def test_a_greeted_peer_cannot_announce_more_than_a_frame() -> None:
    _, receiver = streaming()
    header = struct.pack("<HBBIQ", MAGIC, 1, MessageType.FRAME, MAX_FRAME_BODY_BYTES + 1, 0)
    receiver.receive_data(header, now_ns=0)
    assert receiver.fault is not None
    assert receiver.memory_bytes <= RECEIVE_BUFFER_BYTES


def test_another_version_is_said_to_be_one() -> None:
    _, receiver = ends()
    receiver.receive_data(struct.pack("<HBBIQ", MAGIC, 9, 1, 0, 0), now_ns=0)
    assert receiver.fault is not None
    assert isinstance(receiver.fault.error, VersionError)
    _, receiver = ends()
    receiver.receive_data(
        encoded(Hello("a", INSTANCE, "g", "external", 0, [], protocol=2)), now_ns=0
    )
    assert receiver.fault is not None
    assert isinstance(receiver.fault.error, VersionError)


def test_a_bad_frame_is_damage() -> None:
    _, receiver = streaming()
    body = bytearray(a_frame().header.pack() + bytes(a_frame().data))
    body[9] ^= 1
    receiver.receive_data(b"".join(encode_message(MessageType.FRAME, [body])), now_ns=0)
    assert receiver.fault is not None
    assert isinstance(receiver.fault.error, DamageError)


def test_an_error_that_was_said_arrives_as_that_error() -> None:
    agent, receiver = streaming()
    receiver.close(FencedError("a newer generation exists", hint="resync"))
    exchange(agent, receiver)
    assert agent.fault is not None
    assert agent.fault.whose is Whose.SAID
    assert isinstance(agent.fault.error, FencedError)
    assert agent.fault.error.hint == "resync"
    assert receiver.fault is not None
    assert receiver.fault.whose is Whose.OURS


def test_a_refusal_before_the_welcome_arrives() -> None:
    agent, receiver = ends()
    agent.send(HELLO)
    exchange(agent, receiver)
    receiver.close(OwnedError("group g is fed by another agent"))
    exchange(agent, receiver)
    assert agent.fault is not None
    assert isinstance(agent.fault.error, OwnedError)


def test_events_before_the_fault_are_still_delivered() -> None:
    agent, receiver = streaming()
    receiver.receive_data(encoded(Hold(1, 2)) + b"rubbish" * 10, now_ns=0)
    assert receiver.events_received() == [Hold(1, 2)]
    assert receiver.fault is not None
    agent.receive_eof()
    assert agent.fault is not None
    assert agent.fault.whose is Whose.LINK


def test_silence_is_pinged_then_given_up() -> None:
    agent, receiver = streaming()
    agent.tick(4 * SECOND)
    assert agent.data_to_send() == []
    agent.tick(6 * SECOND)
    (header, _body) = agent.data_to_send()
    assert header[3] == MessageType.PING
    agent.tick(19 * SECOND)
    assert not agent.closed
    agent.tick(20 * SECOND)
    assert agent.fault is not None
    assert isinstance(agent.fault.error, UnreachableError)
    assert receiver.fault is None


def test_pings_keep_an_idle_session_alive_for_ever() -> None:
    agent, receiver = streaming()
    for second in range(1, 300):
        for end in (agent, receiver):
            end.tick(second * SECOND)
        exchange(agent, receiver, now_ns=second * SECOND)
    assert agent.fault is None
    assert receiver.fault is None


def test_an_agent_tells_its_clocks_every_five_seconds_silent_or_not() -> None:
    agent, receiver = streaming()
    told = []
    for second in range(1, 14):
        agent.send(Hold(1, 2))
        agent.said_at(second * SECOND)
        agent.tick(second * SECOND, wall_ns=1000 * SECOND + second)
        exchange(agent, receiver, now_ns=second * SECOND + 7)
        if receiver.peer_clocks not in told:
            told.append(receiver.peer_clocks)
    assert told == [
        PeerClocks(1000 * SECOND + second, second * SECOND, second * SECOND + 7)
        for second in (1, 6, 11)
    ]
    receiver.tick(20 * SECOND, wall_ns=1000 * SECOND)
    exchange(agent, receiver)
    assert agent.peer_clocks is None, "a receiver's are nobody's business"


def test_a_stream_is_told_with_the_clocks_that_capture_it() -> None:
    agent, receiver = streaming()
    agent.captured = INSTANCE
    agent.tick(SECOND, wall_ns=1000 * SECOND)
    exchange(agent, receiver, now_ns=2 * SECOND)
    assert receiver.peer_clocks == PeerClocks(1000 * SECOND, SECOND, 2 * SECOND, INSTANCE)


def test_a_ping_without_clocks_leaves_what_was_told() -> None:
    _, receiver = streaming()
    receiver.receive_data(encoded(Ping(7, 5)), now_ns=3)
    receiver.receive_data(encoded(Ping()), now_ns=4)
    assert receiver.peer_clocks == PeerClocks(7, 5, 3)


def test_a_flood_of_pings_makes_no_flood_of_answers() -> None:
    _, receiver = streaming()
    receiver.receive_data(encoded(Ping()) * 5000, now_ns=3 * SECOND)
    assert len(receiver.data_to_send()) <= 2


def test_frames_that_cross_the_next_open_are_legal() -> None:
    agent, receiver = streaming()
    agent.send(OPEN)
    receiver.send(Ack(1, 1))
    receiver.send(SyncKey(0, 0, b"k" * 32))
    exchange(agent, receiver)
    assert [type(event) for event in agent.events_received()] == [Ack, SyncKey]
    assert agent.fault is None
    assert receiver.fault is None


def test_a_full_ack_fits() -> None:
    agent, receiver = streaming()
    label = "ä" * 60
    points = [
        Point(n, 2**62, "before-rollback", 2**62, label, 2**62) for n in range(POINTS_PER_ACK)
    ]
    receiver.send(Ack(1, 1, points, 10**9))
    exchange(agent, receiver)
    assert len(agent.events_received()) == 1


def test_once_over_everything_is_dropped_quietly() -> None:
    agent, _ = streaming()
    agent.close(UsageError("enough"))
    agent.data_to_send()
    agent.send(Hold(1, 2))
    agent.receive_data(b"whatever", now_ns=1)
    agent.tick(100 * SECOND)
    assert agent.data_to_send() == []
    assert agent.events_received() == []
