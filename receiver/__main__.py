# SPDX-License-Identifier: Apache-2.0
"""`replicator-receiver --config receiver.toml`: the receiver in the foreground."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from receiver.service import run_receiver
from replicator.base.daemon import config_path, run_daemon

DEFAULT_CONFIG = "/etc/replicator/receiver.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; see replicator.base.errors."""
    path = config_path(
        "replicator-receiver",
        "Keeps replicas of KVM guests and every recovery point of them.",
        DEFAULT_CONFIG,
        arguments,
    )

    async def life(stop: asyncio.Event) -> None:
        await run_receiver(path, stop)

    return run_daemon(life)


if __name__ == "__main__":
    sys.exit(main())
