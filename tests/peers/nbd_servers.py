# SPDX-License-Identifier: Apache-2.0
"""The NBD servers that Replicator is measured against: nbdkit and qemu-nbd."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.peers.process import running, wait_for_unix


@contextlib.contextmanager
def nbdkit(directory: Path, *plugin: str) -> Iterator[str]:
    """`nbdkit PLUGIN ARGUMENTS…` on a unix socket; yields the URI of its default export."""
    path, log = directory / "nbdkit.sock", directory / "nbdkit.log"
    command: list[str | Path] = ["nbdkit", "-f", "-U", path, *plugin]
    with running(command, log) as child:
        wait_for_unix(path, child, log)
        yield f"nbd+unix:///?socket={path}"


@contextlib.contextmanager
def qemu_nbd(directory: Path, image: Path) -> Iterator[str]:
    """qemu-nbd with a raw image on the page cache; yields the URI of its default export."""
    path, log = directory / "qemu-nbd.sock", directory / "qemu-nbd.log"
    command: list[str | Path] = [
        "qemu-nbd",
        "-f",
        "raw",
        "--cache=writeback",
        "-t",
        "-e",
        "16",
        "-k",
        path,
        image,
    ]
    with running(command, log) as child:
        wait_for_unix(path, child, log)
        yield f"nbd+unix:///?socket={path}"
