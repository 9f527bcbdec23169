# SPDX-License-Identifier: Apache-2.0
"""Exports for the tests: a disk in memory that remembers what it was told, and ways to be slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from replicator.nbd.constants import Command
from replicator.nbd.exports import Client, ConnectionEnd, Export, ExportInfo
from replicator.nbd.request import Request

ALL_ABLE = ExportInfo(
    size_bytes=64 << 20, can_fua=True, can_trim=True, can_write_zeroes=True, multi_conn=True
)
WAIT_SECONDS = 120.0


class MemoryExport:
    """A disk in memory. `log` holds what it saw: (command, offset, length, flags, error)."""

    def __init__(self, info: ExportInfo = ALL_ABLE) -> None:
        self.info = info
        self.content = bytearray(info.size_bytes)
        self.log: list[tuple[int, int, int, int, int]] = []
        self.batches: list[int] = []
        self.opened_by: list[Client] = []
        self.ends: list[ConnectionEnd] = []
        self._called = asyncio.Event()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that only the server's calls can bring about."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self._called.clear()
                await self._called.wait()

    def opened(self, connection: Client) -> None:
        self.opened_by.append(connection)
        self._called.set()

    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        self.batches.append(len(batch))
        for request in batch:
            self.remember(request)
            if not request.answered:
                self.answer(connection, request)

    def closed(self, connection: Client, end: ConnectionEnd) -> None:
        self.ends.append(end)
        self._called.set()

    def remember(self, request: Request) -> None:
        self.log.append(
            (request.command, request.offset, request.length, request.flags, request.error)
        )
        self._called.set()

    def answer(self, connection: Client, request: Request) -> None:
        start, end = request.offset, request.offset + request.length
        match request.command:
            case Command.READ:
                connection.reply_data(request, bytes(self.content[start:end]))
                return
            case Command.WRITE:
                self.content[start:end] = request.payload
            case Command.WRITE_ZEROES | Command.TRIM:
                self.content[start:end] = bytes(request.length)
        connection.reply(request)

    def commands(self) -> list[int]:
        return [entry[0] for entry in self.log]


class HoldingExport(MemoryExport):
    """Holds the connection and answers only when told; payloads stay where they are."""

    def __init__(self, info: ExportInfo = ALL_ABLE) -> None:
        super().__init__(info)
        self.waiting: list[tuple[Client, Request]] = []

    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        self.batches.append(len(batch))
        for request in batch:
            self.remember(request)
            if not request.answered:
                self.waiting.append((connection, request))
        if self.waiting:
            connection.hold()

    def answer_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for connection, request in waiting:
            self.answer(connection, request)
            connection.release()


class Shelf:
    """Exports by name; the first one is the default."""

    def __init__(self, **exports: Export) -> None:
        self.exports: dict[str, Export] = dict(exports)

    def names(self) -> Sequence[str]:
        return list(self.exports)

    def find(self, name: str) -> Export | None:
        if not name:
            return next(iter(self.exports.values()), None)
        return self.exports.get(name)
