# SPDX-License-Identifier: Apache-2.0
"""Requests out of the receive buffer, replies into the send queue. No I/O.

The splitter's hot path: one `unpack_from` per request, one branch for the common WRITE, payloads
handed out as memory of the receive buffer, replies to a whole batch made by one join. Everything
else (checks that fail, other commands) leaves the fast path through `_other`.

What is refused, and how (each but the last three with an error reply):
    unknown or not offered command, flag that the command does not take     EINVAL
    a write of any kind on a read-only export                               EPERM
    length 0, READ or WRITE above the largest block, unaligned              EINVAL
    past the end: WRITE, WRITE_ZEROES                                       ENOSPC
    past the end: READ, TRIM, BLOCK_STATUS                                  EINVAL
    the payload of a refused WRITE is dropped as it comes, in no memory;
    a refused WRITE above MAX_DISCARD_BYTES, or a wrong magic               the connection ends

Replies: simple, except that with structured replies READ is answered in one data chunk, and errors
in an error chunk with a sentence for a person. (The specification leaves the choice for all
commands but READ to the server; 16 bytes are the cheapest.)

Bounds: `parse` stops short of MAX_OUTSTANDING_REQUESTS unanswered requests and of
MAX_OUTSTANDING_READ_BYTES of unanswered reads, and says so by `saturated`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from replicator.nbd.block_status import Extents, status_reply
from replicator.nbd.constants import (
    CHUNK,
    CHUNK_DONE,
    CHUNK_ERROR,
    CHUNK_OFFSET,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    CommandFlag,
    WireError,
)
from replicator.nbd.exports import ExportInfo
from replicator.nbd.limits import (
    MAX_DISCARD_BYTES,
    MAX_EFFECT_BYTES,
    MAX_OUTSTANDING_READ_BYTES,
    MAX_OUTSTANDING_REQUESTS,
)
from replicator.nbd.receive_buffer import ReceiveBuffer
from replicator.nbd.request import Request, Sendable
from replicator.nbd.state import RemoteError

# Plain numbers: looking an enum member up costs more than comparing it, and the complement of an
# IntFlag holds only the flags that it knows.
_READ: Final = int(Command.READ)
_WRITE: Final = int(Command.WRITE)
_DISC: Final = int(Command.DISC)
_FUA: Final = int(CommandFlag.FUA)
_NO_HOLE: Final = int(CommandFlag.NO_HOLE)
_DF: Final = int(CommandFlag.DF)
_REQ_ONE: Final = int(CommandFlag.REQ_ONE)
_STATUS: Final = int(Command.BLOCK_STATUS)
_HEADER: Final = REQUEST.size
_OK: Final = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, WireError.OK, bytes(8))[:8]

_MODIFIES = frozenset({Command.WRITE, Command.WRITE_ZEROES, Command.TRIM})
_GROWS = frozenset({Command.WRITE, Command.WRITE_ZEROES})  # past the end these have no space


class Transmission:
    """The transmission phase of one connection. `out` is the send queue."""

    __slots__ = (
        "_accepted_flags",
        "_alignment",
        "_discard",
        "_info",
        "_structured",
        "_write_flags",
        "_write_limit",
        "disc_received",
        "needed_bytes",
        "out",
        "outstanding",
        "outstanding_read_bytes",
        "received",
        "saturated",
    )

    def __init__(self, info: ExportInfo, *, structured: bool, allocation: bool = False) -> None:
        """`allocation`: the client has chosen to be told of holes."""
        self._info = info
        self._structured = structured
        self._accepted_flags = _accepted_flags(info, structured=structured, allocation=allocation)
        self._write_flags = ~self._accepted_flags[Command.WRITE]
        self._write_limit = 0 if info.read_only else info.max_block_bytes
        self._alignment = info.min_block_bytes - 1
        self._discard = 0
        self.disc_received = False
        self.needed_bytes = _HEADER
        self.out: list[Sendable] = []
        self.outstanding = 0
        self.outstanding_read_bytes = 0
        self.received = 0  # requests of all kinds, ever
        self.saturated = False

    @property
    def discarding(self) -> bool:
        """The payload of a refused WRITE is still coming in."""
        return self._discard > 0

    def parse(self, buffer: ReceiveBuffer) -> list[Request]:
        """All complete requests of the buffer, within the bounds. Raises RemoteError.

        What came before a violation is lost with the connection: no reply to it could be sent.
        """
        batch: list[Request] = []
        position = self._drop(buffer, buffer.start)
        view, end = buffer.view, buffer.end
        room = MAX_OUTSTANDING_REQUESTS - self.outstanding
        self.needed_bytes = _HEADER
        self.saturated = False
        while end - position >= _HEADER:
            if room <= 0:
                self.saturated = True
                break
            magic, flags, command, cookie, offset, length = REQUEST.unpack_from(view, position)
            if magic != REQUEST_MAGIC:
                raise RemoteError("wrong request magic")
            if (
                command == _WRITE
                and 0 < length <= self._write_limit
                and not flags & self._write_flags
                and not (offset | length) & self._alignment
                and offset + length <= self._info.size_bytes
            ):
                body = position + _HEADER
                if end - body < length:
                    self.needed_bytes = _HEADER + length
                    break
                position = body + length
                batch.append(Request(command, flags, cookie, offset, length, view[body:position]))
            else:
                request = Request(command, flags, cookie, offset, length)
                if not self._other(request):
                    break
                position = self._drop(buffer, position + _HEADER)
                batch.append(request)
            room -= 1
            if command == _DISC:
                position = end
        buffer.consume_to(position)
        self._count(batch)
        return batch

    def _other(self, request: Request) -> bool:
        """All but a good WRITE. False if it has to wait until reads have been answered."""
        if request.command == _DISC:
            self.disc_received = True
            request.answered = True
            return True
        error = self._refusal(request)
        if error:
            self._refuse(request, *error)
        elif request.command == _READ:
            together = self.outstanding_read_bytes + request.length
            if self.outstanding_read_bytes and together > MAX_OUTSTANDING_READ_BYTES:
                self.saturated = True
                return False
            self.outstanding_read_bytes = together
        return True

    def _refuse(self, request: Request, error: WireError, text: str) -> None:
        if request.command == _WRITE:
            if request.length > MAX_DISCARD_BYTES:
                raise RemoteError(f"write of {request.length} bytes")
            self._discard = request.length
        request.error = error
        request.answered = True
        self._send_error(request.cookie, error, text)

    def _refusal(self, request: Request) -> tuple[WireError, str] | None:
        """Why a request cannot be served; None if it can. Decides, changes nothing."""
        info, command, length = self._info, request.command, request.length
        accepted = self._accepted_flags.get(command)
        if info.read_only and command in _MODIFIES:
            return WireError.EPERM, "the export is read-only"
        if accepted is None:
            return WireError.EINVAL, "unknown command"
        if request.flags & ~accepted:
            return WireError.EINVAL, "unknown flag"
        if command == Command.FLUSH:
            return None  # its offset and length mean nothing, and some clients fill them in
        limit = info.max_block_bytes if command in (_READ, _WRITE) else MAX_EFFECT_BYTES
        if not 0 < length <= limit:
            return WireError.EINVAL, "length out of bounds"
        if (request.offset | length) & self._alignment:
            return WireError.EINVAL, "not aligned to the block size"
        if request.offset + length > info.size_bytes:
            error = WireError.ENOSPC if command in _GROWS else WireError.EINVAL
            return error, "past the end of the export"
        return None

    def _drop(self, buffer: ReceiveBuffer, position: int) -> int:
        """Skip what has come of a refused payload; the position behind it."""
        dropped = min(self._discard, buffer.end - position)
        self._discard -= dropped
        return position + dropped

    def _count(self, batch: list[Request]) -> None:
        self.received += len(batch)
        for request in batch:
            if not request.answered:
                self.outstanding += 1

    # Replies. Each request once, in any order.

    def reply(self, request: Request, error: int = 0) -> None:
        """Answer anything but a READ or BLOCK_STATUS that succeeded."""
        self._settle(request)
        if error:
            self._send_error(request.cookie, error, "")
        else:
            assert request.command != _READ, "a READ that succeeds is answered with data"
            assert request.command != _STATUS, "a BLOCK_STATUS is answered with extents"
            self.out.append(_OK + request.cookie)

    def reply_all(self, requests: Sequence[Request]) -> None:
        """Success for all of them; refused ones and DISC are passed over. No READ."""
        open_requests = [request for request in requests if not request.answered]
        for request in open_requests:
            assert request.command != _READ, "a READ that succeeds is answered with data"
            request.answered = True
        if open_requests:
            self.outstanding -= len(open_requests)
            self.out.append(_OK + _OK.join([request.cookie for request in open_requests]))

    def reply_data(self, request: Request, data: Sendable) -> None:
        """Answer a READ. `data` must not change until it has been sent."""
        assert request.command == _READ, "only READ is answered with data"
        assert len(data) == request.length, "a READ is answered in full"
        self._settle(request)
        if self._structured:
            length = CHUNK_OFFSET.size + request.length
            kind = Chunk.OFFSET_DATA
            header = CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, kind, request.cookie, length)
            self.out.append(header + CHUNK_OFFSET.pack(request.offset))
        else:
            self.out.append(_OK + request.cookie)
        self.out.append(data)

    def reply_status(self, request: Request, extents: Extents) -> None:
        """Answer a BLOCK_STATUS. `extents` cover the beginning of its range, or all of it."""
        assert request.command == _STATUS, "only BLOCK_STATUS is answered with extents"
        self._settle(request)
        only_one = bool(request.flags & _REQ_ONE)
        self.out.append(status_reply(request.cookie, request.length, extents, only_one=only_one))

    def _settle(self, request: Request) -> None:
        assert not request.answered, "a request is answered once"
        request.answered = True
        self.outstanding -= 1
        if request.command == _READ:
            self.outstanding_read_bytes -= request.length

    def _send_error(self, cookie: bytes, error: int, text: str) -> None:
        if self._structured:
            detail = text.encode()
            body = CHUNK_ERROR.pack(error, len(detail)) + detail
            kind = Chunk.ERROR
            header = CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, kind, cookie, len(body))
            self.out.append(header + body)
        else:
            self.out.append(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie))


def _accepted_flags(info: ExportInfo, *, structured: bool, allocation: bool) -> dict[int, int]:
    """The commands that an export serves, each with the flags that it takes."""
    fua = _FUA if info.can_fua else 0  # valid with every command once it is offered
    accepted = {
        int(Command.READ): fua | (_DF if structured else 0),
        int(Command.WRITE): fua,
    }
    if info.can_flush:
        accepted[Command.FLUSH] = fua
    if info.can_trim:
        accepted[Command.TRIM] = fua
    if info.can_write_zeroes:
        accepted[Command.WRITE_ZEROES] = fua | _NO_HOLE
    if allocation and structured:
        accepted[Command.BLOCK_STATUS] = fua | _REQ_ONE
    return accepted
