# SPDX-License-Identifier: Apache-2.0
"""Links over TCP and TLS: the asyncio shell around the protocol, client and server.

The kernel (through TLS) writes straight into the protocol's memory. Backpressure goes both ways:
while the mailbox is full we stop reading; while the kernel does not take what we sent, `drain`
waits. A timer drives the protocol's clock once a second: PING, and the end of a silent peer.

Ends. Whatever ends the session (the peer, its silence, our `close`, the network), `receive` tells
once everything that came before has been taken; last words get CLOSE_SECONDS to leave, then the
connection is aborted. A peer that has not got through TLS, hello and welcome in GREETING_SECONDS
is dropped; how many may be in TLS is the doorway's to bound, and of those that are through only
MAX_UNGREETED may be without a welcome.

Concurrency: one event loop.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import cast

from replicator.base.address import Address
from replicator.base.clock import Clock
from replicator.base.errors import OwnedError, ReplicatorError, UnreachableError
from replicator.wire.credentials import Tls
from replicator.wire.doorway import Doorway
from replicator.wire.identity import closed_without_a_word, dns_names, refusal
from replicator.wire.limits import (
    CLOSE_SECONDS,
    GREETING_SECONDS,
    SEND_HIGH_BYTES,
    SEND_LOW_BYTES,
)
from replicator.wire.link import Link, Mailbox, Peer
from replicator.wire.messages import Message
from replicator.wire.protocol import Fault, PeerClocks, Role

TICK_SECONDS = 1.0
MAX_UNGREETED = 64

Session = Callable[[Link], Awaitable[None]]


class TlsLink(asyncio.BufferedProtocol):
    """One end of a connection. Made by TcpConnector and WireServer."""

    def __init__(
        self, role: Role, *, peer_name: str, clock: Clock, made: Callable[[TlsLink], None]
    ) -> None:
        self.peer = Peer(peer_name, ())
        self._peer_name = peer_name
        self._box = Mailbox(role, peer_name=peer_name, clock=clock, on_low=self._read_on)
        self._made = made
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._gone = asyncio.Event()
        self._reading = True
        self._heard = False
        self._ending = False
        self._greet_until = self._loop.time() + GREETING_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    # What a session sees (replicator.wire.link.Link).

    @property
    def fault(self) -> Fault | None:
        return self._box.protocol.fault

    @property
    def peer_clocks(self) -> PeerClocks | None:
        return self._box.protocol.peer_clocks

    def tell_captured(self, stream: str | None) -> None:
        self._box.protocol.captured = stream

    @property
    def is_greeted(self) -> bool:
        return self._box.is_greeted

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

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(SEND_HIGH_BYTES, SEND_LOW_BYTES)
        certificate = transport.get_extra_info("peercert")
        self.peer = Peer(_address_of(transport, self._peer_name), dns_names(certificate))
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)
        self._made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._box.protocol.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = True
        self._box.protocol.buffer_updated(nbytes, now_ns=self._box.now_ns())
        self._step()
        if self._box.is_full and self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._box.protocol.receive_eof(self._why(exc))
        self._box.collect()
        self._transport = None
        self._room.set()
        self._gone.set()

    # Inside.

    def _why(self, exc: Exception | None) -> ReplicatorError | None:
        if isinstance(exc, OSError):
            return refusal(exc, self._peer_name)
        if self._box.protocol.role is Role.AGENT and not self._heard:
            return closed_without_a_word(self._peer_name)
        return None

    def _step(self) -> None:
        """After the protocol has moved: hand over what it understood and what it wants to say."""
        self._box.collect()
        self._flush()
        if self.fault is not None:
            self._end()

    def _flush(self) -> None:
        pieces = self._box.protocol.data_to_send()
        if pieces and self._transport is not None and not self._transport.is_closing():
            self._box.protocol.said_at(self._box.now_ns())
            self._transport.writelines(pieces)

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_SECONDS, self._tick)
        if not self.is_greeted and self._loop.time() >= self._greet_until:
            self._box.protocol.close(
                UnreachableError(f"{self._peer_name} did not greet in {GREETING_SECONDS:.0f} s")
            )
        elif self._reading:  # what we do not read, the peer cannot be blamed for
            self._box.tick()
        self._step()

    def _read_on(self) -> None:
        if not self._reading and self._transport is not None:
            self._reading = True
            self._box.protocol.heard_at(self._box.now_ns())
            self._transport.resume_reading()

    def _end(self) -> None:
        """Lets the last words leave, then closes."""
        self._room.set()
        if self._ending or self._transport is None:
            return
        self._ending = True
        self._transport.close()
        self._loop.call_later(CLOSE_SECONDS, self._abort)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class TcpConnector:
    """Links to the receiver at one address."""

    def __init__(self, address: Address, tls: Tls, clock: Clock) -> None:
        self.address = address
        """Of the next connection."""
        self._tls = tls
        self._clock = clock

    async def connect(self) -> Link:
        name = f"receiver {self.address}"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                _, link = await loop.create_connection(
                    lambda: TlsLink(
                        Role.AGENT, peer_name=name, clock=self._clock, made=lambda _: None
                    ),
                    self.address.host,
                    self.address.port,
                    ssl=self._tls(),
                    server_hostname=self.address.host,
                    ssl_shutdown_timeout=CLOSE_SECONDS,
                )
        except TimeoutError:
            raise UnreachableError(
                f"{name} did not answer within {GREETING_SECONDS:.0f} s",
                hint="check the address, and that no firewall drops what is sent to it",
            ) from None
        except OSError as error:
            raise refusal(error, name) from error
        return link


class WireServer:
    """Listens, and runs one session per connection, until `close`."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self.port = 0
        self._session = session
        self._clock = clock
        self._doorway: Doorway | None = None
        self._closing = False
        self._sessions: dict[asyncio.Task[None], TlsLink] = {}

    @property
    def links(self) -> list[Link]:
        return list(self._sessions.values())

    async def start(self, address: Address, tls: Tls) -> None:
        """Listens when it returns. Raises OwnedError where the port is taken."""
        doorway = Doorway(
            tls,
            lambda: TlsLink(Role.RECEIVER, peer_name="agent", clock=self._clock, made=self._take),
        )
        try:
            await doorway.open(address)
        except OSError as error:
            raise _cannot_listen(address, error) from error
        self._doorway, self.port = doorway, doorway.port

    def close(self, error: ReplicatorError | None = None) -> None:
        """Stops listening and ends every session; `error` is told to the agents."""
        self._closing = True
        if self._doorway is not None:
            self._doorway.close()
        for link in list(self._sessions.values()):
            link.close(error)

    async def wait_closed(self) -> None:
        """Returns when every session has returned and every connection is gone."""
        if self._doorway is not None:
            await self._doorway.wait_closed()
        links = list(self._sessions.values())
        if self._sessions:
            await asyncio.gather(*self._sessions, return_exceptions=True)
        for link in links:
            await link.wait_closed()

    def _take(self, link: TlsLink) -> None:
        if self._closing:
            link.close()
            return
        ungreeted = sum(not other.is_greeted for other in self._sessions.values())
        if ungreeted >= MAX_UNGREETED:
            link.close(UnreachableError("too many connections wait for their hello"))
            return
        task = asyncio.get_running_loop().create_task(self._run(link))
        self._sessions[task] = link
        task.add_done_callback(self._ended)

    async def _run(self, link: TlsLink) -> None:
        try:
            await self._session(link)
        except ReplicatorError as error:
            link.close(error)
        finally:
            link.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._sessions[task]
        if not task.cancelled() and (bug := task.exception()) is not None:
            context = {"message": "a wire session failed", "exception": bug, "task": task}
            asyncio.get_running_loop().call_exception_handler(context)


async def serve_wire(address: Address, tls: Tls, session: Session, *, clock: Clock) -> WireServer:
    """A server that listens when this returns. `session` receives the HELLO itself; the link is
    closed when it returns, and a ReplicatorError out of it is told to the agent."""
    server = WireServer(session, clock)
    await server.start(address, tls)
    return server


def _address_of(transport: asyncio.Transport, fallback: str) -> str:
    name = transport.get_extra_info("peername")
    if not isinstance(name, tuple) or len(name) < 2:
        return fallback
    return str(Address(str(name[0]), int(name[1])))


def _cannot_listen(address: Address, error: OSError) -> ReplicatorError:
    if error.errno == errno.EADDRINUSE:
        return OwnedError(
            f"cannot listen on {address}: another program does already",
            hint="choose another [receiver] listen address, or stop that program",
        )
    return ReplicatorError(f"cannot listen on {address}: {error.strerror or error}")
