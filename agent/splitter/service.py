# SPDX-License-Identifier: Apache-2.0
"""The life of the splitter process: start up, run, shut down.

It serves its exports from its own start, with or without an agent. The lock comes before any
socket, so a second splitter on the same state directory is refused while it has touched nothing.

Shutdown: appends that are queued may finish (max_stall at most), each group gets a last cut if one
may be made, its stream is closed, and in the same step the connections: nothing is answered behind
the end of a stream. Guests go on without us; the next start opens new streams, and a sync closes
the gap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final

from agent.splitter.control import ControlServer
from agent.splitter.exports import SplitterExports
from agent.splitter.groups import Groups
from agent.splitter.orders import Orders
from replicator.base.clock import Clock
from replicator.base.daemon import Daemon, hold_lock
from replicator.base.notify import Notifier
from replicator.base.storage import Storage
from replicator.base.unixsocket import inode_of, listen_unix, remove_unix
from replicator.config.agent import AgentConfig
from replicator.config.changes import Change
from replicator.config.environment import spool_warnings
from replicator.nbd.server import NbdServer, serve_unix

_log = logging.getLogger(__name__)

CONTROL_MODE: Final = 0o600


async def life(
    config: AgentConfig,
    storage: Storage,
    clock: Clock,
    daemon: Daemon,
    *,
    load: Callable[[], AgentConfig],
    memory_is_sticky: bool,
) -> None:
    """Runs the splitter until `daemon.stop` is set. `load` reads the configuration anew, for a
    reload; raises ConfigError."""
    notifier = Notifier()
    with hold_lock(config.agent.state_dir / "splitter.lock", f"splitter of {config.agent.name}"):
        for warning in spool_warnings(config.splitter):
            _log.warning("config", extra={"warning": warning})
        groups = Groups(config, storage, clock, memory_is_sticky=memory_is_sticky)
        groups.begin()

        async def take_over(*, with_agent: bool) -> list[Change]:
            found = await groups.reload(load(), with_agent=with_agent)
            for change in found:
                _log.info("config changed", extra={"what": str(change)})
            return found

        async def reload() -> None:
            await take_over(with_agent=False)

        orders = Orders(groups, partial(take_over, with_agent=True))
        async with _serving(config, groups, orders) as server:
            notifier.ready(f"serving {config.splitter.socket}")
            _log.info("serving", extra={"socket": config.splitter.socket})
            async with daemon.serving(reload=reload, dump=groups.told, notifier=notifier):
                with _watchdog(notifier):
                    await daemon.stop.wait()
            notifier.stopping()
            _log.info("stopping")
            await groups.drained()
            groups.shut_down()
            await server.close()
            groups.publisher.push()
            await asyncio.sleep(0)  # a step for the last status to leave


@asynccontextmanager
async def _serving(config: AgentConfig, groups: Groups, orders: Orders) -> AsyncIterator[NbdServer]:
    section = config.splitter
    control = ControlServer(orders, groups.publisher)
    listener = listen_unix(section.control, mode=CONTROL_MODE)
    inode = inode_of(section.control)
    control_server = await asyncio.start_unix_server(control.serve, sock=listener)
    try:
        server = await serve_unix(
            section.socket,
            SplitterExports(groups.logs),
            mode=section.socket_mode,
            group=section.socket_group or None,
        )
        try:
            yield server
        finally:
            await server.close()
    finally:
        control_server.close()
        await control.close()
        groups.publisher.close()
        remove_unix(section.control, inode)


@contextmanager
def _watchdog(notifier: Notifier) -> Iterator[None]:
    """Tells systemd, while the block runs, that the event loop turns."""
    interval = notifier.watchdog_interval_seconds
    if interval is None:
        yield
        return
    loop = asyncio.get_running_loop()
    handle: asyncio.Handle

    def feed() -> None:
        nonlocal handle
        notifier.alive()
        handle = loop.call_later(interval, feed)

    handle = loop.call_soon(feed)
    try:
        yield
    finally:
        handle.cancel()
