# SPDX-License-Identifier: Apache-2.0
"""What a session sees of its connection: messages in, messages out. No socket.

Two implementations: over TLS (transport), and between two ends in one process, so that agent and
receiver run in a test or a simulation without a socket, on the same bytes (tests/doubles).

`Mailbox` is the half they share: a WireProtocol, the messages that came and were not taken yet,
and who waits for them. Backpressure towards the peer: while more than INBOX_HIGH_BYTES lie here,
`is_full` says that no more should be read; it holds until they are down to INBOX_LOW_BYTES.

Concurrency: all on one event loop. One task receives; any may send.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from replicator.base.clock import Clock
from replicator.base.errors import ReplicatorError, UnreachableError
from replicator.wire.frames import Frame
from replicator.wire.limits import INBOX_HIGH_BYTES, INBOX_LOW_BYTES
from replicator.wire.messages import Digests, Message
from replicator.wire.protocol import Fault, PeerClocks, Role, State, WireProtocol

# What a small message costs while it waits; an ACK's points and a hello's disks are few.
_SMALL_MESSAGE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Peer:
    """`names` are the DNS SANs of the certificate that TLS has verified."""

    address: str
    names: tuple[str, ...]


class Link(Protocol):
    """One end of a live session."""

    @property
    def peer(self) -> Peer: ...

    @property
    def fault(self) -> Fault | None:
        """Why the session is over; None while it is not."""
        ...

    @property
    def peer_clocks(self) -> PeerClocks | None:
        """What the peer's clocks showed, as it told last."""
        ...

    def tell_captured(self, stream: str | None) -> None:
        """An agent's: the stream that is captured by the clocks that are told from now on."""
        ...

    def send(self, message: Message) -> None:
        """Never waits. Once the session is over the message is dropped: `receive` tells."""
        ...

    async def drain(self) -> None:
        """Waits until what was sent has mostly left. Returns at once when the session is over."""
        ...

    async def receive(self) -> Message:
        """The next message. Raises the fault's error when the session is over and everything that
        came before has been taken."""
        ...

    def close(self, error: ReplicatorError | None = None) -> None:
        """Ends the session; `error` is told to the peer. Idempotent, does not wait."""
        ...

    async def wait_closed(self) -> None:
        """Returns when the connection is gone, soon after the session is over."""
        ...


class Connector(Protocol):
    """Makes links to one receiver."""

    async def connect(self) -> Link:
        """A fresh link. Raises UnreachableError, or IdentityError for a refused certificate."""
        ...


class Mailbox:
    """See the head of this file."""

    def __init__(
        self, role: Role, *, peer_name: str, clock: Clock, on_low: Callable[[], None]
    ) -> None:
        """`on_low` is called when reading may go on after `is_full`."""
        self.protocol = WireProtocol(role, peer_name=peer_name, now_ns=clock.monotonic_ns())
        self.is_full = False
        self._clock = clock
        self._on_low = on_low
        self._inbox: deque[tuple[Message, int]] = deque()
        self._inbox_bytes = 0
        self._news = asyncio.Event()

    @property
    def is_greeted(self) -> bool:
        return self.protocol.state not in (State.GREETING, State.WELCOMING)

    def collect(self) -> None:
        """Takes over what the protocol has understood; to be called after each step of it."""
        for message in self.protocol.events_received():
            cost = _cost(message)
            self._inbox.append((message, cost))
            self._inbox_bytes += cost
        if self._inbox_bytes > INBOX_HIGH_BYTES:
            self.is_full = True
        if self._inbox or self.protocol.closed:
            self._news.set()

    async def receive(self) -> Message:
        while not self._inbox:
            if self.protocol.fault is not None:
                raise self.protocol.fault.error
            self._news.clear()
            await self._news.wait()
        message, cost = self._inbox.popleft()
        self._inbox_bytes -= cost
        if self.is_full and self._inbox_bytes <= INBOX_LOW_BYTES:
            self.is_full = False
            self._on_low()
        return message

    def say_goodbye(self, error: ReplicatorError | None) -> None:
        """Our own end of the session; without an error the peer just sees the stream end."""
        if error is not None:
            self.protocol.close(error)
        else:
            self.protocol.receive_eof(UnreachableError("the connection was closed on this side"))
        self.collect()

    def now_ns(self) -> int:
        return self._clock.monotonic_ns()

    def tick(self) -> None:
        """Time has passed."""
        self.protocol.tick(self.now_ns(), wall_ns=self._clock.utc_ns())


def _cost(message: Message) -> int:
    if isinstance(message, Frame):
        return message.size
    extra = len(message.digests) if isinstance(message, Digests) else 0
    return _SMALL_MESSAGE_BYTES + extra
