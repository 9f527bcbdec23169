# SPDX-License-Identifier: Apache-2.0
"""`replicator-agent --config agent.toml`: runs in the foreground, SIGTERM ends it."""

from __future__ import annotations

import sys

from replicator.base.signals import Signals
from replicator.base.standard import occupy_standard_streams

DEFAULT_CONFIG = "/etc/replicator/agent.toml"


def main() -> int:
    signals = Signals()  # first of all: to load the rest takes a while
    occupy_standard_streams()

    from agent.service import life
    from replicator.base.daemon import Daemon, config_path, run_daemon
    from replicator.base.logs import configure_logs
    from replicator.config.agent import load_agent

    path = config_path(
        "replicator-agent", "Ships the log of the guests' writes to the receiver.", DEFAULT_CONFIG
    )
    configure_logs()

    async def run(daemon: Daemon) -> None:
        await life(lambda: load_agent(path), daemon)

    return run_daemon(run, signals)


if __name__ == "__main__":
    sys.exit(main())
