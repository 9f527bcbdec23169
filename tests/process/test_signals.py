# SPDX-License-Identifier: Apache-2.0
"""What signals do to the three real daemons, and what a terminal does that goes away."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from replicator.base.signals import DROPPED, signal_name
from replicator.demo.site import Program, Site
from tests.process.conftest import MakeSite
from tests.process.test_main_path import mark, protected, source_of, view_images
from tests.process.waiting import until_served, wait_until

PROGRAMS: tuple[Program, ...] = get_args(Program)
STARTS = 12
END_SECONDS = 60.0


def ordinals(site: Site) -> set[str]:
    """The streams that the splitter has told of in its log."""
    return set(re.findall(r"event=state group=g .*ordinal=(\d+)", site.said("splitter")))


def has_logged(site: Site, program: Program) -> bool:
    said = site.said(program)
    events = ("signal dropped", "reloading", "state")
    return all(re.search(rf'event="?{event}"?( |$)', said, re.M) for event in events)


async def test_no_signal_but_those_that_mean_it_ends_a_daemon(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site)
    await source.connect()
    await source.write(20)
    os.kill(site.pid("splitter"), signal.SIGUSR1)
    await wait_until(lambda: bool(ordinals(site)), "the splitter has told its state")
    for number in sorted(DROPPED | {signal.SIGHUP, signal.SIGUSR1}):
        for program in PROGRAMS:
            os.kill(site.pid(program), number)
    await wait_until(lambda: all(has_logged(site, each) for each in PROGRAMS), "all is logged")
    await source.write(20)
    await mark(site, "after")
    assert await view_images(site, "after") == source.image()
    assert len(ordinals(site)) == 1, "the splitter's stream has ended"
    await source.disconnect()
    for program in PROGRAMS:
        said = site.said(program)
        assert "Traceback" not in said
        for number in DROPPED:
            assert f"signal={signal_name(number)}" in said.replace('"', "")
        assert site.stop(program) == 0


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal; the test may have closed the first before the end."""
    master, slave = pty.openpty()
    try:
        yield master, slave
    finally:
        for end in (master, slave):
            try:
                os.close(end)
            except OSError:
                continue


def on_terminal(site: Site, program: Program, slave: int) -> subprocess.Popen[bytes]:
    """The daemon as a person starts it in a shell: leader of the terminal's session."""
    config = site.receiver_config if program == "receiver" else site.agent_config
    module = {"receiver": "receiver", "splitter": "agent.splitter", "agent": "agent"}[program]
    return subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", module, "--config", str(config)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_daemon_survives_its_terminal(make_site: MakeSite, program: Program) -> None:
    site = make_site()
    site.start(*(other for other in PROGRAMS if other != program))
    with terminal() as (master, slave):
        child = on_terminal(site, program, slave)
        try:
            os.close(slave)
            await protected(site)
            source = source_of(site)
            await source.connect()
            await source.write(10)
            os.close(master)
            os.kill(child.pid, signal.SIGUSR2)  # something to say to nobody
            await source.write(10)
            await mark(site, "after")
            assert await view_images(site, "after") == source.image()
            await source.disconnect()
            assert child.poll() is None
            child.terminate()
            assert await asyncio.to_thread(child.wait, END_SECONDS) == 0
        finally:
            child.kill()
            child.wait()


def served(site: Site, program: Program) -> Path:
    return {
        "receiver": site.receiver_socket,
        "splitter": site.nbd_socket,
        "agent": site.agent_socket,
    }[program]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_an_end_at_any_moment_of_a_start_is_no_traceback(
    make_site: MakeSite, program: Program, how: signal.Signals
) -> None:
    """Moments are spread over the time that a whole start takes, from the first one on at which
    Python has got as far as our code: before that the kernel's own end of it is as good."""
    site = make_site()
    began = time.monotonic()
    site.start(program)
    await until_served(served(site, program))
    whole_seconds = time.monotonic() - began
    site.stop(program)
    codes = []
    for number in range(STARTS):
        site.start(program)
        await until_captured(site.pid(program), how)
        await asyncio.sleep(whole_seconds * number / STARTS)
        codes.append(await asyncio.to_thread(site.stop, program, how))
    assert codes == [0] * STARTS
    assert "Traceback" not in site.said(program)


async def until_captured(pid: int, number: int) -> None:
    """The process has a handler for the signal that is ours (Python has one for INT of its own:
    TERM's is set together with that)."""
    status = Path(f"/proc/{pid}/status")

    def captured() -> bool:
        (mask,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", status.read_text())
        return bool(int(mask, 16) >> (signal.SIGUSR2 - 1) & 1 and int(mask, 16) >> (number - 1) & 1)

    await wait_until(captured, f"process {pid} captures {signal_name(number)}")
