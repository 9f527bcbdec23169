# SPDX-License-Identifier: Apache-2.0
"""The real splitter with one external disk, by itself: no agent, no receiver."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import running, wait_for_unix

FREE_SECONDS = 0.05

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
    """`memory` is a directory on tmpfs. Segments that are full are freed as an agent frees them
    whose receiver acknowledges at once, so the spool stays small and its memory is used again."""
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
        with _freeing(memory / "bench"):
            yield Splitter(directory / "nbd.sock", "bench/disk", child.pid)


@contextlib.contextmanager
def _freeing(group: Path) -> Iterator[None]:
    ended = threading.Event()

    def free() -> None:
        while not ended.wait(FREE_SECONDS):
            for segment in sorted(group.glob("*/*.seg"))[:-1]:
                segment.unlink()

    thread = threading.Thread(target=free)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
