# SPDX-License-Identifier: Apache-2.0
"""A child process of a test: started, waited for, ended by its own pid."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

END_LIMIT_SECONDS = 60.0
START_LIMIT_SECONDS = 120.0


class StartError(Exception):
    """The program ended, or did not serve in time; carries what it said."""


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `command` with its output in `log`; ends it with SIGTERM, then SIGKILL."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
        )
    try:
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(END_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for_unix(path: Path, child: subprocess.Popen[bytes], log: Path) -> None:
    """Returns as soon as somebody accepts on `path`. A socket has no event for "listens now",
    so this connects until it is accepted. Raises StartError."""
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                time.sleep(0.01)
                continue
            return
    raise StartError(f"{child.args!r} does not serve {path}:\n{log.read_text(errors='replace')}")
