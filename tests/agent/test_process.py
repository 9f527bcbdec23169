# SPDX-License-Identifier: Apache-2.0
"""The agent as a process, with the real splitter: kills, restarts, refusals, what it tells."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest

from agent.group.driving import LOOK_SECONDS
from replicator.base.errors import (
    NoPointError,
    NotFoundError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.base.pki import init_ca, issue
from replicator.control.orders import MARK, RESYNC
from replicator.control.requests import MarkRequest
from replicator.wire.messages import Point
from replicator.wire.protocol import PeerClocks
from tests.agent.site import DISK_BYTES, DISKS, HOST, House, Site, make_pki
from tests.peers.process import running, wait_for_unix


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_pki(tmp_path)
    return tmp_path


@pytest.fixture
async def house(directory: Path) -> AsyncIterator[House]:
    house = House(directory)
    await house.start()
    yield house
    await house.stop()


@pytest.fixture
async def processes() -> AsyncIterator[ExitStack]:
    """Ended in a thread: the receiver in this loop takes part in their goodbyes."""
    stack = ExitStack()
    yield stack
    await asyncio.to_thread(stack.close)


@pytest.fixture
async def site(directory: Path, house: House, processes: ExitStack) -> Site:
    """Splitter and agent run, the first point is made."""
    site = Site(directory, house.port, processes)
    await site.start_splitter()
    await site.start_agent()
    await site.until(lambda group: group.state == "protected")
    return site


async def all_there(site: Site, house: House) -> None:
    """Waits for a point that holds everything, made by a mark."""
    await asyncio.to_thread(
        site.control.order,
        MARK,
        "g",
        MarkRequest(label=f"end {len(house.group.points)}", wait=True),
    )
    site.model.check(house.group)
    assert site.model.equals(house.group)


async def test_writes_become_points_and_the_status_tells(site: Site, house: House) -> None:
    async with site.writer() as writer:
        await writer.write(50)
        point = await asyncio.to_thread(
            site.control.order, MARK, "g", MarkRequest(label="before upgrade", wait=True)
        )
        assert point.sequence == house.group.points[-1].sequence
        assert point.label == house.group.points[-1].label == "before upgrade"
        assert site.model.equals(house.group)
    site.model.check(house.group)
    group = await site.until(lambda group: (group.rpo_seconds or 9) < 2)
    assert [(disk.name, disk.size) for disk in group.disks] == [(n, DISK_BYTES) for n in DISKS]
    assert group.durable_lsn == group.applied_lsn == house.group.durable_lsn
    assert group.points == len(house.group.points)
    assert group.newest_point is not None
    assert group.newest_point.sequence == house.group.points[-1].sequence
    assert group.peer == "receiver-1"
    assert group.reason == ""


async def test_marks_work_on_an_idle_group_and_labels_are_unique(site: Site, house: House) -> None:
    first = await asyncio.to_thread(
        site.control.order, MARK, "g", MarkRequest(label="one", wait=True)
    )
    second = await asyncio.to_thread(
        site.control.order, MARK, "g", MarkRequest(label="two", wait=True)
    )
    assert first.sequence is not None
    assert second.sequence is not None
    assert second.sequence > first.sequence
    with pytest.raises(UsageError, match="labelled 'one' already"):
        await asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="one"))
    with pytest.raises(UsageError, match="label"):
        await asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="latest"))
    with pytest.raises(NotFoundError, match="its groups: g"):
        await asyncio.to_thread(site.control.order, MARK, "h", MarkRequest(label="x"))


async def test_a_group_that_is_idle_holds_its_rpo_down(site: Site, house: House) -> None:
    points = len(house.group.points)
    until_ns = house.group.holds[-1].until_ns if house.group.holds else 0
    while not house.group.holds or house.group.holds[-1].until_ns < until_ns + 1_000_000_000:
        house.changed.clear()
        await asyncio.wait_for(house.changed.wait(), 10)
    assert len(house.group.points) == points
    group = await site.group()
    assert group.rpo_seconds is not None
    assert group.rpo_seconds < 1.0


async def test_the_receiver_is_told_what_the_sources_clocks_show(site: Site, house: House) -> None:
    def told() -> PeerClocks | None:
        assert house.server is not None
        return next((each.peer_clocks for each in house.server.links if each.peer_clocks), None)

    while (clocks := told()) is None or clocks.stream is None:
        house.changed.clear()
        await asyncio.wait_for(house.changed.wait(), 10)
    assert abs(clocks.wall_ns - time.time_ns()) < 60_000_000_000
    assert 0 < clocks.monotonic_ns <= time.monotonic_ns()
    assert clocks.stream == house.group.stream


async def test_a_killed_agent_loses_nothing_and_resumes_where_the_receiver_is(
    site: Site, house: House
) -> None:
    async with site.writer() as writer:
        for _ in range(3):
            await writer.write(30)
            await site.kill(site.agent)
            await writer.write(30)  # the guest does not notice
            await site.start_agent()
            await site.until(lambda group: group.peer is not None)
    await all_there(site, house)
    starts = [frame.header.start_lsn for frame in house.group.frames]
    ends = [frame.header.end_lsn for frame in house.group.frames]
    assert starts == [0, *ends[:-1]]  # each byte of the log once, in order
    assert {hello.instance for hello in house.hellos} == {house.hellos[0].instance}
    assert len(house.hellos) >= 4


async def test_the_receiver_may_come_and_go(site: Site, house: House) -> None:
    async with site.writer() as writer:
        await writer.write(20)
        await house.stop()
        await writer.write(20)
        group = await site.until(lambda group: group.peer is None)
        assert group.state == "protected", "a blip turns no state"
        group = await site.until(lambda group: group.state == "disconnected")
        assert "the spool has room" in group.reason
        assert "cannot be reached" in group.reason or "closed" in group.reason
        marking = asyncio.create_task(
            asyncio.to_thread(
                site.control.order, MARK, "g", MarkRequest(label="meanwhile", wait=True)
            )
        )
        await writer.write(20)
        await house.start()
        assert (await marking).label == "meanwhile"
    await all_there(site, house)


async def test_an_ack_that_was_lost_is_asked_for_again(site: Site, house: House) -> None:
    """The point is made, but the connection ends before the agent hears of it."""
    real = house.group.receive

    def deaf(message: object) -> list[object]:
        answers = real(message)  # type: ignore[arg-type]
        return [] if house.group.points[-1].label == "unheard" else answers  # type: ignore[return-value]

    house.group.receive = deaf  # type: ignore[assignment,method-assign]
    marking = asyncio.create_task(
        asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="unheard", wait=True))
    )
    while house.group.points[-1].label != "unheard":
        house.changed.clear()
        await asyncio.wait_for(house.changed.wait(), 10)
    house.group.receive = real  # type: ignore[method-assign]
    await house.stop()
    await house.start()
    assert (await marking).label == "unheard"


async def test_a_killed_splitter_is_a_known_loss_until_a_resync(site: Site, house: House) -> None:
    async with site.writer() as writer:
        await writer.write(30)
        await site.kill(site.splitter)
    lost = await site.until(lambda group: group.state == "lost")
    assert "splitter" in lost.reason
    site.model.check(house.group)
    await site.start_splitter()
    lost = await site.until(lambda group: "resync" in group.reason)
    assert lost.state == "lost"
    with pytest.raises(NoPointError):
        await asyncio.to_thread(
            site.control.order, MARK, "g", MarkRequest(label="never", wait=True)
        )
    points = len(house.group.points)
    async with site.writer() as writer:
        await writer.write(10)  # not recorded: no stream
        resynced = await asyncio.to_thread(site.control.order, RESYNC, "g")
        assert resynced.state in ("attaching", "syncing")
        assert len(house.group.points) == points
        await writer.write_all()
        await site.until(lambda group: group.state == "protected")
        await writer.write(10)
    await all_there(site, house)
    assert len(house.group.points) > points
    assert house.group.ordinal == 2


async def test_a_receiver_that_was_rolled_back_is_fed_again_by_order(
    site: Site, house: House
) -> None:
    async with site.writer() as writer:
        await writer.write(10)
        await house.stop()
        house.group.roll_back()
        await house.start()
        closed = await site.until(lambda group: group.state == "rolled-back")
        assert "replicator resync g" in closed.remedy
        with pytest.raises(NoPointError, match="rolled back"):
            await asyncio.to_thread(
                site.control.order, MARK, "g", MarkRequest(label="never", wait=True)
            )
        frames = len(house.group.frames)
        await writer.write(10)
        await site.kill(site.agent)
        await site.start_agent()
        await site.until(lambda group: group.state == "rolled-back")
        assert len(house.group.frames) == frames
        await asyncio.to_thread(site.control.order, RESYNC, "g")
        await writer.write_all()
        await site.until(lambda group: group.state == "protected")
    await all_there(site, house)


async def test_a_receiver_that_lost_its_data_gets_a_new_stream(site: Site, house: House) -> None:
    async with site.writer() as writer:
        for _ in range(40):
            await writer.write(20)
        await all_there(site, house)
        await house.stop()
        house.group.chain ^= 1  # the same LSN, another history
        await house.start()
        lost = await site.until(lambda group: group.state == "lost")
        assert "another log than ours" in lost.reason


async def test_a_second_agent_is_refused_and_the_first_goes_on(site: Site) -> None:
    second = await asyncio.to_thread(run_agent, site.config)
    assert second.returncode == 11
    assert "is running already" in second.stderr
    assert (await site.group()).state == "protected"


def run_agent(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_what_cannot_work_ends_the_start_with_its_code(directory: Path) -> None:
    with ExitStack() as stack:
        site = Site(directory, 1, stack)
        site.configure(1, name="somebody-else")
        refused = run_agent(site.config)
        assert refused.returncode == 12
        assert "agent-1" in refused.stderr
        (directory / "agent-1.key").unlink()
        missing = run_agent(site.config)
        assert missing.returncode == 2
        assert "agent-1.key" in missing.stderr
        for outcome in (refused, missing):
            assert "Traceback" not in outcome.stderr


async def test_a_foreign_certificate_is_said_to_be_one(
    directory: Path, processes: ExitStack, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The agent keeps trying, captures meanwhile, and says what is wrong."""
    foreign = tmp_path_factory.mktemp("foreign")
    init_ca(foreign)
    issue(foreign, "r", sans=[HOST])
    for name in ("r.crt", "r.key"):
        (directory / name).unlink()
        (foreign / name).rename(directory / name)
    house = House(directory)
    await house.start()
    site = Site(directory, house.port, processes)
    await site.start_splitter()
    await site.start_agent()
    group = await site.until(lambda group: "refused" in group.reason)
    assert "certificate" in group.reason
    assert group.state == "attaching"
    group = await site.until(lambda group: group.state == "disconnected")
    assert "certificate" in group.reason
    assert group.remedy
    assert house.hellos == []
    await house.stop()


