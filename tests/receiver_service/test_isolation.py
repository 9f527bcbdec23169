# SPDX-License-Identifier: Apache-2.0
"""One group's trouble is that group's: two that are fed beside one that is broken, full, slow or
silent, at the start and at run time, compared byte for byte."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import pytest
from xxhash import xxh3_64_intdigest

from journal.record import HEADER_BYTES as RECORD_HEADER_BYTES
from journal.seal import read_index
from journal.segment import FORMAT_VERSION, HEADER_BYTES
from journal.stream_files import read_seal
from receiver.history import writer
from receiver.service import Receiver
from replicator.base.errors import ReplicatorError
from replicator.base.notify import Notifier
from replicator.base.storage import SystemStorage
from replicator.control.orders import CLOSE_VIEW, OPEN_VIEW, POINTS, SCRUB, STATUS, VERIFY_AUDIT
from replicator.control.requests import ViewRequest
from replicator.control.types import GroupStatus
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.fake_agent import FakeAgent
from tests.receiver_service.source import Source
from tests.receiver_service.test_orders import order
from tests.receiver_service.troubled_disk import (
    WRITES,
    Silent,
    Trouble,
    TroubledStorage,
    full,
    refusing,
    slow,
)

GROUPS = ("web", "db", "mail")
SOUND = ("db", "mail")
SIZE = 1 << 20
BLOCK = 4096
WAIT_SECONDS = 120.0
WATCH = "receiver.audit.watch.HistoryWatch"


@pytest.fixture
def site() -> Iterator[DrSite]:
    with TemporaryDirectory(prefix="iso-") as folder:  # short: sockets of views lie in it
        yield DrSite(Path(folder), groups={name: [f"kvm-{name}"] for name in GROUPS})


class Fed:
    """A group whose source goes on writing, and whose agent ships it."""

    def __init__(self, site: DrSite, name: str) -> None:
        self.name = name
        self.source = Source({"vda": SIZE})
        self.source.start_from_zero()
        self._site = site
        self._random = random.Random(name)
        self._shipped = self.source.first_lsn
        self._agent: FakeAgent | None = None

    async def connect(self) -> FakeAgent:
        agent = self._agent = await self._site.agent(f"kvm-{self.name}")
        welcome = await agent.welcomed(self.name, agent=f"kvm-{self.name}")
        fresh = welcome.stream is None
        self._shipped = self.source.first_lsn if fresh else welcome.durable_lsn
        await agent.open(self.source, self._shipped)
        return agent

    def write(self, count: int = 8) -> None:
        for _ in range(count):
            block = self._random.randrange(SIZE // BLOCK)
            self.source.write("vda", block * BLOCK, self._random.randbytes(BLOCK))
        self.source.cut()

    async def ship(self) -> None:
        """All there is, until it is applied."""
        assert self._agent is not None
        self.write()
        await self._agent.ship(self.source, self._shipped)
        self._shipped = self.source.end_lsn
        await self._agent.applied(self._shipped)

    async def check(self) -> None:
        """The replica, and the number of points."""
        replica = self._site.replica("vda", self.name).read_bytes()
        assert replica == self.source.contents["vda"], f"{self.name} differs from its source"
        points = await order(self._site.control.order, POINTS, self.name)
        assert len(points) == len(self.source.cuts)

    async def close(self) -> None:
        if self._agent is not None:
            await self._agent.close()


@asynccontextmanager
async def feeding(
    site: DrSite, *names: str, since: dict[str, Fed] | None = None
) -> AsyncIterator[dict[str, Fed]]:
    """Fresh ones, or those that have been fed `since` an earlier life."""
    fed = {name: Fed(site, name) if since is None else since[name] for name in names}
    try:
        for each in fed.values():
            await each.connect()
            await each.ship()
        yield fed
    finally:
        for each in fed.values():
            await each.close()


async def status_of(site: DrSite, group: str) -> GroupStatus:
    return next(
        each for each in (await order(site.control.order, STATUS)).groups if each.name == group
    )


async def until_stopped(site: DrSite, receiver: Receiver, group: str) -> GroupStatus:
    worker = receiver.workers[group]
    async with asyncio.timeout(WAIT_SECONDS):
        await worker.changed.until(lambda: worker.health.stopped is not None)
    return await status_of(site, group)


async def refused(site: DrSite, group: str) -> ReplicatorError:
    """What the group's agent is told."""
    agent = await site.agent(f"kvm-{group}")
    try:
        with pytest.raises(ReplicatorError) as told:
            await agent.welcomed(group, agent=f"kvm-{group}")
    finally:
        await agent.close()
    return told.value


