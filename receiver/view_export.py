# SPDX-License-Identifier: Apache-2.0
"""One disk of a view as an NBD export: read-only, any number of connections.

A read may wait for a disk, so it is done in a pool of threads and answered from the loop. The
reads that came together are one job, as long as they are small: a trip to a thread costs more
than reading 4 KiB out of the page cache.

A read that meets damage is answered with EIO, and the log says which file and where; the client's
other reads go on. Nothing that fails its checksum is ever served.

Failure: nothing is written here; what a dead view leaves is its socket file (see views.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

import structlog

from replicator.base.errors import ReplicatorError
from replicator.base.units import MIB
from replicator.nbd.connection import Connection
from replicator.nbd.constants import Command, WireError
from replicator.nbd.exports import ConnectionEnd, ExportInfo
from replicator.nbd.transmission import Request

JOB_BYTES = 1 * MIB
"""Reads of one batch share a job up to this; larger ones run side by side."""

_log = structlog.get_logger(__name__)


class DiskReader(Protocol):
    """A disk as of one point. Called from any thread of the pool, several at a time."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; the range lies within the disk. Raises DamageError, OSError."""
        ...


class ViewExport:
    """Serves `reader`. `drained` is for whoever wants to take the reader away."""

    def __init__(self, name: str, size_bytes: int, reader: DiskReader, pool: Executor) -> None:
        self._name = name
        self._reader = reader
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._jobs = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.info = ExportInfo(
            size_bytes=size_bytes,
            read_only=True,
            multi_conn=True,
            min_block_bytes=1,  # a disk's size need not be a multiple of anything
            description=name,
        )

    async def drained(self) -> None:
        """Returns when no read is under way in a thread."""
        await self._idle.wait()

    def opened(self, connection: Connection) -> None:
        pass

    def closed(self, connection: Connection, end: ConnectionEnd) -> None:
        pass

    def submit(self, connection: Connection, batch: Sequence[Request]) -> None:
        reads: list[Request] = []
        for request in batch:
            if request.answered:
                continue
            if request.command == Command.READ:
                reads.append(request)
            else:
                connection.reply(request)  # FLUSH: there is nothing to flush
        for job in _jobs_of(reads):
            self._begin(connection, job)

    def _begin(self, connection: Connection, job: list[Request]) -> None:
        self._jobs += 1
        self._idle.clear()
        self._pool.submit(self._run, connection, job)

    def _run(self, connection: Connection, job: list[Request]) -> None:
        """In a thread of the pool."""
        answers: list[bytes | None] = []
        try:
            answers.extend(self._read(request) for request in job)
        finally:
            answers.extend([None] * (len(job) - len(answers)))
            self._loop.call_soon_threadsafe(self._answer, connection, job, answers)

    def _read(self, request: Request) -> bytes | None:
        try:
            return self._reader.read(request.offset, request.length)
        except (ReplicatorError, OSError) as error:
            _log.error(
                "view.read_failed",
                export=self._name,
                offset=request.offset,
                length=request.length,
                error=str(error),
            )
            return None

    def _answer(
        self, connection: Connection, job: list[Request], answers: list[bytes | None]
    ) -> None:
        self._jobs -= 1
        if not self._jobs:
            self._idle.set()
        for request, data in zip(job, answers, strict=True):
            if data is None:
                connection.reply(request, WireError.EIO)
            else:
                connection.reply_data(request, data)


def _jobs_of(reads: Sequence[Request]) -> list[list[Request]]:
    """Cuts a batch into jobs of about JOB_BYTES, at least one request each."""
    jobs: list[list[Request]] = []
    room = 0
    for request in reads:
        if not jobs or request.length > room:
            jobs.append([])
            room = JOB_BYTES
        jobs[-1].append(request)
        room -= request.length
    return jobs
