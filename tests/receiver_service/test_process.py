# SPDX-License-Identifier: Apache-2.0
"""The real process: what kill -9 leaves, what a second one gets, how it starts and ends."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from receiver.service import NICENESS
from replicator.base.errors import DamageError, NoSpaceError, ReplicatorError
from replicator.base.storage import SystemStorage
from replicator.control.orders import CLOSE_VIEW, OPEN_VIEW, POINTS, STATUS, VIEWS
from replicator.control.requests import ViewRequest
from replicator.wire.messages import Ack, Welcome
from tests.receiver_service.dr_site import DrSite, ReceiverProcess, launched, refused_start
from tests.receiver_service.fake_agent import FakeAgent
from tests.receiver_service.source import Source
from tests.receiver_service.test_orders import compare, order

DISKS = {"vda": 4 << 20, "vdb": 1 << 20}


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path, groups={"web": ["kvm1"], "db": ["kvm1"]})


def long_story(cuts: int, rng: random.Random) -> Source:
    source = Source(DISKS)
    source.start_from_zero()
    for _ in range(cuts):
        for _ in range(6):
            name = rng.choice(source.names)
            length = rng.randrange(512, 40_000, 512)
            offset = rng.randrange(0, DISKS[name] - length, 512)
            source.write(name, offset, rng.randbytes(length))
        source.cut()
    return source


async def ship_until_killed(
    agent: FakeAgent, source: Source, start_lsn: int, process: ReceiverProcess, kill_lsn: int
) -> int:
    """Sends half of what is left, and kills the receiver as soon as `kill_lsn` is acknowledged, in
    the middle of what follows. The highest LSN that was acknowledged at all."""
    durable = start_lsn
    reached = asyncio.Event()

    async def listen() -> None:
        nonlocal durable
        while True:
            message = await agent.link.receive()
            if isinstance(message, Ack):
                durable = max(durable, message.durable_lsn)
                if durable >= kill_lsn:
                    reached.set()

    async def kill() -> None:
        await reached.wait()
        await process.end(signal.SIGKILL)

    listening, killing = asyncio.create_task(listen()), asyncio.create_task(kill())
    frames = source.frames(start_lsn, step=2)
    for frame in frames[: len(frames) // 2]:
        agent.link.send(frame)
        await agent.link.drain()
    await killing
    with pytest.raises(ReplicatorError):
        await listening
    return durable


KILLS = 5


async def test_kill_9_in_the_middle_of_the_stream_loses_nothing_acknowledged(
    site: DrSite,
) -> None:
    source, instance = long_story(120, random.Random(7)), str(uuid4())
    acknowledged = source.first_lsn
    for life in range(KILLS + 1):
        async with launched(site) as process:
            agent = await site.agent()
            welcome = await agent.welcomed("web", instance=instance)
            start = welcome.durable_lsn if welcome.stream else source.first_lsn
            assert start >= acknowledged, "an acknowledged write is gone"
            assert start < source.end_lsn
            if welcome.stream is not None:
                assert welcome.chain == source.chain_at(start)
            await agent.open(source, start)
            if life < KILLS:
                kill_lsn = start + (source.end_lsn - start) // 8
                acknowledged = await ship_until_killed(agent, source, start, process, kill_lsn)
            else:
                await agent.ship(source, start)
                await agent.applied(source.end_lsn)
                await check_points(site, source)
            await agent.close()


async def check_points(site: DrSite, source: Source) -> None:
    """Every point is there, and some of them are looked at byte for byte."""
    points = await order(site.control.order, POINTS, "web")
    assert [point.sequence for point in points] == list(range(1, len(source.cuts) + 1))
    for number in (1, 17, 60, 119, 120):
        chosen = await order(
            site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at=f"#{number}")
        )
        await compare(site, chosen.result.disks, source.cuts[number - 1])
        await order(site.control.order, CLOSE_VIEW, chosen.result.id)


async def test_sigterm_ends_it_cleanly_with_everything_received_kept(site: DrSite) -> None:
    source = long_story(5, random.Random(3))
    async with launched(site) as process:
        agent = await site.agent()
        await agent.welcomed("web")
        await agent.open(source)
        await agent.ship(source, 0)
        view = await order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="#2"))
        assert await process.end(signal.SIGTERM) == 0
        log = "".join(process.log)
        assert "event=receiver.stopped" in log
        assert "Traceback" not in log
        with pytest.raises(ReplicatorError, match="shutting down"):
            await agent.expect(Welcome)
        agent.link.close()
    assert not site.socket.exists()
    assert not Path(view.result.disks["vda"].split("socket=")[1]).exists()
    async with launched(site) as process:
        agent = await site.agent()
        assert (await agent.welcomed("web")).durable_lsn == source.end_lsn
        await agent.close()
        assert await process.end(signal.SIGINT) == 0


async def test_a_second_receiver_on_the_same_data_dir_is_refused(site: DrSite) -> None:
    async with launched(site) as process:
        code, stderr = await refused_start(site)
        assert code == 11
        assert f"locked by process {process.process.pid}" in stderr
        assert "Traceback" not in stderr
        assert (await order(site.control.order, STATUS)).name == "dr"  # the first one is untouched
    async with launched(site):
        pass  # a kill -9 leaves no lock behind


async def test_stale_sockets_of_a_killed_receiver_do_not_hinder_the_next(site: DrSite) -> None:
    source = long_story(3, random.Random(4))
    async with launched(site) as process:
        agent = await site.agent()
        await agent.welcomed("web")
        await agent.open(source)
        await agent.ship(source, 0)
        view = await order(
            site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="latest")
        )
        stale = Path(view.result.disks["vda"].split("socket=")[1])
        await process.end(signal.SIGKILL)
        agent.link.close()
    assert stale.exists()
    assert site.socket.exists()
    async with launched(site):
        assert not stale.exists()
        assert await order(site.control.order, VIEWS) == []


async def test_a_damaged_group_is_shown_with_file_and_offset_and_stops_no_other(
    site: DrSite,
) -> None:
    source = long_story(6, random.Random(5))
    async with launched(site) as process:
        agent = await site.agent()
        await agent.welcomed("web")
        await agent.open(source)
        await agent.ship(source, 0)
        await agent.applied(source.end_lsn)
        await agent.close()
        await process.end(signal.SIGTERM)
    (segment, *_) = sorted((site.data_dir / "groups/web/history").glob("**/*.seg"))
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0x10
    segment.write_bytes(content)
    async with launched(site):
        groups = {group.name: group for group in (await order(site.control.order, STATUS)).groups}
        assert groups["db"].state == "attaching"
        assert groups["web"].state == "damaged"
        assert str(segment) in groups["web"].reason
        with pytest.raises(DamageError, match=segment.name):
            await order(site.control.order, POINTS, "web")
        agent = await site.agent()
        agent.greet("web")
        with pytest.raises(DamageError):
            await agent.expect(Welcome)
        await agent.close()
        other = await site.agent()
        await other.welcomed("db")
        fresh = long_story(2, random.Random(6))
        await other.open(fresh)
        await other.ship(fresh, 0)
        await other.close()


async def test_a_data_dir_of_a_newer_format_is_refused_untouched(site: DrSite) -> None:
    site.data_dir.mkdir()
    (site.data_dir / "format").write_text("2\n")
    code, stderr = await refused_start(site)
    assert code == 17
    assert "has format 2, this receiver knows format 1" in stderr
    assert sorted(path.name for path in site.data_dir.iterdir()) == ["format", "lock"]


async def test_missing_certificates_and_bad_config_are_usage_errors(site: DrSite) -> None:
    text = site.config_file.read_text()
    site.config_file.write_text(text.replace(str(site.pki.key), str(site.folder / "no.key")))
    code, stderr = await refused_start(site)
    assert code == 2
    assert "no.key" in stderr
    site.config_file.write_text(text.replace("listen", "lissten"))
    code, stderr = await refused_start(site)
    assert code == 2
    assert "listen" in stderr
    assert "Traceback" not in stderr


async def test_systemd_is_told_and_the_splitter_goes_first(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(site.folder / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(site.folder / "notify"))
        async with launched(site) as process:
            pid = process.process.pid
            wanted = max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
            assert os.getpriority(os.PRIO_PROCESS, pid) == wanted
            assert await process.end(signal.SIGTERM) == 0
        with suppress(BlockingIOError):
            while True:
                told.append(manager.recv(4096).decode())
    messages = [line for message in told for line in message.splitlines()]
    assert messages[0].startswith("EXTEND_TIMEOUT_USEC=")
    ready = messages.index("READY=1")
    assert messages[ready + 1] == "STATUS=2 groups: 2 attaching"
    assert messages[-1] == "STOPPING=1"


class FullDisk(SystemStorage):
    """A disk with a little room left."""

    def free_bytes(self, path: Path) -> int:
        return 4096


async def test_a_full_disk_at_start_is_one_clear_sentence(site: DrSite) -> None:
    with pytest.raises(NoSpaceError, match="is full") as refused:
        async with site.running(FullDisk()):
            pytest.fail("started on a full disk")
    assert refused.value.exit_code == 15
    assert not (site.data_dir / "catalog.db").exists()
    assert not (site.data_dir / "groups").exists()
