# SPDX-License-Identifier: Apache-2.0
"""A real splitter process, an agent's end of its control socket, and its spool read back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from journal.reader import LogReader
from journal.record import Record, first_chain
from journal.spool import StreamName, list_streams
from replicator.base.storage import SystemStorage
from replicator.base.units import MIB
from replicator.control.splitter import (
    AgentSide,
    Answer,
    Answered,
    AnyRequest,
    Hello,
    HelloAnswer,
    SplitterGroupStatus,
    SplitterStatus,
    Subscribe,
)
from tests.peers.nbd_client import NbdClient
from tests.peers.process import end, running, wait_for_unix
from tests.splitter.rig import kept

SIZE = 16 * MIB
WAIT_SECONDS = 120.0
_A = TypeVar("_A", bound=Answer)

CONFIG = """
[agent]
name = "host"
state_dir = "{home}/state"
control = "{home}/agent.sock"

[splitter]
socket = "{home}/nbd"
socket_mode = "{mode}"
control = "{home}/control"
spool_memory_dir = "{memory}"
spool_memory = "{memory_size}"
spool_disk_dir = "{home}/spool"
spool_disk = "{disk_size}"

[receiver]
address = "127.0.0.1:1"

[[group]]
name = "ext"
driver = "external"
checkpoint_interval = "100ms"
[[group.disk]]
name = "a"
size = "16MiB"
[[group.disk]]
name = "b"
size = "16MiB"

[[group]]
name = "vm"
checkpoint_interval = "100ms"
[[group.disk]]
domain = "vm"
target = "vda"
"""


@dataclass(frozen=True, slots=True)
class Home:
    """Where one splitter lives."""

    path: Path
    memory: Path

    @property
    def config(self) -> Path:
        return self.path / "agent.toml"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.path}/nbd"

    def write_config(
        self, *, memory_size: str = "64MiB", disk_size: str = "64MiB", mode: str = "0660"
    ) -> None:
        text = CONFIG.format(
            home=self.path,
            memory=self.memory,
            memory_size=memory_size,
            disk_size=disk_size,
            mode=mode,
        )
        self.config.write_text(text)

    def records(self, group: str, end_lsn: int | None = None) -> list[Record]:
        """The newest stream of a group from the files alone: up to `end_lsn`, or to where nothing
        more can be verified, as an agent reads what a dead splitter left."""
        storage = SystemStorage()
        folders = [self.memory / group, self.path / "spool" / group]
        stream: StreamName = list_streams(storage, folders)[-1]
        reader = LogReader(storage, folders, stream)
        try:
            lsn = reader.first_lsn
            assert lsn is not None
            chain = first_chain(stream.stream, stream.ordinal)
            if end_lsn is None:
                end_lsn = reader.verified_end(lsn, chain)[0]
            records: list[Record] = []
            while lsn < end_lsn:
                chunk = reader.read(lsn, chain, end_lsn, 4 * MIB)
                records += [kept(record) for _, record in chunk.records]
                lsn, chain = chunk.end_lsn, chunk.chain
            return records
        finally:
            reader.close()


@contextmanager
def home() -> Iterator[Home]:
    with (
        tempfile.TemporaryDirectory(prefix="split-") as path,
        tempfile.TemporaryDirectory(prefix="split-", dir="/dev/shm") as memory,
    ):
        place = Home(Path(path), Path(memory))
        place.write_config()
        yield place


COMMAND = [sys.executable, "-m", "agent.splitter", "--config"]


@contextmanager
def splitter(place: Home) -> Iterator[subprocess.Popen[bytes]]:
    """Serving when the block begins; what it said on stderr is printed if the test fails."""
    with running([*COMMAND, place.config], place.log) as child:
        wait_for_unix(place.path / "nbd", child, place.log)
        try:
            yield child
        finally:
            print(place.log.read_text())


def start_in_vain(place: Home) -> subprocess.CompletedProcess[str]:
    """A splitter that is expected to end by itself."""
    return subprocess.run(
        [*COMMAND, place.config], check=False, capture_output=True, text=True, timeout=WAIT_SECONDS
    )


def stop(child: subprocess.Popen[bytes]) -> int:
    end(child)
    return int(child.returncode)


class Agent:
    """The agent's end of the control socket, subscribed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._side = AgentSide()
        self._answers: list[Answered] = []
        self.statuses: list[SplitterStatus] = []

    async def ask(self, request: Callable[[int], AnyRequest], kind: type[_A]) -> _A:
        """The answer. Raises what the splitter reported."""
        sent = request(self._side.next_id())
        self._writer.write(self._side.send(sent))
        async with asyncio.timeout(WAIT_SECONDS):
            while not self._answers:
                await self._hear()
        answered = self._answers.pop(0)
        assert answered.id == sent.id
        if answered.error is not None:
            raise answered.error
        assert isinstance(answered.answer, kind)
        return answered.answer

    async def until(
        self, group: str, true: Callable[[SplitterGroupStatus], bool]
    ) -> SplitterGroupStatus:
        """The first status made from now on of which that is so."""
        await self.ask(lambda number: Hello(id=number), HelloAnswer)
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                for status in self.statuses:
                    found = next(one for one in status.groups if one.name == group)
                    if true(found):
                        return found
                self.statuses.clear()
                await self._hear()

    async def heard(self, count: int) -> list[SplitterStatus]:
        """The next `count` statuses."""
        self.statuses.clear()
        async with asyncio.timeout(WAIT_SECONDS):
            while len(self.statuses) < count:
                await self._hear()
        return self.statuses[:count]

    async def last_words(self) -> SplitterStatus:
        """The last status before the splitter hangs up."""
        async with asyncio.timeout(WAIT_SECONDS):
            while await self._hear():
                pass
        return self.statuses[-1]

    async def _hear(self) -> bool:
        data = await self._reader.read(1 << 16)
        for message in self._side.receive_data(data):
            if isinstance(message, SplitterStatus):
                self.statuses.append(message)
            else:
                self._answers.append(message)
                self.statuses.clear()  # those before the answer are older than what was asked
        return bool(data)


@asynccontextmanager
async def agent(place: Home) -> AsyncIterator[Agent]:
    async with subscribed(place.control) as one:
        yield one


@asynccontextmanager
async def subscribed(path: Path) -> AsyncIterator[Agent]:
    """An agent's end of the control socket at `path`."""
    async with _connected(path) as (reader, writer):
        one = Agent(reader, writer)
        await one.ask(lambda number: Subscribe(id=number), Answer)
        yield one


@asynccontextmanager
async def control(
    place: Home,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to the control socket."""
    async with _connected(place.control) as ends:
        yield ends


@asynccontextmanager
async def _connected(
    path: Path,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 22)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def connect(place: Home, export: str) -> NbdClient:
    return await NbdClient.connect(place.uri(export))


def uuid_text(number: int) -> str:
    return str(UUID(int=number))
