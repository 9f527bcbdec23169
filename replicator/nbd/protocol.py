# SPDX-License-Identifier: Apache-2.0
"""One NBD connection as the server sees it, without a socket. No I/O.

The shell's loop, in the order of the calls:

    get_buffer() → the kernel fills n bytes → buffer_updated(n) → requests() until it is empty
    → the export answers with transmission.reply*() → data_to_send()

Nothing that a peer sends makes it raise: it fails itself and remembers why (`failure`); requests()
is empty from then on. Asserts here are for callers that answer twice, or answer out of turn.

The receive buffer is HANDSHAKE_BUFFER_BYTES until an export is chosen; see receive_buffer.py and
limits.py for what it may become.
"""

from __future__ import annotations

from replicator.nbd.constants import CLIENT_FLAGS, OPTION_HEADER, REQUEST
from replicator.nbd.exports import Exports
from replicator.nbd.handshake import Chosen, Handshake, greeting
from replicator.nbd.limits import HANDSHAKE_BUFFER_BYTES, TRANSMISSION_BUFFER_BYTES
from replicator.nbd.receive_buffer import ReceiveBuffer
from replicator.nbd.request import Request, Sendable
from replicator.nbd.state import (
    HANDSHAKE_STATES,
    SILENT_STATES,
    TRANSITIONS,
    Event,
    RemoteError,
    State,
)
from replicator.nbd.transmission import Transmission


class ServerProtocol:
    """See the head of this file. `needs_tls`: STARTTLS comes before all else; whoever carries the
    bytes then does the TLS handshake, and says `secured`."""

    def __init__(
        self,
        exports: Exports,
        *,
        needs_tls: bool = False,
        buffer: ReceiveBuffer | None = None,
    ) -> None:
        """`buffer` is empty, and of HANDSHAKE_BUFFER_BYTES."""
        self.state = State.GREETED
        self.failure = ""  # why, once the state is FAILED
        self.buffer = ReceiveBuffer(HANDSHAKE_BUFFER_BYTES) if buffer is None else buffer
        self.transmission: Transmission | None = None
        """Once an export is chosen: who answers requests, answers here."""
        self._handshake = Handshake(exports, needs_tls=needs_tls)
        self._handshake.out.append(greeting())
        self._needed_bytes = CLIENT_FLAGS.size

    # What is known.

    @property
    def chosen(self) -> Chosen | None:
        """The export, once transmission has begun."""
        return self._handshake.chosen

    @property
    def in_handshake(self) -> bool:
        return self.state in HANDSHAKE_STATES

    @property
    def mid_request(self) -> bool:
        """Bytes of at least one request have come that no batch has held."""
        transmission = self.transmission
        if transmission is None:
            return False
        return len(self.buffer) > 0 or transmission.discarding

    @property
    def outstanding(self) -> int:
        """Requests handed out and not yet answered."""
        return self.transmission.outstanding if self.transmission else 0

    @property
    def saturated(self) -> bool:
        """Requests may be left in the buffer, because too many are unanswered: read no more."""
        return self.transmission is not None and self.transmission.saturated

    @property
    def disc_received(self) -> bool:
        return self.transmission is not None and self.transmission.disc_received

    @property
    def unsent_bytes(self) -> int:
        """Replies that data_to_send() has not handed out yet."""
        queued = sum(map(len, self._handshake.out))
        return queued + (sum(map(len, self.transmission.out)) if self.transmission else 0)

    # Bytes in.

    def get_buffer(self, sizehint: int = -1) -> memoryview:
        """Where the next bytes go, at least one. Ends the life of all payloads handed out.

        Not to be called while `saturated`, nor with requests() unasked.
        """
        assert not self.saturated
        if self.state in SILENT_STATES:
            self.buffer.consume_to(self.buffer.end)
        transmission = self.transmission
        needed = transmission.needed_bytes if transmission else self._needed_bytes
        return self.buffer.writable(needed)

    def buffer_updated(self, count: int) -> None:
        """`count` bytes have been put into what get_buffer returned."""
        self.buffer.filled(count)
        if self.in_handshake:
            try:
                self._haggle()
            except RemoteError as error:
                self._fail(error)

    def requests(self) -> list[Request]:
        """All complete requests of the buffer, in the order of receipt. Ask until it is empty."""
        if self.state is not State.TRANSMISSION:
            return []
        assert self.transmission is not None
        try:
            batch = self.transmission.parse(self.buffer)
        except RemoteError as error:
            self._fail(error)
            return []
        if self.transmission.disc_received:
            self._move(Event.DISC)
        return batch

    def eof_received(self) -> None:
        self._move(Event.EOF)

    # Bytes out.

    def data_to_send(self) -> list[Sendable]:
        """What is to be sent, in order; taken by this call."""
        data: list[Sendable] = []
        if self._handshake.out:
            data.extend(self._handshake.out)
            self._handshake.out.clear()
        if self.transmission and self.transmission.out:
            data.extend(self.transmission.out)
            self.transmission.out.clear()
        return data

    # The handshake, step by step.

    def _haggle(self) -> None:
        buffer = self.buffer
        while self.in_handshake and self.state is not State.SECURING:
            self._needed_bytes = self._step_bytes()
            if len(buffer) < self._needed_bytes:
                return
            behind = buffer.start + self._needed_bytes
            packet = buffer.view[buffer.start : behind]
            event = self._step(packet)
            buffer.consume_to(behind)
            if event:
                self._move(event)
        if self.state is State.SECURING and len(buffer):
            raise RemoteError("bytes between STARTTLS and the TLS handshake")

    def secured(self) -> None:
        """TLS has begun: what comes from now on, comes through it."""
        self._handshake.secured()
        self._needed_bytes = OPTION_HEADER.size
        self._move(Event.SECURED)

    def _step_bytes(self) -> int:
        """Bytes needed for the next step, as far as what has come tells."""
        if self.state is State.GREETED:
            return CLIENT_FLAGS.size
        buffer = self.buffer
        if len(buffer) < OPTION_HEADER.size:
            return OPTION_HEADER.size
        header = buffer.view[buffer.start : buffer.start + OPTION_HEADER.size]
        return self._handshake.option_bytes(header)

    def _step(self, packet: memoryview) -> Event | None:
        if self.state is State.GREETED:
            self._handshake.client_flags(packet)
            return Event.CLIENT_FLAGS
        return self._handshake.option(packet)

    # States.

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state][event]
        if event is Event.CHOSEN:
            assert self.chosen is not None
            self.buffer.grow_usual(TRANSMISSION_BUFFER_BYTES)
            self.transmission = Transmission(
                self.chosen.info,
                structured=self.chosen.structured,
                allocation=self.chosen.allocation,
            )
            assert self.transmission.needed_bytes == REQUEST.size

    def _fail(self, error: RemoteError) -> None:
        self._move(Event.VIOLATION)
        self.failure = str(error)