async def test_without_a_splitter_the_agent_waits_and_says_so(
    directory: Path, house: House, processes: ExitStack
) -> None:
    site = Site(directory, house.port, processes)
    await site.start_agent()
    group = await site.until(lambda group: "no splitter is running" in group.reason)
    assert group.state == "attaching"
    group = await site.until(lambda group: group.state == "idle")
    assert "start the splitter" in group.remedy
    with pytest.raises(ReplicatorError, match="splitter"):
        await asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="x"))
    await site.start_splitter()
    await site.until(lambda group: group.state == "protected")


async def test_a_group_that_the_splitter_does_not_know_is_said_to_be_one(
    directory: Path, house: House, processes: ExitStack
) -> None:
    site = Site(directory, house.port, processes)
    await site.start_splitter()
    site.config.write_text(site.config.read_text().replace('name = "g"', 'name = "later"'))
    await site.start_agent()
    group = await site.until(lambda group: "does not know this group" in group.reason)
    assert (group.name, group.state) == ("later", "attaching")
    group = await site.until(lambda group: group.state == "idle")
    assert "replicator reload" in group.remedy
    with pytest.raises(UnreachableError, match="does not know this group"):
        await asyncio.to_thread(site.control.order, RESYNC, "later")


async def test_a_domain_that_does_not_exist_is_named_as_the_reason_and_logged_once(
    directory: Path, house: House, processes: ExitStack
) -> None:
    site = Site(directory, house.port, processes)
    head, _, _ = site.config.read_text().partition("[[group]]")
    site.config.write_text(
        f'{head}[libvirt]\nuri = "test:///default"\n[[group]]\nname = "g"\n'
        'disk = [{ domain = "nosuch", target = "vda" }]\n'
    )
    await site.start_splitter()
    await site.start_agent()
    await site.until(lambda group: "libvirt knows no domain nosuch" in group.reason)
    await asyncio.sleep(2 * LOOK_SECONDS)
    assert site.logs().count("libvirt knows no domain nosuch") == 1


