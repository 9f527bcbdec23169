# SPDX-License-Identifier: Apache-2.0
"""`replicator-agent --config agent.toml`: runs in the foreground, SIGTERM ends it."""

from __future__ import annotations

import asyncio
import sys

from agent.service import life
from replicator.base.daemon import config_path, run_daemon
from replicator.base.logs import configure_logs
from replicator.config.agent import load_agent

DEFAULT_CONFIG = "/etc/replicator/agent.toml"


def main() -> int:
    path = config_path(
        "replicator-agent", "Ships the log of the guests' writes to the receiver.", DEFAULT_CONFIG
    )
    configure_logs()

    async def run(stop: asyncio.Event) -> None:
        await life(load_agent(path), stop)

    return run_daemon(run)


if __name__ == "__main__":
    sys.exit(main())
