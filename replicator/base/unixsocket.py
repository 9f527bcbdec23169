# SPDX-License-Identifier: Apache-2.0
"""Listening unix sockets with the right owner and mode from their first moment.

A socket file outlives the process that made it. Whether one is left over is not guessed from its
age: connecting tells. The caller holds its daemon's lock, so nobody of ours takes the path
between that question and the bind. A file that is no socket is never removed.
"""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from replicator.base.errors import OwnedError, ReplicatorError, UsageError

BACKLOG = 128


def listen_unix(path: Path, *, mode: int, group: str = "") -> socket.socket:
    """A non-blocking listening socket at `path`; its folder is made if need be.

    `group` owns the file if given. Raises OwnedError where somebody listens there already.
    """
    gid = _group_id(group) if group else -1
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        if gid != -1:
            _give(path, gid, group)
        path.chmod(mode)
        sock.listen(BACKLOG)  # nobody can connect before this, so owner and mode are never late
    except OSError as error:
        sock.close()
        raise ReplicatorError(f"cannot listen at {path}: {error.strerror or error}") from None
    except ReplicatorError:
        sock.close()
        raise
    return sock


def remove_unix(path: Path, inode: int) -> None:
    """Removes the socket file if it is still the one with this `inode` (see `inode_of`)."""
    with suppress(FileNotFoundError):
        if inode_of(path) == inode:
            path.unlink()


def inode_of(path: Path) -> int:
    return path.lstat().st_ino


def _group_id(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(
            f"there is no group {group!r} on this machine", hint="see socket_group in the config"
        ) from None


def _give(path: Path, gid: int, group: str) -> None:
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        path.unlink()
        raise UsageError(
            f"{path} cannot be given to group {group!r}",
            hint="the daemon's user must be a member of that group (SupplementaryGroups=)",
        ) from None


def _clear(path: Path) -> None:
    """Makes way at `path`, unless something lives there."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise UsageError(f"{path} is there already and is not a socket", hint="move it away")
    if _is_live(path):
        raise OwnedError(
            f"another process serves {path} already", hint="stop it, or choose another socket path"
        )
    path.unlink()


def _is_live(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog answers EAGAIN: somebody is there
        return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
