# SPDX-License-Identifier: Apache-2.0
"""Accepts TCP connections and brings them through TLS, so many at a time and no more.

A peer in its handshake is a stranger, and costs what OpenSSL takes: some hundred KiB. So only
MAX_HANDSHAKES of them may be under way. When one more comes, the one that has been at it longest is
hung up on: an honest peer needs a few round trips, one that dawdles pays for the newcomer. So no
number of idle strangers keeps an agent out, or makes us hold more than that.

Failures of a handshake are the peer's affair: never raised, and logged with its address, one a
second with the number of those in between, so that strangers cannot fill the log either. Running
out of file descriptors is answered by letting the oldest stranger go, and a pause.

Concurrency: one event loop.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from replicator.base.address import Address
from replicator.wire.credentials import Tls
from replicator.wire.limits import CLOSE_SECONDS, GREETING_SECONDS

MAX_HANDSHAKES = 32
BACKLOG = 128
LOG_SECONDS = 1.0
BREATH_SECONDS = 0.1
"""Between two attempts to accept while descriptors are short."""

_SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_log = logging.getLogger(__name__)


class Doorway:
    """`make` makes the protocol of a connection that is through TLS."""

    def __init__(self, tls: Tls, make: Callable[[], asyncio.BaseProtocol]) -> None:
        self.port = 0
        self._tls = tls
        self._make = make
        self._listeners: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: dict[asyncio.Task[None], socket.socket] = {}  # oldest first
        self._log_again_at = 0.0
        self._unlogged = 0

    async def open(self, address: Address) -> None:
        """Listens when it returns, on every address of that name, on one port. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, _, _, _, place in dict.fromkeys(found):
                host, port = str(place[0]), self.port or int(place[1])
                sock = _listener(family, host, port)
                self._listeners.append(sock)
                self.port = sock.getsockname()[1]
        except OSError:
            self._close_listeners()
            raise
        self._accepting = [loop.create_task(self._accept(sock)) for sock in self._listeners]

    def close(self) -> None:
        """Nobody comes in any more; who is in stays. Strangers are hung up on."""
        for task in self._accepting:
            task.cancel()
        while self._handshakes:
            self._drop_oldest()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._accepting, *self._handshakes, return_exceptions=True)
        self._close_listeners()

    def _close_listeners(self) -> None:
        for sock in self._listeners:
            sock.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, place = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _SHORTAGE:
                    _log.error("cannot accept a connection", extra={"reason": str(error)})
                    self._drop_oldest()
                    await asyncio.sleep(BREATH_SECONDS)
                continue
            if len(self._handshakes) >= MAX_HANDSHAKES:
                self._drop_oldest()
            task = loop.create_task(self._bring_in(sock, place))
            self._handshakes[task] = sock
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    def _drop_oldest(self) -> None:
        """Its handshake fails, and its task ends by that."""
        for task in list(self._handshakes)[:1]:
            with suppress(OSError):  # it has gone by itself
                self._handshakes.pop(task).shutdown(socket.SHUT_RDWR)

    async def _bring_in(self, sock: socket.socket, place: Any) -> None:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make,
                sock,
                ssl=self._tls(),
                ssl_handshake_timeout=GREETING_SECONDS,
                ssl_shutdown_timeout=CLOSE_SECONDS,
            )
        except OSError as error:  # TimeoutError and SSLError are two
            sock.close()
            self._log_failure(Address(str(place[0]), int(place[1])), _reason(error))

    def _log_failure(self, peer: Address, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._log_again_at:
            self._unlogged += 1
            return
        fields = {"peer": str(peer), "reason": reason, "unlogged": self._unlogged}
        _log.info("TLS handshake failed", extra=fields)
        self._log_again_at, self._unlogged = now + LOG_SECONDS, 0


def _reason(error: OSError) -> str:
    text = error.reason if isinstance(error, ssl.SSLError) and error.reason else str(error)
    return text or type(error).__name__


def _listener(family: int, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
