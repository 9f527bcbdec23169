# SPDX-License-Identifier: Apache-2.0
"""A raw image made a qcow2 image, by qemu-img.

QEMU's own program writes QEMU's own format; here it is run and its outcome put into words. It runs
in a process group of its own, which is killed when whoever waits for it gives up: `convert` and
`compare` are generators that yield while it works, and closing one ends it. What it writes goes
through the page cache; the caller makes it durable.

A qemu-img that a signal ended (systemd stops a service with all of its processes; so does the
kernel when memory runs out) is an interruption, UnreachableError, and no verdict on the images.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

from replicator.base.errors import (
    DamageError,
    NoSpaceError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)

POLL_SECONDS = 0.2
"""How often the waiting one is asked whether it still wants to wait."""

_OUTPUT_CHARS_MAX = 500


def find_qemu_img() -> str:
    """Raises UsageError where there is none."""
    found = shutil.which("qemu-img")
    if found is None:
        raise UsageError(
            "there is no qemu-img on the receiver's machine to make a qcow2 image",
            hint="install it there (Debian and Ubuntu: qemu-utils), or restore raw images",
        )
    return found


def convert(qemu_img: str, raw: Path, target: Path) -> Generator[int, None, None]:
    """Writes all of `raw` into `target`, an empty file. Raises NoSpaceError, ReplicatorError."""
    words = [qemu_img, "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target)]
    code, output = yield from _run(words)
    if code:
        _fail(target, output)


def compare(qemu_img: str, raw: Path, made: Path) -> Generator[int, None, None]:
    """Raises DamageError where they differ, ReplicatorError."""
    words = [qemu_img, "compare", "-f", "raw", "-F", "qcow2", str(raw), str(made)]
    code, output = yield from _run(words)
    if code == 1:  # what it documents for "the images differ"
        raise DamageError(
            f"{made} is not what was converted: {output}",
            hint="look at the disk and the kernel's log of the receiver's machine",
        )
    if code:
        _fail(made, output)


def _run(words: list[str]) -> Generator[int, None, tuple[int, str]]:
    """(exit code, the end of what it said). Raises UnreachableError."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
        process_group=0,
    )
    with process:
        try:
            while True:
                try:
                    output, _ = process.communicate(timeout=POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    yield 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode < 0:
        raise UnreachableError(
            f"qemu-img was ended by {signal.Signals(-process.returncode).name}",
            hint="go on with the restore later, by restore --resume",
        )
    text = output.decode(errors="replace").strip()
    return process.returncode, text[-_OUTPUT_CHARS_MAX:]


def _fail(path: Path, output: str) -> None:
    text = f"qemu-img on {path}: {output}"
    if "No space left on device" in output:
        raise NoSpaceError(text)
    raise ReplicatorError(text)