async def test_metrics_carry_the_splitters_figures(
    directory: Path, house: House, processes: ExitStack, unused_tcp_port: int
) -> None:
    address = f"{HOST}:{unused_tcp_port}"
    site = Site(directory, house.port, processes, metrics=address)
    await site.start_splitter()
    await site.start_agent()
    await site.until(lambda group: group.state == "protected")
    async with site.writer() as writer:
        await writer.write(20)
    await all_there(site, house)
    text = await asyncio.to_thread(lambda: urlopen(f"http://{address}/metrics").read().decode())
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['replicator_group_state{group="g",state="protected"}'] == "1.0"
    assert float(lines['replicator_guest_write_duration_seconds_count{group="g"}']) >= 20
    assert float(lines['replicator_replication_lag_seconds{group="g"}']) < 5
    assert float(lines['replicator_sent_bytes_total{group="g",stage="compressed"}']) > 0
    assert lines["replicator_splitter_up"] == "1.0"


async def test_sigterm_ends_it_cleanly(site: Site) -> None:
    site.agent.terminate()
    assert await asyncio.to_thread(site.agent.wait, 15) == 0
    log = (site.directory / "agent.log").read_text()
    assert "Traceback" not in log
    assert not (site.directory / "agent.sock").exists()


def test_the_agent_yields_the_cpu(directory: Path) -> None:
    with ExitStack() as stack:
        site = Site(directory, 1, stack)
        log = directory / "agent.log"
        command: list[str | Path] = [sys.executable, "-m", "agent", "--config", site.config]
        child = stack.enter_context(running(command, log))
        wait_for_unix(directory / "agent.sock", child, log)
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        nice, policy = int(fields[16]), int(fields[38])
        assert nice >= 10
        assert policy == 3  # SCHED_BATCH


