# SPDX-License-Identifier: Apache-2.0
"""A real filesystem whose power can be cut: a loop file, ext4 or XFS, and the GOINGDOWN ioctl.

    with power_cut_disk("ext4", tmp_path) as disk:
        ...write below disk.path, close every file...
        disk.cut()          # what was not synced is gone; disk.path is mounted again

`cut` shuts the filesystem down without flushing even its log (flag NOLOGFLUSH), unmounts it and
mounts it again, so its journal is replayed as after a power cut. From the ioctl on every
write fails with EIO. The page cache goes with the mount, and the un-synced data with it.

Needs root, loop devices and mkfs: `why_not` says what is missing. Everything is undone when the
block is left, also after an error; a file that is still open then keeps the loop device busy.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_GOINGDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
# mkfs.xfs refuses less than 300 MiB; the file is sparse.
_SIZES = {"ext4": 64 << 20, "xfs": 320 << 20}
_MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}
FILESYSTEMS = tuple(_SIZES)


def why_not(filesystem: str) -> str:
    """Why such a disk cannot be had here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root to mount"
    for tool in (_MKFS[filesystem][0], "mount", "umount"):
        if shutil.which(tool, path=_PATH) is None:
            return f"needs {tool}"
    if not Path("/dev/loop-control").exists():
        return "needs loop devices"
    return ""


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class PowerCutDisk:
    """A mounted filesystem of its own."""

    def __init__(self, filesystem: str, directory: Path) -> None:
        self._filesystem = filesystem
        self._image = directory / f"{filesystem}.img"
        self.path = directory / f"{filesystem}.mnt"
        self._mounted = False

    def make(self) -> None:
        with self._image.open("wb") as image:
            image.truncate(_SIZES[self._filesystem])
        _run(*_MKFS[self._filesystem], str(self._image))
        self.path.mkdir()
        self.mount()

    def mount(self) -> None:
        _run("mount", "-t", self._filesystem, "-o", "loop", str(self._image), str(self.path))
        self._mounted = True

    def cut(self) -> None:
        """The power goes and comes back."""
        self.shut_down()
        self.unmount()
        self.mount()

    def shut_down(self) -> None:
        """The power goes: from now on everything fails."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _GOINGDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def unmount(self) -> None:
        if self._mounted:
            _run("umount", str(self.path))
            self._mounted = False

    def remove(self) -> None:
        self.unmount()
        self.path.rmdir()
        self._image.unlink()


@contextmanager
def power_cut_disk(filesystem: str, directory: Path) -> Iterator[PowerCutDisk]:
    """See the head of this file. `directory` must be empty of names of ours."""
    disk = PowerCutDisk(filesystem, directory)
    try:
        disk.make()
        yield disk
    finally:
        if disk.path.exists():
            disk.remove()


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": _PATH}
    )
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
