# SPDX-License-Identifier: Apache-2.0
"""What protection costs a guest: the same QEMU mirror into the splitter and into its peers.

qemu-storage-daemon with `blockdev-mirror` (write-blocking, granularity 4096) and fio's 4-KiB
random writes at depth 32: what libvirt's synchronous block copy does, without a guest.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from replicator.base.units import GIB, MIB
from tests.bench.table import Row, interleaved
from tests.peers.fio import random_writes
from tests.peers.nbd_servers import nbdkit, qemu_nbd
from tests.peers.splitter import splitter
from tests.peers.storage_daemon import storage_daemon

DISK_BYTES = 256 * MIB
SPOOL_BYTES = 4 * GIB
DEPTH = 32
BLOCK_BYTES = 4096

Target = Callable[[ExitStack, Path], tuple[Path, str]]  # (socket, export) of a mirror's target


def sparse(path: Path, size: int) -> Path:
    path.touch()
    os.truncate(path, size)
    return path


def into_nbdkit_null(stack: ExitStack, directory: Path) -> tuple[Path, str]:
    stack.enter_context(nbdkit(directory, "null", f"size={DISK_BYTES}"))
    return directory / "nbdkit.sock", ""


def into_qemu_nbd(stack: ExitStack, directory: Path) -> tuple[Path, str]:
    image = sparse(directory / "target.raw", DISK_BYTES)
    stack.enter_context(qemu_nbd(directory, image))
    return directory / "qemu-nbd.sock", ""


def into_splitter(stack: ExitStack, directory: Path) -> tuple[Path, str]:
    memory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
    ours = stack.enter_context(
        splitter(directory, memory, disk_bytes=DISK_BYTES, memory_bytes=SPOOL_BYTES)
    )
    return ours.socket, ours.export


def mirrored(target: Target | None, seconds: float) -> float:
    """Writes per second of the load with a mirror into `target`, or with none."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        image = sparse(directory / "source.raw", DISK_BYTES)
        source = stack.enter_context(storage_daemon(directory, image))
        if target is not None:
            source.mirror(*target(stack, directory))
        load = random_writes(
            source.uri,
            block_bytes=BLOCK_BYTES,
            depth=DEPTH,
            span_bytes=DISK_BYTES,
            seconds=seconds,
        )
        return load.writes_per_second


def alone(target: Target, seconds: float) -> float:
    """Writes per second of fio straight into an NBD server."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        socket, export = target(stack, directory)
        load = random_writes(
            f"nbd+unix:///{export}?socket={socket}",
            block_bytes=BLOCK_BYTES,
            depth=DEPTH,
            span_bytes=DISK_BYTES,
            seconds=seconds,
        )
        return load.writes_per_second


def into_nbdkit_file(stack: ExitStack, directory: Path) -> tuple[Path, str]:
    image = sparse(directory / "target.raw", DISK_BYTES)
    stack.enter_context(nbdkit(directory, "file", str(image)))
    return directory / "nbdkit.sock", ""


def mirror_row(rounds: int, seconds: float) -> Row:
    medians = interleaved(
        {
            "splitter": lambda: mirrored(into_splitter, seconds),
            "nbdkit null": lambda: mirrored(into_nbdkit_null, seconds),
            "qemu-nbd": lambda: mirrored(into_qemu_nbd, seconds),
            "unprotected": lambda: mirrored(None, seconds),
        },
        rounds,
    )
    title = "QEMU mirror, 4 KiB random, depth 32"
    return Row(title, "writes/s", "splitter", medians, {"nbdkit null": 1.0, "qemu-nbd": 1.3})


def alone_row(rounds: int, seconds: float) -> Row:
    medians = interleaved(
        {
            "splitter": lambda: alone(into_splitter, seconds),
            "nbdkit file": lambda: alone(into_nbdkit_file, seconds),
        },
        rounds,
    )
    title = "NBD server alone, 4 KiB random, depth 32"
    return Row(title, "writes/s", "splitter", medians, {"nbdkit file": 1.0})
