# SPDX-License-Identifier: Apache-2.0
"""What a group leaves at its source when it leaves the configuration, and its end by order."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from replicator.base.errors import NotFoundError, UsageError
from replicator.control.orders import FORGET, RELOAD, RESYNC, STATUS
from replicator.control.requests import ForgetRequest, ReloadRequest
from replicator.control.types import Leftover
from replicator.demo.site import Limits, Site
from tests.process.conftest import DISK_BYTES, MakeSite
from tests.process.source import Source
from tests.process.test_isolation import fed, protected
from tests.process.waiting import wait_until

SPOOL_BYTES = 4 << 20


def command(socket: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "replicator.cli.main", "--socket", socket, *words],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def left_at_agent(site: Site) -> list[Leftover]:
    return site.agent.order(STATUS).leftovers


def spool(site: Site) -> list[Path]:
    return [site.memory / "g", site.home / "source" / "spool" / "g"]


async def captured_unshipped(site: Site) -> None:
    """The receiver is away, and half of the spool holds what `g` has written."""
    site.stop("receiver")
    source = Source({"a": site.export("g", "a")}, DISK_BYTES)
    await source.connect()
    for offset in range(0, SPOOL_BYTES // 2, 1 << 16):
        await source.clients["a"].pwrite(b"x" * (1 << 16), offset=offset)
    await source.disconnect()


def without_g(site: Site) -> None:
    site.groups = tuple(group for group in site.groups if group.name != "g")
    site.write_configs()


@pytest.mark.parametrize("how", ["reload", "restart of the agent", "restart of both"])
async def test_the_spool_of_a_group_that_left_is_said_and_freed_by_order(
    make_site: MakeSite, how: str
) -> None:
    limits = Limits(spool_memory_bytes=SPOOL_BYTES, spool_disk_bytes=SPOOL_BYTES)
    site = make_site(groups=("g", "h"), limits=limits)
    site.start("receiver", "splitter", "agent")
    for name in ("g", "h"):
        await protected(site, name)
    await captured_unshipped(site)
    with pytest.raises(UsageError, match="is in the configuration"):
        await asyncio.to_thread(site.agent.order, FORGET, "g", ForgetRequest(confirm="g"))
    if how == "reload":
        without_g(site)
        await asyncio.to_thread(site.agent.order, RELOAD, request=ReloadRequest(removes_too=True))
    else:
        site.kill("agent")
        if how == "restart of both":
            site.kill("splitter")
        without_g(site)
        if how == "restart of both":
            site.start("splitter")
        site.start("agent")
    await wait_until(
        lambda: any((each.bytes or 0) > SPOOL_BYTES // 3 for each in left_at_agent(site)),
        "the leftover is measured",
    )
    (left,) = await asyncio.to_thread(left_at_agent, site)
    assert left.name == "g"
    shown = command(site.agent_socket, "status")
    assert "left over: g, " in shown.stdout
    assert "replicator forget g" in shown.stdout

    unmeant = command(site.agent_socket, "forget", "g")
    assert (unmeant.returncode, "--confirm GROUP" in unmeant.stderr) == (2, True)
    wrong = command(site.agent_socket, "forget", "g", "--confirm", "h")
    assert wrong.returncode == 2
    assert any(path.exists() for path in spool(site))
    planned = command(site.agent_socket, "--json", "forget", "g", "--dry-run")
    assert json.loads(planned.stdout)["bytes"] > SPOOL_BYTES // 3

    done = command(site.agent_socket, "--json", "forget", "g", "--confirm", "g")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes"] > SPOOL_BYTES // 3
    assert not any(path.exists() for path in spool(site))
    assert not (site.home / "source" / "state" / "groups" / "g.json").exists()
    assert await asyncio.to_thread(left_at_agent, site) == []
    with pytest.raises(NotFoundError):
        await asyncio.to_thread(site.agent.order, FORGET, "g", ForgetRequest(confirm="g"))
    assert "forget" in site.said("agent")  # the order is on record

    site.start("receiver")
    if how == "restart of both":
        await asyncio.to_thread(site.agent.order, RESYNC, "h")
        source = Source({"a": site.export("h", "a")}, DISK_BYTES)
        await source.connect()
        await source.clients["a"].flush()  # it never held anything
        await source.disconnect()
    await protected(site, "h")
    await fed(site, "h")


async def test_at_the_receiver_too(make_site: MakeSite) -> None:
    site = make_site(groups=("g", "h"))
    site.start("receiver", "splitter", "agent")
    for name in ("g", "h"):
        await protected(site, name)
    await fed(site, "g")
    without_g(site)
    for client in (site.agent, site.receiver):
        await asyncio.to_thread(client.order, RELOAD, request=ReloadRequest(removes_too=True))
    done = command(site.receiver_socket, "forget", "g", "--confirm", "g")
    assert done.returncode == 0, done.stderr
    assert "recovery points" in done.stderr
    assert not (site.home / "dr" / "groups" / "g").exists()
    await fed(site, "h")
    verified = command(site.receiver_socket, "audit", "verify")
    assert verified.returncode == 0, verified.stdout
