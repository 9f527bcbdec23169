# SPDX-License-Identifier: Apache-2.0
"""Folders of a real data_dir put back from another time: what the daemon says and serves."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from receiver.audit.heads import newest_seen
from receiver.audit.log import read_entries
from receiver.service import Receiver
from replicator.base.errors import DamageError, ReplicatorError, UnreachableError, UsageError
from replicator.base.storage import SystemStorage
from replicator.control.orders import (
    ACCEPT,
    ACCEPT_AUDIT,
    AUDITED,
    CLOSE_VIEW,
    OPEN_VIEW,
    PLAN_ROLLBACK,
    POINTS,
    RESTORE,
    ROLLBACK,
    SCRUB,
    STATUS,
    VIEWS,
    Order,
)
from replicator.control.requests import (
    AcceptAuditRequest,
    AcceptRequest,
    Request,
    RestoreRequest,
    RollbackRequest,
    ScrubRequest,
    ViewRequest,
)
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.source import CutMade, Source
from tests.receiver_service.test_orders import compare, order

SIZE = 1 << 20
BLOCK = 4096
WAIT_SECONDS = 120.0


@pytest.fixture
def site() -> Iterator[DrSite]:
    with TemporaryDirectory(prefix="side-") as folder:  # short: sockets of views lie in it
        yield DrSite(Path(folder))


class Life:
    """A group's source over several lives of its receiver. `cuts` by number of point."""

    def __init__(self, site: DrSite) -> None:
        self.site = site
        self.source = Source({"vda": SIZE})
        self.source.start_from_zero()
        self.shipped = self.source.first_lsn
        self.cuts: dict[int, CutMade] = {}

    @property
    def group(self) -> Path:
        return self.site.data_dir / "groups" / "web"

    def write(self, count: int) -> None:
        for _ in range(count):
            number = len(self.cuts) + 1 + len(self.source.cuts)
            self.source.write("vda", number % 7 * BLOCK, bytes([number % 251 + 1]) * BLOCK)
            self.source.write("vda", 40 * BLOCK + number % 5 * 512, bytes([number % 251]) * 512)
            self.source.cut()

    async def ship(self) -> None:
        """What was written since, until it is applied; and which numbers its cuts got."""
        agent = await self.site.agent()
        await agent.welcomed("web")
        await agent.open(self.source, self.shipped)
        before = await self.numbers()
        fresh = [cut for cut in self.source.cuts if cut.end_lsn > self.shipped]
        await agent.ship(self.source, self.shipped)
        await agent.applied(self.source.end_lsn)
        self.shipped = self.source.end_lsn
        numbers = sorted(await self.numbers() - before)
        assert not set(numbers) & set(self.cuts), "a number was given twice"
        self.cuts |= dict(zip(numbers, fresh, strict=True))
        await agent.close()

    async def numbers(self) -> set[int]:
        points = await order(self.site.control.order, POINTS, "web")
        return {point.sequence for point in points if point.sequence is not None}

    async def sync(self) -> None:
        """A new stream, with all of the disk."""
        old = self.source
        self.source = Source(
            {"vda": SIZE},
            ordinal=old.ordinal + 1,
            first_lsn=old.end_lsn + 4096,
            contents={"vda": bytes(old.contents["vda"])},
        )
        self.shipped = self.source.first_lsn
        self.source.sync_begin("vda")
        replica = self.site.replica("vda").read_bytes()
        for at in range(0, SIZE, 65536):
            content = bytes(old.contents["vda"][at : at + 65536])
            if replica[at : at + 65536] == content:
                self.source.same("vda", at, 65536)
            else:
                self.source.write("vda", at, content)
        self.source.sync_end("vda")
        self.write(1)
        await self.ship()

    async def served(self) -> list[int]:
        """The points that can be had, each compared through a view."""
        good = []
        for point in await order(self.site.control.order, POINTS, "web"):
            assert point.sequence is not None
            name = f"#{point.sequence}"
            try:
                view = (
                    await order(
                        self.site.control.order,
                        OPEN_VIEW,
                        request=ViewRequest(group="web", at=name),
                    )
                ).result
            except (DamageError, UnreachableError):
                continue
            await compare(self.site, view.disks, self.cuts[point.sequence])
            await order(self.site.control.order, CLOSE_VIEW, view.id)
            good.append(point.sequence)
        return good

    async def until_verified(self, receiver: Receiver) -> None:
        worker = receiver.workers["web"]
        async with asyncio.timeout(WAIT_SECONDS):
            await worker.scrubbing.moved.until(lambda: not worker.replica.opening.unverified)

    async def until_settled(self, receiver: Receiver) -> None:
        worker = receiver.workers["web"]
        async with asyncio.timeout(WAIT_SECONDS):
            await worker.changed.until(lambda: not worker.replica.opening.is_mending)