async def lived_before(site: DrSite) -> dict[str, Fed]:
    """All three groups have been fed once."""
    async with site.running(), feeding(site, *GROUPS) as fed:
        for each in fed.values():
            await each.check()
    return fed


# -- the start ------------------------------------------------------------------------------------


def newer(pattern: str) -> Callable[[Path], None]:
    """The group's segments of that name are whole, and of a format that this version does not
    know."""

    def make(group: Path) -> None:
        paths = sorted(group.glob(pattern))
        assert paths, f"no {pattern}"
        for path in paths:
            content = bytearray(path.read_bytes())
            content[8:10] = (FORMAT_VERSION + 1).to_bytes(2, "little")
            digest = xxh3_64_intdigest(bytes(content[: HEADER_BYTES - 8]))
            content[HEADER_BYTES - 8 : HEADER_BYTES] = digest.to_bytes(8, "little")
            path.write_bytes(content)

    return make


def odd_views(group: Path) -> None:
    """What no view ever made, in every form."""
    views = group / "views"
    (views / "0badcafe" / "nested").mkdir(parents=True)
    (views / "feedbeef").mkdir()
    (views / "feedbeef" / "letter.txt").write_text("mine")
    (views / "0000aaaa").mkdir()
    (views / "0000aaaa" / "vda.overlay").write_text("a view's")
    (views / "notes.txt").write_text("mine")
    (views / "deadbeef.sock").mkdir()
    (views / "elsewhere").symlink_to("/")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(views / "0123abcd.sock"))


STARTS: dict[str, tuple[tuple[str, ...], Callable[[Path], None] | None]] = {
    "history EIO": (("history",), None),
    "inbox EIO": (("inbox",), None),
    "disks EIO": (("disks",), None),
    "sums EIO": (("sums",), None),
    "fine EIO": (("fine",), None),
    "all EIO": (("",), None),
    "history newer": ((), newer("history/**/*.seg")),
    "inbox newer": ((), newer("inbox/**/*.seg")),
    "odd views": ((), odd_views),
}
STOPPED = {"history EIO", "inbox EIO", "disks EIO", "all EIO", "history newer", "inbox newer"}


@pytest.mark.parametrize("case", STARTS)
async def test_a_start_with_one_group_in_trouble(site: DrSite, case: str) -> None:
    before = await lived_before(site)
    folders, spoil = STARTS[case]
    group = site.data_dir / "groups" / "web"
    if spoil is not None:
        spoil(group)
    storage = TroubledStorage(refusing(*(group / folder for folder in folders)))
    async with site.running(storage):
        async with feeding(site, *SOUND, since=before) as fed:
            for each in fed.values():
                await each.check()
        web = await status_of(site, "web")
        if case in STOPPED:
            assert (web.state, bool(web.reason)) == ("damaged", True)
            told = await refused(site, "web")
            assert told.message == web.reason
        if case == "odd views":
            assert web.state == "attaching", "nothing is wrong with it"
            left = sorted(path.name for path in (group / "views").iterdir())
            assert left == ["0badcafe", "deadbeef.sock", "elsewhere", "feedbeef", "notes.txt"]
            assert (group / "views" / "feedbeef" / "letter.txt").exists()
    if case not in STOPPED:
        return
    async with site.running():  # the disk is well again
        web = await status_of(site, "web")
        assert (web.state == "damaged") is (spoil is not None)


