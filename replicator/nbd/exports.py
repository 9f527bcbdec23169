# SPDX-License-Identifier: Apache-2.0
"""What an NBD server serves, and what that sees of a client: the interfaces between them. No I/O.

The server knows these interfaces and nothing of what stands behind them. All calls come from the
event loop's thread, one at a time.

The life of a connection, as an export sees it: `opened`, then any number of `submit`, then
`closed`, each connection exactly so. Each request of a batch is answered exactly once, by the
connection's `reply`, `reply_data`, `reply_status` or `reply_all`, within `submit` or later and in
any order, except for two kinds that are in the batch to be seen, not answered (`answered` is true
already):

* a request with `error` set was refused by the protocol (out of range, unaligned, read-only...).
  Its reply is queued, and leaves with the others of this step, after `submit` has returned;
* DISC, always the last one ever.

So whoever must act *before* an error, a FLUSH or a DISC has consequences outside sees all three in
`submit`, in the order of receipt, before any reply of the step leaves.

Payload: `request.payload` is memory of the receive buffer. It is valid until `submit` returns; an
export that needs it longer copies it, or calls `connection.hold()` within `submit`: then it stays
valid until `release()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from replicator.nbd.block_status import Extents
from replicator.nbd.constants import TransmissionFlag
from replicator.nbd.limits import (
    MAX_BLOCK_BYTES,
    MAX_NAME_BYTES,
    MIN_BLOCK_BYTES,
    PREFERRED_BLOCK_BYTES,
)
from replicator.nbd.request import Request, Sendable

_MAX_SIZE = (1 << 63) - 1  # clients take the size as a signed number


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInfo:
    """What a client is told. Fixed for the life of a connection.

    `size_bytes` is a multiple of `min_block_bytes`; the block sizes are powers of two, the largest
    at most a multiple of the preferred one. Raises ValueError otherwise. `can_block_status`: it
    knows its holes (replicator.nbd.block_status); never for the target of a mirror.
    """

    size_bytes: int
    read_only: bool = False
    can_flush: bool = True
    can_fua: bool = False
    can_trim: bool = False
    can_write_zeroes: bool = False
    multi_conn: bool = False
    can_block_status: bool = False
    min_block_bytes: int = MIN_BLOCK_BYTES
    preferred_block_bytes: int = PREFERRED_BLOCK_BYTES
    max_block_bytes: int = MAX_BLOCK_BYTES
    description: str = ""

    def __post_init__(self) -> None:
        low, middle, high = self.min_block_bytes, self.preferred_block_bytes, self.max_block_bytes
        if not 1 <= low <= middle <= high <= MAX_BLOCK_BYTES:
            raise ValueError(f"block sizes {low}, {middle}, {high} are not in order or too large")
        if low & (low - 1) or middle & (middle - 1) or middle < 512 or high % middle:
            raise ValueError(f"block sizes {low}, {middle}, {high} are not powers of two")
        if not 0 <= self.size_bytes <= _MAX_SIZE or self.size_bytes % low:
            raise ValueError(f"size {self.size_bytes} is not a multiple of the block size {low}")
        if len(self.description.encode()) > MAX_NAME_BYTES:
            raise ValueError("the description is too long")

    def transmission_flags(self, *, structured: bool) -> TransmissionFlag:
        flags = TransmissionFlag.HAS_FLAGS
        for offered, flag in (
            (self.read_only, TransmissionFlag.READ_ONLY),
            (self.can_flush, TransmissionFlag.SEND_FLUSH),
            (self.can_fua, TransmissionFlag.SEND_FUA),
            (self.can_trim and not self.read_only, TransmissionFlag.SEND_TRIM),
            (self.can_write_zeroes and not self.read_only, TransmissionFlag.SEND_WRITE_ZEROES),
            (structured, TransmissionFlag.SEND_DF),
            (self.multi_conn, TransmissionFlag.CAN_MULTI_CONN),
        ):
            if offered:
                flags |= flag
        return flags


class EndKind(Enum):
    """How a connection ended."""

    DISC = "disc"  # the client said goodbye
    EOF = "eof"  # the client closed the socket without a word
    ERROR = "error"  # the socket failed, or the client broke the protocol
    CLOSED = "closed"  # we closed it


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionEnd:
    """What is known about a connection at its end. It is *clean* if nothing was under way."""

    kind: EndKind
    mid_request: bool  # bytes were received that no export has seen
    unanswered: int  # requests handed to the export and not answered
    unsent_bytes: int  # replies that had not left this process
    reason: str = ""  # for the log; empty for DISC and EOF

    @property
    def clean(self) -> bool:
        """No request half read, none unanswered, no reply unsent, and the peer ended it."""
        peer_ended = self.kind in (EndKind.DISC, EndKind.EOF)
        return peer_ended and not (self.mid_request or self.unanswered or self.unsent_bytes)


class Client(Protocol):
    """A connection, as the export sees it that it has chosen. Hashable by identity. Nothing here
    does anything once the end has been reported."""

    def reply(self, request: Request, error: int = 0) -> None:
        """Answer with success, or with a WireError. Not for a READ that succeeded."""
        ...

    def reply_all(self, batch: Sequence[Request]) -> None:
        """Success for all of a batch that want an answer, at the price of one. No READs."""
        ...

    def reply_data(self, request: Request, data: Sendable) -> None:
        """Answer a READ, in full. `data` must not change until it has been sent."""
        ...

    def reply_status(self, request: Request, extents: Extents) -> None:
        """Answer a BLOCK_STATUS: what its range holds, from its beginning on."""
        ...

    def hold(self) -> None:
        """Keep the payloads of this batch valid until `release`: nothing is read meanwhile.

        Within `submit` or `opened` only, since afterwards the memory may be in use again. A peer
        that goes away meanwhile shows in `hung_up` alone.
        """
        ...

    def release(self) -> None:
        """The payloads are no longer needed; reading goes on."""
        ...

    def hung_up(self) -> bool:
        """Whether the peer has closed its side, asked of the kernel now.

        True also while data that came before is still unread, and after the end. One system call.
        """
        ...

    def close(self, reason: str) -> None:
        """End it now, without answers to what is unanswered and unsent. `reason` is for the log."""
        ...


class Export(Protocol):
    """One thing that is served. See the head of this file for the contract."""

    @property
    def info(self) -> ExportInfo:
        """Asked at each negotiation; a connection keeps what it was told."""
        ...

    def opened(self, connection: Client) -> None:
        """A client has entered transmission. May already `hold()` or `close()` it."""
        ...

    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        """Requests in the order of receipt, at least one. Must not block.

        What it raises ends the connection (EndKind.ERROR) and reaches the loop's handler.
        """
        ...

    def closed(self, connection: Client, end: ConnectionEnd) -> None:
        """Called as soon as the end is known. Later replies on this connection are ignored."""
        ...


class Exports(Protocol):
    """The exports of a server, by name. Both are asked anew at each negotiation."""

    def names(self) -> Sequence[str]:
        """What LIST tells."""
        ...

    def find(self, name: str) -> Export | None:
        """The empty name asks for the default export, if there is one."""
        ...
