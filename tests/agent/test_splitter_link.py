# SPDX-License-Identifier: Apache-2.0
"""The link to the splitter: orders, statuses, and a splitter that is away, silent or another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.links import splitter_link
from agent.links.splitter_link import GroupOrders, SplitterLink
from replicator.base.errors import NotFoundError, UnreachableError
from replicator.control.splitter import (
    NEWS,
    PROTOCOL,
    Answer,
    AnyRequest,
    DeclareDisk,
    DiskDeclared,
    Done,
    Hello,
    HelloAnswer,
    Mark,
    Marked,
    OpenStream,
    Refused,
    SplitterSide,
    SplitterStatus,
    StreamOpened,
    Subscribe,
    encode_error,
    encode_ok,
    encode_status,
)


@dataclass
class FakeSplitter:
    """Answers what it is asked; `silent` stops that, as a SIGSTOP would."""

    path: Path
    instance: str = "first"
    protocol: int = PROTOCOL
    silent: bool = False
    asked: list[AnyRequest] = field(default_factory=list)
    server: asyncio.Server | None = None
    was_marked: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.close()
        self.writers.clear()
        self.path.unlink(missing_ok=True)

    def say_status(self) -> None:
        for writer in self.writers:
            writer.write(encode_status(SplitterStatus(instance=self.instance, groups=[])))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        side = SplitterSide()
        while data := await reader.read(1000):
            for request in side.receive_data(data):
                assert not isinstance(request, Refused)
                self.asked.append(request)
                if isinstance(request, Mark):
                    self.was_marked.set()
                if not self.silent:
                    writer.write(self._answer(request))
        writer.close()

    def _answer(self, request: AnyRequest) -> bytes:
        answers: dict[type, Answer] = {
            Hello: HelloAnswer(pid=1, instance=self.instance, version="v", protocol=self.protocol),
            Mark: Marked(lsn=500, time_ns=9),
            DeclareDisk: DiskDeclared(index=3),
            OpenStream: StreamOpened(stream="s", ordinal=8, first_lsn=0),
        }
        if isinstance(request, Mark) and request.label == "unknown":
            return encode_error(request.id, NotFoundError("no such group", hint="look"))
        status = encode_status(SplitterStatus(instance=self.instance, groups=[]))
        tail = status if isinstance(request, Subscribe) else b""
        return encode_ok(request, answers.get(type(request), Done())) + tail


@dataclass
class Linked:
    splitter: FakeSplitter
    link: SplitterLink
    statuses: asyncio.Queue[SplitterStatus | None]

    async def next(self) -> SplitterStatus | None:
        return await asyncio.wait_for(self.statuses.get(), 10)


@pytest.fixture
async def linked(tmp_path: Path) -> AsyncIterator[Linked]:
    splitter = FakeSplitter(tmp_path / "s.sock")
    statuses: asyncio.Queue[SplitterStatus | None] = asyncio.Queue()
    link = SplitterLink(splitter.path, statuses.put_nowait)
    running = asyncio.create_task(link.run())
    yield Linked(splitter, link, statuses)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    if splitter.server is not None:
        await splitter.stop()


async def test_an_answer_is_followed_by_a_status_of_after_it(linked: Linked) -> None:
    await linked.splitter.start()
    while await linked.next() is None:
        pass
    await linked.link.remove_group("g")
    waiting = asyncio.create_task(linked.link.until_current())
    await asyncio.sleep(0)
    assert not waiting.done(), "the status that is known is of before"
    linked.splitter.say_status()
    await asyncio.wait_for(waiting, 10)
    assert linked.link.current
    await linked.link.remove_group("g")
    waiting = asyncio.create_task(linked.link.until_current())
    await linked.splitter.stop()
    await asyncio.wait_for(waiting, 10)
    assert linked.link.problem, "nobody is there to say one"


async def test_it_waits_for_a_splitter_and_finds_the_next_one(linked: Linked) -> None:
    assert await linked.next() is None
    assert "no splitter is running" in linked.link.problem
    with pytest.raises(UnreachableError, match="no splitter"):
        await GroupOrders(linked.link, "g", lambda: (0, 0)).mark("x")
    await linked.splitter.start()
    while (status := await linked.next()) is None:
        pass
    assert status.instance == "first"
    assert linked.link.problem == ""
    await linked.splitter.stop()
    assert await linked.next() is None
    linked.splitter.instance = "second"
    await linked.splitter.start()
    while (status := await linked.next()) is None:
        pass
    assert status.instance == "second"


async def test_orders_carry_the_group_and_bring_back_answers_or_errors(linked: Linked) -> None:
    await linked.splitter.start()
    while await linked.next() is None:
        pass
    orders = GroupOrders(linked.link, "g", lambda: (7, 9))
    assert (await orders.open_stream("why")).ordinal == 8
    assert await orders.declare_disk("d", 512, "i") == 3
    await orders.resync()
    await orders.close_stream("over", final_cut=True)
    assert (await orders.mark("x")).lsn == 500
    with pytest.raises(NotFoundError, match="no such group"):
        await orders.mark("unknown")
    opened = linked.splitter.asked[2]
    assert isinstance(opened, OpenStream)
    assert (opened.group, opened.above_ordinal, opened.reason) == ("g", 7, "why")
    assert opened.above_time_ns == 9


async def test_an_order_fails_with_the_splitter(linked: Linked) -> None:
    await linked.splitter.start()
    while await linked.next() is None:
        pass
    linked.splitter.silent = True
    marking = asyncio.create_task(GroupOrders(linked.link, "g", lambda: (0, 0)).mark("x"))
    await linked.splitter.was_marked.wait()
    await linked.splitter.stop()
    with pytest.raises(UnreachableError):
        await marking


async def test_a_splitter_that_says_nothing_counts_as_gone(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitter_link, "SILENT_SECONDS", 0.2)
    await linked.splitter.start()
    while await linked.next() is None:
        pass
    assert await linked.next() is None
    assert "said nothing" in linked.link.problem


async def test_nothing_is_current_between_an_answer_and_the_next_status(linked: Linked) -> None:
    """A status that came before the answer is older than what was ordered."""
    await linked.splitter.start()
    while await linked.next() is None:
        pass
    seen = [linked.link.current]
    await GroupOrders(linked.link, "g", lambda: (0, 0)).declare_disk("d", 512, "i")
    seen.append(linked.link.current)
    linked.splitter.say_status()
    await linked.next()
    seen.append(linked.link.current)
    await linked.splitter.stop()
    assert await linked.next() is None
    seen.append(linked.link.current)
    assert seen == [True, False, True, False]


async def test_a_splitter_that_is_too_old_gets_no_order_that_it_does_not_know(
    linked: Linked,
) -> None:
    assert linked.link.missing == [], "of a splitter that is away nothing is known"
    linked.splitter.protocol = 0
    await linked.splitter.start()
    while await linked.next() is None:
        pass
    assert linked.link.missing == list(NEWS.values())
    with pytest.raises(UnreachableError, match="too old") as refused:
        await GroupOrders(linked.link, "g", lambda: (0, 0)).open_stream("why")
    assert "costs each of its groups a sync" in refused.value.hint
    assert not [one for one in linked.splitter.asked if isinstance(one, OpenStream)]
    await linked.splitter.stop()
    assert await linked.next() is None
    linked.splitter.protocol = PROTOCOL
    await linked.splitter.start()
    while await linked.next() is None:
        pass
    assert linked.link.missing == []
    assert (await GroupOrders(linked.link, "g", lambda: (0, 0)).open_stream("why")).ordinal == 8
