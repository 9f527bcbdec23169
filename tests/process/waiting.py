# SPDX-License-Identifier: Apache-2.0
"""Waiting for something that another process does and that can only be asked for."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

from replicator.base.errors import ReplicatorError

LOOK_SECONDS = 0.05


async def wait_until(holds: Callable[[], bool], what: str, *, limit_seconds: float = 120) -> None:
    """Returns as soon as `holds()`; asked in a thread, since it may block. A daemon that does not
    answer yet counts as "no". AssertionError after the limit, naming `what`."""
    deadline = time.monotonic() + limit_seconds
    last: ReplicatorError | None = None
    while time.monotonic() < deadline:
        try:
            if await asyncio.to_thread(holds):
                return
            last = None
        except ReplicatorError as error:
            last = error
        await asyncio.sleep(LOOK_SECONDS)
    raise AssertionError(f"waited {limit_seconds} s in vain until {what}: {last or 'no'}")


async def until_served(path: Path) -> None:
    """Somebody listens on the unix socket: its file alone may be left over from a dead process."""

    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(path)) == 0

    await wait_until(listens, f"{path} is served")
