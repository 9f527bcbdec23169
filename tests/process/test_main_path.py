# SPDX-License-Identifier: Apache-2.0
"""From a write to a rolled-back replica, through three processes and the control API."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from replicator.base.errors import NotFoundError, OwnedError
from replicator.control.orders import (
    CLOSE_VIEW,
    MARK,
    OPEN_VIEW,
    POINTS,
    RESTORE,
    RESYNC,
    ROLLBACK,
    STATUS,
)
from replicator.control.requests import MarkRequest, RestoreRequest, RollbackRequest, ViewRequest
from replicator.control.types import GroupStatus, Point
from replicator.demo.site import Site
from tests.peers.nbd_client import NbdClient
from tests.process.conftest import DISK_BYTES, MakeSite
from tests.process.source import Source
from tests.process.waiting import wait_until


def source_of(site: Site, disks: str = "a", seed: int = 1) -> Source:
    return Source({disk: site.export("g", disk) for disk in disks}, DISK_BYTES, seed)


def group_at_receiver(site: Site) -> GroupStatus:
    return site.receiver.order(STATUS).groups[0]


def group_at_agent(site: Site) -> GroupStatus:
    return site.agent.order(STATUS).groups[0]


async def protected(site: Site) -> None:
    await wait_until(lambda: group_at_agent(site).state == "protected", "the group is protected")


async def view_images(site: Site, at: str) -> dict[str, bytes]:
    """The disks of a point, read through a view of it."""
    view = await asyncio.to_thread(
        site.receiver.order, OPEN_VIEW, request=ViewRequest(group="g", at=at)
    )
    images = {}
    for disk, uri in view.result.disks.items():
        client = await NbdClient.connect(uri)
        images[disk] = await client.pread(offset=0, length=DISK_BYTES)
        await client.disconnect()
    await asyncio.to_thread(site.receiver.order, CLOSE_VIEW, view.result.id)
    return images


async def mark(site: Site, label: str) -> Point:
    return await asyncio.to_thread(site.agent.order, MARK, "g", MarkRequest(label=label, wait=True))


async def test_every_point_is_a_prefix_and_a_rollback_can_be_undone(make_site: MakeSite) -> None:
    site = make_site(disks=2)
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site, "ab")
    await source.connect()
    marks: dict[str, int] = {}
    for number in range(4):
        await source.write(60)
        marks[f"mark {number}"] = len(source.writes)
        point = await mark(site, f"mark {number}")
        assert point.sequence is not None
        assert point.label == f"mark {number}"
    for label, count in marks.items():
        assert await view_images(site, label) == source.image(count)
    counts = []
    for listed in site.receiver.order(POINTS, "g"):
        prefix = source.prefix_of(await view_images(site, f"#{listed.sequence}"))
        assert prefix is not None, f"point {listed} is no prefix of the writes"
        counts.append(prefix)
    assert counts == sorted(counts)
    with pytest.raises(OwnedError):
        site.receiver.order(ROLLBACK, "g", RollbackRequest(to="mark 1"))
    await source.disconnect()
    site.stop("agent")
    await wait_until(lambda: group_at_receiver(site).peer is None, "the source has left")
    result = await asyncio.to_thread(
        site.receiver.order, ROLLBACK, "g", RollbackRequest(to="mark 1")
    )
    rolled = {disk: site.replica("g", disk).read_bytes() for disk in "ab"}
    assert rolled == source.image(marks["mark 1"])
    assert result.result.before.kind == "before-rollback"
    await asyncio.to_thread(
        site.receiver.order, ROLLBACK, "g", RollbackRequest(to=f"#{result.result.before.sequence}")
    )
    assert {disk: site.replica("g", disk).read_bytes() for disk in "ab"} == source.image()
    for label, count in marks.items():
        assert await view_images(site, label) == source.image(count)


async def test_after_a_rollback_the_source_must_resync(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site)
    await source.connect()
    await source.write(50)
    await mark(site, "good")
    good = len(source.writes)
    await source.write(50)
    site.stop("agent")
    await wait_until(lambda: group_at_receiver(site).peer is None, "the source has left")
    await asyncio.to_thread(site.receiver.order, ROLLBACK, "g", RollbackRequest(to="good"))
    site.start("agent")
    await wait_until(lambda: group_at_agent(site).state in ("lost", "rolled-back"), "lost is known")
    await source.write(20)  # the guest goes on; these are part of the sync's content below
    assert site.replica("g", "a").read_bytes() == source.image(good)["a"]
    await asyncio.to_thread(site.agent.order, RESYNC, "g")
    whole = source.image()["a"]
    for offset in range(0, DISK_BYTES, 1 << 20):
        await source.clients["a"].pwrite(whole[offset : offset + (1 << 20)], offset=offset)
    await source.clients["a"].flush()
    await protected(site)
    await source.write(10)
    await mark(site, "after")
    assert await view_images(site, "after") == source.image()
    assert await view_images(site, "good") == source.image(good)
    await source.disconnect()


async def test_a_live_source_that_is_detached_for_a_rollback_has_to_sync(
    make_site: MakeSite,
) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site)
    await source.connect()
    await source.write(40)
    await mark(site, "good")
    good = len(source.writes)
    await source.write(30)
    await asyncio.to_thread(
        site.receiver.order, ROLLBACK, "g", RollbackRequest(to="good", force_detach=True)
    )
    await wait_until(lambda: group_at_agent(site).state in ("lost", "rolled-back"), "lost is known")
    assert site.replica("g", "a").read_bytes() == source.image(good)["a"]
    await asyncio.to_thread(site.agent.order, RESYNC, "g")
    whole = source.image()["a"]
    for offset in range(0, DISK_BYTES, 1 << 20):
        await source.clients["a"].pwrite(whole[offset : offset + (1 << 20)], offset=offset)
    await source.clients["a"].flush()
    await protected(site)
    await mark(site, "after")
    assert await view_images(site, "after") == source.image()
    assert await view_images(site, "good") == source.image(good)
    await source.disconnect()


async def test_restore_writes_images_and_an_open_view_survives_a_rollback(
    make_site: MakeSite, tmp_path: Path
) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site)
    await source.connect()
    await source.write(40)
    await mark(site, "one")
    one = len(source.writes)
    await source.write(40)
    await mark(site, "two")
    await source.disconnect()
    view = await asyncio.to_thread(
        site.receiver.order, OPEN_VIEW, request=ViewRequest(group="g", at="two")
    )
    site.stop("agent")
    await wait_until(lambda: group_at_receiver(site).peer is None, "the source has left")
    await asyncio.to_thread(site.receiver.order, ROLLBACK, "g", RollbackRequest(to="one"))
    client = await NbdClient.connect(view.result.disks["a"])
    assert await client.pread(offset=0, length=DISK_BYTES) == source.image()["a"]
    await client.disconnect()
    target = tmp_path / "restored"
    result = await asyncio.to_thread(
        site.receiver.order, RESTORE, "g", RestoreRequest(at="two", to=str(target))
    )
    assert (target / "a.raw").read_bytes() == source.image()["a"]
    assert result.result.files == [str(target / "a.raw")]
    assert site.replica("g", "a").read_bytes() == source.image(one)["a"]


async def test_the_command_speaks_the_contract(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    source = source_of(site)
    await source.connect()
    await source.write(10)

    async def replicator(*words: str, at: Path) -> tuple[int, str, str]:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "replicator.cli.main", "--socket", str(at), *words],
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    code, out, _ = await replicator(
        "mark", "g", "--label", "m", "--wait", "--json", at=site.agent_socket
    )
    assert code == 0
    marked = json.loads(out)
    code, out, _ = await replicator("points", "g", "--json", at=site.receiver_socket)
    assert code == 0
    listed = json.loads(out)
    assert marked["sequence"] in [point["sequence"] for point in listed]
    assert {"sequence", "time", "until", "kind", "label"} <= set(listed[0])
    code, out, _ = await replicator("status", "--json", at=site.receiver_socket)
    status = json.loads(out)
    assert (code, status["role"], status["name"]) == (0, "receiver", "dr1")
    assert status["groups"][0]["disks"] == [{"name": "a", "size": DISK_BYTES}] or (
        status["groups"][0]["disks"][0]["size"] == DISK_BYTES
    )
    for words, at, expected in (
        (("points", "nosuch"), site.receiver_socket, 10),
        (("points", "g"), site.agent_socket, 2),
        (("mark", "g", "--label", "x"), site.receiver_socket, 2),
        (("rollback", "g", "--to", "m", "--yes"), site.receiver_socket, 11),
        (("rollback", "g", "--to", "#99999", "--yes"), site.receiver_socket, 10),
        (("view", "open", "g", "--at", "1999-01-01T00:00:00Z"), site.receiver_socket, 14),
        (("mark", "g", "--label", "latest"), site.agent_socket, 2),
    ):
        code, _, err = await replicator(*words, at=at)
        assert code == expected, (words, err)
        assert err.startswith("error: ")
        assert "Traceback" not in err
    await source.disconnect()


async def test_a_second_daemon_of_each_kind_is_refused(make_site: MakeSite) -> None:
    site = make_site()
    site.start("receiver", "splitter", "agent")
    await protected(site)
    for module, config in (
        ("receiver", site.receiver_config),
        ("agent.splitter", site.agent_config),
        ("agent", site.agent_config),
    ):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", module, "--config", str(config)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 11, done.stderr
        assert "Traceback" not in done.stderr
    assert group_at_agent(site).state == "protected"
    with pytest.raises(NotFoundError):
        site.receiver.order(POINTS, "other")
    for program in ("agent", "splitter", "receiver"):
        assert site.stop(program) == 0