async def test_scripts_quiesce_an_external_group_and_the_schedule_marks_it(
    directory: Path, house: House, processes: ExitStack, unused_tcp_port: int
) -> None:
    script = f'echo "$REPLICATOR_PHASE $REPLICATOR_GROUP $REPLICATOR_LABEL" >>{directory}/ran'
    address = f"{HOST}:{unused_tcp_port}"
    group = (
        f"quiesce_pre = ['/bin/sh', '-c', '{script}']\n"
        f"quiesce_post = ['/bin/sh', '-c', '{script}']\n"
        'mark_every = "1s"\n'
    )
    site = Site(directory, house.port, processes, metrics=address, group=group)
    await site.start_splitter()
    await site.start_agent()
    await site.until(lambda group: group.state == "protected")
    point = await asyncio.to_thread(
        site.control.order,
        MARK,
        "g",
        MarkRequest(label="calm", wait=True, quiesce=True, expire_seconds=60),
    )
    assert (point.kind, point.label, point.frozen_seconds) == ("application", "calm", None)
    assert point.sequence is not None
    assert house.group.points[point.sequence - 1].kind == "application"
    assert (directory / "ran").read_text() == "pre g calm\npost g calm\n"
    unnamed = await asyncio.to_thread(
        site.control.order, MARK, "g", MarkRequest(wait=True, quiesce=True)
    )
    assert (unnamed.kind, unnamed.label) == ("application", None)
    await until_counted(address, 'replicator_scheduled_marks_total{group="g",outcome="made"}', 1)
    quiesced = 'replicator_quiesced_marks_total{group="g",outcome="application"}'
    assert await until_counted(address, quiesced, 2) == 2


