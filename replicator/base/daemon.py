# SPDX-License-Identifier: Apache-2.0
"""What the three daemons share about their life: options, lock, signals, exit code.

A daemon's `main` reads as: take the config path, then `run_daemon(life)`, where the coroutine
`life(stop)` loads the config, holds its lock, opens its sockets, serves until `stop` is set, and
shuts down. Only the lock decides who is the daemon: it is taken before any socket is touched,
so a socket file without a listener is known to be left over from a dead one.

The lock file stays when the lock is let go: to remove it would let a second process lock a file
that a third can no longer see. The kernel drops the lock with the process, however it dies.

Failures: a ReplicatorError, or an OSError that names a file, ends the daemon with one sentence on
stderr and the documented exit code. Anything else is a bug of ours and ends in its traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop

from replicator import __version__
from replicator.base.errors import OwnedError, ReplicatorError, UsageError
from replicator.base.report import mishap, report

INTERRUPTED = 130

Life = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


def config_path(
    program: str, summary: str, default: str, arguments: Sequence[str] | None = None
) -> Path:
    """The only option of a daemon, `--config FILE`. Ends the process with 2 on misuse."""
    parser = argparse.ArgumentParser(prog=program, description=summary, allow_abbrev=False)
    parser.add_argument(
        "--config", metavar="FILE", default=default, help=f"configuration (default {default})"
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    return Path(parser.parse_args(arguments).config)


def run_daemon(life: Life) -> int:
    """Runs `life` on uvloop until it returns; the exit code of the process.

    SIGTERM and SIGINT set the event that `life` is given; a second SIGINT cuts the shutdown short.
    """
    try:
        _refuse_without_asserts()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_stopped(life))
    except ReplicatorError as error:
        return report(error)
    except OSError as error:
        if error.filename is None:
            raise
        return report(mishap(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


@contextmanager
def hold_lock(path: Path, owner: str) -> Iterator[None]:
    """Holds the lock file `path` for the life of the block; its folder is made if need be.

    `owner` says whose lock it is ("agent NAME"). Raises OwnedError where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _owned(path, owner, os.pread(fd, 32, 0)) from None
        os.ftruncate(fd, 0)
        with suppress(OSError):  # on a full disk: the lock holds without it
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _owned(path: Path, owner: str, content: bytes) -> OwnedError:
    pid = content.strip().decode("ascii", "replace")
    by = f"process {pid}" if pid.isdigit() else "another process"
    return OwnedError(
        f"{owner} is running already: {path} is locked by {by}",
        hint="stop that one first, or give this one a directory of its own",
    )


def _refuse_without_asserts() -> None:
    if sys.flags.optimize:
        raise UsageError(
            "python's -O drops the checks that guard the data",
            hint="start without -O and without PYTHONOPTIMIZE",
        )


async def _until_stopped(life: Life) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, _interrupt, loop, stop)
    await life(stop)


def _interrupt(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    stop.set()
    loop.remove_signal_handler(signal.SIGINT)  # the next one raises KeyboardInterrupt
