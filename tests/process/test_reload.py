# SPDX-License-Identifier: Apache-2.0
"""A second VM on an ordinary day: nothing is restarted, and the first one loses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from replicator.base import pki
from replicator.base.errors import NotFoundError, ReplicatorError, UsageError
from replicator.control.client import ControlClient
from replicator.control.orders import MARK, OPEN_VIEW, POINTS, RELOAD, RESYNC, STATUS, VIEWS
from replicator.control.requests import MarkRequest, ReloadRequest, ViewRequest
from replicator.control.types import GroupStatus
from replicator.demo.site import Group, Site
from tests.peers.nbd_client import NbdClient
from tests.process.conftest import DISK_BYTES, MakeSite
from tests.process.source import Source
from tests.process.test_main_path import mark, protected, source_of, view_images
from tests.process.waiting import wait_until

TAKEN = ReloadRequest(removes_too=True)


def second(site: Site) -> Group:
    return Group("h", "external", (f'name = "x"\nsize = "{DISK_BYTES}"',), "200ms")


def set_groups(site: Site, *groups: Group) -> None:
    site.groups = groups
    site.write_configs()


def status_of(client: ControlClient, name: str) -> GroupStatus | None:
    return next((group for group in client.order(STATUS).groups if group.name == name), None)


def is_in(client: ControlClient, name: str, state: str) -> Callable[[], bool]:
    def look() -> bool:
        found = status_of(client, name)
        return found is not None and found.state == state

    return look


def streams(site: Site) -> list[str]:
    """Of the first group, in the receiver's inbox and history."""
    folder = site.home / "dr" / "groups" / "g" / "inbox"
    return sorted(path.name for path in folder.iterdir())


def command(site: Site, socket: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "replicator.cli.main", "--socket", socket, *words],
        check=False,
        capture_output=True,
        text=True,
    )


