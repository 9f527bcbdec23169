# SPDX-License-Identifier: Apache-2.0
"""What a receiver leaves on its disk, in the hands of the offline tools; and one after them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from replicator.cli.main import run
from replicator.control.orders import POINTS, RESTORE, ROLLBACK, STATUS, VERIFY_AUDIT
from replicator.control.requests import RestoreRequest, RollbackRequest
from tests.receiver_service.dr_site import DrSite, launched
from tests.receiver_service.test_orders import feed, good, leave, order, story

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


async def lived(site: DrSite) -> dict[str, bytes]:
    """A receiver that took a source in, rolled back, and stopped; what its labelled point holds."""
    source = story()
    async with site.running() as receiver:
        agent = await feed(site, source)
        await leave(agent, receiver)
        await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="good"))
        await order(
            site.control.order,
            RESTORE,
            "web",
            RestoreRequest(at="good", to=str(site.folder / "restored")),
        )
    return good(source).disks


def command(*words: object) -> int:
    return run([str(word) for word in words])


async def test_verified_extracted_and_rebuilt_it_goes_on(site: DrSite, capsys: Captured) -> None:
    disks = await lived(site)
    data_dir, out = site.data_dir, site.folder / "out"
    assert command("journal", "verify", data_dir) == 0
    assert command("audit", "verify", data_dir) == 0
    capsys.readouterr()
    group_dir = data_dir / "groups" / "web"
    assert command("journal", "extract", group_dir, "--at", "good", "--to", out, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == len(disks)
    for name, content in disks.items():
        assert (out / f"{name}.raw").read_bytes() == content
        assert (site.folder / "restored" / f"{name}.raw").read_bytes() == content
    (data_dir / "catalog.db").unlink()
    assert command("journal", "rebuild-catalog", data_dir) == 0
    async with site.running():
        points = await order(site.control.order, POINTS, "web")
        assert "good" in [point.label for point in points]
        assert (await order(site.control.order, STATUS)).audit_breaks == 0
        verdict = await order(site.control.order, VERIFY_AUDIT)
        assert verdict.faults == []
        assert verdict.entries == 4


async def test_tools_that_need_it_quiet_leave_a_running_receiver_alone(
    site: DrSite, capsys: Captured
) -> None:
    await lived(site)
    group_dir, out = site.data_dir / "groups" / "web", site.folder / "out"
    extract = ("journal", "extract", group_dir, "--at", "good", "--to", out)
    async with launched(site) as receiver:
        assert await asyncio.to_thread(command, *extract) == 11
        assert await asyncio.to_thread(command, "journal", "rebuild-catalog", site.data_dir) == 11
        assert await asyncio.to_thread(command, "journal", "verify", site.data_dir) == 0
        assert receiver.process.returncode is None
    assert command(*extract) == 0
