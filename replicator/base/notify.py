# SPDX-License-Identifier: Apache-2.0
"""sd_notify: tells systemd that we are up, what we do, that we live, that we go down.

One datagram to the socket named by NOTIFY_SOCKET. Without it the notifier is silent, so callers
never ask whether systemd is there. A datagram that systemd does not take is dropped: service
supervision must not be able to stop the service.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

PING_SHARE = 2  # feed the watchdog twice in its interval, as sd_watchdog_enabled(3) advises


class Notifier:
    """Made once, at start: it takes NOTIFY_SOCKET out of the environment of our children."""

    def __init__(self) -> None:
        name = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_interval_seconds = _watchdog_interval_seconds()

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """Feeds the watchdog: call it every `watchdog_interval_seconds`, if the work moves on."""
        self._send("WATCHDOG=1")

    def extend_start(self, seconds: int) -> None:
        """Recovery goes on: wait that much longer, from now, before giving the start up."""
        self._send(f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000}")

    def reloading(self) -> None:
        """Behind this `reloaded` has to follow, whatever came of it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock,
        ):
            sock.sendto(message.encode(), self._address)


def _watchdog_interval_seconds() -> float | None:
    """How often to call `alive`; None where no watchdog watches this process."""
    usec = os.environ.pop("WATCHDOG_USEC", "")
    pid = os.environ.pop("WATCHDOG_PID", "") or str(os.getpid())
    if not usec.isdigit() or int(usec) == 0 or pid != str(os.getpid()):
        return None
    return int(usec) / 1_000_000 / PING_SHARE
