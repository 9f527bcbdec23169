# SPDX-License-Identifier: Apache-2.0
"""What is left of a group that left the configuration: said, kept, and forgotten by order alone."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from receiver.offline.audit_check import check_audit
from replicator.base.errors import NotFoundError, OwnedError, ReplicatorError, UsageError
from replicator.base.storage import SystemStorage
from replicator.control.orders import AUDITED, FORGET, POINTS, RELOAD, STATUS, VERIFY_AUDIT
from replicator.control.requests import ForgetRequest, ReloadRequest
from replicator.control.types import ForgetResult, Leftover
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.test_isolation import feeding
from tests.receiver_service.test_orders import order
from tests.receiver_service.troubled_disk import TroubledStorage, refusing

WAIT_SECONDS = 120.0
GOES = ForgetRequest(confirm="web")
BREAKS = ForgetRequest(confirm="web", break_lock=True, reason="it was a test machine")


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path, groups={"web": ["kvm-web"], "db": ["kvm-db"]})


def configure(site: DrSite, *groups: str, min_lock: str = "") -> None:
    """The file as a person changes it."""
    before = site.config_file.read_text().split("[[group]]")[0].splitlines(keepends=True)
    text = "".join(line for line in before if not line.startswith("min_lock"))
    if min_lock:
        text = text.replace("[history]", f'[history]\nmin_lock = "{min_lock}"')
    for name in groups:
        text += f'[[group]]\nname = "{name}"\nagents = ["kvm-{name}"]\n'
    site.config_file.write_text(text)


async def lived(site: DrSite) -> None:
    async with site.running(), feeding(site, "web", "db") as fed:
        for each in fed.values():
            await each.check()


async def leftovers(site: DrSite) -> list[Leftover]:
    """Once they have been measured."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            found = (await order(site.control.order, STATUS)).leftovers
            if all(each.bytes is not None for each in found):
                return found
            await asyncio.sleep(0.02)


