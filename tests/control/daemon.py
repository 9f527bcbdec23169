# SPDX-License-Identifier: Apache-2.0
"""A canned receiver on a real socket."""

from __future__ import annotations

import asyncio
import http.client
import socket
from pathlib import Path

from replicator.control.client import ControlClient
from tests.control.services import Audited, CannedReceiver

in_thread = asyncio.to_thread


class Daemon:
    """A receiver served at `path`, with a client and raw HTTP to talk to it."""

    def __init__(self, path: Path, receiver: CannedReceiver, audit: Audited) -> None:
        self.path = path
        self.receiver = receiver
        self.audit = audit
        self.client = ControlClient(path, wait_seconds=0)

    def raw(self, method: str, target: str, body: bytes | None = None) -> tuple[int, str]:
        """Status and text of a request that no client of ours would send."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self.path))
            connection.request(method, target, body)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()
