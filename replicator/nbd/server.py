# SPDX-License-Identifier: Apache-2.0
"""The listening socket of an NBD server: a unix socket, or TCP.

Who may connect to a unix socket is decided by its permissions, which are in place before it
listens. A stale socket file is removed only if nobody listens on it; at the end only our own is
removed. On TCP it is decided by TLS and certificates; who asks for TCP without has to know why.

Bounds: MAX_CONNECTIONS in all, and no more than the pool has memory for; MAX_HANDSHAKES of them may
be without an export, each for HANDSHAKE_SECONDS. When one more comes, the handshake that has said
nothing for longest gives way: an honest one takes milliseconds. Where all places are taken by
connections with an export, the newcomer is hung up on at once. Both are said in the log.

Works on asyncio's own loop and on uvloop (twice the speed).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from pathlib import Path
from typing import cast

from replicator.base.address import Address
from replicator.base.errors import UsageError
from replicator.base.unixsocket import inode_of, listen_unix, remove_unix
from replicator.nbd.connection import Connection
from replicator.nbd.exports import Exports
from replicator.nbd.limits import HANDSHAKE_SECONDS, MAX_CONNECTIONS, MAX_HANDSHAKES
from replicator.nbd.memory import ReceivePool
from replicator.nbd.server_tls import ServerTls

_log = logging.getLogger(__name__)


class NbdServer:
    """Accepts connections until `close`. Made by `serve_unix` or `serve_tcp`; who has a socket that
    listens already calls `start`."""

    def __init__(
        self,
        exports: Exports,
        path: Path | None,
        *,
        tls: ServerTls | None = None,
        pool: ReceivePool | None = None,
    ) -> None:
        """`path`: a socket file that goes when this closes; None on TCP, and where the caller takes
        it away. `pool`: of all servers of the process; else it has one of its own."""
        self._pool = pool or ReceivePool(asyncio.get_running_loop().call_soon_threadsafe)
        self._exports = exports
        self._path = path
        self._tls = tls
        self.port = 0
        """Where it listens, on TCP."""
        self._listener: asyncio.AbstractServer | None = None
        self._inode = 0  # of the socket file, so that only our own is removed
        self._connections: set[Connection] = set()
        self._handshakes: dict[Connection, asyncio.TimerHandle] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def path(self) -> Path:
        assert self._path is not None, "it is the caller's, or there is none"
        return self._path

    @property
    def connections(self) -> frozenset[Connection]:
        return frozenset(self._connections)

    async def start(self, listener: socket.socket) -> None:
        """Accept on a listening socket."""
        loop = asyncio.get_running_loop()
        if listener.family == socket.AF_UNIX:
            self._inode = inode_of(self._path) if self._path is not None else 0
            self._listener = await loop.create_unix_server(self._accept, sock=listener)
            return
        self._listener = await loop.create_server(self._accept, sock=listener)
        self.port = listener.getsockname()[1]

    async def close(self) -> None:
        """Accept nobody, end all connections, return when they are gone. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            if self._path is not None:
                remove_unix(self._path, self._inode)
        for connection in self.connections:
            connection.close_gracefully()
        await self._empty.wait()

    def _accept(self) -> asyncio.BaseProtocol:
        if self._is_crowded:
            self._pool.make_place(time.monotonic())
        if self._is_crowded or len(self._handshakes) >= MAX_HANDSHAKES:
            self._make_way()
        if self._listener is None or self._is_crowded:
            _log.warning("NBD connection refused", extra={"connections": len(self._connections)})
            return _Refusal()
        connection = Connection(
            self._exports,
            handshake_done=self._handshake_done,
            lost=self._forget,
            tls=self._tls,
            pool=self._pool,
        )
        self._connections.add(connection)
        self._empty.clear()
        loop = asyncio.get_running_loop()
        self._handshakes[connection] = loop.call_later(
            HANDSHAKE_SECONDS, connection.close, "no export was chosen in time"
        )
        return connection

    @property
    def _is_crowded(self) -> bool:
        return len(self._connections) >= MAX_CONNECTIONS or not self._pool.has_place

    def _make_way(self) -> None:
        """For a newcomer."""
        idle = min(self._handshakes, key=lambda each: each.share.last_byte, default=None)
        if idle is not None:
            _log.warning("NBD handshake gave way to a newcomer")
            self._handshake_done(idle)
            self._connections.discard(idle)
            idle.close("it chose no export, and gave way to a newcomer")

    def _handshake_done(self, connection: Connection) -> None:
        timer = self._handshakes.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _forget(self, connection: Connection) -> None:
        self._handshake_done(connection)
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()


class _Refusal(asyncio.Protocol):
    """Hangs up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


async def serve_unix(
    path: Path,
    exports: Exports,
    *,
    mode: int = 0o600,
    group: str | None = None,
    pool: ReceivePool | None = None,
) -> NbdServer:
    """Serve on the unix socket `path`, with that mode and (by name) that group.

    Raises OwnedError if somebody serves there, UsageError for a path or group that cannot be.
    """
    listener = listen_unix(path, mode=mode, group=group or "")
    server = NbdServer(exports, path, pool=pool)
    await server.start(listener)
    return server


async def serve_tcp(
    address: Address,
    exports: Exports,
    *,
    tls: ServerTls | None,
    pool: ReceivePool | None = None,
) -> NbdServer:
    """Serve on TCP, over TLS alone if `tls` is given (then who is not admitted by it gets no
    further); port 0: any that is free. Raises UsageError for an address that cannot be."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, place = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen()
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen on {address}: {error.strerror or error}",
            hint="name an address of this machine and a port that is free",
        ) from error
    listener.setblocking(False)
    server = NbdServer(exports, None, tls=tls, pool=pool)
    await server.start(listener)
    return server
