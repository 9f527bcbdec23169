# SPDX-License-Identifier: Apache-2.0
"""One disk of a view as an NBD export: any number of connections, read-only or writable.

A request may wait for a disk, so it is done in a pool of threads and answered from the loop. Those
that came together are one job, as long as they are small: a trip to a thread costs more than
reading 4 KiB out of the page cache. Within a job the order is that of their coming; a client that
has two requests under way at once may see them done in any order, as NBD has it.

A writable export writes into a throw-away overlay (receiver.views.overlay), which all connections
share without caches between, so what one wrote and got answered the others read. A flush has
nothing to do: an overlay lives no longer than the process.

Which parts are holes is told as `base:allocation`: of the point, and of what the overlay holds.

A request that meets damage is answered with EIO, and the log says which file and where; the
client's others go on. Nothing that fails its checksum is ever served. A write that the overlay has
no room for is answered with ENOSPC, and changes nothing.

Failure: nothing is written here; what a dead view leaves is its socket file (see open_views.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import structlog

from receiver.blocks.holes import Extents
from replicator.base.errors import NoSpaceError, ReplicatorError
from replicator.base.storage import Buffer
from replicator.base.units import MIB
from replicator.nbd.constants import Command, WireError
from replicator.nbd.exports import Client, ConnectionEnd, ExportInfo
from replicator.nbd.request import Request

_Answer = bytes | Extents | WireError
JOB_BYTES = 1 * MIB
"""Requests of one batch share a job up to this; larger ones run side by side."""

_log = structlog.get_logger(__name__)


class DiskReader(Protocol):
    """A disk as of one point. Called from any thread of the pool, several at a time."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; the range lies within the disk. Raises DamageError, OSError."""
        ...

    def extents(self, offset: int, length: int) -> Extents:
        """Which of the range are holes (receiver.blocks.holes); it lies within the disk. Raises
        DamageError, OSError."""
        ...


class DiskWriter(Protocol):
    """A disk that takes writes as well. Called as a DiskReader is; the ranges lie within it."""

    def write(self, offset: int, data: Buffer) -> None:
        """Raises NoSpaceError with nothing changed; DamageError, OSError."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Likewise; the range reads as zeroes afterwards."""
        ...


class ViewExport:
    """Serves `reader`, and `writer` if it is writable. `drained` is for whoever wants to take
    them away."""

    def __init__(
        self,
        name: str,
        size_bytes: int,
        reader: DiskReader,
        pool: Executor,
        writer: DiskWriter | None = None,
    ) -> None:
        self._name = name
        self._reader = reader
        self._writer = writer
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._jobs = 0
        self._writes: dict[Client, int] = {}  # of the batch that holds each
        self._idle = asyncio.Event()
        self._idle.set()
        self.info = ExportInfo(
            size_bytes=size_bytes,
            read_only=writer is None,
            can_fua=writer is not None,
            can_trim=writer is not None,
            can_write_zeroes=writer is not None,
            multi_conn=True,
            can_block_status=True,
            min_block_bytes=1,  # a disk's size need not be a multiple of anything
            description=name,
        )

    async def drained(self) -> None:
        """Returns when no read is under way in a thread."""
        await self._idle.wait()

    def opened(self, connection: Client) -> None:
        pass

    def closed(self, connection: Client, end: ConnectionEnd) -> None:
        pass

    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        tasks: list[_Task] = []
        for request in batch:
            if request.answered:
                continue
            if request.command == Command.FLUSH:
                connection.reply(request)
            else:
                tasks.append(_Task(request, request.payload))
        writes = sum(task.request.command == Command.WRITE for task in tasks)
        if writes:  # their payloads stay where they came: nothing is read meanwhile
            connection.hold()
            self._writes[connection] = writes
        for job in _jobs_of(tasks):
            self._begin(connection, job)

    def _begin(self, connection: Client, job: list[_Task]) -> None:
        self._jobs += 1
        self._idle.clear()
        self._pool.submit(self._run, connection, job)

    def _run(self, connection: Client, job: list[_Task]) -> None:
        """In a thread of the pool."""
        answers: list[_Answer] = []
        try:
            answers.extend(self._done(task) for task in job)
        finally:
            answers.extend([WireError.EIO] * (len(job) - len(answers)))
            self._loop.call_soon_threadsafe(self._answer, connection, job, answers)

    def _done(self, task: _Task) -> _Answer:
        """What was read or is there, or how it went."""
        request = task.request
        try:
            if request.command == Command.BLOCK_STATUS:
                return self._reader.extents(request.offset, request.length)
            if request.command == Command.READ:
                return self._reader.read(request.offset, request.length)
            assert self._writer is not None, "the protocol refuses writes to a read-only export"
            if request.command == Command.WRITE:
                self._writer.write(request.offset, task.payload)
            else:
                self._writer.zero(request.offset, request.length)
        except NoSpaceError as error:
            self._tell("view.no_space", request, error)
            return WireError.ENOSPC
        except (ReplicatorError, OSError) as error:
            is_read = request.command in (Command.READ, Command.BLOCK_STATUS)
            self._tell("view.read_failed" if is_read else "view.write_failed", request, error)
            return WireError.EIO
        return WireError.OK

    def _tell(self, event: str, request: Request, error: Exception) -> None:
        _log.error(
            event,
            export=self._name,
            offset=request.offset,
            length=request.length,
            error=str(error),
        )

    def _answer(self, connection: Client, job: list[_Task], answers: list[_Answer]) -> None:
        self._jobs -= 1
        if not self._jobs:
            self._idle.set()
        for task, answer in zip(job, answers, strict=True):
            if isinstance(answer, WireError):
                connection.reply(task.request, answer)
            elif isinstance(answer, list):
                connection.reply_status(task.request, answer)
            else:
                connection.reply_data(task.request, answer)
        self._written(connection, sum(task.request.command == Command.WRITE for task in job))

    def _written(self, connection: Client, count: int) -> None:
        if not count:
            return
        self._writes[connection] -= count
        if not self._writes[connection]:
            del self._writes[connection]
            connection.release()


@dataclass(frozen=True, slots=True)
class _Task:
    request: Request
    payload: Buffer


def _jobs_of(tasks: Sequence[_Task]) -> list[list[_Task]]:
    """Cuts a batch into jobs of about JOB_BYTES, at least one request each."""
    jobs: list[list[_Task]] = []
    room = 0
    for task in tasks:
        if not jobs or task.request.length > room:
            jobs.append([])
            room = JOB_BYTES
        jobs[-1].append(task)
        room -= task.request.length
    return jobs
