# SPDX-License-Identifier: Apache-2.0
"""A guest's serial console on a unix socket: lines out, commands in.

QEMU listens on the socket from its start and drops what is said while nobody is connected, so
`open` is called right after the domain was created: a boot takes longer than that.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from replicator.base.errors import ReplicatorError, UnreachableError

CONNECT_SECONDS = 10.0
REPEAT_SECONDS = 3.0
_RECORD = re.compile(r"REC (\d+)")


class SilentGuestError(ReplicatorError):
    """The guest lives and has not said what was waited for."""


class Console:
    """Reads in the background. `lines` is all that was said; `confirmed` the last record that the
    guest called safe on both disks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lines: list[str] = []
        self.confirmed = 0
        self._writer = writer
        self._news = asyncio.Condition()
        self._ended = False
        self._task = asyncio.create_task(self._read(reader))

    @classmethod
    async def open(cls, path: Path) -> Console:
        """Connects as soon as QEMU listens. Raises UnreachableError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + CONNECT_SECONDS
        while True:
            try:
                return cls(*await asyncio.open_unix_connection(str(path)))
            except OSError as error:
                if loop.time() > deadline:
                    raise UnreachableError(f"no console on {path}: {error}") from error
                await asyncio.sleep(0.02)

    async def wait_for(self, pattern: str, limit_seconds: float) -> str:
        """The first line, said already or still to come, that begins with `pattern`.

        Raises ReplicatorError when the guest fails, ends, or says nothing of it in time.
        """
        seen = 0
        try:
            async with asyncio.timeout(limit_seconds), self._news:
                while True:
                    for line in self.lines[seen:]:
                        if line.startswith(pattern):
                            return line
                        if line.startswith("GUEST-FAILED"):
                            raise ReplicatorError(f"the guest says {line}")
                    seen = len(self.lines)
                    if self._ended:
                        raise ReplicatorError(f"the guest ended and never said {pattern}")
                    await self._news.wait()
        except TimeoutError as error:
            raise SilentGuestError(
                f"the guest did not say {pattern} within {limit_seconds:.0f} s",
                hint=f"its last words: {self.lines[-3:]}",
            ) from error

    async def wait_confirmed(self, number: int, limit_seconds: float) -> None:
        """Returns when record `number` is safe on both disks."""
        async with asyncio.timeout(limit_seconds), self._news:
            await self._news.wait_for(lambda: self.confirmed >= number or self._ended)
        if self.confirmed < number:
            raise ReplicatorError(f"the guest ended before record {number}")

    async def order(self, command: str, answer: str, limit_seconds: float) -> str:
        """Sends a command until the guest answers it; the guest takes a repeat for the same.

        Its shell reads with a time-out, and a line that arrives in pieces on a busy machine may be
        cut by it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_seconds
        while True:
            await self.send(command)
            left = deadline - loop.time()
            try:
                return await self.wait_for(answer, min(REPEAT_SECONDS, left))
            except SilentGuestError:
                if left <= REPEAT_SECONDS:
                    raise

    async def send(self, command: str) -> None:
        self._writer.write(command.encode() + b"\n")
        await self._writer.drain()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                await self._hear(line.decode(errors="replace").strip())
        except (OSError, ValueError):
            pass  # the guest was killed in the middle of a line
        finally:
            async with self._news:
                self._ended = True
                self._news.notify_all()

    async def _hear(self, line: str) -> None:
        if found := _RECORD.fullmatch(line):
            self.confirmed = int(found[1])
        async with self._news:
            self.lines.append(line)
            self._news.notify_all()
