# SPDX-License-Identifier: Apache-2.0
"""`replicator-receiver --config receiver.toml`: the receiver in the foreground."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from replicator.base.signals import Signals
from replicator.base.standard import occupy_standard_streams

DEFAULT_CONFIG = "/etc/replicator/receiver.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code; see replicator.base.errors."""
    signals = Signals()  # first of all: to load the rest takes a while
    occupy_standard_streams()

    from receiver.service import run_receiver
    from replicator.base.daemon import Daemon, config_path, run_daemon

    path = config_path(
        "replicator-receiver",
        "Keeps replicas of KVM guests and every recovery point of them.",
        DEFAULT_CONFIG,
        arguments,
    )

    async def life(daemon: Daemon) -> None:
        await run_receiver(path, daemon)

    return run_daemon(life, signals)


if __name__ == "__main__":
    sys.exit(main())
