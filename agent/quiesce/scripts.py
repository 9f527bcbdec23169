# SPDX-License-Identifier: Apache-2.0
"""The admin's scripts around a quiesced point: run without a shell, in bounded time.

A script learns by its environment what it is run for: REPLICATOR_GROUP, REPLICATOR_LABEL (empty
without one), REPLICATOR_PHASE (pre, post). It is a session of its own, so at its time limit all
that it has started is killed with it. What it leaves running when it ends well stays: a `pre` may
hold a lock that way until its `post`. Its last lines of output go to the log.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import structlog

from replicator.base.errors import ReplicatorError

log = structlog.get_logger("replicator.agent.scripts")

Phase = Literal["pre", "post"]
LINES_KEPT = 20
LINE_BYTES_MAX = 1000
# What a script has left running may hold its output open for ever.
OUTPUT_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Script:
    """One of a group's two; `command` is empty where there is none."""

    command: Sequence[str]
    group: str
    phase: Phase
    limit_seconds: float

    async def run(self, label: str | None) -> None:
        """Raises ReplicatorError when it fails or takes too long."""
        if not self.command:
            return
        lines: deque[str] = deque(maxlen=LINES_KEPT)
        output, its_end = os.pipe()
        try:
            child = await self._start(label, its_end)
        except ReplicatorError:
            os.close(output)
            raise
        finally:
            os.close(its_end)
        reading = asyncio.create_task(_read(output, lines))
        try:
            async with asyncio.timeout(self.limit_seconds):
                code = await child.wait()
            await asyncio.wait([reading], timeout=OUTPUT_SECONDS)
        except TimeoutError:
            raise self._failed(f"takes longer than {self.limit_seconds:g} s", lines) from None
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        if code:
            raise self._failed(_how(code), lines)
        log.info("script", group=self.group, phase=self.phase, output=list(lines))

    async def _start(self, label: str | None, output: int) -> asyncio.subprocess.Process:
        """Its output is a pipe of ours: asyncio's own would make `wait` wait for its end too."""
        environment = os.environ | {
            "REPLICATOR_GROUP": self.group,
            "REPLICATOR_LABEL": label or "",
            "REPLICATOR_PHASE": self.phase,
        }
        try:
            return await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise self._failed(f"cannot be run: {error.strerror or error}", ()) from error

    def _failed(self, how: str, lines: Sequence[str]) -> ReplicatorError:
        log.warning(
            "script failed", group=self.group, phase=self.phase, how=how, output=list(lines)
        )
        last = f"its last line: {lines[-1]}" if lines else ""
        return ReplicatorError(
            f"the {self.phase} script {self.command[0]} of group {self.group!r} {how}", hint=last
        )


def _how(code: int) -> str:
    return f"ended with code {code}" if code > 0 else f"was ended by signal {-code}"


async def _read(pipe: int, lines: deque[str]) -> None:
    """Keeps the last lines; a line of any length costs no more than LINE_BYTES_MAX."""
    stream = asyncio.StreamReader(LINE_BYTES_MAX)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(pipe, "rb", buffering=0)
    )
    rest = b""
    try:
        while data := await stream.read(4096):
            *whole, rest = (rest + data).split(b"\n")
            lines.extend(_text(line) for line in whole)
            rest = rest[:LINE_BYTES_MAX]
        if rest:
            lines.append(_text(rest))
    finally:
        transport.close()


def _text(line: bytes) -> str:
    return line[:LINE_BYTES_MAX].decode(errors="replace").rstrip()
