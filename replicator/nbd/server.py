# SPDX-License-Identifier: Apache-2.0
"""The listening unix socket of an NBD server.

Who may connect is decided by the permissions of the socket, which are in place before it listens.
A stale socket file is removed only if nobody listens on it; at the end only our own is removed.

Bounds: MAX_CONNECTIONS in all; MAX_HANDSHAKES of them may be without an export, each for
HANDSHAKE_SECONDS. Who comes beyond is hung up on at once, and says so in the log.

Works on asyncio's own loop and on uvloop (twice the speed).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import os
import socket
import stat
from pathlib import Path

from replicator.base.errors import OwnedError, ReplicatorError, UsageError
from replicator.nbd.connection import Connection
from replicator.nbd.exports import Exports
from replicator.nbd.limits import HANDSHAKE_SECONDS, MAX_CONNECTIONS, MAX_HANDSHAKES

_log = logging.getLogger(__name__)
_MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux, less its closing zero


class NbdServer:
    """Accepts connections until `close`. Made by `serve_unix`."""

    def __init__(self, exports: Exports, path: Path) -> None:
        self._exports = exports
        self._path = path
        self._listener: asyncio.AbstractServer | None = None
        self._identity = (0, 0)  # of the socket file, so that only our own is removed
        self._connections: set[Connection] = set()
        self._handshakes: dict[Connection, asyncio.TimerHandle] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def connections(self) -> frozenset[Connection]:
        return frozenset(self._connections)

    async def start(self, listener: socket.socket) -> None:
        """Listen on a bound socket with its permissions in place."""
        found = self._path.stat()
        self._identity = (found.st_dev, found.st_ino)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_unix_server(self._accept, sock=listener)

    async def close(self) -> None:
        """Accept nobody, end all connections, return when they are gone. Idempotent."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(FileNotFoundError):
                found = self._path.lstat()
                if (found.st_dev, found.st_ino) == self._identity:
                    self._path.unlink()
        for connection in self.connections:
            connection.close_gracefully()
        await self._empty.wait()

    def _accept(self) -> asyncio.BaseProtocol:
        crowded = (
            len(self._connections) >= MAX_CONNECTIONS or len(self._handshakes) >= MAX_HANDSHAKES
        )
        if self._listener is None or crowded:
            _log.warning("NBD connection refused", extra={"connections": len(self._connections)})
            return _Refusal()
        connection = Connection(
            self._exports, handshake_done=self._handshake_done, lost=self._forget
        )
        self._connections.add(connection)
        self._empty.clear()
        loop = asyncio.get_running_loop()
        self._handshakes[connection] = loop.call_later(
            HANDSHAKE_SECONDS, connection.close, "no export was chosen in time"
        )
        return connection

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
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


async def serve_unix(
    path: Path, exports: Exports, *, mode: int = 0o600, group: str | None = None
) -> NbdServer:
    """Serve on the unix socket `path`, with that mode and (by name) that group.

    Raises OwnedError if somebody serves there, UsageError for a path that cannot be one.
    """
    _remove_stale(path)
    listener = _bind(path, mode, group)
    server = NbdServer(exports, path)
    try:
        await server.start(listener)
    except OSError:
        listener.close()
        path.unlink(missing_ok=True)
        raise
    return server


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens on; leave anything else alone, and say what it is."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"{path} is not a socket", hint="remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
        except OSError as error:
            raise ReplicatorError(
                f"cannot tell whether somebody serves on {path}: {error.strerror}",
                hint="remove the socket if nobody does",
            ) from error
    raise OwnedError(f"somebody serves on {path} already", hint="stop that process first")


def _bind(path: Path, mode: int, group: str | None) -> socket.socket:
    """A bound socket nobody can connect to yet, with its permissions in place."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH_BYTES:
        raise UsageError(
            f"the socket path {path} is too long", hint=f"at most {_MAX_SOCKET_PATH_BYTES} bytes"
        )
    group_id = _group_id(group)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(os.fspath(path))
        os.chown(path, -1, group_id)
        path.chmod(mode)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OwnedError(f"{path} was taken by another process meanwhile") from error
        raise ReplicatorError(
            f"cannot make the socket {path}: {error.strerror}",
            hint="the directory must exist and be writable, the group be one of this user's",
        ) from error
    return listener


def _group_id(group: str | None) -> int:
    """-1 leaves the group as it is."""
    if group is None:
        return -1
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {group!r} on this machine") from None
