# SPDX-License-Identifier: Apache-2.0
"""Views that are open: which there are, where each is served, how it goes away.

A view is one NBD server with an export for each disk of its point: on a unix socket of its own,
`DATA_DIR/groups/GROUP/views/ID.sock`, or on TCP. On TCP a client has to speak TLS first, and show a
certificate of the receiver's own CA with one of the names that the view is for (one tenant does not
read another's); plain TCP is for loopback alone, and has to be asked for.

A writable view has an overlay for each disk (receiver.views.overlay), in files under
`DATA_DIR/groups/GROUP/views/ID/`, which go with it. Replica and history are never written to.

Views live as long as this process: after a restart there are none, and `clear_stale` removes what
the dead ones left before the first is opened. One with a lifetime closes by itself; one without
is never closed here, but as it keeps retention from freeing what lies behind its point, it is
named in the log once a day.

The kernel takes socket paths up to 107 bytes. Whether a view will fit is known from the data_dir
and the group's name alone, so it is refused with a sentence before anything is opened.

Concurrency: the event loop's thread, which touches no disk (receiver.views.open_views.files).
Closing stops the server first, then waits for requests in threads, and only then lets go of the
point, so no read ever meets a closed one."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from receiver.views.export import ViewExport
from receiver.views.files import ViewDisk, ViewFiles, remove_folder
from receiver.views.overlay import Overlay, OverlayBudget
from replicator.base.address import Address
from replicator.base.clock import NS_PER_S, Clock, SystemClock, rfc3339
from replicator.base.errors import NotFoundError, UsageError
from replicator.base.storage import Storage, SystemStorage
from replicator.base.trouble import is_bug, words_of
from replicator.base.units import GIB
from replicator.control.types import Point, View
from replicator.nbd.exports import Export
from replicator.nbd.memory import ReceivePool
from replicator.nbd.server import NbdServer, serve_tcp
from replicator.nbd.server_tls import ServerTls
from replicator.nbd.uri import TcpAddress, UnixAddress
from replicator.wire.credentials import Tls
from replicator.wire.identity import dns_names

SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, less its closing zero
ID_BYTES = 4  # eight hex digits: never the id of an earlier view, within reason
THREADS = 4
OVERLAY_BYTES = 10 * GIB
REMINDER_SECONDS = 24 * 3600.0

_ID = re.compile(f"[0-9a-f]{{{2 * ID_BYTES}}}", re.ASCII)

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """How a view is served. `listen`: on TCP there; `is_plain`: without TLS, on loopback only.
    `allowed`: the names, one of which a client's certificate has to hold. `overlay_bytes`: what the
    writes of a writable one may take."""

    writable: bool = False
    overlay_bytes: int = OVERLAY_BYTES
    lifetime_seconds: float | None = None
    listen: Address | None = None
    is_plain: bool = False
    allowed: frozenset[str] = frozenset()
    writes: int = 0
    """That many behind the point are shown with it."""

    def check(self) -> None:
        """Raises UsageError for what is never served."""
        if self.is_plain and (self.listen is None or not is_loopback(self.listen.host)):
            raise UsageError(
                "a view is served without TLS on loopback addresses alone",
                hint="leave --plain out: clients then need a certificate of the same CA",
            )


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


@dataclass(slots=True)
class OpenView:
    """One view that is served."""

    description: View
    server: NbdServer
    exports: Sequence[ViewExport]
    overlays: Sequence[Overlay]
    budget: OverlayBudget | None
    files: ViewFiles
    release: Callable[[], None]
    opened_ns: int
    tending: asyncio.Task[None] | None = field(default=None)

    def described(self) -> View:
        """As it is now."""
        if self.budget is None:
            return self.description
        return msgspec.structs.replace(self.description, overlay_bytes=self.budget.used_bytes)

    async def close(self, pool: Executor) -> None:
        await self.server.close()
        for export in self.exports:
            await export.drained()
        await _aside(pool, self._let_go)

    def _let_go(self) -> None:
        try:
            _close_all(self.overlays)
            self.files.remove()
        finally:
            self.release()


class Views:
    """All views of a receiver. `tls` is for those on TCP."""

    def __init__(
        self,
        groups_dir: Path,
        *,
        storage: Storage | None = None,
        clock: Clock | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._groups_dir = groups_dir
        self._storage = storage or SystemStorage()
        self._clock = clock or SystemClock()
        self._tls = tls
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._memory: ReceivePool | None = None
        self._open: dict[str, OpenView] = {}

    def listed(self) -> list[View]:
        return [view.described() for view in self._open.values()]

    def count(self, group: str) -> int:
        return sum(view.description.group == group for view in self._open.values())

    def oldest_ns(self, group: str) -> int | None:
        """When the one that has been open longest was opened."""
        opened = [view.opened_ns for view in self._open.values() if view.description.group == group]
        return min(opened, default=None)

    def check_room(self, group: str) -> None:
        """Raises UsageError where no view's socket path would fit."""
        path = self._files(group, "0" * 2 * ID_BYTES).socket_path
        excess = len(os.fsencode(path)) - SOCKET_PATH_BYTES_MAX
        if excess > 0:
            raise UsageError(
                f"a view of group {group!r} cannot be served: its socket path {path} is {excess}"
                f" bytes longer than the {SOCKET_PATH_BYTES_MAX} that the system allows",
                hint="give the receiver a data_dir with a shorter path (a symbolic link will do)",
            )

    async def open(
        self,
        group: str,
        point: Point,
        disks: Sequence[ViewDisk],
        release: Callable[[], None],
        options: ViewOptions | None = None,
    ) -> View:
        """Serves `disks`; owns the point from here on, and calls `release` (in a thread) when
        the view is closed, or if it cannot be opened. Raises UsageError, OSError."""
        options = options or ViewOptions()
        view_id = secrets.token_hex(ID_BYTES)
        files = self._files(group, view_id)
        pool = self._pool(group)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(_aside, pool, release)
            options.check()
            if options.listen is None:
                self.check_room(group)
            undo.push_async_callback(_aside, pool, files.remove)
            budget, overlays = None, list[Overlay]()
            if options.writable:
                budget = OverlayBudget(
                    options.overlay_bytes, lambda: self._storage.free_bytes(self._groups_dir)
                )
                undo.push_async_callback(_aside, pool, partial(_close_all, overlays))
                await _aside(pool, partial(files.make_overlays, overlays, disks, budget))
            exports = self._exports(disks, overlays, pool)
            server, uris = await self._serve(files, exports, options, pool)
            undo.pop_all()
        opened_ns = self._clock.utc_ns()
        view = View(
            id=view_id,
            group=group,
            point=point,
            disks=uris,
            writable=options.writable,
            opened=rfc3339(opened_ns),
            expires=_expiry(opened_ns, options.lifetime_seconds),
            overlay_bytes=0 if options.writable else None,
            writes=options.writes,
        )
        found = OpenView(
            view, server, list(exports.values()), overlays, budget, files, release, opened_ns
        )
        self._open[view_id] = found
        found.tending = asyncio.create_task(self._tend(found, options.lifetime_seconds))
        found.tending.add_done_callback(partial(_tended, found.description))
        _log.info(
            "view.opened",
            group=group,
            view=view_id,
            point=point.sequence,
            writable=options.writable,
            address=str(options.listen or ""),
        )
        return view

    async def close(self, view_id: str) -> None:
        view = self._open.pop(view_id, None)
        if view is None:
            raise NotFoundError(
                f"no view {view_id[:80]!r}", hint="`replicator view list` shows those that are open"
            )
        if view.tending is not None and view.tending is not asyncio.current_task():
            view.tending.cancel()
            await asyncio.gather(view.tending, return_exceptions=True)
        await view.close(self._pool(view.description.group))
        _log.info("view.closed", group=view.description.group, view=view_id)

    async def close_all(self) -> None:
        while self._open:
            await self.close(next(iter(self._open)))
        for pool in self._pools.values():
            await asyncio.to_thread(pool.shutdown)

    async def close_group(self, group: str) -> None:
        """Those of one group."""
        for view_id, view in list(self._open.items()):
            if view.description.group == group:
                await self.close(view_id)

    def clear_stale(self, group: str) -> list[str]:
        """Removes what the views of an earlier process left; the data_dir's lock is held, so none
        of them lives. What no view made stays: its names. Any thread. Raises OSError."""
        folder = self._views_dir(group)
        if not folder.is_dir():
            return []
        return [path.name for path in sorted(folder.iterdir()) if not self._clear(path)]

    # Inside.

    def _clear(self, path: Path) -> bool:
        if path.suffix == ".sock" and _ID.fullmatch(path.stem) and path.is_socket():
            path.unlink()
            return True
        if not _ID.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            return False
        found = list(path.iterdir())
        if any(each.suffix != ".overlay" or not each.is_file() for each in found):
            return False
        remove_folder(self._storage, path)
        return True

    def _receive_pool(self) -> ReceivePool:
        """One for all views, whatever their clients send."""
        if self._memory is None:
            self._memory = ReceivePool(asyncio.get_running_loop().call_soon_threadsafe)
        return self._memory

    def _pool(self, group: str) -> ThreadPoolExecutor:
        """The threads of one group's views: a disk that does not answer holds up no other's."""
        if group not in self._pools:
            self._pools[group] = ThreadPoolExecutor(THREADS, thread_name_prefix=f"{group}.view")
        return self._pools[group]

    def _exports(
        self, disks: Sequence[ViewDisk], overlays: Sequence[Overlay], pool: Executor
    ) -> dict[str, ViewExport]:
        if not overlays:
            return {
                disk.name: ViewExport(disk.name, disk.size_bytes, disk.reader, pool)
                for disk in disks
            }
        return {
            disk.name: ViewExport(disk.name, disk.size_bytes, overlay, pool, overlay)
            for disk, overlay in zip(disks, overlays, strict=True)
        }

    async def _serve(
        self,
        files: ViewFiles,
        exports: dict[str, ViewExport],
        options: ViewOptions,
        pool: Executor,
    ) -> tuple[NbdServer, dict[str, str]]:
        shelf = _Shelf(exports)
        if options.listen is None:
            listener = await _aside(pool, files.listen)
            server = NbdServer(shelf, None, pool=self._receive_pool())
            await server.start(listener)
            return server, {name: str(UnixAddress(files.socket_path, name)) for name in exports}
        tls = None
        if not options.is_plain:
            if self._tls is None:
                raise UsageError("this receiver has no certificate to serve views on TCP with")
            tls = ServerTls(
                self._tls(), lambda shown: not options.allowed.isdisjoint(dns_names(shown))
            )
        server = await serve_tcp(options.listen, shelf, tls=tls, pool=self._receive_pool())
        host, port = options.listen.host, server.port
        return server, {
            name: str(TcpAddress(host, port, name, is_tls=tls is not None)) for name in exports
        }

    async def _tend(self, view: OpenView, lifetime_seconds: float | None) -> None:
        """Reminds of it, and ends it when its time is over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            age = loop.time() - began
            rest = None if lifetime_seconds is None else lifetime_seconds - age
            if rest is not None and rest <= 0:
                _log.info("view.expired", view=view.description.id)
                await self.close(view.description.id)
                return
            await asyncio.sleep(REMINDER_SECONDS if rest is None else min(REMINDER_SECONDS, rest))
            if rest is None or rest > REMINDER_SECONDS:
                _log.warning(
                    "view.still_open",
                    group=view.description.group,
                    view=view.description.id,
                    point=view.description.point.sequence,
                    days=round((loop.time() - began) / REMINDER_SECONDS, 1),
                    effect="what lies behind its point is kept, whatever keep and max_bytes say",
                )

    def _files(self, group: str, view_id: str) -> ViewFiles:
        return ViewFiles(self._storage, self._views_dir(group), view_id)

    def _views_dir(self, group: str) -> Path:
        return self._groups_dir / group / "views"


def _expiry(opened_ns: int, lifetime_seconds: float | None) -> str | None:
    if lifetime_seconds is None:
        return None
    return rfc3339(opened_ns + round(lifetime_seconds * NS_PER_S))


def _tended(view: View, task: asyncio.Task[None]) -> None:
    """A supervision: a view whose task has died stays open, and is named."""
    error = None if task.cancelled() else task.exception()
    if isinstance(error, Exception):
        said = words_of(error)
        _log.error(
            "view.not_tended",
            group=view.group,
            view=view.id,
            reason=said.message,
            exc_info=error if is_bug(error) else None,
        )


def _close_all(overlays: Sequence[Overlay]) -> None:
    for overlay in overlays:
        overlay.close()


async def _aside(pool: Executor, work: Callable[[], T]) -> T:
    """In a thread of the group's views. What was begun is carried to its end, also when the task
    that waits for it is cancelled: nothing is taken away while it is being made."""
    done = asyncio.wrap_future(pool.submit(work))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait((done,))
        raise


class _Shelf:
    """The exports of one view. A view of a single disk serves it as the default as well."""

    def __init__(self, exports: dict[str, ViewExport]) -> None:
        self._exports = exports

    def names(self) -> Sequence[str]:
        return list(self._exports)

    def find(self, name: str) -> Export | None:
        if not name and len(self._exports) == 1:
            return next(iter(self._exports.values()))
        return self._exports.get(name)
