# SPDX-License-Identifier: Apache-2.0
"""The agent's connection to the splitter: orders, and the statuses that it pushes.

The splitter may not be there, may be replaced by another process, or may be stopped. The link comes
back by itself, subscribes anew, and says what it sees: `on_status(status)` for each status, and
`on_status(None)` once whenever the splitter cannot be heard any more. A new process is told from
the old one by `status.instance`.

A status comes at least every 250 ms; SILENT_SECONDS without any means a splitter that hangs.

An answer is never older than the question: what was ordered shows in the first status behind the
answer on the line, and `current` is false until that has come. Nobody decides by an older one.

The splitter may be older than this program, and is not restarted for that: an order that it does
not know is not sent (UnreachableError), and `missing` says what it lacks.

Concurrency: one event loop. Orders may be given from any task; each waits for its own answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from agent.retrying.pace import Pace
from replicator.base.errors import ReplicatorError, UnreachableError
from replicator.base.trouble import is_bug, words_of
from replicator.control.splitter import (
    NEWS,
    AgentSide,
    Answer,
    Answered,
    AnyRequest,
    AppendDomainXml,
    CloseStream,
    CutKind,
    DeclareDisk,
    DiskDeclared,
    DropConnections,
    Hello,
    HelloAnswer,
    Mark,
    Marked,
    OpenStream,
    Ready,
    Reload,
    RemoveDisk,
    RemoveGroup,
    Resync,
    SplitterStatus,
    StreamOpened,
    Subscribe,
    SyncBegin,
)

log = structlog.get_logger("replicator.agent.splitter")

ANSWER_SECONDS = 10.0
SILENT_SECONDS = 3.0
READ_BYTES = 64 << 10
RETRY = Pace(first_seconds=0.05, most_seconds=1.0)


class SplitterLink:
    """See the head of this file."""

    def __init__(self, path: Path, on_status: Callable[[SplitterStatus | None], None]) -> None:
        self._path = path
        self._on_status = on_status
        self._side: AgentSide | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._instance = ""
        self._protocol: int | None = None  # not heard yet
        self.current = False
        """Whether the last status was made after all that was answered."""
        self._told = asyncio.Event()  # a status came, or the splitter went
        self.problem = "not connected to the splitter yet"
        """Why there is no splitter; empty while there is one."""

    async def run(self) -> None:
        """Runs until it is cancelled."""
        pace = RETRY.fresh()
        while True:
            try:
                await self._connect_and_listen(pace)
            except Exception as error:  # noqa: BLE001 - a supervision: see retrying
                self._lost(error)
            await asyncio.sleep(pace.next_seconds())

    async def ask(self, order: Callable[[int], AnyRequest]) -> Answer:
        """Sends the request that `order(id)` makes; the answer to it."""
        side, writer = self._side, self._writer
        if side is None or writer is None:
            raise UnreachableError(self.problem, hint="is replicator-splitter running?")
        request = order(side.next_id())
        self._require_known(request)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = answer
        writer.write(side.send(request))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError:
            raise UnreachableError(
                f"the splitter did not answer within {ANSWER_SECONDS:.0f} s"
            ) from None
        finally:
            self._waiting.pop(request.id, None)

    async def until_current(self) -> None:
        """Returns when a status is there that was made after all that was answered, or none is to
        come: there is no splitter."""
        while not self.current and self._side is not None:
            self._told.clear()
            await self._told.wait()

    async def reload(self) -> None:
        """It reads the same file. UnreachableError where it cannot be asked: a start of it, or its
        own SIGHUP, takes the changes over then."""
        await self.ask(lambda number: Reload(id=number))

    async def remove_group(self, group: str) -> None:
        """It is gone from the configuration, and what can be ended of it is."""
        await self.ask(lambda number: RemoveGroup(id=number, group=group))

    @property
    def missing(self) -> list[str]:
        """What the running splitter is too old for; it comes with its next start."""
        if self._protocol is None:
            return []
        return [text for number, text in sorted(NEWS.items()) if number > self._protocol]

    def _require_known(self, request: AnyRequest) -> None:
        if self._protocol is not None and request.since > self._protocol:
            raise UnreachableError(
                f"the running splitter is too old for this order ({type(request).__name__})",
                hint="start it anew when that suits you: it costs each of its groups a sync",
            )

    async def _connect_and_listen(self, pace: Pace) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        side = AgentSide()
        try:
            writer.write(side.send(Hello(id=side.next_id())))
            writer.write(side.send(Subscribe(id=side.next_id())))
            self._side, self._writer = side, writer
            while True:
                data = await _read(reader)
                for message in side.receive_data(data):
                    self._take(message)
                pace.succeeded()
        finally:
            self._side = self._writer = self._protocol = None
            self.current = False
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def _take(self, message: Answered | SplitterStatus) -> None:
        self.current = isinstance(message, SplitterStatus)
        if isinstance(message, SplitterStatus):
            self.problem = ""
            self._on_status(message)
            self._told.set()
            return
        if isinstance(message.answer, HelloAnswer):
            self._meet(message.answer)
        waiting = self._waiting.get(message.id)
        if waiting is None or waiting.done():
            return
        if message.error is not None:
            waiting.set_exception(message.error)
        elif message.answer is not None:
            waiting.set_result(message.answer)

    def _meet(self, hello: HelloAnswer) -> None:
        self._protocol = hello.protocol
        if hello.instance != self._instance:
            self._instance = hello.instance
            log.info("splitter", pid=hello.pid, instance=self._instance, protocol=hello.protocol)
            for text in self.missing:
                log.warning("splitter too old", missing=text)

    def _lost(self, error: Exception) -> None:
        text = error.message if isinstance(error, ReplicatorError) else _why(error, self._path)
        if text != self.problem:
            log.warning("no splitter", reason=text, exc_info=error if is_bug(error) else None)
        self.problem = text
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(UnreachableError(text))
        self._on_status(None)
        self._told.set()


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(SILENT_SECONDS):
            data = await reader.read(READ_BYTES)
    except TimeoutError:
        raise UnreachableError(
            f"the splitter has said nothing for {SILENT_SECONDS:.0f} s"
        ) from None
    if not data:
        raise UnreachableError("the splitter closed the connection")
    return data


def _why(error: Exception, path: Path) -> str:
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"no splitter is running at {path}"
    if is_bug(error):
        return f"the splitter at {path} cannot be heard: {words_of(error)}"
    return f"the splitter at {path} cannot be reached: {error}"


class GroupOrders:
    """A driver's orders for its own group (agent.drivers.driver.Orders), and the agent's mark."""

    def __init__(
        self, link: SplitterLink, group: str, above: Callable[[], tuple[int, int]]
    ) -> None:
        """`above`: the ordinal and the time that a new stream has to lie behind."""
        self._link = link
        self._group = group
        self._above = above

    async def open_stream(self, reason: str) -> StreamOpened:
        ordinal, time_ns = self._above()
        answer = await self._link.ask(
            lambda n: OpenStream(
                id=n,
                group=self._group,
                above_ordinal=ordinal,
                reason=reason,
                above_time_ns=time_ns,
            )
        )
        assert isinstance(answer, StreamOpened)
        return answer

    async def declare_disk(self, disk: str, size: int, instance: str) -> int:
        answer = await self._link.ask(
            lambda n: DeclareDisk(id=n, group=self._group, disk=disk, size=size, instance=instance)
        )
        assert isinstance(answer, DiskDeclared)
        return answer.index

    async def sync_begin(self, disk: str, reason: str, *, source_errors: int | None = None) -> None:
        await self._link.ask(
            lambda n: SyncBegin(
                id=n, group=self._group, disk=disk, reason=reason, source_errors=source_errors
            )
        )

    async def append_domain_xml(self, domain: str, xml: str) -> None:
        await self._link.ask(
            lambda n: AppendDomainXml(id=n, group=self._group, domain=domain, xml=xml)
        )

    async def ready(self, disk: str, connection: int) -> None:
        await self._link.ask(
            lambda n: Ready(id=n, group=self._group, disk=disk, connection=connection)
        )

    async def remove_disk(self, disk: str) -> None:
        await self._link.ask(lambda n: RemoveDisk(id=n, group=self._group, disk=disk))

    async def remove_group(self) -> None:
        """It is gone from the configuration, and everything of it is ended."""
        await self._link.remove_group(self._group)

    async def resync(self) -> None:
        ordinal, time_ns = self._above()
        await self._link.ask(
            lambda n: Resync(id=n, group=self._group, above_ordinal=ordinal, above_time_ns=time_ns)
        )

    async def close_stream(
        self,
        reason: str,
        *,
        final_cut: bool = False,
        unwatched: bool = False,
        stream: str | None = None,
    ) -> None:
        await self._link.ask(
            lambda n: CloseStream(
                id=n,
                group=self._group,
                reason=reason,
                final_cut=final_cut,
                unwatched=unwatched,
                stream=stream,
            )
        )

    async def give_up(self, stream: str, reason: str) -> None:
        """Closes that stream; one that was opened since stays."""
        await self._link.ask(
            lambda n: CloseStream(id=n, group=self._group, reason=reason, stream=stream)
        )

    async def drop_connections(self) -> None:
        await self._link.ask(lambda n: DropConnections(id=n, group=self._group))

    async def mark(
        self,
        label: str | None,
        kind: CutKind = "crash",
        *,
        expire_ns: int = 0,
        not_after_ns: int | None = None,
    ) -> Marked:
        answer = await self._link.ask(
            lambda n: Mark(
                id=n,
                group=self._group,
                label=label,
                kind=kind,
                expire_ns=expire_ns,
                not_after_ns=not_after_ns,
            )
        )
        assert isinstance(answer, Marked)
        return answer