async def until_gone(site: DrSite) -> None:
    """Nobody tells of it."""
    async with asyncio.timeout(WAIT_SECONDS):
        while list((site.data_dir / "forgotten").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def forget(site: DrSite, request: ForgetRequest, group: str = "web") -> ForgetResult:
    return await order(site.control.order, FORGET, group, request)


def rows(site: DrSite, group: str) -> int:
    with closing(sqlite3.connect(site.data_dir / "catalog.db")) as catalog:
        query = "SELECT count(*) FROM points WHERE group_name = ?"
        (count,) = catalog.execute(query, (group,)).fetchone()
    return int(count)


async def test_a_group_that_left_is_said_kept_and_there_again(site: DrSite) -> None:
    async with site.running(), feeding(site, "web", "db") as fed:
        assert (await order(site.control.order, STATUS)).leftovers == []
        configure(site, "db")
        await order(site.control.order, RELOAD, request=ReloadRequest(removes_too=True))
        (left,) = (await order(site.control.order, STATUS)).leftovers
        folder = site.data_dir / "groups" / "web"
        assert (left.name, left.places) == ("web", [str(folder)])
        await fed["db"].ship()
    async with site.running():
        (left,) = await leftovers(site)
        assert (left.bytes or 0) > 100_000
        configure(site, "web", "db")
        await order(site.control.order, RELOAD, request=ReloadRequest())
        assert (await order(site.control.order, STATUS)).leftovers == []
        async with feeding(site, "web", "db", since=fed):
            for each in fed.values():
                await each.check()


async def test_forgetting_is_meant_typed_audited_and_final(site: DrSite) -> None:
    await lived(site)
    configure(site, "db")
    async with site.running():
        planned = await forget(site, ForgetRequest(dry_run=True))
        assert (planned.points, planned.locked_points, planned.dry_run) == (1, 0, True)
        with pytest.raises(UsageError, match="given twice"):
            await forget(site, ForgetRequest(confirm="wbe"))
        with pytest.raises(UsageError, match="is in the configuration"):
            await forget(site, ForgetRequest(confirm="db"), "db")
        with pytest.raises(NotFoundError):
            await forget(site, GOES, "mail")
        assert site.replica("vda").exists()
        assert rows(site, "web") == 1
        done = await forget(site, GOES)
        assert (done.points, done.bytes) == (1, planned.bytes)
        assert not (site.data_dir / "groups" / "web").exists()
        assert list((site.data_dir / "forgotten").iterdir()) == []
        assert rows(site, "web") == 0
        assert rows(site, "db") == 1
        assert (await order(site.control.order, STATUS)).leftovers == []
        entries = [
            each for each in await order(site.control.order, AUDITED) if each.order == "forget"
        ]
        assert (entries[-1].object, entries[-1].outcome) == ("web", "done")
        assert (await order(site.control.order, VERIFY_AUDIT)).faults == []
        with pytest.raises(NotFoundError):
            await forget(site, GOES)
    # A group of that name begins anew, and what the audit saw of the old one counts no more.
    configure(site, "web", "db")
    async with site.running(), feeding(site, "web") as fed:
        await fed["web"].check()
        (point,) = await order(site.control.order, POINTS, "web")
        assert point.sequence == 1
        assert (await order(site.control.order, VERIFY_AUDIT)).faults == []
    report = check_audit(SystemStorage(), site.data_dir)
    assert report is not None
    assert report.breaks == []


async def test_locked_points_refuse_unless_the_lock_is_broken_with_a_reason(site: DrSite) -> None:
    configure(site, "web", "db", min_lock="1d")
    await lived(site)
    configure(site, "db")  # the lock that was put on record counts all the same
    async with site.running():
        planned = await forget(site, ForgetRequest(dry_run=True))
        assert planned.locked_points == 1
        with pytest.raises(OwnedError, match="1 point is locked"):
            await forget(site, GOES)
        with pytest.raises(UsageError, match="reason"):
            await forget(site, ForgetRequest(confirm="web", break_lock=True))
        assert site.replica("vda").exists()
        await forget(site, BREAKS)
        assert not site.replica("vda").exists()
        last = (await order(site.control.order, AUDITED))[-1]
        assert "it was a test machine" in last.argument


async def test_the_lock_of_the_configuration_counts_as_well(site: DrSite) -> None:
    await lived(site)
    configure(site, "db", min_lock="1d")
    async with site.running():
        with pytest.raises(OwnedError):
            await forget(site, GOES)


async def test_a_history_that_cannot_be_read_may_be_locked(site: DrSite) -> None:
    await lived(site)
    configure(site, "db")
    storage = TroubledStorage(refusing(site.data_dir / "groups" / "web" / "history"))
    async with site.running(storage):
        with pytest.raises(OwnedError, match="cannot be read"):
            await forget(site, GOES)
        storage.troubles.clear()
        await forget(site, GOES)


async def test_a_rest_that_a_crash_left_goes_at_the_next_start(site: DrSite) -> None:
    await lived(site)
    configure(site, "db")
    (site.data_dir / "forgotten").mkdir()
    rest = site.data_dir / "forgotten" / "web.0"
    (site.data_dir / "groups" / "web").rename(rest)  # dead between two steps
    async with site.running():
        await until_gone(site)
        assert not rest.exists()
        assert (await order(site.control.order, STATUS)).leftovers == []


async def test_a_deletion_that_fails_is_said_and_gone_on_with(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lived(site)
    configure(site, "db")

    def refuse(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    async with site.running():
        monkeypatch.setattr("receiver.orders.leftovers._delete", refuse)
        with pytest.raises(ReplicatorError):
            await forget(site, GOES)
        monkeypatch.undo()
        assert (await order(site.control.order, STATUS)).leftovers == []
    async with site.running():
        await until_gone(site)
