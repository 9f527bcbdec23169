# SPDX-License-Identifier: Apache-2.0
"""The session between agent and receiver, for both ends, without a socket. No I/O.

Bytes from the peer go in by `receive_data` (or, uncopied, `get_buffer` / `buffer_updated`), what
they mean comes out of `events_received`; messages go in by `send`, bytes come out of
`data_to_send`. Time goes in by `tick`.

The state is that of the session, not of an end: both ends run the same table, whose key is
(state, who speaks, message type) and whose value is the next state. A missing key is an illegal
move. Messages that cross on the wire are legal in each state in which either end may still be:
so what the receiver says while an OPEN travels to it is legal in OPENING too.

    GREETING  --HELLO-->  WELCOMING  --WELCOME-->  CHOOSING  --OPEN-->  OPENING
    OPENING  --OPENED-->  STREAMING  --OPEN-->  OPENING        any  --ERROR-->  CLOSED

Faults. Nothing that a peer sends makes this raise. The first thing wrong ends the session: the
state is CLOSED, `fault` says whose fault it was and holds the error, and an ERROR to the peer
stands in the bytes to send. An illegal `send` is our own bug, and an assert.

Concurrency: none; one owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from replicator.base.errors import (
    DamageError,
    ReplicatorError,
    UnreachableError,
    UsageError,
    VersionError,
)
from replicator.wire.framing import Deframer, FramingError, Piece, encode_message
from replicator.wire.limits import (
    CONTROL_BODY_BYTES,
    DEAD_SECONDS,
    MAX_FRAME_BODY_BYTES,
    PING_SECONDS,
    PONG_SECONDS,
    PROTOCOL,
    UNGREETED_BODY_BYTES,
)
from replicator.wire.messages import (
    BadBodyError,
    Error,
    Hello,
    Message,
    MessageType,
    Ping,
    Pong,
    Welcome,
    decode_body,
    encode_body,
    type_of,
)

T = MessageType


class Role(Enum):
    AGENT = "agent"
    RECEIVER = "receiver"

    @property
    def other(self) -> Role:
        return Role.RECEIVER if self is Role.AGENT else Role.AGENT


class State(Enum):
    GREETING = auto()
    WELCOMING = auto()
    CHOOSING = auto()
    OPENING = auto()
    STREAMING = auto()
    CLOSED = auto()


_GREETED = (State.CHOOSING, State.OPENING, State.STREAMING)
_A, _R = Role.AGENT, Role.RECEIVER


def _table() -> dict[tuple[State, Role, MessageType], State]:
    table: dict[tuple[State, Role, MessageType], State] = {
        (State.GREETING, _A, T.HELLO): State.WELCOMING,
        (State.WELCOMING, _R, T.WELCOME): State.CHOOSING,
        (State.CHOOSING, _A, T.OPEN): State.OPENING,
        (State.OPENING, _R, T.OPENED): State.STREAMING,
        (State.STREAMING, _A, T.OPEN): State.OPENING,
    }
    for state in _GREETED:
        for kind in (T.LABEL, T.PING, T.PONG):
            table[state, _A, kind] = state
        for kind in (T.ACK, T.LABEL_STATE, T.PING, T.PONG):
            table[state, _R, kind] = state
    for kind in (T.FRAME, T.HOLD, T.DIGESTS_WANTED):
        table[State.STREAMING, _A, kind] = State.STREAMING
    # These three may be on their way while the agent opens its next stream.
    for state in (State.OPENING, State.STREAMING):
        for kind in (T.SYNC_KEY, T.DIGESTS, T.DIGESTS_DONE):
            table[state, _R, kind] = state
    for state in State:
        if state is not State.CLOSED:
            for role in Role:
                table[state, role, T.ERROR] = State.CLOSED
    return table


MOVES = _table()


class Whose(Enum):
    """PEER: it broke the protocol, or fell silent. SAID: it told us its error and closed.
    OURS: we closed with an error of our own. LINK: the connection ended under both."""

    PEER = "peer"
    SAID = "said"
    OURS = "ours"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Fault:
    whose: Whose
    error: ReplicatorError


@dataclass(frozen=True, slots=True)
class PeerClocks:
    """What the peer's clocks showed when it said so; it was heard at `heard_ns` by our own
    monotonic clock, some milliseconds to seconds later. `stream` is captured by these clocks."""

    wall_ns: int
    monotonic_ns: int
    heard_ns: int
    stream: str | None = None


class WireProtocol:
    """One end of a session. `peer_name` is for messages to people."""

    def __init__(self, role: Role, *, peer_name: str, now_ns: int) -> None:
        self.role = role
        self.state = State.GREETING
        self.fault: Fault | None = None
        self.peer_clocks: PeerClocks | None = None
        """As they were told last."""
        self.captured: str | None = None
        """An agent's stream, to be told with its clocks."""
        self._peer_name = peer_name
        self._deframer = Deframer(self._body_limit)
        self._events: list[Message] = []
        self._out: list[Piece] = []
        self._heard_ns = now_ns
        self._said_ns = now_ns
        self._told_clocks_ns = 0
        self._finished = False

    # -- bytes in, events out

    def receive_data(self, data: bytes | bytearray | memoryview, *, now_ns: int) -> None:
        """Takes any bytes, cut anywhere."""
        view = memoryview(data)
        while len(view) and not self._finished:
            room = self.get_buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            self.buffer_updated(count, now_ns=now_ns)
            view = view[count:]

    def get_buffer(self) -> memoryview:
        """Where the next bytes from the peer go; at least one byte long. Once the session is
        over, a scrap whose content nobody reads."""
        return memoryview(bytearray(4096)) if self._finished else self._deframer.writable()

    def buffer_updated(self, count: int, *, now_ns: int) -> None:
        if self._finished:
            return
        self._heard_ns = now_ns
        self._deframer.written(count)
        try:
            for kind, body in self._deframer.messages():
                if not self._receive(MessageType(kind), body):
                    return
        except FramingError as error:
            self._refuse(_said_of_framing(self._peer_name, error))

    def receive_eof(self, error: ReplicatorError | None = None) -> None:
        """The connection has ended, cleanly or not; `error` says how, if something is known."""
        if not self._finished:
            closed = UnreachableError(f"{self._peer_name} closed the connection")
            self._fail(Whose.LINK, error or closed)

    def events_received(self) -> list[Message]:
        """What came since the last call, in order; each may be kept."""
        events, self._events = self._events, []
        return events

    # -- messages in, bytes out

    def send(self, message: Message) -> None:
        """Once the session is over, what is said is dropped: the link may end at any time."""
        if self._finished:
            return
        kind = type_of(message)
        after = MOVES.get((self.state, self.role, kind))
        assert after is not None, f"{self.role.value} may not say {kind.name} in {self.state.name}"
        self.state = after
        self._out.extend(encode_message(kind, encode_body(message)))

    def close(self, error: ReplicatorError) -> None:
        """Says why, and ends the session."""
        if not self._finished:
            self._say_error(error)
            self._fail(Whose.OURS, error)

    def data_to_send(self) -> list[Piece]:
        """Pieces to be written back to back, since the last call."""
        out, self._out = self._out, []
        return out

    def tick(self, now_ns: int, *, wall_ns: int = 0) -> None:
        """To be called about once a second: says PING when we were silent, and gives up a peer
        that was. Before the greeting is done the peer is only given up, not pinged. An agent that
        is given its wall clock tells both clocks as often, silent or not."""
        if self._finished:
            return
        if now_ns - self._heard_ns >= DEAD_SECONDS * 1e9:
            silent = UnreachableError(
                f"{self._peer_name} has said nothing for {DEAD_SECONDS:.0f} s"
            )
            self._say_error(silent)
            self._fail(Whose.PEER, silent)
        elif self.state in _GREETED and self._is_ping_due(now_ns, wall_ns):
            self._said_ns = now_ns
            if self.role is Role.AGENT and wall_ns:
                self._told_clocks_ns = now_ns
                self.send(Ping(wall_ns, now_ns, self.captured))
            else:
                self.send(Ping())

    def _is_ping_due(self, now_ns: int, wall_ns: int) -> bool:
        last_ns = self._said_ns
        if self.role is Role.AGENT and wall_ns:
            if not self._told_clocks_ns:
                return True
            last_ns = min(last_ns, self._told_clocks_ns)
        return now_ns - last_ns >= PING_SECONDS * 1e9

    def heard_at(self, now_ns: int) -> None:
        """The peer could not be heard until now, because we did not read."""
        self._heard_ns = now_ns

    def said_at(self, now_ns: int) -> None:
        """Something was handed to the connection: no PING is due for a while."""
        self._said_ns = now_ns

    @property
    def closed(self) -> bool:
        """Nothing will come or go any more, but for what `data_to_send` still holds."""
        return self._finished

    @property
    def memory_bytes(self) -> int:
        return self._deframer.memory_bytes

    # -- inside

    def _body_limit(self, kind: int) -> int | None:
        if kind not in MessageType.__members__.values():
            return None
        if self.state not in _GREETED:
            return UNGREETED_BODY_BYTES
        return MAX_FRAME_BODY_BYTES if kind == T.FRAME else CONTROL_BODY_BYTES

    def _receive(self, kind: MessageType, body: Piece) -> bool:
        """Whether the session goes on."""
        after = MOVES.get((self.state, self.role.other, kind))
        if after is None:
            self._refuse(UsageError(f"{self._peer_name} said {kind.name} out of turn"))
            return False
        try:
            message = decode_body(kind, body)
        except BadBodyError as error:
            self._refuse(UsageError(f"{self._peer_name} sent a malformed message: {error}"))
            return False
        except DamageError as error:
            self._refuse(DamageError(f"{self._peer_name} sent a bad frame: {error.message}"))
            return False
        if isinstance(message, Hello | Welcome) and message.protocol != PROTOCOL:
            self._refuse(_other_version(self._peer_name, message.protocol))
            return False
        self.state = after
        if isinstance(message, Error):
            self._fail(Whose.SAID, message.as_exception())
            return False
        if isinstance(message, Ping):
            if message.wall_ns:
                self.peer_clocks = PeerClocks(
                    message.wall_ns, message.monotonic_ns, self._heard_ns, message.stream
                )
            self._pong()
            if message.said is not None:
                self._events.append(message)
        elif not isinstance(message, Pong):
            self._events.append(message)
        return True

    def _pong(self) -> None:
        """Unless we have spoken lately anyway: so a flood of PINGs makes no flood of answers."""
        if self._heard_ns - self._said_ns >= PONG_SECONDS * 1e9:
            self._said_ns = self._heard_ns
            self.send(Pong())

    def _refuse(self, error: ReplicatorError) -> None:
        self._say_error(error)
        self._fail(Whose.PEER, error)

    def _say_error(self, error: ReplicatorError) -> None:
        self._out.extend(encode_message(T.ERROR, encode_body(Error.of(error))))

    def _fail(self, whose: Whose, error: ReplicatorError) -> None:
        self.state = State.CLOSED
        self.fault = Fault(whose, error)
        self._finished = True


def _other_version(peer_name: str, version: int) -> VersionError:
    return VersionError(
        f"{peer_name} speaks version {version} of the protocol, this is version {PROTOCOL}",
        hint="install the same release at both ends",
    )


def _said_of_framing(peer_name: str, error: FramingError) -> ReplicatorError:
    if error.version != PROTOCOL:
        return _other_version(peer_name, error.version)
    return UsageError(f"{peer_name} cannot be understood: {error}")
