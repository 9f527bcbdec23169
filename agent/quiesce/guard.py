# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the thaw watchdog (watchdog.py): starts it, tells it, hears it.

The watchdog thaws whenever its pipe ends, so there is nothing to do here when the agent fails: what
closes the pipe, be it `let_go`, a crash or kill -9, is the order to thaw.

It is no asyncio subprocess: those are killed with their event loop, and this one has to live on.
A thread of its own reads what it says and waits for its end.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress

from agent.quiesce.watch import Word
from replicator.base.errors import ReplicatorError, UnreachableError
from replicator.base.mishaps import reason

READY_SECONDS = 15.0
LINE_BYTES_MAX = 200


class ThawGuard:
    """One watchdog. All methods belong to the loop that started it."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self.pid = child.pid
        self._child = child
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._thawed: asyncio.Future[int] = self._loop.create_future()
        self.ended = asyncio.Event()
        self.exit_code: int | None = None
        threading.Thread(target=self._listen, name="thaw-guard", daemon=True).start()

    @classmethod
    async def start(cls, command: Sequence[str]) -> ThawGuard:
        """Returns when it is ready to thaw. Raises ReplicatorError: then there is none."""
        guard = cls(_spawn(command))
        try:
            async with asyncio.timeout(READY_SECONDS):
                await asyncio.shield(guard._ready)
        except TimeoutError:
            raise UnreachableError(
                f"the thaw watchdog is not ready within {READY_SECONDS:.0f} s"
            ) from None
        finally:
            if not guard._ready.done() or guard._ready.exception() is not None:
                guard.let_go()  # nothing was frozen: it goes
        return guard

    def say(self, word: Word) -> None:
        """Fine if it is gone: `thaw` finds that out."""
        assert word is not Word.GONE
        stdin = self._child.stdin
        assert stdin is not None
        if not stdin.closed:
            with suppress(BrokenPipeError):
                stdin.write(word.value.encode() + b"\n")

    def let_go(self) -> None:
        """Ends the pipe: whatever may be frozen is thawed. Never waits."""
        stdin = self._child.stdin
        assert stdin is not None
        with suppress(BrokenPipeError):
            stdin.close()

    async def thaw(self, limit_seconds: float) -> int:
        """How many filesystems were thawed. Raises UnreachableError when that is not known in
        time; the watchdog goes on trying, unless it is gone (`ended`)."""
        self.say(Word.THAW)
        try:
            async with asyncio.timeout(limit_seconds):
                return await asyncio.shield(self._thawed)
        except TimeoutError:
            raise UnreachableError(
                f"the guests could not be thawed within {limit_seconds:.0f} s",
                hint="the thaw is tried until it succeeds; see the agent's log",
            ) from None

    # -- the thread that listens

    def _listen(self) -> None:
        stdout = self._child.stdout
        assert stdout is not None
        with stdout:
            while line := stdout.readline(LINE_BYTES_MAX):
                self._tell(line.decode(errors="replace").split())
        code = self._child.wait()
        with suppress(RuntimeError):  # the loop is closed: the agent ends
            self._loop.call_soon_threadsafe(self._end, code)

    def _tell(self, words: list[str]) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._hear, words)

    def _hear(self, words: list[str]) -> None:
        match words:
            case ["ready"]:
                if not self._ready.done():
                    self._ready.set_result(None)
            case ["thawed", count] if count.isdecimal():
                if not self._thawed.done():
                    self._thawed.set_result(int(count))

    def _end(self, code: int) -> None:
        self.exit_code = code
        self.let_go()
        for future in (self._ready, self._thawed):
            if not future.done():
                future.set_exception(UnreachableError("the thaw watchdog has ended"))
                future.exception()  # whoever waits hears of it; nobody has to
        self.ended.set()


def _spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise ReplicatorError(f"the thaw watchdog cannot be started: {reason(error)}") from error
