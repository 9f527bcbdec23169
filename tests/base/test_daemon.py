# SPDX-License-Identifier: Apache-2.0
"""The life of a daemon, each in a process of its own."""

from __future__ import annotations

import signal
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
async def life(stop):
    with hold_lock(Path(sys.argv[1]), "agent a"):
        print("up", flush=True)
        await stop.wait()
        print("down", flush=True)
sys.exit(run_daemon(life))
"""


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
async def life(stop):
    print("up", flush=True)
    await stop.wait()
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
async def life(stop):
    raise DamageError("seg: offset 192: checksum differs", hint="restore it")
sys.exit(run_daemon(life))
"""
    )
    assert done.returncode == 13
    assert done.stderr == "error: seg: offset 192: checksum differs\nhint: restore it\n"


def test_a_file_that_the_system_refuses_is_a_sentence() -> None:
    done = run(
        """
async def life(stop):
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
async def life(stop):
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
async def life(stop):
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
async def life(stop):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    path = Path(sys.argv[1])
    with hold_lock(path, "agent a"):
        write_durably(SystemStorage(), path.parent / "state", b"x")
sys.exit(run_daemon(life))
"""


def test_a_disk_that_takes_no_byte_is_a_sentence_that_names_the_file(tmp_path: Path) -> None:
    done = run(NO_BYTE_MORE, str(tmp_path / "lock"))
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path}/state.new: File too large\n"
