# SPDX-License-Identifier: Apache-2.0
"""What the three daemons share about their life: options, lock, signals, exit code.

A daemon's `main` reads as: capture the signals, take the config path, then `run_daemon(life)`,
where the coroutine `life(daemon)` loads the config, holds its lock, opens its sockets, serves until
`daemon.stop` is set, and shuts down. Only the lock decides who is the daemon: it is taken before
any socket is touched, so a socket file without a listener is known to be left over from a dead one.

The lock file stays when the lock is let go: to remove it would let a second process lock a file
that a third can no longer see. The kernel drops the lock with the process, however it dies.

While a life serves, it says so by `daemon.serving(reload, dump)`. A SIGHUP that came before counts
once, as soon as it serves; one that comes while a reload runs counts once behind it. A reload that
is refused leaves everything as it was, and says why in the log.

Failures: a ReplicatorError, or an OSError that names a file, ends the daemon with one sentence on
stderr and the documented exit code. Anything else is a bug of ours and ends in its traceback.
A terminal (or a pipe) that is gone takes no more words, and ends nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import uvloop

from replicator import __version__
from replicator.base.errors import OwnedError, ReplicatorError, UsageError
from replicator.base.mishaps import mishap
from replicator.base.notify import Notifier
from replicator.base.report import report
from replicator.base.signals import Signals, signal_name

INTERRUPTED = 130

Life = Callable[["Daemon"], Coroutine[Any, Any, None]]
Reload = Callable[[], Awaitable[None]]
"""Takes over what has changed in the configuration. Raises ReplicatorError, or an OSError that
names a file, where nothing was changed."""
Dump = Callable[[], Iterable[Mapping[str, object]]]
"""The state, a line for each thing, in fields."""

_log = logging.getLogger(__name__)


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


class Daemon:
    """What a life knows of its process."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        """Set when it is to end."""
        self._reload: Reload | None = None
        self._dump: Dump | None = None
        self._notifier: Notifier | None = None
        self._reload_due = False
        self._reloading: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def serving(
        self, *, reload: Reload, dump: Dump, notifier: Notifier
    ) -> AsyncIterator[None]:
        """While the block runs, SIGHUP and SIGUSR1 are obeyed."""
        self._reload, self._dump, self._notifier = reload, dump, notifier
        self._begin_reload()
        try:
            yield
        finally:
            self._reload = self._dump = None
            if self._reloading is not None:
                self._reloading.cancel()
                await asyncio.gather(self._reloading, return_exceptions=True)

    def take(self, number: int) -> None:
        """A signal, on the event loop."""
        if number in (signal.SIGTERM, signal.SIGINT):
            self.stop.set()
        elif number == signal.SIGHUP:
            self._reload_due = True
            self._begin_reload()
        elif number == signal.SIGUSR1 and self._dump is not None:
            for fields in self._dump():
                _log.info("state", extra=dict(fields))
        else:
            _log.warning("signal dropped", extra={"signal": signal_name(number)})

    def _begin_reload(self) -> None:
        is_busy = self._reloading is not None and not self._reloading.done()
        if self._reload_due and self._reload is not None and not is_busy:
            self._reloading = asyncio.get_running_loop().create_task(self._reload_while_due())

    async def _reload_while_due(self) -> None:
        """A supervision: whatever a reload meets, the daemon goes on as it was."""
        while self._reload_due and self._reload is not None:
            assert self._notifier is not None
            self._reload_due = False
            self._notifier.reloading()
            _log.info("reloading")
            try:
                await self._reload()
            except ReplicatorError as error:
                _log.error("reload refused", extra={"reason": error.message, "hint": error.hint})
            except OSError as error:
                _log.error("reload refused", extra={"reason": mishap(error).message})
            except Exception:  # noqa: BLE001
                _log.exception("reload failed")
            finally:
                self._notifier.reloaded()


def run_daemon(life: Life, signals: Signals | None = None) -> int:
    """Runs `life` on uvloop until it returns; the exit code of the process.

    SIGTERM and SIGINT set `stop`; a second SIGINT cuts the shutdown short.
    """
    signals = signals or Signals()
    try:
        _refuse_without_asserts()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_lived(life, signals))
    except ReplicatorError as error:
        return report(error)
    except OSError as error:
        if error.filename is None:
            raise
        return report(mishap(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        signals.end()
        _let_go_of_the_terminal()
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


async def _lived(life: Life, signals: Signals) -> None:
    daemon, loop = Daemon(), asyncio.get_running_loop()
    signals.listen(lambda number: _post(loop, daemon, number))
    await asyncio.sleep(0)  # what came before the loop is obeyed now
    if not daemon.stop.is_set():
        await life(daemon)


def _post(loop: asyncio.AbstractEventLoop, daemon: Daemon, number: int) -> None:
    """Within a signal handler."""
    with suppress(RuntimeError):  # the loop has been closed: the process ends
        loop.call_soon_threadsafe(daemon.take, number)


def _let_go_of_the_terminal() -> None:
    """The interpreter flushes its streams at its end, and takes one that cannot be for a failure
    of ours. Whoever read them may be gone."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
