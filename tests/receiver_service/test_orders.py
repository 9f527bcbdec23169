# SPDX-License-Identifier: Apache-2.0
"""The control API's orders, through the real client, on a receiver that has been fed."""

from __future__ import annotations

import asyncio
import http.client
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

from receiver.audit.log import read_entries, verify_audit
from receiver.service import Receiver
from replicator.base.errors import (
    FencedError,
    NoPointError,
    NotFoundError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.base.storage import SystemStorage
from replicator.control.orders import (
    ACCEPT_AUDIT,
    AUDITED,
    CLOSE_VIEW,
    MARK,
    OPEN_VIEW,
    PLAN_ROLLBACK,
    POINTS,
    RESTORE,
    ROLLBACK,
    STATUS,
    VERIFY_AUDIT,
    VIEWS,
)
from replicator.control.requests import (
    AcceptAuditRequest,
    AuditRequest,
    MarkRequest,
    PointsRequest,
    RestoreRequest,
    RollbackRequest,
    ViewRequest,
)
from replicator.nbd.constants import WireError
from replicator.wire.messages import Ack
from tests.peers.nbd_client import NbdClient, NbdError
from tests.receiver.source import noise
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.fake_agent import FakeAgent
from tests.receiver_service.source import CutMade, Source
from tests.receiver_service.test_views import run

DISKS = {"vda": 2 << 20, "vdb": 1 << 20}
P = ParamSpec("P")
T = TypeVar("T")


async def order(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """A blocking order of the client, in a thread."""
    return await asyncio.to_thread(call, *args, **kwargs)


def story() -> Source:
    """Good data, labelled; then rubbish over it."""
    source = Source(DISKS)
    source.start_from_zero()
    for number in range(8):
        source.write("vda", number * 65536, bytes([number + 1]) * 65536)
        source.write("vdb", number * 65536, bytes([255 - number]) * 65536)
        source.cut("good" if number == 5 else None)
    source.write("vda", 0, b"rubbish!" * 40960)
    source.zero("vdb", 0, 1 << 20)
    source.cut()
    return source


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


@pytest.fixture
async def receiver(site: DrSite) -> AsyncIterator[Receiver]:
    async with site.running() as receiver:
        yield receiver


async def feed(site: DrSite, source: Source, **hello: Any) -> FakeAgent:
    agent = await site.agent()
    await agent.welcomed("web", **hello)
    await agent.open(source)
    await agent.ship(source, source.first_lsn)
    await agent.applied(source.end_lsn)
    return agent


async def leave(agent: FakeAgent, receiver: Receiver) -> None:
    """Returns when the receiver knows that the agent is gone."""
    await agent.close()
    worker = receiver.workers["web"]
    await worker.changed.until(lambda: worker.seat.sitter is None)


def good(source: Source) -> CutMade:
    return next(cut for cut in source.cuts if cut.label == "good")


async def compare(site: DrSite, disks: dict[str, str], cut: CutMade) -> None:
    """Every disk of a view equals the cut, to qemu-img and to nbdcopy."""
    for name, uri in disks.items():
        plain = site.folder / f"expected-{name}.raw"
        plain.write_bytes(cut.disks[name])
        code, output = await run("qemu-img", "compare", "-f", "raw", str(plain), uri)
        assert code == 0, output
        copied = site.folder / f"copied-{name}.raw"
        copied.unlink(missing_ok=True)
        code, output = await run("nbdcopy", uri, str(copied))
        assert code == 0, output
        assert copied.read_bytes() == cut.disks[name]


async def test_status_and_points_as_tools_read_them(site: DrSite, receiver: Receiver) -> None:
    empty = await order(site.control.order, POINTS, "web")
    assert empty == []
    source = story()
    agent = await feed(site, source)
    status = await order(site.control.order, STATUS)
    (group,) = status.groups
    assert (status.role, status.name, group.name) == ("receiver", "dr", "web")
    assert group.state == "protected"
    assert group.durable_lsn == group.applied_lsn == source.end_lsn
    assert group.points == len(source.cuts)
    assert [(disk.name, disk.size) for disk in group.disks] == sorted(DISKS.items())
    assert group.rpo_seconds is not None
    assert group.peer is not None
    assert "kvm1" in group.peer
    points = await order(site.control.order, POINTS, "web")
    assert [point.sequence for point in points] == list(range(1, len(source.cuts) + 1))
    assert {point.kind for point in points} == {"crash"}
    assert [point.label for point in points].count("good") == 1
    third = points[2].time
    since = await order(site.control.order, POINTS, "web", PointsRequest(since=third))
    assert since == points[2:]
    until = await order(site.control.order, POINTS, "web", PointsRequest(until=third))
    assert until == points[:3]
    assert (
        await order(site.control.order, POINTS, "web", PointsRequest(since="#3", until="good"))
        == points[2:6]
    )
    await leave(agent, receiver)
    status = await order(site.control.order, STATUS)
    assert status.groups[0].state == "protected", "a blip turns no state"


@pytest.mark.usefixtures("receiver")
async def test_unknown_things_are_said_to_be_unknown(site: DrSite) -> None:
    with pytest.raises(NotFoundError, match="no group 'mail'"):
        await order(site.control.order, POINTS, "mail")
    with pytest.raises(NoPointError):
        await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="latest"))
    with pytest.raises(NotFoundError):
        await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="#7"))
    with pytest.raises(NotFoundError):
        await order(site.control.order, CLOSE_VIEW, "nothing")
    with pytest.raises(UsageError, match="mark is served by the agent; this is the receiver dr"):
        await order(site.control.order, MARK, "web", MarkRequest(label="label"))