async def test_a_group_is_added_while_another_is_written_to(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    first = source_of(site)
    await first.connect()
    await first.write(20)
    await mark(site, "before")
    before = streams(site)
    pids = [site.pid(program) for program in ("receiver", "splitter", "agent")]
    writing = asyncio.create_task(first.write(400))
    set_groups(site, *site.groups, second(site))
    for client in (site.receiver, site.agent):
        done = await asyncio.to_thread(client.order, RELOAD, request=ReloadRequest())
        assert [(each.place, each.kind) for each in done.changes] == [("group h", "added")]
    await wait_until(is_in(site.agent, "h", "protected"), "the second group is protected")
    await writing
    new = Source({"x": site.export("h", "x")}, DISK_BYTES, 9)
    await new.connect()
    await new.write(30)
    await asyncio.to_thread(site.agent.order, MARK, "h", MarkRequest(label="one", wait=True))
    await mark(site, "after")
    assert await view_images(site, "after") == first.image()
    assert await view_images(site, "before") == first.image(20)
    assert streams(site) == before, "the first group has gone on in its stream"
    assert pids == [site.pid(program) for program in ("receiver", "splitter", "agent")]
    for point in site.receiver.order(POINTS, "g"):
        assert first.prefix_of(await view_images(site, f"#{point.sequence}")) is not None
    view = await asyncio.to_thread(
        site.receiver.order, OPEN_VIEW, request=ViewRequest(group="h", at="one")
    )
    reader = await NbdClient.connect(view.result.disks["x"])
    assert await reader.pread(offset=0, length=DISK_BYTES) == new.image()["x"]
    await reader.disconnect()
    await first.disconnect()
    await new.disconnect()


async def test_a_group_that_is_taken_out_ends_in_order_and_comes_back(make_site: MakeSite) -> None:
    site = make_site()
    set_groups(site, *site.groups, second(site))
    site.start("receiver", "splitter", "agent")
    await protected(site)
    await wait_until(is_in(site.agent, "h", "protected"), "the second is protected")
    new = Source({"x": site.export("h", "x")}, DISK_BYTES, 9)
    await new.connect()
    await new.write(30)
    first, gone = site.groups
    set_groups(site, first)
    for client in (site.agent, site.receiver):
        with pytest.raises(UsageError, match="takes away: group h"):
            await asyncio.to_thread(client.order, RELOAD, request=ReloadRequest())
    assert status_of(site.agent, "h") is not None
    await asyncio.to_thread(site.agent.order, RELOAD, request=TAKEN)
    assert status_of(site.agent, "h") is None
    new.abandon()
    # What was recorded until then has come: the last point is the whole of it.
    newest = site.receiver.order(POINTS, "h")[-1]
    view = await asyncio.to_thread(
        site.receiver.order, OPEN_VIEW, request=ViewRequest(group="h", at=f"#{newest.sequence}")
    )
    reader = await NbdClient.connect(view.result.disks["x"])
    assert await reader.pread(offset=0, length=DISK_BYTES) == new.image()["x"]
    await asyncio.to_thread(site.receiver.order, RELOAD, request=TAKEN)
    reader.abort()
    with pytest.raises(NotFoundError):
        site.receiver.order(POINTS, "h")
    assert site.receiver.order(VIEWS) == []
    assert (site.home / "dr" / "groups" / "h" / "disks" / "x.raw").exists()
    await protected(site)
    set_groups(site, first, gone)  # it comes back, with its history
    for each in (site.receiver, site.agent):
        await asyncio.to_thread(each.order, RELOAD, request=ReloadRequest())
    assert site.receiver.order(POINTS, "h")[-1].sequence == newest.sequence
    await wait_until(is_in(site.agent, "h", "lost"), "it waits for a resync")
    await asyncio.to_thread(site.agent.order, RESYNC, "h")
    back = await NbdClient.connect(site.export("h", "x"))
    await back.pwrite(bytes(DISK_BYTES), offset=0)
    await back.flush()
    await wait_until(is_in(site.agent, "h", "protected"), "it is protected again")
    await back.disconnect()


async def test_an_agent_that_is_taken_off_a_group_is_let_go(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    text = site.receiver_config.read_text()
    site.receiver_config.write_text(text.replace('agents = ["kvm1"]', 'agents = ["kvm2"]'))
    os.kill(site.pid("receiver"), signal.SIGHUP)

    def is_refused() -> bool:
        found = status_of(site.agent, "g")
        return found is not None and found.peer is None and "may not feed" in found.reason

    await wait_until(is_refused, "the agent is told that it may not feed the group")
    site.receiver_config.write_text(text)
    os.kill(site.pid("receiver"), signal.SIGHUP)
    await protected(site)
    await wait_until(lambda: status_of(site.agent, "g").peer is not None, "it is back")  # type: ignore[union-attr]


async def test_budgets_and_intervals_hold_without_a_restart(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    text = site.receiver_config.read_text()
    site.receiver_config.write_text(
        text.replace('max_bytes = "4294967296"', 'max_bytes = "64MiB"\nmin_lock = "1h"')
    )
    done = await asyncio.to_thread(site.receiver.order, RELOAD, request=ReloadRequest())
    assert [each.place for each in done.changes] == ["history.max_bytes", "history.min_lock"]

    def holds() -> bool:
        found = status_of(site.receiver, "g")
        assert found is not None
        return (found.history_capacity_bytes, found.lock_seconds) == (64 << 20, 3600.0)

    await wait_until(holds, "budget and lock are those of the file")
    agent = site.agent_config.read_text()
    site.agent_config.write_text(agent.replace('"200ms"', '"1h"'))
    await asyncio.to_thread(site.agent.order, RELOAD, request=ReloadRequest())
    await protected(site)
    client = await NbdClient.connect(site.export("g", "a"))
    points = len(site.receiver.order(POINTS, "g"))
    await client.pwrite(b"x" * 512, offset=0)
    marked = await mark(site, "only")
    assert marked.sequence is not None
    assert len(site.receiver.order(POINTS, "g")) == points + 1
    await client.disconnect()


async def test_rotated_certificates_are_taken_over_by_both_ends(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    folder = site.home / "pki"
    fresh = site.home / "fresh"
    pki.init_ca(fresh)
    for name in ("kvm1", "localhost"):
        pki.issue(fresh, name)
    for path in sorted(fresh.iterdir()):
        os.replace(path, folder / path.name)
    for client in (site.receiver, site.agent):
        await asyncio.to_thread(client.order, RELOAD, request=ReloadRequest())
        assert client.order(STATUS).certificate_warning == ""
    site.kill("receiver")
    site.start("receiver")
    await mark(site, "with the new ones")


async def test_an_error_in_the_file_is_said_and_changes_nothing(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    for client, file in ((site.receiver, site.receiver_config), (site.agent, site.agent_config)):
        text = file.read_text()
        file.write_text(text + "\nrubbish = 1\n")
        with pytest.raises(UsageError, match="unknown key"):
            await asyncio.to_thread(client.order, RELOAD, request=ReloadRequest())
        file.write_text(text)
        assert (
            await asyncio.to_thread(client.order, RELOAD, request=ReloadRequest())
        ).changes == []
    await protected(site)


async def test_the_command_shows_what_it_does(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    set_groups(site, second(site))
    shown = command(site, site.agent_socket, "reload", "--dry-run")
    assert shown.returncode == 0
    assert shown.stdout == "agent kvm1\n  group g: removed\n  group h: added\n"
    refused = command(site, site.agent_socket, "reload")
    assert refused.returncode == 2
    assert "there is no terminal to ask at" in refused.stderr
    await protected(site)
    done = command(site, site.agent_socket, "reload", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert [each["kind"] for each in json.loads(done.stdout)["changes"]] == ["removed", "added"]
    assert [group.name for group in site.agent.order(STATUS).groups] == ["h"]


async def test_what_left_the_file_while_the_agent_was_away_is_ended_by_its_next_reload(
    make_site: MakeSite,
) -> None:
    site = make_site()
    set_groups(site, *site.groups, second(site))
    site.start("receiver", "splitter", "agent")
    await wait_until(is_in(site.agent, "h", "protected"), "both are protected")
    client = await NbdClient.connect(site.export("h", "x"))
    site.stop("agent")
    set_groups(site, *site.groups[:1])
    site.start("agent")
    await protected(site)
    await client.pwrite(b"x" * 512, offset=0)  # the splitter has not read the file
    assert (
        await asyncio.to_thread(site.agent.order, RELOAD, request=ReloadRequest())
    ).changes == []
    with pytest.raises(ReplicatorError):
        await client.pwrite(b"x" * 512, offset=0)
    client.abort()
    await protected(site)
