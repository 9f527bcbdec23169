# SPDX-License-Identifier: Apache-2.0
"""The control socket: the agent's orders come in, statuses go out.

Nothing that happens here may be felt by a guest. Each connection has a task of its own; orders on
one connection are carried out one after another, and a client that does not read its answers waits
for itself alone. A subscriber that does not read (SIGSTOP) is never waited for: it is passed over
until it has taken what it was sent. A status is the whole truth, so it misses nothing by that.

Bounds: CONNECTIONS_MAX connections; for each one line in, and one status or answer out beyond what
the kernel holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from agent.splitter.orders import Orders
from replicator.base.errors import ReplicatorError
from replicator.base.mishaps import mishap
from replicator.control.splitter import (
    HEARTBEAT_NS,
    STATUS_INTERVAL_MIN_NS,
    AnyRequest,
    ProtocolError,
    Refused,
    SplitterSide,
    SplitterStatus,
    Subscribe,
    encode_error,
    encode_ok,
    encode_status,
)

_log = logging.getLogger(__name__)

CONNECTIONS_MAX = 16
READ_BYTES = 64 << 10


class Publisher:
    """Pushes the status: soon after `changed`, and as a heartbeat. Changes closer together than
    STATUS_INTERVAL_MIN_NS share one push."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, status: Callable[[], SplitterStatus]
    ) -> None:
        self._loop = loop
        self._status = status
        self._subscribers: set[asyncio.WriteTransport] = set()
        self._soon: asyncio.TimerHandle | None = None
        self._heartbeat: asyncio.TimerHandle | None = None

    def subscribe(self, transport: asyncio.WriteTransport) -> None:
        self._subscribers.add(transport)
        self.push()

    def forget(self, transport: asyncio.WriteTransport) -> None:
        self._subscribers.discard(transport)

    def changed(self) -> None:
        """The status is another one. Called for each batch of writes, so it is cheap."""
        if self._soon is None and self._subscribers:
            self._soon = self._loop.call_later(STATUS_INTERVAL_MIN_NS / 1e9, self.push)

    def push(self) -> None:
        """To all subscribers that have taken everything before."""
        self._cancel()
        if not self._subscribers:
            return
        self._heartbeat = self._loop.call_later(HEARTBEAT_NS / 1e9, self.push)
        line = encode_status(self._status())
        for transport in self._subscribers:
            if not transport.is_closing() and not transport.get_write_buffer_size():
                transport.write(line)

    def close(self) -> None:
        self._cancel()
        self._subscribers.clear()

    def _cancel(self) -> None:
        for timer in (self._soon, self._heartbeat):
            if timer is not None:
                timer.cancel()
        self._soon = self._heartbeat = None


class ControlServer:
    """Serves connections; `serve` is what asyncio.start_unix_server calls for each."""

    def __init__(self, orders: Orders, publisher: Publisher) -> None:
        self._orders = orders
        self._publisher = publisher
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= CONNECTIONS_MAX:
            _log.warning("control connection refused", extra={"connections": len(self._tasks)})
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except ProtocolError as error:
            _log.warning("control connection ended", extra={"reason": error.message})
        except ConnectionError:
            pass  # the agent went away in the middle of an answer
        finally:
            self._tasks.discard(task)
            self._publisher.forget(writer.transport)
            writer.transport.abort()

    async def close(self) -> None:
        """End all connections."""
        for task in list(self._tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        side = SplitterSide()
        while data := await reader.read(READ_BYTES):
            for request in side.receive_data(data):
                line = request.line if isinstance(request, Refused) else await self._do(request)
                writer.write(line)
                if isinstance(request, Subscribe):
                    self._publisher.subscribe(writer.transport)
                await writer.drain()

    async def _do(self, request: AnyRequest) -> bytes:
        try:
            return encode_ok(request, await self._orders.carry_out(request))
        except ReplicatorError as error:
            return encode_error(request.id, error)
        except OSError as error:
            return encode_error(request.id, mishap(error))