@pytest.mark.usefixtures("receiver")
async def test_a_view_shows_its_point_while_replication_goes_on(site: DrSite) -> None:
    source = story()
    agent = await feed(site, source)
    chosen = await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="good"))
    assert chosen.choice.point.label == "good"
    assert chosen.result.disks.keys() == DISKS.keys()
    assert await order(site.control.order, VIEWS) == [chosen.result]
    before = source.end_lsn
    for number in range(20):
        source.write("vda", number * 4096, bytes([number]) * 4096)
        source.write("vdb", number * 8192, b"later" * 100)
        source.cut()
    shipping = asyncio.create_task(agent.ship(source, before))
    await compare(site, chosen.result.disks, good(source))
    await shipping
    await agent.applied(source.end_lsn)
    await compare(site, chosen.result.disks, good(source))
    newest = await order(
        site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="latest")
    )
    await compare(site, newest.result.disks, source.cuts[-1])
    for view in (chosen.result, newest.result):
        await order(site.control.order, CLOSE_VIEW, view.id)
    assert await order(site.control.order, VIEWS) == []
    await agent.close()


@pytest.mark.usefixtures("receiver")
async def test_a_throw_away_overlay_on_a_view_can_be_written(site: DrSite) -> None:
    source = story()
    agent = await feed(site, source)
    chosen = await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="good"))
    overlay, uri = site.folder / "overlay.qcow2", chosen.result.disks["vda"]
    code, output = await run(
        "qemu-img", "create", "-f", "qcow2", "-b", uri, "-F", "raw", str(overlay)
    )
    assert code == 0, output
    code, output = await run(
        "qemu-io", "-c", "write -P 0x77 0 64k", "-c", "read -P 0x77 0 64k", str(overlay)
    )
    assert code == 0, output
    assert "Pattern verification failed" not in output
    await compare(site, {"vda": uri}, good(source))
    await agent.close()


async def test_a_rollback_is_refused_while_a_source_is_connected(
    site: DrSite, receiver: Receiver
) -> None:
    source = story()
    agent = await feed(site, source)
    with pytest.raises(OwnedError, match="is being fed by kvm1") as refused:
        await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="good"))
    assert refused.value.exit_code == 11
    plan = await order(
        site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to="good", dry_run=True)
    )  # looking is allowed
    assert plan.result.label == "good"
    assert plan.result.dry_run
    assert plan.result.points_after == len(source.cuts) - 6
    assert plan.result.disks == ["vda", "vdb"]
    assert plan.result.changed_bytes > 0
    assert len(await order(site.control.order, POINTS, "web")) == len(source.cuts)
    assert site.replica("vda").read_bytes() == source.contents["vda"]
    await leave(agent, receiver)