async def test_a_disk_that_answers_late_does_not_keep_the_others_from_starting(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.service.RECOVERY_PATIENCE_SECONDS", 0.3)
    before = await lived_before(site)
    silent = Silent((site.data_dir / "groups" / "web",))
    began = time.monotonic()
    async with site.running(TroubledStorage(silent)) as receiver:
        try:
            assert time.monotonic() - began < 10
            async with feeding(site, *SOUND, since=before) as fed:
                for each in fed.values():
                    await each.check()
                assert "recover" in (await status_of(site, "web")).reason
                told = await refused(site, "web")
                assert told.exit_code == 75
        finally:
            silent.freed.set()
        worker = receiver.workers["web"]
        async with asyncio.timeout(WAIT_SECONDS):
            await worker.changed.until(lambda: worker.health.is_recovered)
        async with feeding(site, "web", since=before) as fed:
            await fed["web"].check()


# -- run time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["history", "inbox", "disks"])
async def test_a_disk_that_fails_at_run_time_stops_its_group_alone(site: DrSite, part: str) -> None:
    storage = TroubledStorage()
    async with site.running(storage) as receiver, feeding(site, *GROUPS) as fed:
        folder = site.data_dir / "groups" / "web" / part
        storage.troubles.append(refusing(folder, what=WRITES))
        fed["web"].write()
        with pytest.raises(ReplicatorError):
            await fed["web"].ship()
        web = await until_stopped(site, receiver, "web")
        assert web.state == "damaged"
        assert str(folder) in web.reason
        assert "Input/output error" in web.reason
        for _ in range(3):
            for name in SOUND:
                await fed[name].ship()
                await fed[name].check()
        assert (await refused(site, "web")).message == web.reason
        # Its points that are whole go on being served.
        assert len(await order(site.control.order, POINTS, "web")) >= 1


async def test_two_are_fed_beside_a_full_one(site: DrSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("receiver.tasks.pump.SPACE_RETRY_SECONDS", 0.05)
    storage = TroubledStorage()
    async with site.running(storage) as receiver, feeding(site, *GROUPS) as fed:
        storage.troubles.append(full(site.data_dir / "groups" / "web" / "history"))
        web = receiver.workers["web"]
        waiting = asyncio.create_task(fed["web"].ship())
        async with asyncio.timeout(WAIT_SECONDS):
            await web.changed.until(lambda: web.health.paused is not None)
        for _ in range(3):
            for name in SOUND:
                await fed[name].ship()
                await fed[name].check()
        assert (await status_of(site, "web")).state == "paused"
        storage.troubles.clear()
        await waiting
        await fed["web"].check()


async def test_two_are_fed_beside_a_slow_one_and_a_silent_one(site: DrSite) -> None:
    """Sessions, views, status and the audit's look: none of them waits for another's disk."""
    storage = TroubledStorage()
    async with site.running(storage), feeding(site, *GROUPS) as fed:
        web = site.data_dir / "groups" / "web"
        for trouble in (slow(web), Silent((web,))):
            assert isinstance(trouble, Trouble | Silent)
            storage.troubles = [trouble]
            waiting = asyncio.create_task(fed["web"].ship())
            views = [
                asyncio.create_task(
                    order(site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="#1"))
                )
                for _ in range(3)
            ]  # each takes a thread of this process as well
            try:
                if isinstance(trouble, Silent):
                    await asyncio.to_thread(trouble.waiting.wait, WAIT_SECONDS)
                async with asyncio.timeout(WAIT_SECONDS):
                    for name in SOUND:
                        await fed[name].ship()
                        await fed[name].check()
                        chosen = await order(
                            site.control.order,
                            OPEN_VIEW,
                            request=ViewRequest(group=name, at="latest"),
                        )
                        await order(site.control.order, SCRUB, name)
                        await order(site.control.order, CLOSE_VIEW, chosen.result.id)
                    assert (await order(site.control.order, VERIFY_AUDIT)).faults == []
            finally:
                if isinstance(trouble, Silent):
                    trouble.freed.set()
            await waiting
            for view in views:
                await order(site.control.order, CLOSE_VIEW, (await view).result.id)
            await fed["web"].check()


def bug(*_args: object, **_kwargs: object) -> NoReturn:
    raise KeyError("a fault of the program")


@pytest.mark.parametrize("step", ["apply_next", "intake.accept", "tidy"])
async def test_a_task_that_dies_by_a_fault_of_the_program_is_seen_and_named(
    site: DrSite,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    async with site.running() as receiver, feeding(site, *GROUPS) as fed:
        part, _, name = f"replica.{step}".rpartition(".")
        monkeypatch.setattr(attrgetter(part)(receiver.workers["web"]), name, bug)
        with pytest.raises(ReplicatorError, match="unexpected KeyError"):
            await fed["web"].ship()
        web = await until_stopped(site, receiver, "web")
        assert "unexpected KeyError" in web.reason
        assert "in bug" in capsys.readouterr().out  # the traceback
        for name in SOUND:
            await fed[name].ship()
            await fed[name].check()


async def test_a_scrub_that_dies_by_a_fault_of_the_program_stops_its_group(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.running() as receiver, feeding(site, *GROUPS) as fed:
        monkeypatch.setattr(receiver.workers["web"].replica.scrub, "step", bug)
        with pytest.raises(ReplicatorError):
            await order(site.control.order, SCRUB, "web")
        assert "KeyError" in (await until_stopped(site, receiver, "web")).reason
        for name in SOUND:
            await fed[name].ship()
            await fed[name].check()


async def test_a_history_that_the_audit_cannot_read_stops_its_group_alone(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("receiver.service.STATUS_SECONDS", 0.05)

    def look(self: object, group: str, segments: object) -> None:
        if group == "web":
            raise OSError(errno.EIO, "Input/output error", "/groups/web/history/0.seg")

    async with site.running() as receiver, feeding(site, *GROUPS) as fed:
        stop = asyncio.Event()
        running = asyncio.create_task(receiver.run(stop, Notifier()))
        monkeypatch.setattr(f"{WATCH}.read", look)
        monkeypatch.setattr(f"{WATCH}.is_current", lambda *_: False)
        web = await until_stopped(site, receiver, "web")
        assert web.reason == "/groups/web/history/0.seg: Input/output error"
        for name in SOUND:
            await fed[name].ship()
            await fed[name].check()
        assert not running.done()
        stop.set()
        await running


async def test_a_rotten_header_behind_a_summary_stops_its_group_behind_the_start(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SEGMENT_BATCHES_MAX", 2)
    async with site.running(), feeding(site, *GROUPS) as fed:
        for _ in range(8):
            for each in fed.values():
                await each.ship()
    async with site.running():  # where a summary is missing, it is made
        pass
    group = site.data_dir / "groups" / "web"
    assert len(list(group.glob("summaries/*.summary"))) > 2
    segment = min(group.glob("history/**/*.seg"))
    _spoil_first_batch(segment)
    async with site.running() as receiver, feeding(site, *SOUND, since=fed) as sound:
        web = await until_stopped(site, receiver, "web")
        assert web.state == "damaged"
        assert f"{segment}: record at offset" in web.reason
        for each in sound.values():
            await each.ship()
            await each.check()


def _spoil_first_batch(path: Path) -> None:
    file = SystemStorage().open(path, writable=True)
    with closing(file):
        seal = read_seal(file, 0)
        assert seal is not None
        begin, _ = next(read_index(file, 0, seal))
        offset = HEADER_BYTES + begin + RECORD_HEADER_BYTES
        file.pwritev([bytes([file.pread(1, offset)[0] ^ 1])], offset)


# -- what they share ------------------------------------------------------------------------------


async def test_a_catalog_that_cannot_be_opened_stops_orders_and_no_group(site: DrSite) -> None:
    before = await lived_before(site)
    catalog = site.data_dir / "catalog.db"
    with closing(sqlite3.connect(catalog, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        async with site.running():
            async with feeding(site, *GROUPS, since=before) as fed:
                for each in fed.values():
                    await each.check()
            status = await order(site.control.order, STATUS)
            assert str(catalog) in status.orders_refused
            with pytest.raises(ReplicatorError, match="no order is carried out now"):
                await order(
                    site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="latest")
                )
    async with site.running():
        assert (await order(site.control.order, STATUS)).orders_refused == ""
        chosen = await order(
            site.control.order, OPEN_VIEW, request=ViewRequest(group="web", at="latest")
        )
        await order(site.control.order, CLOSE_VIEW, chosen.result.id)


async def test_an_audit_of_the_future_stops_orders_and_no_group(site: DrSite) -> None:
    before = await lived_before(site)
    storage = TroubledStorage(refusing(site.data_dir / "audit"))
    async with site.running(storage):
        async with feeding(site, *GROUPS, since=before) as fed:
            for each in fed.values():
                await each.check()
        assert "Input/output error" in (await order(site.control.order, STATUS)).orders_refused
