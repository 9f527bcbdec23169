# SPDX-License-Identifier: Apache-2.0
"""What a view has on the disk: its socket, and the folder of its overlays.

Everything here blocks for as long as the disk does. It is done in the threads of the group's views:
a disk that does not answer holds up that view, not the event loop, which serves all groups.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from receiver.views.export import DiskReader
from receiver.views.overlay import Overlay, OverlayBudget
from replicator.base.storage import Storage
from replicator.base.unixsocket import listen_unix

SOCKET_MODE = 0o600


@dataclass(frozen=True, slots=True)
class ViewDisk:
    """One disk of the point. `size_bytes` need not be a multiple of any block."""

    name: str
    size_bytes: int
    reader: DiskReader


@dataclass(frozen=True, slots=True)
class ViewFiles:
    """Any thread, one at a time."""

    storage: Storage
    views_dir: Path
    view_id: str

    @property
    def socket_path(self) -> Path:
        return self.views_dir / f"{self.view_id}.sock"

    @property
    def folder(self) -> Path:
        return self.views_dir / self.view_id

    def listen(self) -> socket.socket:
        """Raises ReplicatorError, OSError."""
        self._make_views_dir()
        return listen_unix(self.socket_path, mode=SOCKET_MODE)

    def make_overlays(
        self, made: list[Overlay], disks: Sequence[ViewDisk], budget: OverlayBudget
    ) -> None:
        """One for each disk, added to `made`: to be closed by the caller, whatever comes of this.
        Raises OSError."""
        self._make_views_dir()
        self.storage.make_directory(self.folder)
        for disk in disks:
            file = self.storage.create(self.folder / f"{disk.name}.overlay")
            made.append(Overlay(disk.reader, disk.size_bytes, file, budget))

    def remove(self) -> None:
        """What is there of it. Raises OSError."""
        self.socket_path.unlink(missing_ok=True)
        remove_folder(self.storage, self.folder)

    def _make_views_dir(self) -> None:
        self.views_dir.mkdir(mode=0o700, exist_ok=True)


def remove_folder(storage: Storage, folder: Path) -> None:
    """With the files in it."""
    if not storage.exists(folder):
        return
    for name in storage.names(folder):
        storage.unlink(folder / name)
    storage.remove_directory(folder)