async def test_a_source_is_detached_on_express_order_and_what_it_sends_later_is_not_taken(
    site: DrSite, receiver: Receiver
) -> None:
    source = story()
    agent = await feed(site, source)
    done = await order(
        site.control.order, ROLLBACK, "web", RollbackRequest(to="good", force_detach=True)
    )
    assert done.result.kind == "rollback"
    for name, content in good(source).disks.items():
        assert site.replica(name).read_bytes() == content
    with pytest.raises(FencedError, match="detached for a rollback"):
        await agent.expect(Ack, lambda _: False)
    back = await site.agent()
    welcome = await back.welcomed("web")
    assert welcome.stream is None
    assert welcome.generation == 2
    with pytest.raises(FencedError, match="closed for ever"):
        await back.open(source)
    undone = await order(
        site.control.order, ROLLBACK, "web", RollbackRequest(to=f"#{done.result.before.sequence}")
    )
    assert undone.result.kind == "rollback"
    for name in DISKS:
        assert site.replica(name).read_bytes() == source.contents[name]


async def test_rollback_and_its_undo_with_a_view_open_all_along(
    site: DrSite, receiver: Receiver
) -> None:
    source = story()
    await leave(await feed(site, source), receiver)
    view = await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="#3"))
    done = await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="good"))
    assert done.result.kind == "rollback"
    assert done.result.before.kind == "before-rollback"
    assert done.choice.point.label == "good"
    for name, content in good(source).disks.items():
        assert site.replica(name).read_bytes() == content
    await compare(site, view.result.disks, source.cuts[2])
    status = await order(site.control.order, STATUS)
    assert status.groups[0].state == "rolled-back"
    labels = [point.label for point in await order(site.control.order, POINTS, "web")]
    assert labels.count("good") == 1
    undone = await order(
        site.control.order, ROLLBACK, "web", RollbackRequest(to=f"#{done.result.before.sequence}")
    )
    assert undone.result.kind == "rollback"
    for name in DISKS:
        assert site.replica(name).read_bytes() == source.contents[name]
    await compare(site, view.result.disks, source.cuts[2])


async def test_after_a_rollback_the_old_stream_is_closed_and_a_new_one_may_come(
    site: DrSite, receiver: Receiver
) -> None:
    source = story()
    await leave(await feed(site, source), receiver)
    await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="good"))
    agent = await site.agent()
    welcome = await agent.welcomed("web")
    assert welcome.stream is None
    assert welcome.closed_ordinal >= source.ordinal
    assert welcome.generation == 2
    following = Source(DISKS, ordinal=source.ordinal + 1, first_lsn=source.end_lsn + (1 << 20))
    following.start_from_zero()
    following.write("vda", 512, b"n" * 512)
    following.cut()
    await agent.open(following)
    await agent.ship(following, following.first_lsn)
    await agent.applied(following.end_lsn)
    assert site.replica("vda").read_bytes() == following.contents["vda"]
    chosen = await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="good"))
    await compare(site, chosen.result.disks, good(source))
    await leave(agent, receiver)


@pytest.mark.usefixtures("receiver")
async def test_restore_writes_new_images_and_overwrites_nothing(site: DrSite) -> None:
    source = story()
    agent = await feed(site, source)
    target = site.folder / "restored" / "here"
    restored = await order(
        site.control.order, RESTORE, "web", RestoreRequest(at="good", to=str(target))
    )
    assert restored.result.point.label == "good"
    assert sorted(restored.result.files) == [str(target / "vda.raw"), str(target / "vdb.raw")]
    for name, content in good(source).disks.items():
        assert (target / f"{name}.raw").read_bytes() == content
    with pytest.raises(UsageError, match="exists already"):
        await order(site.control.order, RESTORE, "web", RestoreRequest(at="latest", to=str(target)))
    assert (target / "vda.raw").read_bytes() == good(source).disks["vda"]
    await agent.close()


async def test_every_changing_order_is_in_the_audit(site: DrSite, receiver: Receiver) -> None:
    source = story()
    agent = await feed(site, source)
    with pytest.raises(OwnedError):
        await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="good"))
    await leave(agent, receiver)
    view = await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="#1"))
    await order(site.control.order, CLOSE_VIEW, view.result.id)
    await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="good"))
    await order(site.control.order, PLAN_ROLLBACK, "web", RollbackRequest(to="good", dry_run=True))
    found = read_entries(SystemStorage(), site.data_dir / "audit")
    entries = [(entry.order, entry.object, entry.outcome) for entry in found]
    assert verify_audit(SystemStorage(), site.data_dir / "audit").breaks == []
    for wanted in (
        ("rollback", "web", "started"),
        ("rollback", "web", "owned"),
        ("view open", "", "done"),
        ("view close", view.result.id, "done"),
        ("rollback", "web", "done"),
    ):
        assert wanted in entries


