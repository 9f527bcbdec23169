# SPDX-License-Identifier: Apache-2.0
"""One connection to libvirtd: calls in threads with a time limit, events on the loop.

Rules, each from a measured behaviour of libvirt:
* Every call may hang (a stalled mirror target blocks QEMU's main loop, and with it libvirt's
  domain job). So calls run in threads and are given up on after a limit; the thread stays
  occupied until libvirt answers, and the small pool bounds how many can be stuck.
* Events are lost while libvirtd restarts. So `opened` is called after every (re)connect, and the
  driver re-reads all state there; an event is only ever a reason to look, never a fact.
* Only one event implementation exists per process (libvirtaio on the running loop).

Concurrency: all methods belong to the loop's thread. Callbacks run on the loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt
import libvirtaio

from agent.drivers.domain_xml import Domain, DomainDisk, copy_destination, parse_domain
from replicator.base.errors import NotFoundError, ReplicatorError, UnreachableError

log = logging.getLogger("replicator.agent.libvirt")

T = TypeVar("T")

CALL_LIMIT_SECONDS = 30.0
# Calls that may be stuck at once; two domains may hang and the third still be served.
CALL_THREADS = 4
RECONNECT_FIRST_SECONDS = 0.2
RECONNECT_LIMIT_SECONDS = 5.0
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 5, 3
# With the default of 64 KiB two guest writes to one 64-KiB range wait for each other.
GRANULARITY_BYTES = 4096
# One mebibyte at a time of the background copy: guest writes do not queue behind it.
COPY_BUFFER_BYTES = 1 << 20
COPY_FLAGS = (
    libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
    | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    | libvirt.VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES
)

_EVENTS = (
    libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
    libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR,
)
_EVENT_NAMES = dict(zip(_EVENTS, ("lifecycle", "block-job", "io-error"), strict=True))


@dataclass(frozen=True, slots=True)
class LiveDomain:
    """A domain as it runs, and the XML that would define it again."""

    facts: Domain
    definition: str
    running: bool


class LibvirtConnection:
    """Keeps one libvirt connection alive.

    `opened()` is called after every (re)connect, `changed(domain name, event)` whenever libvirt
    says that something happened to a domain; both on the loop, both only reasons to look.
    """

    def __init__(
        self, uri: str, *, opened: Callable[[], None], changed: Callable[[str, str], None]
    ) -> None:
        self._uri = uri
        self._opened = opened
        self._changed = changed
        self._connection: libvirt.virConnect | None = None
        self._threads = ThreadPoolExecutor(CALL_THREADS, thread_name_prefix="libvirt")
        self._lost = asyncio.Event()
        self.problem = ""

    async def run(self) -> None:
        """Connects, and again whenever the connection is lost, until cancelled."""
        libvirt.registerErrorHandler(_quiet, None)
        libvirtaio.virEventRegisterAsyncIOImpl(asyncio.get_running_loop())
        delay_seconds = RECONNECT_FIRST_SECONDS
        try:
            while True:
                try:
                    await self._open()
                except ReplicatorError as error:
                    if error.message != self.problem:
                        log.warning("libvirt is not reachable: %s", error)
                    self.problem = error.message
                    await asyncio.sleep(delay_seconds)
                    delay_seconds = min(delay_seconds * 2, RECONNECT_LIMIT_SECONDS)
                    continue
                delay_seconds = RECONNECT_FIRST_SECONDS
                self.problem = ""
                self._opened()
                await self._lost.wait()
                self.problem = "the connection to libvirtd was lost"
                log.warning("connection to libvirtd lost")
                await self._close()
        finally:
            await self._close()
            self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def _open(self) -> None:
        self._lost.clear()
        connection = await self._call(lambda: libvirt.open(self._uri))
        self._connection = connection
        await self._call(lambda: self._subscribe(connection))
        log.info("connected to %s", self._uri)

    def _subscribe(self, connection: libvirt.virConnect) -> None:
        connection.registerCloseCallback(lambda *_: self._lost.set(), None)
        connection.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
        for event in _EVENTS:
            connection.domainEventRegisterAny(None, event, self._event, _EVENT_NAMES[event])

    def _event(
        self, _connection: libvirt.virConnect, domain: libvirt.virDomain, *rest: Any
    ) -> None:
        self._changed(domain.name(), str(rest[-1]))

    async def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await self._call(connection.close)
        except ReplicatorError:
            log.debug("closing the lost connection failed", exc_info=True)

    async def _call(self, function: Callable[[], T]) -> T:
        """Runs `function` in a thread; libvirt's errors and a passed limit become ours."""
        call = asyncio.get_running_loop().run_in_executor(self._threads, function)
        try:
            return await asyncio.wait_for(call, CALL_LIMIT_SECONDS)
        except TimeoutError as error:
            raise UnreachableError(
                f"libvirt did not answer within {CALL_LIMIT_SECONDS:.0f} s",
                hint="a hung QEMU blocks calls to its domain; see the log of libvirtd",
            ) from error
        except libvirt.libvirtError as error:
            raise _translated(error) from error

    def _require(self) -> libvirt.virConnect:
        if self._connection is None:
            raise UnreachableError(f"libvirt at {self._uri} is not reachable: {self.problem}")
        return self._connection

    async def _on_domain(self, name: str, function: Callable[[libvirt.virDomain], T]) -> T:
        connection = self._require()
        return await self._call(lambda: function(connection.lookupByName(name)))

    async def domain(self, name: str) -> LiveDomain:
        """What libvirt knows of the domain now. NotFoundError if it knows no such domain.

        Secrets (graphics passwords) are left out of both texts: they end up in the log.
        """

        def read(domain: libvirt.virDomain) -> tuple[str, str, bool]:
            live = domain.XMLDesc(0)
            definition = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            return live, definition, bool(domain.isActive())

        live, definition, active = await self._on_domain(name, read)
        return LiveDomain(parse_domain(live), definition, active)

    async def disk_bytes(self, name: str, target: str) -> int:
        """Virtual size, rounded up to the 512 bytes that a mirror wants."""
        info = await self._on_domain(name, lambda domain: domain.blockInfo(target))
        return -(-int(info[0]) // 512) * 512

    async def copy_disk(
        self, domain: str, disk: DomainDisk, *, socket: str, export: str, bytes_per_second: int
    ) -> None:
        """Starts the synchronous block copy of one disk into an NBD export that listens."""
        destination = copy_destination(disk.target, socket, export, 0)
        parameters = {
            libvirt.VIR_DOMAIN_BLOCK_COPY_GRANULARITY: GRANULARITY_BYTES,
            libvirt.VIR_DOMAIN_BLOCK_COPY_BUF_SIZE: COPY_BUFFER_BYTES,
        }
        if bytes_per_second:
            parameters[libvirt.VIR_DOMAIN_BLOCK_COPY_BANDWIDTH] = bytes_per_second
        await self._on_domain(
            domain,
            lambda handle: handle.blockCopy(disk.target, destination, parameters, COPY_FLAGS),
        )

    async def set_copy_speed(self, domain: str, target: str, bytes_per_second: int) -> None:
        """Throttles the background copy alone; guest writes are never throttled."""
        flags = libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        await self._on_domain(
            domain, lambda handle: handle.blockJobSetSpeed(target, bytes_per_second, flags)
        )

    async def freeze(self, name: str) -> int:
        """Freezes the guest's filesystems; how many. In a thread of its own and without a limit:
        the guest agent takes as long as the guest's disks do, and the pool is for other calls."""
        connection = self._require()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[int] = loop.create_future()

        def settle(frozen: int, error: libvirt.libvirtError | None) -> None:
            if answer.cancelled():
                return
            if error is None:
                answer.set_result(frozen)
            else:
                answer.set_exception(_translated(error))

        def work() -> None:
            frozen, failure = 0, None
            try:
                frozen = int(connection.lookupByName(name).fsFreeze())
            except libvirt.libvirtError as error:
                failure = error
            with suppress(RuntimeError):  # the loop is closed: the agent ends
                loop.call_soon_threadsafe(settle, frozen, failure)

        threading.Thread(target=work, name=f"freeze-{name}", daemon=True).start()
        return await answer

    async def end_copy(self, domain: str, target: str) -> None:
        """Ends the block copy; the guest goes on with its source alone. Never pivots.

        Must not be called while a write of that domain is unanswered: libvirt drains first.
        """
        await self._on_domain(domain, lambda handle: handle.blockJobAbort(target, 0))


def _quiet(_context: object, _error: object) -> None:
    """libvirt prints every error on stderr by default; ours are raised and logged instead."""


def _translated(error: libvirt.libvirtError) -> ReplicatorError:
    text = error.get_error_message() or str(error)
    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
        return NotFoundError(text, hint="`virsh list --all` shows the domains that libvirt knows")
    if error.get_error_domain() == libvirt.VIR_FROM_RPC or error.get_error_code() in (
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_SYSTEM_ERROR,
    ):
        return UnreachableError(f"libvirt: {text}", hint="is libvirtd running?")
    return ReplicatorError(f"libvirt: {text}")
