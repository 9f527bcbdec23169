# SPDX-License-Identifier: Apache-2.0
"""A KVM host's side in real processes (splitter, agent), with a receiver made of the wire package.

The receiver runs in the test, over real TLS, and keeps everything in memory (fake_receiver), so a
test can look at each point, stop it, bring it back, or roll it back.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from random import Random
from subprocess import Popen

from replicator.base.address import Address
from replicator.base.clock import SystemClock
from replicator.base.errors import FencedError, ReplicatorError
from replicator.base.pki import init_ca, issue
from replicator.control.client import ControlClient
from replicator.control.orders import STATUS
from replicator.control.types import GroupStatus
from replicator.wire.identity import server_context
from replicator.wire.link import Link
from replicator.wire.messages import Hello
from replicator.wire.transport import WireServer, serve_wire
from tests.agent.fake_receiver import FakeReceiver
from tests.peers.nbd_client import NbdClient
from tests.peers.process import running, wait_for_unix

HOST = "127.0.0.1"
DISK_BYTES = 256 << 10
DISKS = ("a", "b")
WAIT_SECONDS = 120.0

CONFIG = """
[agent]
name = "{name}"
state_dir = "{directory}/state"
control = "{directory}/agent.sock"
metrics = "{metrics}"

[splitter]
socket = "{directory}/nbd.sock"
control = "{directory}/splitter.sock"
spool_memory_dir = "{directory}/memory"
spool_memory = "64MiB"
spool_disk_dir = "{directory}/spool"
spool_disk = "64MiB"

[receiver]
address = "{host}:{port}"
ca = "{directory}/ca.crt"
certificate = "{directory}/agent-1.crt"
key = "{directory}/agent-1.key"

[[group]]
name = "g"
driver = "external"
checkpoint_interval = "100ms"
{group}
disk = [{{ name = "a", size = "{size}" }}, {{ name = "b", size = "{size}" }}]
"""


@dataclass
class House:
    """The receiver's daemon, as far as a test needs one."""

    directory: Path
    group: FakeReceiver = field(default_factory=FakeReceiver)
    hellos: list[Hello] = field(default_factory=list)
    port: int = 0
    server: WireServer | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        tls = server_context(
            self.directory / "ca.crt", self.directory / "r.crt", self.directory / "r.key"
        )
        address = Address(HOST, self.port)
        self.server = await serve_wire(address, lambda: tls, self._session, clock=SystemClock())
        self.port = self.server.port

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None

    async def _session(self, link: Link) -> None:
        hello = await link.receive()
        assert isinstance(hello, Hello)
        assert hello.agent in link.peer.names
        self.hellos.append(hello)
        link.send(self.group.welcome())
        try:
            while True:
                message = await link.receive()
                for answer in self.group.receive(message):
                    link.send(answer)
                await link.drain()
                self.changed.set()
        except FencedError as error:
            link.close(error)
        except ReplicatorError:
            return


@dataclass
class Model:
    """What was written, and every content the disks had between two writes."""

    disks: list[bytearray] = field(default_factory=lambda: [bytearray(DISK_BYTES) for _ in DISKS])
    states: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.note()

    def note(self) -> None:
        self.states.add(_digest(self.disks))

    def write(self, disk: int, offset: int, data: bytes) -> None:
        self.disks[disk][offset : offset + len(data)] = data
        self.note()

    def check(self, group: FakeReceiver) -> None:
        """Every point is a prefix of what was written."""
        for point in group.points:
            image = group.images[point.sequence]
            assert _digest([image[index] for index in range(len(DISKS))]) in self.states

    def equals(self, group: FakeReceiver) -> bool:
        """Whether the newest point holds everything that was written."""
        image = group.images[group.points[-1].sequence]
        return _digest([image[index] for index in range(len(DISKS))]) == _digest(self.disks)


def _digest(disks: Sequence[bytes | bytearray]) -> bytes:
    return blake2b(b"".join(disks)).digest()


class Site:
    """One host. Processes are started and killed by the test."""

    def __init__(
        self,
        directory: Path,
        port: int,
        stack: ExitStack,
        metrics: str = "",
        group: str = "",
    ) -> None:
        self.directory = directory
        self._stack = stack
        self.model = Model()
        self.random = Random(7)
        self.configure(port, metrics=metrics, group=group)

    def configure(
        self, port: int, *, name: str = "agent-1", metrics: str = "", group: str = ""
    ) -> None:
        """`group`: more lines of its table."""
        self.config = self.directory / "agent.toml"
        self.config.write_text(
            CONFIG.format(
                name=name,
                directory=self.directory,
                host=HOST,
                port=port,
                size=DISK_BYTES,
                metrics=metrics,
                group=group,
            )
        )

    @property
    def control(self) -> ControlClient:
        return ControlClient(self.directory / "agent.sock")

    def _start(self, module: str, socket: str) -> Popen[bytes]:
        log = self.directory / f"{module}.log"
        command: list[str | Path] = [sys.executable, "-m", module, "--config", self.config]
        child = self._stack.enter_context(running(command, log))
        wait_for_unix(self.directory / socket, child, log)
        return child

    async def start_splitter(self) -> None:
        self.splitter = await asyncio.to_thread(self._start, "agent.splitter", "nbd.sock")

    async def start_agent(self) -> None:
        self.agent = await asyncio.to_thread(self._start, "agent", "agent.sock")

    async def kill(self, child: Popen[bytes]) -> None:
        child.send_signal(signal.SIGKILL)
        await asyncio.to_thread(child.wait)

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Writer]:
        """Connections to both exports, closed in order."""
        clients = [
            await NbdClient.connect(f"nbd+unix:///g/{name}?socket={self.directory}/nbd.sock")
            for name in DISKS
        ]
        try:
            yield Writer(self, clients)
        finally:
            for client in clients:
                await client.disconnect()

    async def group(self) -> GroupStatus:
        status = await asyncio.to_thread(self.control.order, STATUS)
        return status.groups[0]

    async def until(self, wanted: Callable[[GroupStatus], bool]) -> GroupStatus:
        """Asks until the group is as wanted; the API has no events."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not wanted(status := await self.group()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"the group stays {status}\n{self.logs()}") from None
        return status

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )


@dataclass
class Writer:
    """A guest with two disks."""

    site: Site
    clients: list[NbdClient]

    async def write(self, count: int = 1) -> None:
        """Random writes, one after the other, each noted before it is sent."""
        random, model = self.site.random, self.site.model
        for _ in range(count):
            disk = random.randrange(len(DISKS))
            offset = random.randrange(0, DISK_BYTES - 8192, 512)
            data = random.randbytes(random.choice([512, 4096, 8192]))
            model.write(disk, offset, data)
            await self.clients[disk].pwrite(data, offset=offset)

    async def write_all(self) -> None:
        """Everything again, as a resync wants it, and the FLUSH that ends it."""
        for disk, client in enumerate(self.clients):
            for offset in range(0, DISK_BYTES, 64 << 10):
                part = bytes(self.site.model.disks[disk][offset : offset + (64 << 10)])
                await client.pwrite(part, offset=offset)
        for client in self.clients:
            await client.flush()


def make_pki(directory: Path) -> None:
    init_ca(directory)
    issue(directory, "agent-1")
    issue(directory, "r", sans=[HOST])
