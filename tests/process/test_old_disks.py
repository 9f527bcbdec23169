# SPDX-License-Identifier: Apache-2.0
"""What version 0.1.0 left on its disks is opened, served, verified and resumed by this one.

tests/golden/v0_1_0/make.py tells how it was made: sealed segments, merged batches, a rollback and
its undo, an inbox that was not applied, a spool that was not shipped, every process killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from replicator.control.orders import CLOSE_VIEW, OPEN_VIEW, POINTS, RESYNC, SCRUB
from replicator.control.requests import ViewRequest
from replicator.demo.site import Site
from tests.peers.nbd_client import NbdClient
from tests.process.conftest import MakeSite
from tests.process.test_main_path import group_at_agent, mark, protected
from tests.process.waiting import wait_until

GOLDEN = Path(__file__).parents[1] / "golden" / "v0_1_0"
DISK_BYTES = 2 << 20


@pytest.fixture
def expected() -> Any:
    return json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture
def site(make_site: MakeSite, tmp_path: Path) -> Site:
    """Its directories in place, nothing running."""
    site = make_site(disks=2, disk_bytes=DISK_BYTES)
    subprocess.run(["tar", "-xJf", GOLDEN / "site.tar.xz", "-C", tmp_path], check=True)
    for kept, there in (("dr", "dr"), ("source", "source")):
        subprocess.run(["cp", "-a", f"{tmp_path}/site/{kept}/.", site.home / there], check=True)
    subprocess.run(["cp", "-a", f"{tmp_path}/site/memory/.", site.memory], check=True)
    return site


async def digests(site: Site, at: str) -> dict[str, str]:
    """Of the disks of a point, through a view of it."""
    view = await asyncio.to_thread(
        site.receiver.order, OPEN_VIEW, request=ViewRequest(group="g", at=at)
    )
    found = {}
    for disk, uri in view.result.disks.items():
        client = await NbdClient.connect(uri)
        content = await client.pread(offset=0, length=DISK_BYTES)
        await client.disconnect()
        found[disk] = hashlib.sha256(content).hexdigest()
    await asyncio.to_thread(site.receiver.order, CLOSE_VIEW, view.result.id)
    return found


async def check_points(site: Site, expected: Mapping[str, Any]) -> None:
    for known in expected["points"]:
        assert await digests(site, f"#{known['sequence']}") == known["sha256"], known
    listed = {point.sequence: point for point in site.receiver.order(POINTS, "g")}
    for known in expected["points"]:
        point = listed[known["sequence"]]
        assert (point.time, point.label, point.kind, point.damaged) == (
            known["time"],
            known["label"],
            known["kind"],
            False,
        )


def verify(site: Site) -> None:
    """`journal verify` finds nothing, before or after this version has opened it."""
    command = [sys.executable, "-m", "replicator.cli.main", "journal", "verify"]
    done = subprocess.run([*command, site.home / "dr"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_what_the_receiver_kept_is_served_applied_and_verified(
    site: Site, expected: Any
) -> None:
    verify(site)
    site.start("receiver")
    await check_points(site, expected)
    assert await digests(site, "in the inbox") == expected["in the inbox"]
    scrubbed = await asyncio.to_thread(site.receiver.order, SCRUB, "g")
    assert scrubbed.bad == []
    site.stop("receiver")
    verify(site)
    site.start("receiver")
    await check_points(site, expected)
    assert await digests(site, "in the inbox") == expected["in the inbox"]


async def test_what_the_spool_kept_is_shipped_and_the_group_goes_on(
    site: Site, expected: Any
) -> None:
    site.start("receiver", "splitter", "agent")
    assert await digests(site, "in the inbox") == expected["in the inbox"]

    def has_come() -> bool:
        return any(point.label == "in the spool" for point in site.receiver.order(POINTS, "g"))

    await wait_until(has_come, "the rest of the old stream is shipped")
    assert await digests(site, "in the spool") == expected["in the spool"]
    await wait_until(lambda: group_at_agent(site).state == "lost", "the loss is known")
    await asyncio.to_thread(site.agent.order, RESYNC, "g")
    whole = {}
    for disk in "ab":
        whole[disk] = hashlib.sha256(content := disk.encode() * DISK_BYTES).hexdigest()
        client = await NbdClient.connect(site.export("g", disk))
        await client.pwrite(content, offset=0)
        await client.flush()
        await client.disconnect()
    await protected(site)
    point = await mark(site, "by this version")
    assert point.sequence is not None
    assert point.sequence > max(known["sequence"] for known in expected["points"])
    assert await digests(site, "by this version") == whole
    assert await digests(site, "in the spool") == expected["in the spool"]
    await check_points(site, expected)
