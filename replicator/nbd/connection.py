# SPDX-License-Identifier: Apache-2.0
"""One socket of the server: moves bytes between the kernel, the protocol and the export.

Replies are corked: all that an export answers within one `submit` leave in one write when it has
returned; replies from other steps of the loop are gathered until the next iteration.

Reading pauses while any of these holds, and requests are taken neither from the buffer:
    the export holds the connection, to keep payloads where they are        (`hold`)
    too many requests or bytes of reads are unanswered                      (`saturated`)
    the peer does not collect its replies                                   (pause_writing)
    there is no memory for the rest of a large request                      (memory.py)

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
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from replicator.nbd.block_status import Extents
from replicator.nbd.constants import Command
from replicator.nbd.exports import ConnectionEnd, EndKind, Export, Exports
from replicator.nbd.limits import (
    CLOSE_GRACE_SECONDS,
    JOIN_BYTES,
    STALL_SECONDS,
    UNSENT_HIGH_BYTES,
)
from replicator.nbd.memory import ReceivePool
from replicator.nbd.protocol import ServerProtocol
from replicator.nbd.state import State
from replicator.nbd.transmission import Request, Sendable

_log = logging.getLogger(__name__)
_LOOKING = frozenset((Command.READ, Command.BLOCK_STATUS, Command.DISC))
_HANGUP = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


@dataclass(frozen=True, slots=True)
class ServerTls:
    """TLS as a server demands it. `admits` decides by the client's certificate, which the context
    has verified, in the words of `getpeercert()`."""

    context: ssl.SSLContext
    admits: Callable[[Mapping[str, Any]], bool]


def _ignore(_connection: Connection) -> None:
    """Its end has been told."""


class Connection(asyncio.BufferedProtocol):
    """What an export sees of a client. The rest is called by the event loop and the server."""

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
        self._pool = pool or ReceivePool(self._loop.call_soon_threadsafe)
        self._pool.join(self)
        self._protocol = ServerProtocol(
            exports, needs_tls=tls is not None, allocate=partial(self._pool.memory, self)
        )
        self._tls = tls
        self._securing: asyncio.Task[None] | None = None
        self._handshake_done = handshake_done
        self._lost = lost
        self.last_byte = time.monotonic()
        """When one came last. The loop's own clock counts in milliseconds, or stands."""
        self.is_visitor = True
        self._pressing: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._poll = select.poll()
        self._export: Export | None = None  # until its end has been reported
        self._end: ConnectionEnd | None = None
        self._held = False
        self._congested = False
        self._reading = True
        self._pumping = False
        self._wakeup: asyncio.Handle | None = None
        self._grace: asyncio.TimerHandle | None = None

    # What an export may ask.

    @property
    def name(self) -> str:
        """The name of the export as the client gave it; empty during the handshake."""
        return self._protocol.chosen.name if self._protocol.chosen else ""

    @property
    def in_handshake(self) -> bool:
        return self._protocol.in_handshake

    @property
    def stands_still_since(self) -> float | None:
        """See replicator.nbd.memory.Member."""
        return self.last_byte if self._reading and self._protocol.is_half_large else None

    @property
    def memory_bytes(self) -> int:
        return self._protocol.memory_bytes

    @property
    def mid_request(self) -> bool:
        """Bytes of at least one request have come that no batch has held."""
        return self._protocol.mid_request

    @property
    def outstanding(self) -> int:
        """Requests handed to the export and not yet answered."""
        return self._protocol.outstanding

    @property
    def disc_received(self) -> bool:
        return self._protocol.disc_received

    @property
    def unsent_bytes(self) -> int:
        """Replies that have not left this process."""
        queued = self._protocol.unsent_bytes
        return queued + (self._transport.get_write_buffer_size() if self._transport else 0)

    @property
    def end(self) -> ConnectionEnd | None:
        """How it ended, once it has."""
        return self._end

    def hung_up(self) -> bool:
        """Whether the peer has closed its side, asked of the kernel now.

        True also while data that came before is still unread, and after the end. One system call.
        """
        if self._end is not None or self._transport is None or self._transport.is_closing():
            return True
        return any(events & _HANGUP for _, events in self._poll.poll(0))

    # What an export may do.

    def reply(self, request: Request, error: int = 0) -> None:
        """Answer with success, or with a WireError. Not for a READ that succeeded."""
        if self._end is None:
            self._protocol.reply(request, error)
            self._answered()

    def reply_all(self, batch: Sequence[Request]) -> None:
        """Success for all of a batch that want an answer, at the price of one. No READs."""
        if self._end is None:
            self._protocol.reply_all(batch)
            self._answered()

    def reply_data(self, request: Request, data: Sendable) -> None:
        """Answer a READ, in full. `data` must not change until it has been sent."""
        if self._end is None:
            self._protocol.reply_data(request, data)
            self._answered()

    def reply_status(self, request: Request, extents: Extents) -> None:
        """Answer a BLOCK_STATUS: what its range holds, from its beginning on."""
        if self._end is None:
            self._protocol.reply_status(request, extents)
            self._answered()

    def hold(self) -> None:
        """Keep the payloads of this batch valid until `release`: nothing is read meanwhile.

        Within `submit` or `opened` only, since afterwards the memory may be in use again. A peer
        that goes away meanwhile shows in `hung_up` alone.
        """
        assert self._pumping, "hold() outside of submit() comes too late"
        self._held = True

    def release(self) -> None:
        """The payloads are no longer needed; reading goes on."""
        self._held = False
        self._wake()

    def close(self, reason: str = "closed by the server") -> None:
        """End it now, without answers to what is unanswered and unsent."""
        self._finish(EndKind.CLOSED, reason)
        if self._transport is not None:
            self._transport.abort()

    # Called by the pool.

    def admitted(self) -> None:
        self._wake()

    def give_way(self) -> None:
        _log.warning("NBD request stood still while others wait", extra={"export": self.name})
        self.close("its request stood still while others waited for memory")

    # Called by the server.

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
        return self._protocol.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self.last_byte = time.monotonic()
        handshaking = self._protocol.in_handshake
        self._protocol.buffer_updated(nbytes)
        if self._securing is not None:
            return  # the first words behind TLS, before we were told that it is there
        if handshaking:
            self._flush()
            if self._protocol.state is State.SECURING:
                assert self._transport is not None
                self._transport.pause_reading()  # the next byte is TLS's
                self._securing = self._loop.create_task(self._secure())
                return
            self._haggled()
        self._pump()

    def eof_received(self) -> bool:
        self._protocol.eof_received()
        kind = EndKind.DISC if self._protocol.disc_received else EndKind.EOF
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
        for timer in (self._wakeup, self._grace, self._pressing):
            if timer is not None:
                timer.cancel()
        if self._securing is not None:
            self._securing.cancel()
        self._transport = None
        lost, self._lost = self._lost, _ignore
        lost(self)

    # Steps.

    async def _secure(self) -> None:
        """The TLS handshake, in which the client proves who it is. Its time is that of the whole
        handshake (server.py)."""
        assert self._tls is not None
        assert self._transport is not None
        plain = self._transport
        self._protocol.secured()  # from here on, whatever is handed to us has come through TLS
        try:
            transport = await self._loop.start_tls(plain, self, self._tls.context, server_side=True)
        except (OSError, asyncio.CancelledError) as error:
            _log.warning("NBD client failed its TLS handshake", extra={"reason": str(error)})
            plain.abort()
            self.connection_lost(error if isinstance(error, OSError) else None)
            return
        self._securing = None
        if transport is None or self._end is not None:
            plain.abort()
            return
        certificate: Mapping[str, Any] = transport.get_extra_info("peercert") or {}
        if not self._tls.admits(certificate):
            subject = str(certificate.get("subject", "no certificate"))
            _log.warning("NBD client is not admitted", extra={"subject": subject})
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
        if not self._protocol.in_handshake:
            self._leave_handshake()

    def _leave_handshake(self) -> None:
        self._handshake_done(self)
        if self._protocol.chosen and self._protocol.state is State.TRANSMISSION:
            self._export = self._protocol.chosen.export
            self._pumping = True
            try:
                self._export.opened(self)
            finally:
                self._pumping = False

    def _pump(self) -> None:
        """Hand over what is in the buffer, send what was answered, then see what comes next."""
        if self._pumping:
            return
        self._pumping = True
        finished = False
        try:
            while self._export and not (self._held or self._congested):
                batch = self._protocol.requests()
                if not batch:
                    break
                if self.is_visitor:
                    self.is_visitor = all(each.command in _LOOKING for each in batch)
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
        state = self._protocol.state
        if state is State.FAILED:
            _log.warning(
                "NBD client broke the protocol",
                extra={"export": self.name, "reason": self._protocol.failure},
            )
            self._finish(EndKind.ERROR, self._protocol.failure)
        elif state is State.LEAVING and not self._protocol.outstanding:
            self._finish(EndKind.DISC)
        if self._end is not None:
            self._close_transport()
        self._watch()

    def _answered(self) -> None:
        if not self._pumping:
            self._wake()

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
        leaving = self._protocol.state is State.LEAVING
        held = self._held or self._congested or self._protocol.saturated
        wanted = leaving or not (held or self._starves())
        if wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _starves(self) -> bool:
        """There is no memory for what is to come next."""
        lacking = self._protocol.lacking_bytes
        if not lacking or self._pool.ask(self, lacking):
            return False
        if self._pressing is None:
            self._pressing = self._loop.call_later(STALL_SECONDS, self._press)
        return True

    def _press(self) -> None:
        self._pressing = None
        if not self._pool.waits(self):
            return
        again_seconds = self._pool.press(time.monotonic())
        if again_seconds is not None and self._end is None:
            self._pressing = self._loop.call_later(again_seconds, self._press)

    def _flush(self) -> None:
        if self._securing is not None:
            return  # nothing is said in the clear any more
        data = self._protocol.data_to_send()
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
            mid_request=self._protocol.mid_request,
            unanswered=self._protocol.outstanding,
            unsent_bytes=self.unsent_bytes,
            reason=reason,
        )
        export, self._export = self._export, None
        if export is not None:
            export.closed(self, self._end)
        if kind is not EndKind.DISC:
            self._protocol.let_go()
        self._pool.leave(self)

    def _close_transport(self) -> None:
        """Close when everything has been sent; by force if the peer does not collect it."""
        if self._transport is None:
            return
        self._transport.close()
        if self._grace is None:
            self._grace = self._loop.call_later(CLOSE_GRACE_SECONDS, self._transport.abort)