async def lived(site: DrSite) -> tuple[Life, Path]:
    """Six points, a copy of data_dir, six more."""
    life = Life(site)
    copy = site.folder / "copy"
    for _ in range(2):
        async with site.running():
            life.write(6)
            await life.ship()
        if not copy.exists():
            shutil.copytree(site.data_dir, copy)
    return life, copy


def put_back(life: Life, copy: Path, *folders: str) -> None:
    for folder in folders:
        shutil.rmtree(life.group / folder, ignore_errors=True)
        shutil.copytree(copy / "groups" / "web" / folder, life.group / folder)


async def refusal(site: DrSite) -> ReplicatorError:
    agent = await site.agent()
    with pytest.raises(ReplicatorError) as told:
        await agent.welcomed("web")
    await agent.close()
    return told.value


async def test_an_older_history_stops_the_group_until_it_is_accepted(site: DrSite) -> None:
    life, copy = await lived(site)
    put_back(life, copy, "history")
    async with site.running() as receiver:
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.state == "damaged"
        assert "history ends before what its replica holds" in group.reason
        assert (await refusal(site)).message == group.reason
        with pytest.raises(DamageError, match="history ends before"):
            await order(site.control.order, POINTS, "web")
        with pytest.raises(UsageError, match="reason"):
            await order(site.control.order, ACCEPT, "web", AcceptRequest(reason=" "))
        done = await order(
            site.control.order,
            ACCEPT,
            "web",
            AcceptRequest(reason="the disk of the newer one is gone"),
        )
        assert (done.next_point, done.generation) == (13, 2)
        assert done.points + done.damaged_points == 6
        assert "history ends before" in done.gone
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.state == "rolled-back", "the agent says so, by the generation"
        assert "replicator resync web" in group.remedy
        with pytest.raises(UsageError, match="has not stopped"):
            await order(site.control.order, ACCEPT, "web", AcceptRequest(reason="again"))
        await life.until_settled(receiver)
        await life.sync()
        served = await life.served()
        assert 13 in served
        assert len(served) == done.points + 1
        audited = [
            each for each in await order(site.control.order, AUDITED) if "accept" in each.order
        ]
        done_entry = next(each for each in audited if each.outcome == "done")
        assert "the disk of the newer one is gone" in done_entry.argument
    async with site.running():
        assert await life.served() == served
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.state != "damaged"


async def test_two_who_accept_at_once_accept_it_once(site: DrSite) -> None:
    """The second one comes while the first one's images are compared, which takes its time."""
    life, copy = await lived(site)
    put_back(life, copy, "history")
    async with site.running() as receiver:
        orders = (
            order(site.control.order, ACCEPT, "web", AcceptRequest(reason=f"order {number}"))
            for number in (1, 2)
        )
        done = await asyncio.gather(*orders, return_exceptions=True)
        refused = [each for each in done if isinstance(each, UsageError)]
        assert [each.message for each in refused] == ["group 'web' has not stopped at its opening"]
        await life.until_settled(receiver)
        await life.sync()
        assert 13 in await life.served()


async def test_the_newer_history_put_back_is_as_it_was(site: DrSite) -> None:
    life, copy = await lived(site)
    newer = site.folder / "newer"
    shutil.copytree(site.data_dir, newer)
    put_back(life, copy, "history")
    async with site.running():
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.state == "damaged"
    put_back(life, newer, "history")
    async with site.running():
        assert await life.served() == list(range(1, 13))
        life.write(1)
        await life.ship()
        assert await life.served() == list(range(1, 14))


