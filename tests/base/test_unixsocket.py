# SPDX-License-Identifier: Apache-2.0
"""Listening unix sockets."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from replicator.base.errors import OwnedError, ReplicatorError, UsageError
from replicator.base.unixsocket import inode_of, listen_unix, remove_unix


def test_the_folder_is_made_and_the_mode_is_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "a/b/s"
    with listen_unix(path, mode=0o640) as sock:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert not sock.getblocking()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_that_a_dead_process_left_is_replaced(tmp_path: Path) -> None:
    listen_unix(tmp_path / "s", mode=0o600).close()
    assert (tmp_path / "s").exists()
    with (
        listen_unix(tmp_path / "s", mode=0o600),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(tmp_path / "s"))


def test_a_live_socket_is_not_taken(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "s", mode=0o600):
        inode = inode_of(tmp_path / "s")
        with pytest.raises(OwnedError, match="serves"):
            listen_unix(tmp_path / "s", mode=0o600)
        assert inode_of(tmp_path / "s") == inode


def test_a_busy_listener_with_a_full_backlog_is_live_too(tmp_path: Path) -> None:
    clients = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(str(tmp_path / "s"))
            clients.append(client)
        with pytest.raises(OwnedError):
            listen_unix(tmp_path / "s", mode=0o600)
    for client in clients:
        client.close()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(UsageError, match="is not a socket"):
        listen_unix(tmp_path / "s", mode=0o600)
    assert (tmp_path / "s").read_text() == "precious"


def test_an_unknown_group_is_named_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no group 'no-such-group'"):
        listen_unix(tmp_path / "s", mode=0o600, group="no-such-group")
    assert not (tmp_path / "s").exists()


def test_the_group_owns_the_file(tmp_path: Path) -> None:
    gid = os.getgroups()[-1] if os.getgroups() else os.getgid()
    with listen_unix(tmp_path / "s", mode=0o660, group=grp.getgrgid(gid).gr_name):
        assert (tmp_path / "s").stat().st_gid == gid


def test_a_path_that_is_too_long_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ReplicatorError, match="cannot listen at"):
        listen_unix(tmp_path / ("s" * 108), mode=0o600)


def test_only_our_own_file_is_removed(tmp_path: Path) -> None:
    listen_unix(tmp_path / "s", mode=0o600).close()
    mine = inode_of(tmp_path / "s")
    (tmp_path / "other").write_text("")
    (tmp_path / "s").rename(tmp_path / "away")
    (tmp_path / "other").rename(tmp_path / "s")
    remove_unix(tmp_path / "s", mine)
    assert (tmp_path / "s").exists()
    remove_unix(tmp_path / "away", mine)
    remove_unix(tmp_path / "away", mine)
    assert not (tmp_path / "away").exists()