async def until_counted(address: str, name: str, least: int) -> float:
    """The metric, once it is that high; metrics have no events."""
    async with asyncio.timeout(20):
        while True:
            text = await asyncio.to_thread(lambda: urlopen(f"http://{address}/metrics").read())
            lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
            value = float(dict(line.rsplit(" ", 1) for line in lines)[name])
            if value >= least:
                return value
            await asyncio.sleep(0.1)


async def test_without_scripts_nobody_can_quiesce_an_external_group(site: Site) -> None:
    with pytest.raises(UsageError, match="nobody can quiesce group 'g'"):
        await asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="x", quiesce=True))


async def test_a_start_after_a_crash_runs_the_post_script(
    directory: Path, house: House, processes: ExitStack
) -> None:
    """The agent is killed while the point is being made."""
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    group = (
        f"quiesce_pre = ['/bin/sh', '-c', 'echo $$ >{fifo}; exec sleep 1000']\n"
        f"quiesce_post = ['/bin/sh', '-c', 'echo post $REPLICATOR_LABEL >{fifo}']\n"
    )
    site = Site(directory, house.port, processes, group=group)
    await site.start_splitter()
    await site.start_agent()
    await site.until(lambda group: group.state == "protected")
    marking = asyncio.create_task(
        asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="calm", quiesce=True))
    )
    script = int(await asyncio.to_thread(fifo.read_text))
    await site.kill(site.agent)
    os.kill(script, signal.SIGKILL)
    with pytest.raises(UnreachableError):
        await marking
    assert (directory / "state/frozen/g.json").exists()
    await site.start_agent()
    assert await asyncio.to_thread(fifo.read_text) == "post calm\n"
    await site.until(lambda group: not (directory / "state/frozen/g.json").exists())


async def test_an_agent_that_is_stopped_while_it_quiesces_runs_the_post_script(
    directory: Path, house: House, processes: ExitStack
) -> None:
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    group = (
        f"quiesce_pre = ['/bin/sh', '-c', 'echo $$ >{fifo}; exec sleep 1000']\n"
        f"quiesce_post = ['/bin/sh', '-c', 'echo post $REPLICATOR_LABEL >{directory}/ran']\n"
    )
    site = Site(directory, house.port, processes, group=group)
    await site.start_splitter()
    await site.start_agent()
    await site.until(lambda group: group.state == "protected")
    marking = asyncio.create_task(
        asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="calm", quiesce=True))
    )
    script = int(await asyncio.to_thread(fifo.read_text))
    site.agent.terminate()
    assert await asyncio.to_thread(site.agent.wait, 20) == 0
    with pytest.raises(ReplicatorError):
        await marking
    assert (directory / "ran").read_text() == "post calm\n"
    assert not (directory / "state/frozen/g.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(script, 0)


@pytest.mark.parametrize("is_thinned", [False, True])
async def test_a_point_without_a_label_whose_ack_was_lost_is_told_again(
    directory: Path, house: House, processes: ExitStack, *, is_thinned: bool
) -> None:
    """Unless it is gone again by then: that there is none is said as well."""
    site = Site(directory, house.port, processes, group="quiesce_post = ['/bin/true']")
    await site.start_splitter()
    await site.start_agent()
    await site.until(lambda group: group.state == "protected")
    real = house.group.receive

    def deaf(message: object) -> list[object]:
        answers = real(message)  # type: ignore[arg-type]
        return [] if house.group.points[-1].kind == "application" else answers  # type: ignore[return-value]

    house.group.receive = deaf  # type: ignore[assignment,method-assign]
    marking = asyncio.create_task(
        asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(wait=True, quiesce=True))
    )
    while house.group.points[-1].kind != "application":
        house.changed.clear()
        await asyncio.wait_for(house.changed.wait(), 10)
    unheard = house.group.points[-1]
    if is_thinned:
        house.group.points.pop()
    house.group.receive = real  # type: ignore[method-assign]
    await house.stop()
    await house.start()
    assert unheard.label is None
    if is_thinned:
        with pytest.raises(NoPointError, match="there is no point of it"):
            await marking
        return
    point = await marking
    assert (point.kind, point.sequence) == ("application", unheard.sequence)