async def test_a_whole_group_put_back_goes_on_above_its_numbers(site: DrSite) -> None:
    life, copy = await lived(site)
    put_back(life, copy, "history", "disks", "inbox")
    async with site.running() as receiver:
        await life.until_settled(receiver)
        await life.until_verified(receiver)
        assert await life.served() == [1, 2, 3, 4, 5, 6]
        await life.sync()
        assert await life.served() == [1, 2, 3, 4, 5, 6, 13]
    async with site.running() as receiver:
        assert not receiver.workers["web"].replica.opening.is_mending
        life.write(1)
        await life.ship()


async def test_a_whole_data_dir_put_back_is_read_back_and_served(site: DrSite) -> None:
    _, copy = await lived(site)
    shutil.rmtree(site.data_dir)
    shutil.copytree(copy, site.data_dir)
    life = Life(site)
    life.write(6)
    life.cuts = dict(enumerate(life.source.cuts, 1))
    async with site.running() as receiver:
        worker = receiver.workers["web"]
        await life.until_verified(receiver)
        assert await life.served() == [1, 2, 3, 4, 5, 6]
        async with asyncio.timeout(WAIT_SECONDS):
            await worker.scrubbing.moved.until(lambda: worker.scrubbing.good_ns > 0)
    async with site.running() as receiver:
        assert receiver.workers["web"].replica.opening.unverified == set()


async def test_the_audit_is_a_witness_where_the_replica_is_silent(site: DrSite) -> None:
    """No disks/applied, no catalog: the audit has seen the group come further."""
    life, copy = await lived(site)
    async with site.running():
        pass  # what the last life came to is noted at the next start
    _, _, ends = newest_seen(read_entries(SystemStorage(), site.data_dir / "audit"))
    assert ends["web"].point == 12
    put_back(life, copy, "history", "inbox")
    (life.group / "disks" / "applied").unlink()
    for path in site.data_dir.glob("catalog.db*"):
        path.unlink()
    async with site.running():
        (group,) = (await order(site.control.order, STATUS)).groups
        assert group.state == "damaged"
        assert "audit" in group.reason


async def test_an_older_audit_shows_the_break_and_all_goes_on(site: DrSite) -> None:
    life, _ = await lived(site)
    audit, older = site.data_dir / "audit", site.folder / "older"
    for _ in range(2):
        async with site.running():
            await life.served()
        if not older.exists():
            shutil.copytree(audit, older)
    shutil.rmtree(audit)
    shutil.copytree(older, audit)
    async with site.running():
        status = await order(site.control.order, STATUS)
        assert (status.audit_breaks, status.orders_refused) == (1, "")
        assert await life.served() == list(range(1, 13))
        life.write(1)
        await life.ship()
    async with site.running():
        assert (await order(site.control.order, STATUS)).audit_breaks == 1
        assert await life.served() == list(range(1, 14))


async def test_a_loss_is_accepted_once_a_gone_audit_is(site: DrSite) -> None:
    """Each remedy as the refusal before it names it. Nothing that feeds a group is held up."""
    life, copy = await lived(site)
    put_back(life, copy, "history")
    shutil.rmtree(site.data_dir / "audit")
    async with site.running() as receiver:
        with pytest.raises(ReplicatorError, match="the audit is gone") as told:
            await order(site.control.order, ACCEPT, "web", AcceptRequest(reason="the disk is gone"))
        assert "`replicator audit accept --reason TEXT`" in told.value.hint
        await order(
            site.control.order, ACCEPT_AUDIT, request=AcceptAuditRequest(reason="the disk is gone")
        )
        assert (
            await order(site.control.order, ACCEPT, "web", AcceptRequest(reason="the disk is gone"))
        ).generation == 2
        await life.until_settled(receiver)
        await life.sync()
        assert 13 in await life.served()


async def test_a_replica_that_is_being_verified_is_no_protection(site: DrSite) -> None:
    life = Life(site)
    async with site.running() as receiver:
        life.write(3)
        await life.ship()
        (before,) = (await order(site.control.order, STATUS)).groups
        opening = receiver.workers["web"].replica.opening
        opening._voucher.start({"vda"})  # as an opening does that finds another inode
        (told,) = (await order(site.control.order, STATUS)).groups
        assert told.state == "attaching"
        assert told.reason.startswith("the replica of disk vda is being verified")
        opening.scrubbed()
        (told,) = (await order(site.control.order, STATUS)).groups
        assert (told.state, told.reason) == (before.state, before.reason)