async def test_the_audit_is_listed_verified_and_goes_on_over_a_restart(site: DrSite) -> None:
    source = story()
    async with site.running() as receiver:
        agent = await feed(site, source)
        await leave(agent, receiver)
        await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="good"))
        first = await order(site.control.order, VERIFY_AUDIT)
        assert (first.entries, first.faults) == (2, [])
        status = await order(site.control.order, STATUS)
        assert (status.audit_head, status.audit_breaks) == (first.head, 0)
    async with site.running():
        await order(site.control.order, ROLLBACK, "web", RollbackRequest(to="latest"))
        listed = await order(site.control.order, AUDITED)
        assert [(entry.sequence, entry.order, entry.outcome) for entry in listed] == [
            (1, "rollback", "started"),
            (2, "rollback", "done"),
            (3, "rollback", "started"),
            (4, "rollback", "done"),
        ]
        assert (
            await order(
                site.control.order, AUDITED, request=AuditRequest(since="2999-01-01T00:00:00Z")
            )
            == []
        )
        assert (
            await order(site.control.order, AUDITED, request=AuditRequest(limit=1)) == listed[-1:]
        )


async def test_an_audit_that_was_cut_short_is_reported_at_the_next_start(site: DrSite) -> None:
    async with site.running():
        with pytest.raises(NotFoundError):
            await order(site.control.order, CLOSE_VIEW, "none")
    (file,) = (site.data_dir / "audit").iterdir()
    file.write_bytes(file.read_bytes().splitlines(keepends=True)[0])
    async with site.running():
        assert (await order(site.control.order, STATUS)).audit_breaks == 1
        (fault,) = (await order(site.control.order, VERIFY_AUDIT)).faults
        assert fault.problem == "entry 2 is missing"
        last = (await order(site.control.order, AUDITED))[-1]
        assert (last.order, last.outcome) == ("audit break", "damage")


async def a_view(site: DrSite) -> None:
    view = (
        await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="good"))
    ).result
    await order(site.control.order, CLOSE_VIEW, view.id)


async def test_an_audit_that_is_gone_refuses_orders_until_it_is_put_back(site: DrSite) -> None:
    """And nothing takes its place meanwhile, over any number of starts."""
    async with site.running():
        agent = await feed(site, story())
        await agent.close()
        await a_view(site)
    audit, aside = site.data_dir / "audit", site.folder / "aside"
    audit.rename(aside)
    for _ in range(2):
        async with site.running():
            status = await order(site.control.order, STATUS)
            assert f"put {audit} back and restart the receiver" in status.orders_refused
            assert status.audit_breaks == 1
            with pytest.raises(ReplicatorError, match="the audit is gone") as told:
                await a_view(site)
            assert "audit accept --reason" in told.value.hint
            (fault,) = (await order(site.control.order, VERIFY_AUDIT)).faults
            assert fault.problem.endswith("are missing")
            agent = await site.agent()
            await agent.welcomed("web")
            await agent.close()
        assert not audit.exists() or not list(audit.iterdir())
    shutil.rmtree(audit, ignore_errors=True)
    aside.rename(audit)
    async with site.running():
        await a_view(site)
        assert (await order(site.control.order, STATUS)).orders_refused == ""
        assert (await order(site.control.order, VERIFY_AUDIT)).faults == []


async def test_an_audit_that_is_gone_begins_anew_by_order(site: DrSite) -> None:
    async with site.running():
        agent = await feed(site, story())
        await agent.close()
        with pytest.raises(UsageError, match="not gone"):
            await order(
                site.control.order,
                ACCEPT_AUDIT,
                request=AcceptAuditRequest(reason="nothing happened"),
            )
        lost = max(each.sequence for each in await order(site.control.order, AUDITED))
    shutil.rmtree(site.data_dir / "audit")
    async with site.running():
        with pytest.raises(UsageError, match="takes a reason"):
            await order(site.control.order, ACCEPT_AUDIT, request=AcceptAuditRequest(reason=" "))
        with pytest.raises(ReplicatorError, match="the audit is gone"):
            await a_view(site)
        done = await order(
            site.control.order,
            ACCEPT_AUDIT,
            request=AcceptAuditRequest(reason="the disk was replaced"),
        )
        assert done.lost_entries >= lost
        await a_view(site)
    async with site.running():
        await a_view(site)
        status = await order(site.control.order, STATUS)
        assert (status.orders_refused, status.audit_breaks) == ("", 1)
        first, accepted, *_ = await order(site.control.order, AUDITED)
        assert (first.sequence, first.order) == (done.lost_entries + 1, "audit break")
        assert (accepted.order, accepted.outcome) == ("audit accept", "done")
        assert "the disk was replaced" in accepted.argument