async def _until(house: House, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            house.changed.clear()
            await house.changed.wait()


async def test_a_mark_whose_ack_is_lost_is_told_again_behind_many_points(
    site: Site, house: House
) -> None:
    real = house.group.receive

    def deaf(message: object) -> list[object]:
        answers = real(message)  # type: ignore[arg-type]
        marked = any(point.label == "unheard" for point in house.group.points)
        return [] if marked else answers  # type: ignore[return-value]

    house.group.receive = deaf  # type: ignore[assignment,method-assign]
    marking = asyncio.create_task(
        asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="unheard", wait=True))
    )
    await _until(house, lambda: any(p.label == "unheard" for p in house.group.points))
    points = len(house.group.points)
    async with site.writer() as writer:
        while len(house.group.points) < points + 70:
            await writer.write()
            await asyncio.sleep(0.01)  # a point needs an interval of its own
    house.group.receive = real  # type: ignore[method-assign]
    await house.stop()
    await house.start()
    assert (await marking).label == "unheard"


async def test_a_mark_ends_with_the_stream_that_it_was_made_in(site: Site, house: House) -> None:
    """It was never shipped; its label is free again."""
    async with site.writer() as writer:
        await writer.write(20)
        await house.stop()
        marking = asyncio.create_task(
            asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="m", wait=True))
        )
        await site.until(lambda group: group.peer is None)
        await site.until(lambda group: "event=marked" in site.logs())
        with pytest.raises(UsageError, match="under way"):
            await asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="m"))
        await site.kill(site.splitter)
    shutil.rmtree(site.directory / "memory")
    await house.start()
    await site.start_splitter()
    await site.until(lambda group: group.state == "lost" and "resync" in group.reason)
    async with site.writer() as writer:
        await asyncio.to_thread(site.control.order, RESYNC, "g")
        await writer.write_all()
        with pytest.raises(NoPointError, match="'m' did not become a point"):
            await marking
        await site.until(lambda group: group.state == "protected")
        again = await asyncio.to_thread(
            site.control.order, MARK, "g", MarkRequest(label="m", wait=True)
        )
        assert again.label == "m"


async def test_a_wait_has_an_end_and_says_what_it_waits_for(site: Site, house: House) -> None:
    await house.stop()
    await site.until(lambda group: group.peer is None)
    with pytest.raises(UnreachableError, match="no point after 1"):
        await asyncio.to_thread(
            site.control.order, MARK, "g", MarkRequest(label="late", wait=True, timeout_seconds=1)
        )
    await house.start()
    await _until(house, lambda: any(p.label == "late" for p in house.group.points))


async def test_a_label_that_the_receiver_gave_away_meanwhile_is_said(
    site: Site, house: House
) -> None:
    await house.stop()
    await site.until(lambda group: group.peer is None)
    marking = asyncio.create_task(
        asyncio.to_thread(site.control.order, MARK, "g", MarkRequest(label="m", wait=True))
    )
    await site.until(lambda group: "event=marked" in site.logs())
    house.group.points.append(Point(house.group.next_point, 1, "crash", 0, "m"))
    house.group.next_point += 1
    await house.start()
    made = await marking
    assert made.label == "m~2"
    assert made.notice is not None
    assert "meanwhile" in made.notice