SLOW = 64 * 1024
"""Bytes a second: the least that a scrub may read."""
FIRST_READ = 10 * SLOW
"""Of one step, behind which a slow scrub rests for ten seconds."""


def slowly(site: DrSite) -> None:
    with site.config_file.open("a") as file:
        file.write(f"[scrub]\nrate = {SLOW}\n")


def copied_with_holes(path: Path) -> None:
    """The same content, in another file."""
    copy = path.with_suffix(".copy")
    with path.open("rb") as old, copy.open("wb") as new:
        for at in range(0, SIZE, BLOCK):
            if any(block := old.read(BLOCK)):
                new.seek(at)
                new.write(block)
        new.truncate(SIZE)
    copy.rename(path)


async def test_points_of_exchanged_images_wait_for_the_scrub(site: DrSite) -> None:
    """Each order that would serve them, and what the remedy that is named comes to."""
    life, _ = await lived(site)
    async with site.running():
        life.source.write("vda", 0, b"\x17" * FIRST_READ)
        life.source.write("vda", 250 * BLOCK, b"\x18" * BLOCK)  # a step of its own
        life.write(1)
        await life.ship()
    copied_with_holes(site.replica("vda"))
    slowly(site)
    target = site.folder / "restored"
    orders: tuple[tuple[Order[Any, Any], Request], ...] = (
        (OPEN_VIEW, ViewRequest(group="web", at="latest")),
        (RESTORE, RestoreRequest(at="#6", to=str(target))),
        (ROLLBACK, RollbackRequest(to="#6")),
        (PLAN_ROLLBACK, RollbackRequest(to="#6", dry_run=True)),
    )
    async with site.running() as receiver:
        for what, request in orders:
            with pytest.raises(UnreachableError, match="not verified yet") as told:
                await order(site.control.order, what, "web", request)
            assert told.value.exit_code == 75
            assert "replicator scrub web --rate 1GiB" in told.value.hint
        assert not target.exists()
        listed = await order(site.control.order, POINTS, "web")
        assert all(point.unverified and not point.damaged for point in listed)
        (group,) = (await order(site.control.order, STATUS)).groups
        assert (group.unverified_disks, group.unverified_points) == (["vda"], 13)
        assert group.scrub_rest_seconds is not None
        assert 0 < group.scrub_rest_seconds < 60
        await order(site.control.order, SCRUB, "web", ScrubRequest(rate=1 << 30))
        assert not receiver.workers["web"].replica.opening.unverified
        assert await life.served() == list(range(1, 14))
        listed = await order(site.control.order, POINTS, "web")
        assert not any(point.unverified for point in listed)
        (group,) = (await order(site.control.order, STATUS)).groups
        assert (group.unverified_disks, group.unverified_points) == ([], 0)


async def test_who_cannot_wait_is_served_and_it_is_said_everywhere(site: DrSite) -> None:
    life, _ = await lived(site)
    target = site.folder / "restored"
    async with site.running() as receiver:
        receiver.workers["web"].replica.opening._voucher.start({"vda"})
        request = ViewRequest(group="web", at="#6", unverified=True)
        opened = await order(site.control.order, OPEN_VIEW, request=request)
        assert opened.choice.point.unverified
        assert "NOT VERIFIED" in opened.choice.notice
        assert opened.result.point.unverified
        await compare(site, opened.result.disks, life.cuts[6])
        (listed,) = await order(site.control.order, VIEWS)
        assert listed.point.unverified
        restoring = RestoreRequest(at="#6", to=str(target), unverified=True)
        restored = await order(site.control.order, RESTORE, "web", restoring)
        assert restored.result.point.unverified
        audited = await order(site.control.order, AUDITED)
        done = [
            each
            for each in audited
            if each.outcome == "done" and '"unverified":true' in each.argument
        ]
        assert len(done) == 2
        receiver.workers["web"].replica.opening.scrubbed()
        again = await order(site.control.order, OPEN_VIEW, request=request)
        assert not again.choice.point.unverified, "to insist on what is verified changes nothing"
        assert again.choice.notice == ""
