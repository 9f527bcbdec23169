# SPDX-License-Identifier: Apache-2.0
"""An NBD client for asyncio: one socket, many requests in flight.

    async with await NbdClient.connect("nbd+unix:///web/vda?socket=/run/replicator/nbd") as disk:
        await disk.pwrite(b"...", offset=0)

Requests above the server's largest block are split; the pieces go out together, so the order of
their effects is not promised, nor that of any two calls that overlap in time (the protocol does
not promise it). All errors are ReplicatorError: NbdError for a request that the server refused,
NotFoundError for an unknown export, UnreachableError for everything that ends the connection.

Leaving the context says DISC; `abort` closes the socket without a word. One event loop, no threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from types import TracebackType
from typing import Self, cast

from replicator.base.errors import ReplicatorError, UnreachableError
from replicator.nbd.constants import Command, CommandFlag
from replicator.nbd.limits import CLOSE_GRACE_SECONDS
from replicator.nbd.request import Sendable
from replicator.nbd.uri import UnixAddress
from tests.peers.nbd_client_protocol import (
    Answer,
    ClientProtocol,
    ClientState,
    RemoteExport,
    describe,
)
from tests.peers.nbd_uri import Address, parse_uri

CONNECT_SECONDS = 60.0
IN_FLIGHT = 16
"""Requests of one client on the wire at a time, as QEMU's."""
MAX_ZERO_BYTES = 1 << 30  # pieces of WRITE_ZEROES and TRIM; some servers count in signed 32 bits


class NbdError(ReplicatorError):
    """The server refused one request; the connection is good. `error` is a WireError."""

    name = "nbd"

    def __init__(self, message: str, error: int) -> None:
        super().__init__(message)
        self.error = error


