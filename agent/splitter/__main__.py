# SPDX-License-Identifier: Apache-2.0
"""`replicator-splitter --config agent.toml`: runs in the foreground, SIGTERM ends it."""

from __future__ import annotations

import asyncio
import logging
import sys

from agent.splitter.service import life
from replicator.base.daemon import config_path, run_daemon
from replicator.config.agent import load_agent

DEFAULT_CONFIG = "/etc/replicator/agent.toml"


def main() -> int:
    path = config_path("replicator-splitter", "Takes the writes of the guests.", DEFAULT_CONFIG)
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )

    async def run(stop: asyncio.Event) -> None:
        await life(load_agent(path), path, stop)

    return run_daemon(run)


if __name__ == "__main__":
    sys.exit(main())
