# SPDX-License-Identifier: Apache-2.0
"""A changed configuration under a running splitter: no other group pays for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from journal.bodies import Cut, decode_body
from journal.record import Record, RecordType
from replicator.base.errors import UnreachableError
from replicator.control.splitter import (
    DeclareDisk,
    DiskDeclared,
    Done,
    HelloAnswer,
    Mark,
    Marked,
    Reload,
    Reloaded,
    RemoveGroup,
    SplitterGroupStatus,
    SplitterStatus,
)
from replicator.control.splitter import Hello as HelloOrder
from tests.peers.nbd_client import NbdClient
from tests.splitter.daemon import Agent, Home, agent, connect, home, splitter, uuid_text

NEW_GROUP = """
[[group]]
name = "new"
driver = "external"
checkpoint_interval = "100ms"
[[group.disk]]
name = "x"
size = "16MiB"
"""
NEW_DISK = """[[group.disk]]
name = "c"
size = "16MiB"
"""
BLOCK = bytes(range(256)) * 16


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        yield made


def edit(place: Home, old: str, new: str) -> None:
    text = place.config.read_text()
    assert text.count(old) == 1, old
    place.config.write_text(text.replace(old, new))


async def reloaded(
    one: Agent, child: subprocess.Popen[bytes], true: Callable[[SplitterStatus], bool]
) -> SplitterStatus:
    """Sends SIGHUP; the first status after it of which that is so."""
    os.kill(child.pid, signal.SIGHUP)
    await one.ask(lambda number: HelloOrder(id=number), HelloAnswer)
    async with asyncio.timeout(20):
        while True:
            for status in await one.heard(1):
                if true(status):
                    return status


def group(status: SplitterStatus, name: str) -> SplitterGroupStatus | None:
    return next((one for one in status.groups if one.name == name), None)


def cuts(records: list[Record]) -> list[Cut]:
    return [decode_body(Cut, each, 0) for each in records if each.type == RecordType.CUT]


async def writing(client: NbdClient, stop: asyncio.Event) -> int:
    """Writes until told to stop; how many were answered. Raises if one fails."""
    count = 0
    while not stop.is_set():
        await client.pwrite(BLOCK, offset=count % 256 * 4096)
        count += 1
    return count


async def test_a_group_is_added_and_the_others_notice_nothing(place: Home) -> None:
    with splitter(place) as child:
        async with agent(place) as one:
            before = await one.until("ext", lambda found: found.state == "ready")
            client = await connect(place, "ext/a")
            stop = asyncio.Event()
            load = asyncio.create_task(writing(client, stop))
            place.config.write_text(place.config.read_text() + NEW_GROUP)
            status = await reloaded(one, child, lambda told: group(told, "new") is not None)
            new = group(status, "new")
            assert new is not None
            assert new.state == "ready"
            other = await connect(place, "new/x")
            await other.pwrite(BLOCK, offset=0)
            stop.set()
            assert await load > 0
            after = await one.until("ext", lambda found: found.state == "ready")
            assert (after.stream, after.ordinal) == (before.stream, before.ordinal)
            end = await one.until("new", lambda found: found.last_cut_time_ns > 0)
            await other.disconnect()
            await client.disconnect()
        kinds = [each.type for each in place.records("new", end.end_lsn)]
        assert kinds.count(RecordType.WRITE) == 1
    assert "config changed" in place.log.read_text()


async def test_a_group_that_left_ends_with_a_cut_and_its_files_stay(place: Home) -> None:
    with splitter(place) as child:
        async with agent(place) as one:
            await one.until("ext", lambda found: found.state == "ready")
            client = await connect(place, "ext/a")
            await client.pwrite(BLOCK, offset=0)
            text = place.config.read_text()
            start, end = text.index('[[group]]\nname = "ext"'), text.index('[[group]]\nname = "vm"')
            place.config.write_text(text[:start] + text[end:])
            await reloaded(one, child, lambda told: group(told, "ext") is None)
            with pytest.raises(UnreachableError):
                await client.pwrite(BLOCK, offset=0)
            client.abort()
            records = place.records("ext")
            assert records[-1].type == RecordType.CUT
            assert [each.type for each in records].count(RecordType.WRITE) == 1
            place.config.write_text(text)  # and it comes back, as one that needs a resync
            status = await reloaded(one, child, lambda told: group(told, "ext") is not None)
            back = group(status, "ext")
            assert back is not None
            assert back.state == "lost"
            assert "need a resync" in back.reason


async def test_a_libvirt_group_that_left_is_served_until_its_copies_have_ended(
    place: Home,
) -> None:
    with splitter(place) as child:
        async with agent(place) as one:
            await one.ask(
                lambda number: DeclareDisk(
                    id=number, group="vm", disk="vda", size=1 << 24, instance=uuid_text(1)
                ),
                DiskDeclared,
            )
            mirror = await connect(place, "vm/vda")
            text = place.config.read_text()
            place.config.write_text(text[: text.index('[[group]]\nname = "vm"')] + NEW_GROUP)
            status = await reloaded(one, child, lambda told: group(told, "new") is not None)
            assert group(status, "vm") is not None
            await mirror.pwrite(BLOCK, offset=0)
            await mirror.disconnect()
            async with asyncio.timeout(20):
                while any(each.name == "vm" for each in (await one.heard(1))[0].groups):
                    pass


async def test_by_the_agents_order_a_group_goes_when_the_agent_says_so(place: Home) -> None:
    """Also one that nobody is connected to: its last cut is to be made and shipped first."""
    with splitter(place):
        async with agent(place) as one:
            before = await one.until("ext", lambda found: found.state == "ready")
            text = place.config.read_text()
            start, end = text.index('[[group]]\nname = "ext"'), text.index('[[group]]\nname = "vm"')
            place.config.write_text(text[:start] + text[end:])
            await one.ask(lambda number: Reload(id=number), Reloaded)
            cut = await one.ask(
                lambda number: Mark(id=number, group="ext", label=None, kind="crash"), Marked
            )
            left = await one.until("ext", lambda found: found.end_lsn >= cut.lsn)
            assert left.stream == before.stream
            await one.ask(lambda number: RemoveGroup(id=number, group="ext"), Done)
            async with asyncio.timeout(20):
                while any(each.name == "ext" for each in (await one.heard(1))[0].groups):
                    pass


async def test_an_external_disk_is_added_unprotected_and_removed(place: Home) -> None:
    with splitter(place) as child:
        async with agent(place) as one:
            await one.until("ext", lambda found: found.state == "ready")
            edit(place, 'name = "b"\nsize = "16MiB"\n', 'name = "b"\nsize = "16MiB"\n' + NEW_DISK)

            def has(count: int) -> Callable[[SplitterStatus], bool]:
                return lambda told: len((group(told, "ext") or told.groups[0]).disks) == count

            found = group(await reloaded(one, child, has(3)), "ext")
            assert found is not None
            assert found.state == "ready"  # the others go on
            assert {disk.name: disk.state for disk in found.disks}["c"] == "idle"
            client = await connect(place, "ext/a")
            await client.pwrite(BLOCK, offset=0)
            cut = found.last_cut_time_ns
            await one.until("ext", lambda later: later.last_cut_time_ns > cut)
            edit(place, NEW_DISK, "")
            edit(place, '[[group.disk]]\nname = "b"\nsize = "16MiB"\n', "")
            found = group(await reloaded(one, child, has(1)), "ext")
            assert found is not None
            assert found.state == "ready"
            await client.pwrite(BLOCK, offset=4096)
            cut = found.last_cut_time_ns
            end = await one.until("ext", lambda later: later.last_cut_time_ns > cut)
            await client.disconnect()
        records = place.records("ext", end.end_lsn)
        assert RecordType.DETACH in [each.type for each in records]
        listed = [[member.name for member in each.members] for each in cuts(records)]
        assert listed[0] == ["a", "b"]
        assert listed[-1] == ["a"]


async def test_intervals_and_budgets_hold_from_then_on(place: Home) -> None:
    with splitter(place) as child:
        async with agent(place) as one:
            await one.until("ext", lambda found: found.state == "ready")
            text = place.config.read_text().replace("100ms", "1h").replace("64MiB", "1MiB")
            place.config.write_text(text + NEW_GROUP)
            await reloaded(one, child, lambda told: group(told, "new") is not None)
            client = await connect(place, "ext/a")
            for number in range(300):  # more than a megabyte: the spool is full
                await client.pwrite(bytes(65536), offset=number % 64 * 65536)
                if number % 50 == 0:
                    await one.ask(lambda n: HelloOrder(id=n), HelloAnswer)
            lost = await one.until("ext", lambda found: found.state == "lost")
            assert "the spool is full (1 MiB in memory and 1 MiB on disk)" in lost.reason
            await client.disconnect()


async def test_what_a_start_alone_can_change_is_said_and_stays(place: Home) -> None:
    with splitter(place) as child:
        async with agent(place) as one:
            edit(place, f'control = "{place.path}/control"', f'control = "{place.path}/other"')
            place.config.write_text(place.config.read_text() + NEW_GROUP)
            await reloaded(one, child, lambda told: group(told, "new") is not None)
        assert not (place.path / "other").exists()
        assert "after a restart" in place.log.read_text()


@pytest.mark.parametrize("broken", ["rubbish", "[[group]]\nname = 5\n"])
async def test_a_file_with_an_error_changes_nothing(place: Home, broken: str) -> None:
    with splitter(place) as child:
        async with agent(place) as one:
            good = place.config.read_text()
            place.config.write_text(good + broken)
            os.kill(child.pid, signal.SIGHUP)
            async with asyncio.timeout(20):
                while "reload refused" not in place.log.read_text():
                    await one.heard(1)
            place.config.write_text(good + NEW_GROUP)
            await reloaded(one, child, lambda told: group(told, "new") is not None)


async def test_a_new_group_that_cannot_be_made_changes_nothing(place: Home) -> None:
    """Its reservation is damaged: neither it nor the other new one comes, nor anything else."""
    with splitter(place) as child:
        async with agent(place) as one:
            bad = place.path / "state" / "splitter" / "new.json"
            bad.write_text("rubbish")
            good = place.config.read_text()
            second = NEW_GROUP.replace('"new"', '"first"')
            place.config.write_text(good + second + NEW_GROUP)
            os.kill(child.pid, signal.SIGHUP)
            async with asyncio.timeout(20):
                while "reload refused" not in place.log.read_text():
                    await one.heard(1)
            (status,) = await one.heard(1)
            assert [each.name for each in status.groups] == ["ext", "vm"]
            bad.unlink()
            await reloaded(one, child, lambda told: group(told, "new") is not None)
