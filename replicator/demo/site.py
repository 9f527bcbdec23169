# SPDX-License-Identifier: Apache-2.0
"""A whole installation in one directory: PKI, configs, receiver, splitter, agent.

Three real processes that talk mutual TLS over TCP on loopback, as one unprivileged account, with
everything they keep below one home directory. The demo and the process tests use it alike: each
program can be started, stopped in order (SIGTERM) or killed (SIGKILL) by itself.

    HOME/pki        CA and certificates            HOME/source   agent state, sockets, spool on disk
    HOME/*.toml     the two config files           HOME/dr       the receiver's data_dir
    HOME/*.log      what each program says         MEMORY        the spool's tmpfs
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from replicator.base import pki
from replicator.base.errors import ReplicatorError
from replicator.base.units import MIB
from replicator.control.client import ControlClient
from replicator.demo.account import Account
from replicator.demo.programs import own_code, own_python

Program = Literal["receiver", "splitter", "agent"]
_MODULES: dict[Program, str] = {
    "receiver": "receiver",
    "splitter": "agent.splitter",
    "agent": "agent",
}
_START_SECONDS = 60.0
_END_SECONDS = 60.0
_PORTS = (20_000, 32_000)
_PORT_TRIES = 200
_TMPFS = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Group:
    """One group for both configs. `disks` are TOML tables of `[[group.disk]]`, one a string."""

    name: str
    driver: Literal["libvirt", "external"]
    disks: tuple[str, ...]
    checkpoint_interval: str = "1s"


@dataclass(frozen=True, slots=True)
class Limits:
    """The sizes that a test may want small."""

    spool_memory_bytes: int = 256 * MIB
    spool_disk_bytes: int = 256 * MIB
    history_bytes: int = 4096 * MIB
    max_stall: str = "2s"


@dataclass
class Site:
    """See the head of this file. Use it as a context manager: whatever still runs is killed, and
    the tmpfs directory removed, at the end; the home is the caller's."""

    home: Path
    account: Account
    groups: tuple[Group, ...]
    limits: Limits = field(default_factory=Limits)
    libvirt_uri: str = "qemu:///session"

    def __post_init__(self) -> None:
        self._python = own_python(self.account)
        ports = free_ports(3)
        self.port, self.agent_metrics_port, self.receiver_metrics_port = ports
        self.memory = Path(tempfile.mkdtemp(prefix="replicator-", dir=_TMPFS))
        self.account.own(self.memory)
        self._running: dict[Program, subprocess.Popen[bytes]] = {}
        self._code: Path | None = None

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *exc: object) -> None:
        for program in list(self._running):
            self.kill(program)
        shutil.rmtree(self.memory)

    # -- where things are -------------------------------------------------------------------------

    @property
    def agent_config(self) -> Path:
        return self.home / "agent.toml"

    @property
    def receiver_config(self) -> Path:
        return self.home / "receiver.toml"

    @property
    def nbd_socket(self) -> Path:
        return self.home / "source" / "nbd.sock"

    @property
    def splitter_control(self) -> Path:
        return self.home / "source" / "splitter.sock"

    @property
    def agent_socket(self) -> Path:
        return self.home / "source" / "agent.sock"

    @property
    def receiver_socket(self) -> Path:
        return self.home / "dr" / "receiver.sock"

    @property
    def agent(self) -> ControlClient:
        return ControlClient(self.agent_socket, wait_seconds=_START_SECONDS)

    @property
    def receiver(self) -> ControlClient:
        return ControlClient(self.receiver_socket, wait_seconds=_START_SECONDS)

    def replica(self, group: str, disk: str) -> Path:
        return self.home / "dr" / "groups" / group / "disks" / f"{disk}.raw"

    def export(self, group: str, disk: str) -> str:
        """The NBD URI at the splitter."""
        return f"nbd+unix:///{group}/{disk}?socket={self.nbd_socket}"

    def log(self, program: Program) -> Path:
        return self.home / f"{program}.log"

    # -- making it --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Our code where the account can read it, PKI and configs. Once."""
        self._code = own_code(self.account, self.home)
        folder = self.account.make_directory(self.home / "pki")
        pki.init_ca(folder)
        pki.issue(folder, "kvm1")
        pki.issue(folder, "localhost")
        for path in folder.iterdir():
            self.account.own(path)
        for name in ("source", "dr"):
            self.account.make_directory(self.home / name)
        self.write_configs()

    def write_configs(self) -> None:
        self._write(self.agent_config, self._agent_toml())
        self._write(self.receiver_config, self._receiver_toml())

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o600)
        self.account.own(path)

    def _agent_toml(self) -> str:
        source = self.home / "source"
        parts = [
            f"""[agent]
name = "kvm1"
state_dir = "{source / "state"}"
control = "{self.agent_socket}"
metrics = "127.0.0.1:{self.agent_metrics_port}"

[splitter]
socket = "{self.nbd_socket}"
control = "{self.splitter_control}"
spool_memory_dir = "{self.memory}"
spool_memory = "{self.limits.spool_memory_bytes}"
spool_disk_dir = "{source / "spool"}"
spool_disk = "{self.limits.spool_disk_bytes}"
max_stall = "{self.limits.max_stall}"

[libvirt]
uri = "{self.libvirt_uri}"

[receiver]
address = "localhost:{self.port}"
{self._credentials("kvm1")}
"""
        ]
        for group in self.groups:
            parts.append(
                f'[[group]]\nname = "{group.name}"\ndriver = "{group.driver}"\n'
                f'checkpoint_interval = "{group.checkpoint_interval}"\n'
            )
            parts += [f"[[group.disk]]\n{disk}\n" for disk in group.disks]
        return "\n".join(parts)

    def _receiver_toml(self) -> str:
        groups = "\n".join(
            f'[[group]]\nname = "{group.name}"\nagents = ["kvm1"]\n' for group in self.groups
        )
        return f"""[receiver]
name = "dr1"
listen = "127.0.0.1:{self.port}"
data_dir = "{self.home / "dr"}"
control = "{self.receiver_socket}"
metrics = "127.0.0.1:{self.receiver_metrics_port}"
{self._credentials("localhost")}

[history]
max_bytes = "{self.limits.history_bytes}"
keep = ["all 1h", "1min 24h"]

{groups}"""

    def _credentials(self, name: str) -> str:
        folder = self.home / "pki"
        return (
            f'ca = "{folder / "ca.crt"}"\n'
            f'certificate = "{folder / f"{name}.crt"}"\n'
            f'key = "{folder / f"{name}.key"}"'
        )

    # -- running it -------------------------------------------------------------------------------

    def start(self, *programs: Program) -> None:
        """Starts the programs; the control clients wait for their sockets by themselves."""
        for program in programs:
            assert program not in self._running, f"{program} is running"
            config = self.receiver_config if program == "receiver" else self.agent_config
            command = self.account.command(
                self._python, "-m", _MODULES[program], "--config", config
            )
            with self.log(program).open("ab") as output:
                self._running[program] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self.home,
                    env=self._environment(),
                )

    def _environment(self) -> dict[str, str]:
        environment = self.account.environment(self.home)
        paths = [str(self._code)] if self._code else []
        paths += [path] if (path := os.environ.get("PYTHONPATH")) else []
        if paths:
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        return environment

    def pid(self, program: Program) -> int:
        return self._running[program].pid

    def is_running(self, program: Program) -> bool:
        child = self._running.get(program)
        return child is not None and child.poll() is None

    def stop(self, program: Program, how: signal.Signals = signal.SIGTERM) -> int:
        """The exit code. Raises ReplicatorError if it does not end."""
        child = self._running.pop(program)
        child.send_signal(how)
        try:
            return child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise ReplicatorError(
                f"{program} did not end within {_END_SECONDS:.0f} s of {how.name}",
                hint=f"its log is {self.log(program)}",
            ) from None

    def kill(self, program: Program) -> None:
        """SIGKILL, at once."""
        child = self._running.pop(program)
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGKILL)
        child.wait()

    def said(self, program: Program) -> str:
        """What the program has written so far."""
        path = self.log(program)
        return path.read_text(errors="replace") if path.exists() else ""


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that nobody uses, all different.

    Below the range from which the kernel gives ports to outgoing connections: one of those could
    take a port between this look and the bind.
    """
    found: list[int] = []
    for port in random.sample(range(*_PORTS), _PORT_TRIES):
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ReplicatorError(f"no {count} free TCP ports between {_PORTS[0]} and {_PORTS[1]}")
