# SPDX-License-Identifier: Apache-2.0
"""The service on real sockets with a disk that sticks: who waits, how long, and who does not."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.splitter.events import LINES_MAX, EventFormatter, EventHandler
from agent.splitter.groups import Groups
from agent.splitter.lane import ThreadLane, aside
from agent.splitter.service import life
from journal.record import RecordType
from replicator.base.clock import SystemClock
from replicator.base.daemon import Daemon
from replicator.base.errors import NoSpaceError
from replicator.base.storage import Buffer, File, SystemStorage
from replicator.config.agent import load_agent
from replicator.control.splitter import Mark, Marked
from tests.peers.nbd_client import NbdClient
from tests.splitter.daemon import Home, agent, connect, home

BLOCK = bytes(4096)
STALL_SECONDS = 0.3


@pytest.fixture
def place() -> Iterator[Home]:
    with home() as made:
        text = made.config.read_text()
        text = text.replace("spool_memory =", f'max_stall = "{STALL_SECONDS}s"\nspool_memory =')
        made.config.write_text(text)
        yield made


class StickyFile:
    """A file whose appends wait while the storage is stuck."""

    def __init__(self, file: File, storage: StickyStorage) -> None:
        self._file = file
        self._storage = storage

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        self._storage.wait(self._file.path)
        return self._file.pwritev(buffers, offset)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


class StickyStorage(SystemStorage):
    """The machine's, but appends below `under` wait from `stick()` until `free()`."""

    def __init__(self, under: Path) -> None:
        self._under = under
        self._free = threading.Event()
        self._free.set()
        self.waiting = threading.Event()
        self.threads: set[str] = set()

    def stick(self) -> None:
        self._free.clear()

    def free(self) -> None:
        self._free.set()

    def create(self, path: Path) -> File:
        file = super().create(path)
        return StickyFile(file, self) if path.is_relative_to(self._under) else file  # type: ignore[return-value]

    def wait(self, path: Path) -> None:
        self.threads.add(threading.current_thread().name)
        if not self._free.is_set():
            self.waiting.set()
            assert self._free.wait(20)


@asynccontextmanager
async def serving(place: Home, storage: SystemStorage, *, sticky: bool) -> AsyncIterator[None]:
    daemon = Daemon()
    config = load_agent(place.config)
    task = asyncio.create_task(
        life(
            config,
            storage,
            SystemClock(),
            daemon,
            load=lambda: load_agent(place.config),
            memory_is_sticky=sticky,
        )
    )
    try:
        async with asyncio.timeout(10):
            while not (place.path / "nbd").exists():
                assert not task.done(), task.result()
                await asyncio.sleep(0.005)
        yield
    finally:
        daemon.stop.set()
        await task


async def open_files(place: Home) -> NbdClient:
    """A client whose disk has a segment on the sticky tier by now."""
    disk = await connect(place, "ext/a")
    await disk.pwrite(BLOCK, offset=0)
    return disk


class TestStuckDisk:
    async def test_writes_are_answered_at_the_deadline_and_others_not_held_at_all(
        self, place: Home
    ) -> None:
        second = place.config.read_text().split('[[group]]\nname = "vm"')[0]
        second += '[[group]]\nname = "other"\ndriver = "external"\n'
        second += '[[group.disk]]\nname = "x"\nsize = "16MiB"\n'
        place.config.write_text(second)
        storage = StickyStorage(place.memory / "ext")
        loop = asyncio.get_running_loop()
        async with serving(place, storage, sticky=True), agent(place) as one:
            disk, other = await open_files(place), await connect(place, "other/x")
            storage.stick()
            began = loop.time()
            held = asyncio.create_task(disk.pwrite(BLOCK, offset=4096))
            await asyncio.to_thread(storage.waiting.wait, 10)
            for number in range(50):
                await other.pwrite(BLOCK, offset=number * 4096)
            assert not held.done(), "the rest of the host goes on while this append is stuck"
            await held
            assert loop.time() - began >= STALL_SECONDS
            lost = await one.until("ext", lambda group: group.state == "lost")
            assert "stuck" in lost.reason
            await disk.pwrite(BLOCK, offset=8192)  # and the guest goes on
            good = await one.until("other", lambda _: True)
            assert good.state == "ready"
            storage.free()
            await disk.disconnect()
            await other.disconnect()
            assert (await one.until("ext", lambda _: True)).end_lsn == lost.end_lsn
        assert storage.threads == {"spool-ext"}, "never in the event loop"
        offsets = [r.offset for r in place.records("ext") if r.type == RecordType.WRITE]
        assert offsets in ([0], [0, 4096]), "nothing behind what was stuck"

    async def test_a_mark_is_answered_when_its_cut_is_in_the_log(self, place: Home) -> None:
        storage = StickyStorage(place.memory / "ext")
        async with serving(place, storage, sticky=True), agent(place) as one:
            disk = await open_files(place)
            marked = await one.ask(lambda n: Mark(id=n, group="ext", label="x"), Marked)
            status = await one.until("ext", lambda _: True)
            assert status.end_lsn >= marked.lsn
            await disk.disconnect()

    async def test_the_end_waits_for_what_is_queued_but_not_for_ever(self, place: Home) -> None:
        storage = StickyStorage(place.memory / "ext")
        async with serving(place, storage, sticky=True):
            disk = await open_files(place)
            storage.stick()
            held = asyncio.create_task(disk.pwrite(BLOCK, offset=4096))
            await asyncio.to_thread(storage.waiting.wait, 10)
        await asyncio.gather(held, return_exceptions=True)
        disk.abort()
        storage.free()


