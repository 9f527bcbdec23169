# SPDX-License-Identifier: Apache-2.0
"""`replicator-splitter --config agent.toml`: runs in the foreground, SIGTERM ends it in order."""

from __future__ import annotations

import sys

from replicator.base.signals import Signals
from replicator.base.standard import occupy_standard_streams

DEFAULT_CONFIG = "/etc/replicator/agent.toml"


def main() -> int:
    signals = Signals()  # first of all: to load the rest takes a while
    occupy_standard_streams()

    from agent.splitter.events import log_events
    from agent.splitter.service import life
    from replicator.base.clock import SystemClock
    from replicator.base.daemon import Daemon, config_path, run_daemon
    from replicator.base.storage import SystemStorage
    from replicator.config.agent import load_agent
    from replicator.config.environment import is_on_memory

    path = config_path(
        "replicator-splitter",
        "Takes every guest write over NBD, appends it to the log, answers.",
        DEFAULT_CONFIG,
    )
    events = log_events()

    async def run(daemon: Daemon) -> None:
        config = load_agent(path)
        # Appends to tmpfs are made in line; to anything else, or where we cannot tell, aside.
        sticky = not is_on_memory(config.splitter.spool_memory_dir)
        await life(
            config,
            SystemStorage(),
            SystemClock(),
            daemon,
            load=lambda: load_agent(path),
            memory_is_sticky=sticky,
        )

    try:
        return run_daemon(run, signals)
    finally:
        events.close()


if __name__ == "__main__":
    sys.exit(main())
