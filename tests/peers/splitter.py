# SPDX-License-Identifier: Apache-2.0
"""The real splitter with one external disk, by itself: no agent, no receiver."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import running, wait_for_unix

CONFIG = """
[agent]
name = "bench"
state_dir = "{directory}/state"
control = "{directory}/agent.sock"

[splitter]
socket = "{directory}/nbd.sock"
control = "{directory}/splitter.sock"
spool_memory_dir = "{memory}"
spool_memory = "{memory_size}"
spool_disk_dir = "{directory}/spool"
spool_disk = "64MiB"

[receiver]
address = "127.0.0.1:1"
ca = "{directory}/unused"
certificate = "{directory}/unused"
key = "{directory}/unused"

[[group]]
name = "bench"
driver = "external"

[[group.disk]]
name = "disk"
size = "{disk_size}"
"""


@dataclass(frozen=True, slots=True)
class Splitter:
    """A running splitter: its NBD socket and export, and the process."""

    socket: Path
    export: str
    pid: int

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{self.export}?socket={self.socket}"


@contextlib.contextmanager
def splitter(
    directory: Path, memory: Path, *, disk_bytes: int, memory_bytes: int
) -> Iterator[Splitter]:
    """`memory` is a directory on tmpfs; nobody frees the spool, so `memory_bytes` bounds it."""
    config = directory / "agent.toml"
    config.write_text(
        CONFIG.format(
            directory=directory, memory=memory, memory_size=memory_bytes, disk_size=disk_bytes
        )
    )
    log = directory / "splitter.log"
    command: list[str | Path] = [sys.executable, "-m", "agent.splitter", "--config", config]
    with running(command, log) as child:
        wait_for_unix(directory / "nbd.sock", child, log)
        yield Splitter(directory / "nbd.sock", "bench/disk", child.pid)
