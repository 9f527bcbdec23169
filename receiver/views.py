# SPDX-License-Identifier: Apache-2.0
"""Views that are open: which there are, where each is served, how it goes away.

A view is one NBD server on a unix socket of its own, `DATA_DIR/groups/GROUP/views/ID.sock`, with
an export for each disk of its point. Views live as long as this process: after a restart there are
none, and `clear_stale` removes the sockets of the dead ones before the first is opened.

The kernel takes socket paths up to 107 bytes. Whether a view will fit is known from the data_dir
and the group's name alone, so it is refused with a sentence before anything is opened.

Concurrency: the event loop's thread. Closing stops the server first, then waits for reads in
threads, and only then lets go of the point, so no read ever meets a closed one.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from receiver.view_export import DiskReader, ViewExport
from replicator.base.errors import NotFoundError, UsageError
from replicator.control.types import Point, View
from replicator.nbd.exports import Export
from replicator.nbd.server import NbdServer, serve_unix
from replicator.nbd.uri import UnixAddress

SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, less its closing zero
ID_BYTES = 4  # eight hex digits: never the id of an earlier view, within reason
READ_THREADS = 4
SOCKET_MODE = 0o600

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ViewDisk:
    """A disk of the point that a view shows."""

    name: str
    size_bytes: int
    reader: DiskReader


class OpenView:
    """One view that is served, and what the control API says of it."""

    def __init__(
        self,
        description: View,
        server: NbdServer,
        exports: Sequence[ViewExport],
        release: Callable[[], None],
    ) -> None:
        self.description = description
        self._server = server
        self._exports = exports
        self._release = release

    async def close(self) -> None:
        await self._server.close()
        for export in self._exports:
            await export.drained()
        await asyncio.to_thread(self._release)


class Views:
    """All views of a receiver. `pool` does their reads."""

    def __init__(self, groups_dir: Path) -> None:
        self._groups_dir = groups_dir
        self._pool = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="view")
        self._open: dict[str, OpenView] = {}

    def listed(self) -> list[View]:
        return [view.description for view in self._open.values()]

    def count(self, group: str) -> int:
        return sum(view.description.group == group for view in self._open.values())

    def check_room(self, group: str) -> None:
        """Raises UsageError where no view's socket path would fit."""
        path = self._path(group, "0" * 2 * ID_BYTES)
        excess = len(os.fsencode(path)) - SOCKET_PATH_BYTES_MAX
        if excess > 0:
            raise UsageError(
                f"a view of group {group!r} cannot be served: its socket path {path} is {excess}"
                f" bytes longer than the {SOCKET_PATH_BYTES_MAX} that the system allows",
                hint="give the receiver a data_dir with a shorter path (a symbolic link will do)",
            )

    async def open(
        self, group: str, point: Point, disks: Sequence[ViewDisk], release: Callable[[], None]
    ) -> View:
        """Serves `disks`; owns the point from here on, and calls `release` (in a thread) when
        the view is closed, or if it cannot be opened."""
        view_id = secrets.token_hex(ID_BYTES)
        exports = {
            disk.name: ViewExport(disk.name, disk.size_bytes, disk.reader, self._pool)
            for disk in disks
        }
        path = self._path(group, view_id)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(asyncio.to_thread, release)
            self.check_room(group)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            server = await serve_unix(path, _Shelf(exports), mode=SOCKET_MODE)
            undo.pop_all()
        uris = {name: str(UnixAddress(path, name)) for name in exports}
        view = View(id=view_id, group=group, point=point, disks=uris)
        self._open[view_id] = OpenView(view, server, list(exports.values()), release)
        _log.info("view.opened", group=group, view=view_id, point=point.sequence)
        return view

    async def close(self, view_id: str) -> None:
        view = self._open.pop(view_id, None)
        if view is None:
            raise NotFoundError(
                f"no view {view_id[:80]!r}", hint="`replicator view list` shows those that are open"
            )
        await view.close()
        _log.info("view.closed", group=view.description.group, view=view_id)

    async def close_all(self) -> None:
        while self._open:
            await self.close(next(iter(self._open)))
        await asyncio.to_thread(self._pool.shutdown)

    def clear_stale(self, group: str) -> None:
        """Removes what an earlier process left. The data_dir's lock is held, so all of it is."""
        folder = self._groups_dir / group / "views"
        if folder.is_dir():
            for path in folder.glob("*.sock"):
                path.unlink()

    def _path(self, group: str, view_id: str) -> Path:
        return self._groups_dir / group / "views" / f"{view_id}.sock"


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
