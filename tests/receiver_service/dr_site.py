# SPDX-License-Identifier: Apache-2.0
"""A receiver in this process, on real sockets and a real directory; and one as a real process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from receiver.counted.machine import Machine
from receiver.service import Receiver, started
from replicator.base.clock import SystemClock
from replicator.base.notify import Notifier
from replicator.base.storage import Storage, SystemStorage
from replicator.config.receiver import load_receiver
from replicator.control.client import ControlClient
from replicator.wire.credentials import Credentials
from replicator.wire.identity import server_context
from tests.receiver_service.fake_agent import FakeAgent, Pki

READY_SECONDS = 120


class DrSite:
    """Config, certificates and directory of a receiver; the receiver itself comes and goes."""

    def __init__(
        self, folder: Path, *, groups: dict[str, list[str]] | None = None, max_bytes: str = "1GiB"
    ) -> None:
        self.folder = folder
        self.pki = Pki(folder)
        self.data_dir = folder / "data"
        self.socket = folder / "ctl.sock"
        self.config_file = folder / "receiver.toml"
        self.config_file.write_text(self._config(groups or {"web": ["kvm1"]}, max_bytes))
        self.control = ControlClient(self.socket)
        self.port = 0

    def replica(self, disk: str, group: str = "web") -> Path:
        return self.data_dir / "groups" / group / "disks" / f"{disk}.raw"

    @asynccontextmanager
    async def running(
        self, storage: Storage | None = None, machine: Machine | None = None
    ) -> AsyncIterator[Receiver]:
        """In this process."""
        config = load_receiver(self.config_file)
        section = config.receiver
        credentials = Credentials(server_context, section.ca, section.certificate, section.key)
        self.data_dir.mkdir(exist_ok=True)
        async with started(
            config,
            credentials,
            storage or SystemStorage(),
            SystemClock(),
            Notifier(),
            lambda: load_receiver(self.config_file),
            machine,
        ) as receiver:
            self.port = receiver.port
            yield receiver

    async def agent(self, name: str = "kvm1") -> FakeAgent:
        return await FakeAgent.connect(self.port, self.pki.client(name))

    def _config(self, groups: dict[str, list[str]], max_bytes: str) -> str:
        lines = [
            "[receiver]",
            'name = "dr"',
            'listen = "127.0.0.1:0"',
            f'data_dir = "{self.data_dir}"',
            f'control = "{self.socket}"',
            f'ca = "{self.pki.ca}"',
            f'certificate = "{self.pki.certificate}"',
            f'key = "{self.pki.key}"',
            "[history]",
            f'max_bytes = "{max_bytes}"',
        ]
        for name, agents in groups.items():
            quoted = ", ".join(f'"{agent}"' for agent in agents)
            lines += ["[[group]]", f'name = "{name}"', f"agents = [{quoted}]"]
        return "\n".join(lines) + "\n"


class ReceiverProcess:
    """`replicator-receiver` as a process of its own. Use `launched`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.log: list[str] = []
        self.port = 0
        self._ready = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def until_ready(self) -> None:
        async with asyncio.timeout(READY_SECONDS):
            await asyncio.wait(
                [self._reading, waiting := asyncio.create_task(self._ready.wait())],
                return_when=asyncio.FIRST_COMPLETED,
            )
        waiting.cancel()
        assert self.port, "the receiver ended:\n" + "".join(self.log)

    async def end(self, how: signal.Signals) -> int:
        """Its exit code, with the rest of its log read."""
        self.process.send_signal(how)
        await self._reading
        return await self.process.wait()

    async def _read(self) -> None:
        """Its log to the end, always taken; the line that says it is up tells the port."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            self.log.append(line)
            if "event=receiver.ready" in line:
                (port,) = (word for word in line.split() if word.startswith("port="))
                self.port = int(port.removeprefix("port="))
                self._ready.set()


@asynccontextmanager
async def launched(site: DrSite) -> AsyncIterator[ReceiverProcess]:
    """A receiver process that is up; killed at the end of the block if it still lives."""
    receiver = ReceiverProcess(await _spawn(site))
    try:
        await receiver.until_ready()
        site.port = receiver.port
        yield receiver
    finally:
        if receiver.process.returncode is None:
            await receiver.end(signal.SIGKILL)


async def _spawn(site: DrSite) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "receiver",
        "--config",
        str(site.config_file),
        stderr=asyncio.subprocess.PIPE,
    )


async def refused_start(site: DrSite) -> tuple[int, str]:
    """Exit code and stderr of a receiver that does not come up."""
    process = await _spawn(site)
    async with asyncio.timeout(READY_SECONDS):
        _, stderr = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stderr.decode()