async def test_without_its_audit_a_receiver_replicates_and_refuses_orders(site: DrSite) -> None:
    source = story()
    site.data_dir.mkdir()
    (site.data_dir / "audit").write_bytes(b"a file where the directory belongs")
    async with site.running():
        agent = await feed(site, source)
        with pytest.raises(ReplicatorError, match="carried out now: the audit cannot be used"):
            await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="good"))
        assert len(await order(site.control.order, POINTS, "web")) > 0
        await agent.close()


async def test_views_end_with_the_receiver(site: DrSite) -> None:
    source = story()
    async with site.running():
        agent = await feed(site, source)
        chosen = await order(
            site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="good")
        )
        uri = chosen.result.disks["vda"]
        socket_file = Path(uri.split("socket=")[1])
        assert socket_file.is_socket()
        client = await NbdClient.connect(uri)
        await agent.close()
    assert not socket_file.exists()
    with pytest.raises(UnreachableError):
        await client.pread(offset=0, length=512)
    client.abort()
    async with site.running():
        assert await order(site.control.order, VIEWS) == []


async def test_metrics_are_served_when_they_are_asked_for(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    site = DrSite(tmp_path)
    text = site.config_file.read_text()
    site.config_file.write_text(
        text.replace("[history]", f'metrics = "127.0.0.1:{port}"\n[history]')
    )
    async with site.running():
        agent = await feed(site, story())
        body = await order(_get, port)
        await agent.close()
    lines = body.splitlines()
    assert 'replicator_points{group="web"} 9.0' in lines
    assert 'replicator_group_state{group="web",state="protected"} 1.0' in lines
    assert 'replicator_replication_lag_bytes{group="web"} 0.0' in lines
    assert any(line.startswith("replicator_fsync_duration_seconds_count{") for line in lines)
    assert any(line.startswith("replicator_tls_cert_not_after_timestamp_seconds") for line in lines)


def _get(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    body = connection.getresponse().read().decode()
    connection.close()
    return body


async def test_the_budget_drops_the_oldest_points_and_keeps_the_labelled_one(
    tmp_path: Path,
) -> None:
    site = DrSite(tmp_path, max_bytes="3MiB")
    source = Source(DISKS)
    source.start_from_zero()
    for number in range(40):
        source.write("vda", (number % 8) * 131072, noise(number + 1, 131072))
        source.cut("keep me" if number == 3 else None)
    async with site.running():
        agent = await feed(site, source)
        points = await order(site.control.order, POINTS, "web")
        status = await order(site.control.order, STATUS)
        assert len(points) < 40
        assert [point.label for point in points].count("keep me") == 1
        assert points[-1].sequence == 40
        assert (status.groups[0].history_bytes or 0) <= 4 << 20
        chosen = await order(
            site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="keep me")
        )
        await compare(site, chosen.result.disks, source.cuts[3])
        await agent.close()


async def test_damage_under_a_view_is_counted_logged_and_never_served(
    site: DrSite, receiver: Receiver
) -> None:
    source = story()
    agent = await feed(site, source)
    chosen = await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="good"))
    for segment in (site.data_dir / "groups/web/history").glob("**/*.seg"):
        content = bytearray(segment.read_bytes())
        for at in range(192, len(content), 16):
            content[at] ^= 0xFF
        segment.write_bytes(content)  # in place: the receiver has it open
    async with await NbdClient.connect(chosen.result.disks["vda"]) as client:
        with pytest.raises(NbdError) as refused:
            await client.pread(offset=0, length=65536)
    assert refused.value.error == WireError.EIO
    assert receiver.workers["web"].figures.checksum_failures["view"] >= 1
    await agent.close()