class NbdClient(asyncio.Protocol):
    """Made by `connect`. See the head of this file."""

    def __init__(self, address: Address, protocol: ClientProtocol) -> None:
        loop = asyncio.get_running_loop()
        self._address = address
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._opened: asyncio.Future[None] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._waiting: dict[bytes, asyncio.Future[Answer]] = {}
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._collected = asyncio.Event()
        self._collected.set()

    @classmethod
    async def connect(
        cls,
        address: Address | str,
        *,
        structured: bool = True,
        timeout_seconds: float = CONNECT_SECONDS,
    ) -> Self:
        """Connect and negotiate. `address` may be an NBD URI."""
        if isinstance(address, str):
            address = parse_uri(address)
        client = cls(address, ClientProtocol(address.export, structured=structured))
        try:
            async with asyncio.timeout(timeout_seconds):
                await client._open()
        except OSError as error:  # TimeoutError is one
            client.abort()
            reason = error.strerror or "no answer in time"
            raise UnreachableError(f"cannot connect to {address}: {reason}") from error
        except (ReplicatorError, asyncio.CancelledError):
            client.abort()
            raise
        return client

    @property
    def export(self) -> RemoteExport:
        assert self._protocol.export is not None
        return self._protocol.export

    @property
    def size_bytes(self) -> int:
        return self.export.size_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.disconnect()

    # Requests.

    async def pread(self, *, offset: int, length: int) -> bytes:
        """All of the range; a server answers a read in full or not at all."""
        pieces = [
            self._request(Command.READ, offset=start, length=size)
            for start, size in _pieces(offset, length, self.export.max_block_bytes)
        ]
        return b"".join([answer.data for answer in await asyncio.gather(*pieces)])

    async def pwrite(self, data: Sendable, *, offset: int, fua: bool = False) -> None:
        """`data` must not change until this returns."""
        view = memoryview(data).cast("B")
        flags = CommandFlag.FUA if fua else 0
        await _all(
            self._request(
                Command.WRITE,
                offset=start,
                length=size,
                flags=flags,
                payload=view[start - offset : start - offset + size],
            )
            for start, size in _pieces(offset, len(view), self.export.max_block_bytes)
        )

    async def write_zeroes(
        self, *, offset: int, length: int, no_hole: bool = False, fua: bool = False
    ) -> None:
        flags = (CommandFlag.NO_HOLE if no_hole else 0) | (CommandFlag.FUA if fua else 0)
        await _all(
            self._request(Command.WRITE_ZEROES, offset=start, length=size, flags=flags)
            for start, size in _pieces(offset, length, MAX_ZERO_BYTES)
        )

    async def trim(self, *, offset: int, length: int) -> None:
        await _all(
            self._request(Command.TRIM, offset=start, length=size)
            for start, size in _pieces(offset, length, MAX_ZERO_BYTES)
        )

    async def flush(self) -> None:
        """Returns when all that was answered before is durable, as far as the server can."""
        await self._request(Command.FLUSH, offset=0, length=0)

    async def disconnect(self) -> None:
        """Say DISC, and return when the server has hung up. Idempotent."""
        transport = self._transport
        if transport is None:
            return
        if self._protocol.state is ClientState.TRANSMISSION and not transport.is_closing():
            self._protocol.send_request(Command.DISC, offset=0, length=0)
            self._flush()
            await asyncio.wait([self._lost], timeout=CLOSE_GRACE_SECONDS)
        self.abort()
        await asyncio.wait([self._lost])

    def abort(self) -> None:
        """Close the socket without a word, as a client that was killed."""
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for answer in self._protocol.events_received():
            waiter = self._waiting.pop(answer.cookie)
            if not waiter.done():  # its reader may have been cancelled
                waiter.set_result(answer)
        self._flush()
        if self._protocol.failure is not None:
            self._end(self._protocol.failure)
            self.abort()
        elif self._protocol.state is ClientState.TRANSMISSION and not self._opened.done():
            self._opened.set_result(None)

    def eof_received(self) -> bool:
        self._protocol.receive_eof()
        return False

    def pause_writing(self) -> None:
        self._collected.clear()

    def resume_writing(self) -> None:
        self._collected.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._protocol.receive_eof()
        assert self._protocol.failure is not None
        self._end(self._protocol.failure)
        self._collected.set()
        self._lost.set_result(None)

    # Steps.

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(self._address, UnixAddress):
            await loop.create_unix_connection(lambda: self, str(self._address.socket))
        else:
            await loop.create_connection(lambda: self, self._address.host, self._address.port)
        await self._opened

    async def _request(
        self, command: Command, *, offset: int, length: int, flags: int = 0, payload: Sendable = b""
    ) -> Answer:
        async with self._slots:
            await self._collected.wait()
            if self._protocol.state is not ClientState.TRANSMISSION:
                raise self._gone()
            cookie = self._protocol.send_request(
                command, offset=offset, length=length, flags=flags, payload=payload
            )
            waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._waiting[cookie] = waiter
            self._flush()
            answer = await waiter
        if answer.error:
            why = f" ({answer.text})" if answer.text else ""
            raise NbdError(
                f"{self._address}: {command.name} of {length} bytes at {offset}: "
                f"{describe(answer.error)}{why}",
                answer.error,
            )
        return answer

    def _gone(self) -> UnreachableError:
        failure = self._protocol.failure
        reason = failure.message if failure else "the connection is closed"
        return UnreachableError(f"{self._address}: {reason}")

    def _flush(self) -> None:
        data = self._protocol.data_to_send()
        if data and self._transport is not None:
            self._transport.writelines(data)

    def _end(self, failure: ReplicatorError) -> None:
        """Whoever waits learns why; each once."""
        if not self._opened.done():
            self._opened.set_exception(failure)
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(self._gone())


def _pieces(offset: int, length: int, limit: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the parts of a range, each of at most `limit` bytes."""
    end = offset + length
    for start in range(offset, end, limit):
        yield start, min(limit, end - start)


async def _all(pieces: Iterator[Awaitable[Answer]]) -> None:
    await asyncio.gather(*pieces)
