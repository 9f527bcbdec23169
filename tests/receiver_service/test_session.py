# SPDX-License-Identifier: Apache-2.0
"""Sessions over real TLS sockets: the course of one, its ends, and who is refused."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
import trustme

from receiver.service import Receiver
from replicator.base.errors import (
    FencedError,
    IdentityError,
    NotFoundError,
    OwnedError,
    ReplicatorError,
    UsageError,
    VersionError,
)
from replicator.control.orders import POINTS
from replicator.wire.messages import Ack, AskLabel, Hold, LabelState, Open, Opened, Welcome
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.fake_agent import FakeAgent
from tests.receiver_service.source import Source

DISKS = {"vda": 1 << 20, "vdb": 300_000}


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path, groups={"web": ["kvm1", "kvm2"], "db": ["kvm2"]})


@pytest.fixture
async def receiver(site: DrSite) -> AsyncIterator[Receiver]:
    async with site.running() as receiver:
        yield receiver


def filled() -> Source:
    """A first stream with three cuts, the second of them labelled."""
    source = Source(DISKS)
    source.start_from_zero()
    source.write("vda", 0, b"a" * 4096)
    source.write("vdb", 4096, b"b" * 4096)
    source.cut()
    source.write("vda", 2048, b"c" * 512)
    source.zero("vdb", 4096, 2048)
    source.cut("before upgrade")
    source.write("vda", 65536, b"d" * 8192)
    source.cut()
    return source


async def replicated(site: DrSite, source: Source, **hello: object) -> FakeAgent:
    """An agent that has shipped all of the source's first stream, applied."""
    agent = await site.agent()
    await agent.welcomed("web", **hello)
    await agent.open(source)
    await agent.ship(source, source.first_lsn)
    await agent.applied(source.end_lsn)
    return agent


@pytest.mark.usefixtures("receiver")
async def test_a_first_stream_becomes_points_and_a_replica(site: DrSite) -> None:
    source = filled()
    agent = await site.agent()
    welcome = await agent.welcomed("web", disks=DISKS)
    assert (welcome.stream, welcome.ordinal, welcome.points) == (None, 0, 0)
    opened = await agent.open(source)
    assert opened == Opened(0, [])
    await agent.ship(source, 0)
    await agent.applied(source.end_lsn)
    points = agent.points()
    assert [point.sequence for point in points] == [1, 2, 3]
    assert [point.lsn for point in points] == [cut.end_lsn for cut in source.cuts]
    assert [point.time_ns for point in points] == [cut.time_ns for cut in source.cuts]
    assert points[1].label == "before upgrade"
    for name, content in source.contents.items():
        assert site.replica(name).read_bytes() == content
    await agent.close()


@pytest.mark.usefixtures("receiver")
async def test_a_resume_goes_on_at_the_durable_lsn_and_tells_the_points_again(
    site: DrSite,
) -> None:
    source = filled()
    instance = str(uuid4())
    first = await site.agent()
    await first.welcomed("web", instance=instance)
    await first.open(source)
    middle = source.cuts[0].end_lsn
    await first.ship(source, 0, end_lsn=middle)
    await first.close()
    second = await site.agent()
    welcome = await second.welcomed("web", instance=instance)
    assert welcome.stream == str(source.stream)
    assert welcome.durable_lsn == middle
    assert welcome.chain == source.chain_at(middle)
    await second.open(source, middle)
    await second.expect(Ack, lambda ack: [p.sequence for p in ack.points] == [1])
    await second.ship(source, middle)
    await second.applied(source.end_lsn)
    for name, content in source.contents.items():
        assert site.replica(name).read_bytes() == content
    await second.close()


@pytest.mark.usefixtures("receiver")
@pytest.mark.parametrize("mistake", ["lsn", "chain", "ordinal"])
async def test_what_is_not_the_same_stream_is_not_resumed(site: DrSite, mistake: str) -> None:
    source = filled()
    await (await replicated(site, source)).close()
    end, chain, stream, ordinal = source.end_lsn, source.chain_at(source.end_lsn), source.stream, 1
    if mistake == "lsn":
        end, chain = source.cuts[0].end_lsn, source.chain_at(source.cuts[0].end_lsn)
    elif mistake == "chain":
        chain ^= 1
    else:
        stream = uuid4()
    agent = await site.agent()
    await agent.welcomed("web")
    agent.link.send(Open(str(stream), ordinal, end, chain))
    with pytest.raises((FencedError, UsageError)):
        await agent.expect(Opened)
    await agent.close()


@pytest.mark.usefixtures("receiver")
async def test_a_frame_that_does_not_continue_ends_the_session_and_changes_nothing(
    site: DrSite,
) -> None:
    source = filled()
    agent = await site.agent()
    await agent.welcomed("web")
    await agent.open(source)
    frames = source.frames(0)
    agent.link.send(frames[0])
    agent.link.send(frames[2])
    with pytest.raises(UsageError, match="does not continue"):
        await agent.expect(Welcome)
    await agent.close()
    again = await site.agent()
    welcome = await again.welcomed("web")
    assert welcome.durable_lsn == frames[0].header.end_lsn  # the good one before it was kept
    await again.close()


async def test_frames_that_had_come_when_the_link_ended_are_kept(
    site: DrSite, receiver: Receiver
) -> None:
    source = filled()
    agent = await site.agent()
    await agent.welcomed("web")
    await agent.open(source)
    for frame in source.frames(0):
        agent.link.send(frame)
    await agent.close()  # without waiting for any ACK
    worker = receiver.workers["web"]
    await worker.changed.until(lambda: worker.seat.sitter is None)
    again = await site.agent()
    assert (await again.welcomed("web")).durable_lsn == source.end_lsn
    await again.close()


