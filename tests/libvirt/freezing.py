# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.libvirt.freezing URI DOMAIN STATE_DIR FREEZE_TIMEOUT_NS`: an agent that freezes.

The agent's own way from the freeze to the thaw, with its driver's connection and the real watchdog.
Only the cut is not made: this process says "frozen" in its place and hangs, as if the splitter did.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from agent.drivers.libvirt.connection import LibvirtConnection
from agent.drivers.libvirt.freezer import LibvirtFreezer
from agent.memory import AgentMemory
from agent.quiesce.sequence import Quiescence
from replicator.base.clock import SystemClock
from replicator.base.storage import SystemStorage
from replicator.config.agent import GroupConfig
from replicator.config.values import DurationNs
from replicator.control.splitter import CutKind, Marked


async def hang(kind: CutKind, *, not_after_ns: int | None) -> Marked:
    print("frozen", flush=True)
    await asyncio.Event().wait()
    raise AssertionError("it was never set")


async def freeze(uri: str, domain: str, state: Path, timeout_ns: int) -> None:
    opened = asyncio.Event()
    connection = LibvirtConnection(uri, opened=opened.set, changed=lambda *_: None)
    running = asyncio.create_task(connection.run())
    await opened.wait()
    config = GroupConfig(name="g", freeze_timeout_ns=DurationNs(timeout_ns))
    freezer = LibvirtFreezer(uri, connection, [domain])
    memory = AgentMemory(SystemStorage(), state)
    await Quiescence(config, freezer, memory, SystemClock()).run(None, hang)
    running.cancel()


if __name__ == "__main__":
    asyncio.run(freeze(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
