# SPDX-License-Identifier: Apache-2.0
"""sd_notify, against a socket in systemd's place."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from replicator.base.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_each_state_is_one_datagram(systemd: socket.socket) -> None:
    notifier = Notifier()
    notifier.extend_start(30)
    notifier.ready("3 disks")
    notifier.status("lag 0.8 s")
    notifier.alive()
    notifier.reloading()
    notifier.reloaded()
    notifier.stopping()
    reloading = [systemd.recv(1000) for _ in range(4)] + [systemd.recv(1000)]
    assert reloading.pop().startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert reloading + [systemd.recv(1000) for _ in range(2)] == [
        b"EXTEND_TIMEOUT_USEC=30000000",
        b"READY=1\nSTATUS=3 disks",
        b"STATUS=lag 0.8 s",
        b"WATCHDOG=1",
        b"READY=1",
        b"STOPPING=1",
    ]


def test_children_do_not_inherit_the_socket(systemd: socket.socket) -> None:
    Notifier()
    assert "NOTIFY_SOCKET" not in os.environ


def test_an_abstract_socket_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"replicator-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        Notifier().stopping()
        assert sock.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("path", ["", "/nowhere/at/all"])
def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    Notifier().ready("up")


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [
        ("30000000", "self", 15.0),
        ("30000000", "", 15.0),
        ("30000000", "1", None),
        ("0", "", None),
        ("x", "", None),
        ("", "", None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_interval(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "self" else pid)
    assert Notifier().watchdog_interval_seconds == seconds
