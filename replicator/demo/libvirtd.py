# SPDX-License-Identifier: Apache-2.0
"""A private libvirtd: a daemon of an unprivileged account, with all its files below one home.

libvirt's session mode needs nothing but a user and four directories (HOME and the XDG ones), so the
machine's own libvirt is neither asked nor touched, and several can run at once. The daemon is ours
to end; QEMU processes outlive it by design, so they are ended by the pid files that it left. A pid
file says nothing for sure: the process may be gone, its number in use again, and the daemon keeps
one of its own beside them. So a process is a guest of ours only if its command line names our home.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from replicator.base.errors import ReplicatorError
from replicator.demo.account import Account, require_program

START_SECONDS = 20.0
END_SECONDS = 10.0
VIRSH_SECONDS = 30.0
# Guests log to plain files (no virtlogd beside us), and no security driver labels our files.
_QEMU_CONF = 'stdio_handler = "file"\nsecurity_driver = "none"\n'


class PrivateLibvirtd:
    """A context manager: runs from entering to leaving. `home` is one of Account.make_home()."""

    def __init__(self, home: Path, account: Account) -> None:
        self._home = home
        self._account = account
        self._child: subprocess.Popen[bytes] | None = None
        self.socket = home / "run" / "libvirt" / "libvirt-sock"

    @property
    def uri(self) -> str:
        """For any process that may open the socket: the account's own, and root's."""
        return f"qemu+unix:///session?socket={self.socket}"

    def __enter__(self) -> PrivateLibvirtd:
        folder = self._home / "config" / "libvirt"
        self._account.make_directory(folder)
        conf = folder / "qemu.conf"
        conf.write_text(_QEMU_CONF)
        self._account.own(conf)
        self.start()
        return self

    def kill(self) -> None:
        """SIGKILL. The guests go on, and `start` finds them again."""
        child, self._child = self._child, None
        assert child is not None, "it is not running"
        child.kill()
        child.wait()

    def start(self) -> None:
        """Returns when it answers."""
        assert self._child is None, "it is running"
        daemon = require_program("libvirtd", package="libvirt-daemon")
        with (self._home / "libvirtd.log").open("ab") as log:
            self._child = subprocess.Popen(
                self._account.command(daemon),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._home,
                env=self._account.environment(self._home),
            )
        with ExitStack() as on_failure:
            on_failure.callback(self.__exit__)
            self._wait()
            on_failure.pop_all()

    def __exit__(self, *_: object) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.terminate()
            try:
                child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        for pid in self.guest_pids().values():
            self._end_guest(pid)

    def create(self, xml: str) -> None:
        """Starts a transient domain. Raises ReplicatorError with what libvirt says."""
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write(xml)
            file.flush()
            self.virsh("create", file.name)

    def destroy(self, name: str) -> None:
        self.virsh("destroy", name)

    def virsh(self, *words: str) -> str:
        """What virsh says. Raises ReplicatorError with its complaint."""
        virsh = require_program("virsh", package="libvirt-clients")
        done = subprocess.run(
            [virsh, "--quiet", "--connect", self.uri, *words],
            capture_output=True,
            text=True,
            timeout=VIRSH_SECONDS,
            check=False,
        )
        if done.returncode:
            raise ReplicatorError(f"virsh {words[0]}: {done.stderr.strip()}")
        return done.stdout

    def guest_pids(self) -> dict[str, int]:
        """Pids of the QEMU processes that this daemon has started and that live, by domain name."""
        found = {}
        for path in (self._home / "run" / "libvirt" / "qemu" / "run").glob("*.pid"):
            with suppress(ValueError, FileNotFoundError):
                pid = int(path.read_text())
                if self._is_guest(pid):
                    found[path.stem] = pid
        return found

    def _is_guest(self, pid: int) -> bool:
        try:
            return os.fsencode(f"{self._home}/") in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _end_guest(self, pid: int) -> None:
        """SIGKILL, and wait until it is gone: its files are about to be removed."""
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            # Asked again with the process held: now its number cannot pass to another one.
            if self._is_guest(pid):
                signal.pidfd_send_signal(process, signal.SIGKILL)
                ended = select.poll()
                ended.register(process, select.POLLIN)
                ended.poll(END_SECONDS * 1000)
        except ProcessLookupError:
            return
        finally:
            os.close(process)

    def _wait(self) -> None:
        """Until it accepts; a socket has no event for that, so it is tried until it does."""
        deadline = time.monotonic() + START_SECONDS
        assert self._child is not None
        while time.monotonic() < deadline and self._child.poll() is None:
            with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
                probe.connect(str(self.socket))
                return
            time.sleep(0.02)
        text = (self._home / "libvirtd.log").read_text(errors="replace")
        raise ReplicatorError(
            f"the private libvirtd does not answer on {self.socket}",
            hint=text.strip().splitlines()[-1] if text.strip() else "its log is empty",
        )