async def test_memory_that_is_memory_is_written_in_line(place: Home) -> None:
    storage = StickyStorage(place.memory / "ext")
    async with serving(place, storage, sticky=False):
        disk = await open_files(place)
        await disk.disconnect()
    assert storage.threads == {"MainThread"}


class TestLane:
    async def test_works_come_back_in_order_with_what_they_raised(self) -> None:
        lane = ThreadLane(asyncio.get_running_loop(), "test")
        came: list[tuple[int, object]] = []
        all_done = asyncio.Event()

        def work(number: int) -> Callable[[], None]:
            def run() -> None:
                if number % 2:
                    raise OSError(errno.EIO, "sticky")

            return run

        def done(number: int) -> Callable[[Exception | None], None]:
            def back(error: Exception | None) -> None:
                assert threading.current_thread() is threading.main_thread()
                came.append((number, type(error)))
                if number == 9:
                    all_done.set()

            return back

        for number in range(10):
            lane.put(work(number), done(number))
        lane.end()
        await all_done.wait()
        assert came == [(n, OSError if n % 2 else type(None)) for n in range(10)]

    async def test_an_errand_returns_or_raises(self) -> None:
        loop = asyncio.get_running_loop()
        assert await aside(loop, lambda: 42) == 42

        def full() -> int:
            raise NoSpaceError("no")

        with pytest.raises(NoSpaceError):
            await aside(loop, full)

    def test_a_lane_that_was_never_used_has_no_thread(self) -> None:
        loop = asyncio.new_event_loop()
        before = threading.active_count()
        ThreadLane(loop, "test").end()
        assert threading.active_count() == before
        loop.close()


class FullPipe(io.StringIO):
    """A stream nobody reads: writing waits."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.release = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.release.wait(20)
        return super().write(text)


class TestEvents:
    def record(self, message: str, **fields: object) -> logging.LogRecord:
        return logging.makeLogRecord(
            {"msg": message, "levelname": "INFO", "created": 1_800_000_000.5, **fields}
        )

    def test_an_event_is_one_line_with_its_fields(self) -> None:
        line = EventFormatter().format(
            self.record("continuity lost", group="g", reason='a "b"\nc', count=3)
        )
        assert line == (
            '2027-01-15T08:00:00.500000Z info event="continuity lost" '
            'group=g reason="a \\"b\\"\\nc" count=3'
        )

    def test_a_reader_that_stops_holds_nobody_and_hears_what_it_missed(self) -> None:
        pipe = FullPipe()
        handler = EventHandler(pipe)
        handler.emit(self.record("first"))
        assert pipe.entered.wait(20)  # the thread is stuck; from here on lines pile up
        for number in range(LINES_MAX + 500):
            handler.emit(self.record(f"n{number}"))
        pipe.release.set()
        handler.flush()
        handler.emit(self.record("after"))
        handler.close()
        lines = pipe.getvalue().splitlines()
        assert len(lines) == 1 + LINES_MAX + 2
        assert 'event="log lines dropped"' in lines[-2]
        assert lines[-1].endswith("event=after")


async def test_a_splitter_without_groups_serves_an_empty_list(place: Home) -> None:
    text = place.config.read_text().split("[[group]]")[0]
    place.config.write_text(text)
    config = load_agent(place.config)
    splitter = Groups(config, SystemStorage(), SystemClock(), memory_is_sticky=False)
    splitter.begin()
    assert splitter.status().groups == []
    await splitter.drained()
    splitter.shut_down()
