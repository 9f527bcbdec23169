# SPDX-License-Identifier: Apache-2.0
"""One connection to libvirtd: calls in threads with a time limit, events on the loop.

Rules, each from a measured behaviour of libvirt:
* Every call may hang (a stalled mirror target blocks QEMU's main loop, and with it libvirt's
  domain job). So calls run in threads and are given up on after a limit; the thread stays
  occupied until libvirt answers, and the small pool bounds how many can be stuck.
* Events are lost while libvirtd restarts. So `opened` is called after every (re)connect, and the
  driver re-reads all state there. What an event tells is in events.py.
* Only one event implementation exists per process (libvirtaio on the running loop).

Concurrency: all methods belong to the loop's thread. Callbacks run on the loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import libvirt
import libvirt_qemu
import libvirtaio

from agent.drivers.libvirt.domain_xml import Domain, DomainDisk, copy_destination, parse_domain
from agent.drivers.libvirt.events import CopyNews, Event, IoAction, IoError, Lifecycle, Turn
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

# A domain that was saved or migrated goes on elsewhere, and of one whose QEMU has vanished nothing
# is known: these have not stopped in the sense of Turn.
_STOPS = (
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED,
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED,
)
_IO_ACTIONS: Final[dict[int, IoAction]] = {
    libvirt.VIR_DOMAIN_EVENT_IO_ERROR_NONE: "none",
    libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE: "pause",
    libvirt.VIR_DOMAIN_EVENT_IO_ERROR_REPORT: "report",
}
# Of a disk, those after which the source may hold what the guest was told it does not, or lack what
# it was told it has. A failed read changes nothing.
_FAILURES = (
    "failed_wr_operations",
    "failed_flush_operations",
    "failed_unmap_operations",
    "failed_zone_append_operations",
)


@dataclass(frozen=True, slots=True)
class LiveDomain:
    """A domain as it runs, and the XML that would define it again."""

    facts: Domain
    definition: str
    running: bool


class LibvirtConnection:
    """Keeps one libvirt connection alive.

    `opened()` is called after every (re)connect: from here on all events come, until `closed()`.
    `changed(domain name, event)` tells of each. All on the loop.
    """

    def __init__(
        self,
        uri: str,
        *,
        opened: Callable[[], None],
        changed: Callable[[str, Event], None],
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._uri = uri
        self._opened = opened
        self._changed = changed
        self._closed = closed
        self._connection: libvirt.virConnect | None = None
        self._threads = ThreadPoolExecutor(CALL_THREADS, thread_name_prefix="libvirt")
        self._lost = asyncio.Event()
        self.problem = ""
        self.remedy = ""

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
                    self.problem, self.remedy = error.message, error.hint
                    await asyncio.sleep(delay_seconds)
                    delay_seconds = min(delay_seconds * 2, RECONNECT_LIMIT_SECONDS)
                    continue
                delay_seconds = RECONNECT_FIRST_SECONDS
                self.problem = self.remedy = ""
                self._opened()
                await self._lost.wait()
                self._closed()
                self.problem, self.remedy = "the connection to libvirtd was lost", _START
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
        for event, translate in (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, _lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, _copy_news),
            (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR, _io_error),
        ):
            connection.domainEventRegisterAny(None, event, self._event, translate)

    def _event(
        self, _connection: libvirt.virConnect, domain: libvirt.virDomain, *rest: Any
    ) -> None:
        *told, translate = rest
        self._changed(domain.name(), translate(*told))

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

    async def running_domains(self) -> list[str]:
        connection = self._require()
        flags = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
        return await self._call(
            lambda: [str(domain.name()) for domain in connection.listAllDomains(flags)]
        )

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

    async def find_domain(self, name: str) -> LiveDomain | None:
        """As `domain`; None if libvirt knows no such domain: a transient one is gone when it is
        off."""
        try:
            return await self.domain(name)
        except NotFoundError:
            return None

    async def source_errors(self, name: str) -> dict[str, int]:
        """Of a running domain: how many writes and flushes of the guest have failed since QEMU
        runs, by QEMU's name of the device. libvirt has no call for it, and marks a domain whose
        QEMU was asked directly as tainted; the question changes nothing there."""
        order = json.dumps({"execute": "query-blockstats"})
        answer = await self._on_domain(
            name, lambda domain: libvirt_qemu.qemuMonitorCommand(domain, order, 0)
        )
        return {
            str(device.get("qdev", "")): sum(int(device["stats"].get(key, 0)) for key in _FAILURES)
            for device in json.loads(answer).get("return", [])
        }

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


def _lifecycle(event: int, detail: int) -> Event:
    if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
        return Lifecycle(Turn.STARTED)
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail in _STOPS:
        return Lifecycle(Turn.STOPPED)
    if event == libvirt.VIR_DOMAIN_EVENT_SUSPENDED:
        return Lifecycle(Turn.PAUSED)
    return Lifecycle(Turn.OTHER)


def _copy_news(target: str, _kind: int, status: int) -> Event:
    return CopyNews(target, failed=status == libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED)


def _io_error(path: str | None, alias: str | None, action: int) -> Event:
    return IoError(path or "", alias or "", _IO_ACTIONS.get(action, "report"))


def _quiet(_context: object, _error: object) -> None:
    """libvirt prints every error on stderr by default; ours are raised and logged instead."""


_START = "start libvirtd, if it is down"


def _translated(error: libvirt.libvirtError) -> ReplicatorError:
    text = error.get_error_message() or str(error)
    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
        return NotFoundError(text, hint="`virsh list --all` shows the domains that libvirt knows")
    if error.get_error_domain() == libvirt.VIR_FROM_RPC or error.get_error_code() in (
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_SYSTEM_ERROR,
    ):
        return UnreachableError(f"libvirt: {text}", hint=_START)
    return ReplicatorError(f"libvirt: {text}")