@pytest.mark.usefixtures("receiver")
async def test_the_same_agent_coming_back_fences_its_old_connection(site: DrSite) -> None:
    source, instance = filled(), str(uuid4())
    old = await site.agent()
    await old.welcomed("web", instance=instance)
    await old.open(source)
    await old.ship(source, 0, end_lsn=source.cuts[0].end_lsn)
    new = await site.agent()
    welcome = await new.welcomed("web", instance=instance)
    assert welcome.durable_lsn == source.cuts[0].end_lsn
    for frame in source.frames(source.cuts[0].end_lsn):
        old.link.send(frame)  # late frames of the old connection
    with pytest.raises(OwnedError, match="newer connection"):
        await old.expect(Welcome)
    await new.open(source, welcome.durable_lsn)
    await new.ship(source, welcome.durable_lsn)
    await old.close()
    await new.close()


@pytest.mark.usefixtures("receiver")
async def test_another_agent_is_refused_while_one_feeds_the_group(site: DrSite) -> None:
    first = await site.agent("kvm1")
    await first.welcomed("web")
    second = await site.agent("kvm2")
    second.greet("web", agent="kvm2")
    with pytest.raises(OwnedError, match="is fed by kvm1") as refused:
        await second.expect(Welcome)
    assert refused.value.exit_code == 11
    await second.close()
    first.link.send(AskLabel("x"))
    assert await first.expect(LabelState) == LabelState("x", False)
    await first.close()


@pytest.mark.usefixtures("receiver")
async def test_names_groups_and_versions_are_checked(site: DrSite) -> None:
    for hello, kind, code in (
        ({"group": "web", "agent": "kvm2"}, IdentityError, 12),  # not in the certificate
        ({"group": "db", "agent": "kvm1"}, IdentityError, 12),  # not the group's
        ({"group": "mail", "agent": "kvm1"}, NotFoundError, 10),
        ({"group": "web", "protocol": 99}, VersionError, 17),
    ):
        agent = await site.agent("kvm1")
        agent.greet(**hello)
        with pytest.raises(kind) as refused:
            await agent.expect(Welcome)
        assert refused.value.exit_code == code
        await agent.close()


@pytest.mark.usefixtures("receiver")
async def test_strangers_get_no_further_than_tls(site: DrSite) -> None:
    stranger = site.pki.client("kvm1", authority=trustme.CA())
    nameless = site.pki.client()
    for tls in (stranger, nameless):
        with pytest.raises(ReplicatorError):
            await greeted(site.port, tls)


async def greeted(port: int, tls: ssl.SSLContext) -> Welcome:
    agent = await FakeAgent.connect(port, tls)
    return await agent.welcomed("web")


@pytest.mark.usefixtures("receiver")
async def test_a_disk_of_another_size_is_refused_before_anything_is_opened(site: DrSite) -> None:
    source = filled()
    await (await replicated(site, source)).close()
    agent = await site.agent()
    agent.greet("web", disks={"vda": 2 << 20})
    with pytest.raises(ReplicatorError, match=r"2097152 bytes.*1048576 bytes"):
        await agent.expect(Welcome)
    await agent.close()


@pytest.mark.usefixtures("receiver")
async def test_holds_carry_the_newest_point_and_labels_are_looked_up(site: DrSite) -> None:
    source = filled()
    agent = await replicated(site, source)
    until = source.cuts[-1].time_ns + 90_000_000_000
    agent.link.send(Hold(source.end_lsn, until))
    agent.link.send(AskLabel("before upgrade"))
    state = await agent.expect(LabelState)
    assert (state.taken, state.point) == (True, agent.points()[1])
    points = await asyncio.to_thread(site.control.order, POINTS, "web")
    assert points[-1].until > points[-1].time
    assert points[0].until == points[0].time
    agent.link.send(AskLabel("another"))
    assert await agent.expect(LabelState) == LabelState("another", False)
    await agent.close()


async def test_what_was_acknowledged_is_there_after_a_restart(site: DrSite) -> None:
    source = filled()
    async with site.running():
        await (await replicated(site, source)).close()
    async with site.running():
        points = await asyncio.to_thread(site.control.order, POINTS, "web")
        assert [point.sequence for point in points] == [1, 2, 3]
        agent = await site.agent()
        welcome = await agent.welcomed("web")
        assert (welcome.durable_lsn, welcome.applied_lsn) == (source.end_lsn, source.end_lsn)
        assert welcome.newest_point is not None
        assert welcome.newest_point.sequence == 3
        await agent.close()


async def test_what_an_agent_says_of_its_clocks_is_known_in_the_receivers_time(
    site: DrSite, receiver: Receiver
) -> None:
    source = filled()
    worker = receiver.workers["web"]
    agent = await site.agent()
    agent.link.tell_captured(str(source.stream))
    await agent.welcomed("web")
    while worker.replica.intake.source_clock.when(source.stream, time.monotonic_ns()) is None:
        agent.link.send(AskLabel("x"))
        await agent.expect(LabelState)
    told = worker.replica.intake.source_clock.when(source.stream, time.monotonic_ns())
    assert told is not None
    assert abs(told - time.time_ns()) < 2_000_000_000
    assert worker.replica.intake.source_clock.when(Source(DISKS).stream, 5) is None, (
        "not captured there"
    )
