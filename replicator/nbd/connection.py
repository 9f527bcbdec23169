# SPDX-License-Identifier: Apache-2.0
"""One socket of the server: moves bytes between the kernel, the protocol and the export.

Replies are corked: all that an export answers within one `submit` leave in one write when it has
returned; replies from other steps of the loop are gathered until the next iteration.

Reading pauses while any of these holds, and requests are taken neither from the buffer:
    the export holds the connection, to keep payloads where they are        (`hold`)
    too many requests or bytes of reads are unanswered                      (`saturated`)
    the peer does not collect its replies                                   (pause_writing)
    there is no memory for the rest of a large request                      (share.py)

The end is reported to the export exactly once, in the step in which it becomes known: DISC when
everything is answered, EOF and a broken protocol at once, our own `close` at once.

Concurrency: all of this belongs to the thread of the event loop. An export that works in threads
comes back with `loop.call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import cast

from replicator.nbd.block_status import Extents
from replicator.nbd.constants import Command
from replicator.nbd.exports import ConnectionEnd, EndKind, Export, Exports
from replicator.nbd.limits import CLOSE_GRACE_SECONDS, JOIN_BYTES, UNSENT_HIGH_BYTES
from replicator.nbd.memory import ReceivePool
from replicator.nbd.protocol import ServerProtocol
from replicator.nbd.request import Request, Sendable
from replicator.nbd.server_tls import ServerTls
from replicator.nbd.share import Share
from replicator.nbd.state import State
from replicator.nbd.transmission import Transmission

_log = logging.getLogger(__name__)
_LOOKING = frozenset((Command.READ, Command.BLOCK_STATUS, Command.DISC))
_HANGUP = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


def _ignore(_connection: Connection) -> None:
    """Its end has been told."""


class Connection(asyncio.BufferedProtocol):
    """Implements replicator.nbd.exports.Client, whose contracts are there. The rest is called by
    the event loop and the server."""

    def __init__(
        self,
        exports: Exports,
        *,
        handshake_done: Callable[[Connection], None],
        lost: Callable[[Connection], None],
        tls: ServerTls | None = None,
        pool: ReceivePool | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        pool = pool or ReceivePool(self._loop.call_soon_threadsafe)
        self.share = Share(pool, fed=self._wake, dropped=self._give_way)
        self.protocol = ServerProtocol(exports, needs_tls=tls is not None, buffer=self.share.buffer)
        self._tls = tls
        self._securing: asyncio.Task[None] | None = None
        self._handshake_done = handshake_done
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._export: Export | None = None  # until its end has been reported
        self._replies: Transmission  # from `opened` on
        self._end: ConnectionEnd | None = None
        self._held = False
        self._congested = False
        self._pumping = False
        self._wakeup: asyncio.Handle | None = None
        self._grace: asyncio.TimerHandle | None = None

    # What an export sees.

    def reply(self, request: Request, error: int = 0) -> None:
        if self._end is None:
            self._replies.reply(request, error)
            if not self._pumping:
                self._wake()

    def reply_all(self, batch: Sequence[Request]) -> None:
        if self._end is None:
            self._replies.reply_all(batch)
            if not self._pumping:
                self._wake()

    def reply_data(self, request: Request, data: Sendable) -> None:
        if self._end is None:
            self._replies.reply_data(request, data)
            if not self._pumping:
                self._wake()

    def reply_status(self, request: Request, extents: Extents) -> None:
        if self._end is None:
            self._replies.reply_status(request, extents)
            if not self._pumping:
                self._wake()

    def hold(self) -> None:
        assert self._pumping, "hold() outside of submit() comes too late"
        self._held = True

    def release(self) -> None:
        self._held = False
        self._wake()

    def hung_up(self) -> bool:
        if self._end is not None or self._transport is None or self._transport.is_closing():
            return True
        return any(events & _HANGUP for _, events in self._poll.poll(0))

    def close(self, reason: str) -> None:
        self._finish(EndKind.CLOSED, reason)
        if self._transport is not None:
            self._transport.abort()

    # Called by the server.

    @property
    def unsent_bytes(self) -> int:
        """Replies that have not left this process."""
        queued = self.protocol.unsent_bytes
        return queued + (self._transport.get_write_buffer_size() if self._transport else 0)

    def close_gracefully(self) -> None:
        """End it when the replies that have been given are sent, within CLOSE_GRACE_SECONDS."""
        self._flush()
        self._finish(EndKind.CLOSED, "the server is closing")
        self._close_transport()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=UNSENT_HIGH_BYTES)
        peer: socket.socket = transport.get_extra_info("socket")
        self._poll.register(peer.fileno(), select.POLLRDHUP)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.protocol.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.share.last_byte = time.monotonic()
        handshaking = self.protocol.in_handshake
        self.protocol.buffer_updated(nbytes)
        if self._securing is not None:
            return  # the first words behind TLS, before we were told that it is there
        if handshaking:
            self._flush()
            if self.protocol.state is State.SECURING:
                assert self._transport is not None
                self._transport.pause_reading()  # the next byte is TLS's
                self._securing = self._loop.create_task(self._secure())
                return
            self._haggled()
        self._pump()

    def eof_received(self) -> bool:
        self.protocol.eof_received()
        kind = EndKind.DISC if self.protocol.disc_received else EndKind.EOF
        self._finish(kind)
        self._close_transport()
        return False

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(EndKind.ERROR, str(exc) if exc else "connection lost")
        for timer in (self._wakeup, self._grace):
            if timer is not None:
                timer.cancel()
        if self._securing is not None:
            self._securing.cancel()
        self._transport = None
        lost, self._lost = self._lost, _ignore
        lost(self)

    # Steps.

    async def _secure(self) -> None:
        """Its time is that of the whole handshake (server.py)."""
        assert self._tls is not None
        assert self._transport is not None
        plain = self._transport
        self.protocol.secured()  # from here on, whatever is handed to us has come through TLS
        try:
            transport = await self._tls.secure(plain, self)
        except (OSError, asyncio.CancelledError) as error:
            plain.abort()
            self.connection_lost(error if isinstance(error, OSError) else None)
            return
        self._securing = None
        if transport is None or self._end is not None:
            plain.abort()
            return
        if not self._tls.lets_in(transport):
            transport.abort()
            self.connection_lost(None)
            return
        self._transport = transport
        transport.set_write_buffer_limits(high=UNSENT_HIGH_BYTES)
        self._flush()
        self._haggled()
        self._pump()

    def _haggled(self) -> None:
        """After each step of the handshake: was it the last?"""
        if not self.protocol.in_handshake:
            self._leave_handshake()

    def _leave_handshake(self) -> None:
        self._handshake_done(self)
        if self.protocol.chosen and self.protocol.state is State.TRANSMISSION:
            assert self.protocol.transmission is not None
            self._replies = self.protocol.transmission
            self._export = self.protocol.chosen.export
            self._pumping = True
            try:
                self._export.opened(self)
            finally:
                self._pumping = False

    @property
    def _name(self) -> str:
        """Of the export, as the client gave it; empty during the handshake."""
        return self.protocol.chosen.name if self.protocol.chosen else ""

    def _pump(self) -> None:
        """Hand over what is in the buffer, send what was answered, then see what comes next."""
        if self._pumping:
            return
        self._pumping = True
        finished = False
        try:
            while self._export and not (self._held or self._congested):
                batch = self.protocol.requests()
                if not batch:
                    break
                if self.share.is_visitor:
                    self.share.is_visitor = all(each.command in _LOOKING for each in batch)
                self._export.submit(self, batch)
                del batch  # a large payload goes as soon as the export lets go of it
                self._flush()
            finished = True
        finally:
            self._pumping = False
            if not finished:
                self._abort_after_bug()
        self._after_step()

    def _after_step(self) -> None:
        """Send, and find out whether this was the last step, or reading has to pause."""
        self._flush()
        state = self.protocol.state
        if state is State.FAILED:
            _log.warning(
                "NBD client broke the protocol",
                extra={"export": self._name, "reason": self.protocol.failure},
            )
            self._finish(EndKind.ERROR, self.protocol.failure)
        elif state is State.LEAVING and not self.protocol.outstanding:
            self._finish(EndKind.DISC)
        if self._end is not None:
            self._close_transport()
        self._watch()

    def _wake(self) -> None:
        """Pump in the next iteration of the loop, once for all that asks for it in this one."""
        if self._wakeup is None and self._end is None:
            self._wakeup = self._loop.call_soon(self._woken)

    def _woken(self) -> None:
        self._wakeup = None
        self._pump()

    def _watch(self) -> None:
        """Read if, and only if, what comes may be handed over."""
        if self._end is not None or self._transport is None or self._transport.is_closing():
            return
        wanted = self.protocol.state is State.LEAVING or not (
            self._held or self._congested or self._lacks_room()
        )
        if wanted is not self.share.is_read:
            self.share.is_read = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _lacks_room(self) -> bool:
        """Too much is unanswered, or there is no memory for what is to come next."""
        transmission = self.protocol.transmission
        if transmission is None:
            return False
        return transmission.saturated or self.share.starves(transmission.needed_bytes)

    def _flush(self) -> None:
        if self._securing is not None:
            return  # nothing is said in the clear any more
        data = self.protocol.data_to_send()
        if not data or self._transport is None or self._transport.is_closing():
            return
        if len(data) == 1:
            self._transport.write(data[0])
        elif sum(map(len, data)) <= JOIN_BYTES:
            self._transport.write(b"".join(data))
        else:
            self._transport.writelines(data)

    # The end.

    def _abort_after_bug(self) -> None:
        """The export raised. The exception goes on its way; the client must not wait for ever."""
        self._finish(EndKind.ERROR, "the export failed")
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, kind: EndKind, reason: str = "") -> None:
        """The end is known. The first call counts."""
        if self._end is not None:
            return
        self._end = ConnectionEnd(
            kind=kind,
            mid_request=self.protocol.mid_request,
            unanswered=self.protocol.outstanding,
            unsent_bytes=self.unsent_bytes,
            reason=reason,
        )
        export, self._export = self._export, None
        if export is not None:
            export.closed(self, self._end)
        if kind is not EndKind.DISC:
            self.share.buffer.let_go()
        self.share.leave()

    def _give_way(self) -> None:
        _log.warning("NBD request stood still while others wait", extra={"export": self._name})
        self.close("its request stood still while others waited for memory")

    def _close_transport(self) -> None:
        """Close when everything has been sent; by force if the peer does not collect it."""
        if self._transport is None:
            return
        self._transport.close()
        if self._grace is None:
            self._grace = self._loop.call_later(CLOSE_GRACE_SECONDS, self._transport.abort)
