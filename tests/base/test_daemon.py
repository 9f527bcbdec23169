# SPDX-License-Identifier: Apache-2.0
"""The life of a daemon, each in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROLOGUE = """
import asyncio, sys
from pathlib import Path
from replicator.base.daemon import config_path, hold_lock, run_daemon
from replicator.base.errors import DamageError
"""
SERVE = """
async def life(daemon):
    with hold_lock(Path(sys.argv[1]), "agent a"):
        print("up", flush=True)
        await daemon.stop.wait()
        print("down")
sys.exit(run_daemon(life))
"""

GLIBC_OWN = 1 << 31 | 1 << 32
"""Signals 32 and 33: whoever is spawned by glibc's posix_spawn (by make, say) has them ignored."""


def command(body: str, *arguments: str, options: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *options, "-c", PROLOGUE + body, *arguments]


def run(
    body: str, *arguments: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(body, *arguments, options=options),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def running(body: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A daemon that has said "up"."""
    with subprocess.Popen(
        command(body, *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        try:
            assert daemon.stdout.readline() == "up\n"
            yield daemon
        finally:
            daemon.kill()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, sign: signal.Signals) -> None:
    with running(SERVE, str(tmp_path / "lock")) as daemon:
        daemon.send_signal(sign)
        out, err = daemon.communicate(timeout=30)
    assert (daemon.returncode, out, err) == (0, "down\n", "")


def test_a_second_interrupt_cuts_the_shutdown_short(tmp_path: Path) -> None:
    body = """
async def life(daemon):
    print("up", flush=True)
    await daemon.stop.wait()
    print("stopping", flush=True)
    await asyncio.sleep(60)
sys.exit(run_daemon(life))
"""
    with running(body) as daemon:
        assert daemon.stdout is not None
        daemon.send_signal(signal.SIGINT)
        assert daemon.stdout.readline() == "stopping\n"
        daemon.send_signal(signal.SIGINT)
        _, err = daemon.communicate(timeout=30)
    assert (daemon.returncode, err) == (130, "")


def test_an_end_that_was_asked_for_before_the_loop_begins_nothing() -> None:
    done = run(
        """
import os, signal
from replicator.base.signals import Signals
signals = Signals()
os.kill(os.getpid(), signal.SIGTERM)
async def life(daemon):
    print("began")
sys.exit(run_daemon(life, signals))
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


OBEDIENT = """
import logging, os, signal, threading
from replicator.base.errors import UsageError
from replicator.base.notify import Notifier
from replicator.base.signals import DROPPED, Signals
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
def tell(number):
    os.kill(os.getpid(), number)
def dump():
    return [{"group": "web"}]
signals = Signals()
tell(signal.SIGHUP); tell(signal.SIGHUP); tell(signal.SIGUSR2)
"""


def test_a_reload_asked_for_during_the_start_counts_once_after_it() -> None:
    done = run(
        OBEDIENT
        + """
async def life(daemon):
    async def reload():
        print("reload")
        if len(rounds) == 0:
            tell(signal.SIGHUP)  # while one runs: counts once behind it
            await asyncio.sleep(0)
            tell(signal.SIGHUP)
            await asyncio.sleep(0)
        rounds.append(1)
        if len(rounds) == 2:
            daemon.stop.set()
    rounds = []
    print("starting")
    await asyncio.sleep(0)
    tell(signal.SIGHUP)
    await asyncio.sleep(0)
    print("up")
    async with asyncio.timeout(20), daemon.serving(reload=reload, dump=dump, notifier=Notifier()):
        await daemon.stop.wait()
sys.exit(run_daemon(life, signals))
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [
        "signal dropped", "starting", "up", "reloading", "reload", "reloading", "reload", "",
    ]  # fmt: skip


def test_a_reload_that_fails_leaves_the_daemon_as_it_was() -> None:
    done = run(
        OBEDIENT
        + """
async def life(daemon):
    errors = [UsageError("groups: bad", hint="mend it"), FileNotFoundError(2, "no", "/x.toml")]
    errors += [KeyError("bug")]
    over = asyncio.Event()
    async def reload():
        try:
            raise errors.pop(0)
        finally:
            tell(signal.SIGHUP) if errors else over.set()
            await asyncio.sleep(0)
    async with daemon.serving(reload=reload, dump=dump, notifier=Notifier()):
        await over.wait()
        await asyncio.sleep(0)
    print("down")
sys.exit(run_daemon(life, signals))
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = [
        "reloading\nreload refused\n",
        "reloading\nreload refused\n",
        "reloading\nreload failed\n",
    ]
    assert done.stdout.startswith("signal dropped\n" + "".join(told))
    assert "KeyError: 'bug'" in done.stdout
    assert done.stdout.endswith("down\n")


def test_no_signal_that_means_nothing_ends_it_and_none_is_inherited(tmp_path: Path) -> None:
    done = run(
        OBEDIENT
        + """
import subprocess
async def life(daemon):
    for number in sorted(DROPPED):
        tell(number)
    tell(signal.SIGUSR1)  # there is nothing yet that could be told
    await asyncio.sleep(0)
    async with daemon.serving(reload=lambda: asyncio.sleep(0), dump=dump, notifier=Notifier()):
        tell(signal.SIGUSR1)
        await asyncio.sleep(0.01)
        status = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True)
        print(len(DROPPED), status.stdout.split()[1].decode())
sys.exit(run_daemon(life, signals))
"""
    )
    assert (done.returncode, done.stderr) == (0, "")
    *logged, last = done.stdout.splitlines()
    count, ignored = last.split()
    assert logged.count("signal dropped") == 1 + int(count) + 1
    assert logged.count("state") == 1
    assert int(ignored, 16) & ~(GLIBC_OWN | ignored_here()) == 0


def ignored_here() -> int:
    """By whoever started the tests: a shell ignores some for what it runs in the background."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("SigIgn:"))
    return int(line.split()[1], 16)


def test_systemd_hears_of_a_reload_and_of_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        run(
            OBEDIENT
            + """
async def life(daemon):
    async def reload():
        daemon.stop.set()
    async with daemon.serving(reload=reload, dump=dump, notifier=Notifier()):
        await daemon.stop.wait()
        await asyncio.sleep(0)
sys.exit(run_daemon(life, signals))
"""
        )
        assert manager.recv(200).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(200) == b"READY=1"


def test_a_reader_of_its_words_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    with running(SERVE, str(tmp_path / "lock")) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.close()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0


def test_a_second_one_is_told_whose_lock_it_is(tmp_path: Path) -> None:
    lock = tmp_path / "state/lock"
    with running(SERVE, str(lock)) as first:
        second = run(SERVE, str(lock))
        assert second.returncode == 11
        assert second.stdout == ""
        assert f"agent a is running already: {lock} is locked by process {first.pid}" in (
            second.stderr
        )
        first.kill()
        first.wait(30)
        with running(SERVE, str(lock)) as third:
            assert lock.read_text() == f"{third.pid}\n"


def test_a_mishap_is_a_sentence_and_its_code() -> None:
    done = run(
        """
async def life(daemon):
    raise DamageError("seg: offset 192: checksum differs", hint="restore it")
sys.exit(run_daemon(life))
"""
    )
    assert done.returncode == 13
    assert done.stderr == "error: seg: offset 192: checksum differs\nhint: restore it\n"


def test_a_file_that_the_system_refuses_is_a_sentence() -> None:
    done = run(
        """
async def life(daemon):
    open("/no/such/file")
sys.exit(run_daemon(life))
"""
    )
    assert (done.returncode, done.stderr) == (
        1,
        "error: /no/such/file: No such file or directory\n",
    )


def test_a_bug_keeps_its_traceback() -> None:
    done = run(
        """
async def life(daemon):
    {}["bug"]
sys.exit(run_daemon(life))
"""
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'bug'" in done.stderr


def test_it_does_not_run_without_its_checks(tmp_path: Path) -> None:
    done = run(SERVE, str(tmp_path / "lock"), options=("-O",))
    assert done.returncode == 2
    assert done.stderr.startswith("error: python's -O drops the checks")


def test_it_runs_on_uvloop() -> None:
    done = run(
        """
async def life(daemon):
    print(type(asyncio.get_running_loop()).__module__)
sys.exit(run_daemon(life))
"""
    )
    assert (done.returncode, done.stdout) == (0, "uvloop\n")


def test_the_config_is_its_only_option() -> None:
    body = 'print(config_path("replicator-agent", "Ships.", "/etc/a.toml"))'
    assert run(body).stdout == "/etc/a.toml\n"
    assert run(body, "--config", "b.toml").stdout == "b.toml\n"
    misused = run(body, "--conf", "b.toml")
    assert misused.returncode == 2
    assert "unrecognized arguments: --conf" in misused.stderr
    assert run(body, "--version").stdout.startswith("replicator-agent 0.")


def test_the_splitter_can_afford_it() -> None:
    """It imports nothing but the standard library, uvloop, and the base."""
    done = run("print(*sorted({name.split('.')[0] for name in sys.modules}))")
    heavy = {"msgspec", "aiohttp", "click", "rich", "structlog", "numpy", "cryptography"}
    assert not heavy & set(done.stdout.split())


NO_BYTE_MORE = """
import resource
from replicator.base.storage import SystemStorage, write_durably
async def life(daemon):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    path = Path(sys.argv[1])
    with hold_lock(path, "agent a"):
        write_durably(SystemStorage(), path.parent / "state", b"x")
sys.exit(run_daemon(life))
"""


def test_a_disk_that_takes_no_byte_is_a_sentence_that_names_the_file(tmp_path: Path) -> None:
    done = run(NO_BYTE_MORE, str(tmp_path / "lock"))
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/state.new: writing at offset 0: File too large\n"
