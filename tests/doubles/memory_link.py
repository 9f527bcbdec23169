# SPDX-License-Identifier: Apache-2.0
"""Links between two ends in one process: the same bytes, the same protocol. No socket.

What one end says is with the other as soon as that one has room (its mailbox is not full), in
order. `cut` ends the connection as a broken cable would be noticed, whatever is under way.
Time passes by `tick` alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from replicator.base.clock import Clock
from replicator.base.errors import ReplicatorError, UnreachableError
from replicator.wire.framing import Piece
from replicator.wire.limits import SEND_HIGH_BYTES, SEND_LOW_BYTES
from replicator.wire.link import Link, Mailbox, Peer
from replicator.wire.messages import Message
from replicator.wire.protocol import Fault, PeerClocks, Role


class MemoryLink:
    """One end; `other` is set by `link_pair`."""

    other: MemoryLink

    def __init__(self, role: Role, peer: Peer, clock: Clock) -> None:
        self.peer = peer
        self._box = Mailbox(role, peer_name=peer.address, clock=clock, on_low=self._pump_other)
        self._under_way: deque[Piece] = deque()
        self._under_way_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._gone = asyncio.Event()

    @property
    def fault(self) -> Fault | None:
        return self._box.protocol.fault

    @property
    def peer_clocks(self) -> PeerClocks | None:
        return self._box.protocol.peer_clocks

    def tell_captured(self, stream: str | None) -> None:
        self._box.protocol.captured = stream

    def send(self, message: Message) -> None:
        self._box.protocol.send(message)
        self._flush()

    async def drain(self) -> None:
        while not self._room.is_set() and self.fault is None:
            await self._room.wait()

    async def receive(self) -> Message:
        return await self._box.receive()

    def close(self, error: ReplicatorError | None = None) -> None:
        if self.fault is None:
            self._box.say_goodbye(error)
            self._flush()
        self._end()

    async def wait_closed(self) -> None:
        await self._gone.wait()

    def tick(self) -> None:
        """Time has passed at this end."""
        self._box.tick()
        self._flush()
        self._box.collect()

    def cut(self) -> None:
        """The connection breaks: what is under way both ways is lost."""
        self._drop()
        self.other._drop()
        self._end()

    def _flush(self) -> None:
        self._take(self._box.protocol.data_to_send())

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self._under_way.append(piece)
            self._under_way_bytes += len(piece)
        if self._under_way_bytes > SEND_HIGH_BYTES:
            self._room.clear()
        self._pump()

    def _pump(self) -> None:
        """Hands over to the other end while it takes; ends the link when there is no more to say
        and one end is over."""
        other, target = self.other, self.other._box
        while self._under_way and not target.is_full and not target.protocol.closed:
            piece = self._under_way.popleft()
            self._under_way_bytes -= len(piece)
            target.protocol.receive_data(piece, now_ns=target.now_ns())
            target.collect()
        if target.protocol.closed:
            self._drop()
        if self._under_way_bytes <= SEND_LOW_BYTES:
            self._room.set()
        if pieces := other._box.protocol.data_to_send():
            other._take(pieces)
        if not self._under_way and self.fault is not None:
            self._end()

    def _drop(self) -> None:
        self._under_way.clear()
        self._under_way_bytes = 0

    def _pump_other(self) -> None:
        self.other._pump()

    def _end(self) -> None:
        if self._gone.is_set():
            return
        self._gone.set()
        self._room.set()
        for end in (self, self.other):
            end._box.protocol.receive_eof()
            end._box.collect()
        self.other._end()


def link_pair(clock: Clock, *, agent: Peer, receiver: Peer) -> tuple[MemoryLink, MemoryLink]:
    """(the agent's end, whose peer is `receiver`; the receiver's end, whose peer is `agent`)."""
    at_agent = MemoryLink(Role.AGENT, receiver, clock)
    at_receiver = MemoryLink(Role.RECEIVER, agent, clock)
    at_agent.other, at_receiver.other = at_receiver, at_agent
    return at_agent, at_receiver


class MemoryConnector:
    """A receiver in this process. `session` is what it does with a link; while it is None the
    receiver is unreachable."""

    def __init__(self, clock: Clock, *, agent: Peer, receiver: Peer) -> None:
        self.session: Callable[[Link], Awaitable[None]] | None = None
        self.links: list[MemoryLink] = []
        self._clock = clock
        self._agent = agent
        self._receiver = receiver
        self._sessions: set[asyncio.Task[None]] = set()

    async def connect(self) -> Link:
        if self.session is None:
            raise UnreachableError(f"{self._receiver.address} cannot be reached")
        near, far = link_pair(self._clock, agent=self._agent, receiver=self._receiver)
        self.links.append(near)
        task = asyncio.ensure_future(_run(self.session, far))
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)
        return near

    async def close(self) -> None:
        """Ends every session and waits for it."""
        for link in self.links:
            link.close()
        await asyncio.gather(*self._sessions, return_exceptions=True)


async def _run(session: Callable[[Link], Awaitable[None]], link: Link) -> None:
    try:
        await session(link)
    except ReplicatorError as error:
        link.close(error)
    finally:
        link.close()
