# SPDX-License-Identifier: Apache-2.0
"""The memory for requests of all clients together: its bound, its row, and who gives way."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replicator.base.units import KIB, MIB
from replicator.nbd.limits import (
    MAX_BLOCK_BYTES,
    MAX_CONNECTIONS,
    MAX_REQUEST_BYTES,
    OWN_RECEIVE_BYTES,
    RECEIVE_BYTES_MAX,
    STALL_SECONDS,
)
from replicator.nbd.memory import ReceivePool
from replicator.nbd.server import NbdServer, serve_unix
from tests.nbd.dialogue import FLAGS, GREETING_BYTES, go, ok, write
from tests.nbd.exports_of_memory import MemoryExport, Shelf
from tests.nbd.test_server import GO_ANSWER_BYTES, Peer, connected

SMALL = 37 * MIB
"""A pool for three connections, one of the largest requests, and a little less than 2 MiB."""


class Client:
    """A connection as the pool sees it: it has one request at a time."""

    def __init__(self, pool: ReceivePool, *, is_visitor: bool = False) -> None:
        self.is_visitor = is_visitor
        self.stands_still_since: float | None = None
        self.was_dropped = False
        self.is_admitted = False
        self.memory: bytearray | None = None
        self._wanted = 0
        self._pool = pool
        pool.join(self)

    @property
    def memory_bytes(self) -> int:
        return 0 if self.memory is None else len(self.memory)

    def ask(self, size: int) -> bool:
        """Of the request that it has sent the head of: another one does not come before."""
        self._wanted = self._wanted or size
        if not self._pool.ask(self, self._wanted):
            return False
        self.memory = self._pool.memory(self, self._wanted)
        return True

    def admitted(self) -> None:
        self.is_admitted = True

    def give_way(self) -> None:
        self.was_dropped = True
        self.done()
        self._pool.leave(self)

    def done(self) -> None:
        self.memory, self._wanted = None, 0
        self.stands_still_since = None


def at_once(work: Callable[[], None]) -> None:
    work()


def test_the_limits_leave_room_for_the_largest_request_of_the_last_connection() -> None:
    pool = ReceivePool(at_once)
    clients = []
    while pool.has_place:
        clients.append(Client(pool))
    assert len(clients) >= MAX_CONNECTIONS
    assert clients[-1].ask(MAX_REQUEST_BYTES)
    assert pool.used_bytes <= RECEIVE_BYTES_MAX


def test_a_request_that_fits_own_memory_never_waits() -> None:
    pool = ReceivePool(at_once, total_bytes=SMALL)
    first, second, third = (Client(pool) for _ in range(3))
    assert first.ask(MAX_REQUEST_BYTES)
    assert not second.ask(MAX_REQUEST_BYTES)
    assert third.ask(OWN_RECEIVE_BYTES)


def test_the_row_is_kept_and_goes_on_when_memory_is_gone() -> None:
    pool = ReceivePool(at_once, total_bytes=SMALL)
    first, second, third = (Client(pool) for _ in range(3))
    assert first.ask(MAX_REQUEST_BYTES)
    assert not second.ask(MAX_REQUEST_BYTES)
    assert not third.ask(2 * MIB), "who came later passes nobody, also with less"
    view = memoryview(first.memory or b"")
    first.done()
    assert not second.is_admitted, "somebody still holds the payload"
    del view
    assert (second.is_admitted, third.is_admitted) == (True, False)
    assert second.ask(MAX_REQUEST_BYTES)
    second.done()
    assert third.is_admitted


def test_who_leaves_gives_back_what_it_was_granted_and_its_place_in_the_row() -> None:
    pool = ReceivePool(at_once, total_bytes=SMALL)
    first, second, third = (Client(pool) for _ in range(3))
    assert pool.ask(first, MAX_REQUEST_BYTES)  # granted, not made yet
    assert not second.ask(MAX_REQUEST_BYTES)
    assert not third.ask(MAX_REQUEST_BYTES)
    pool.leave(second)
    pool.leave(first)
    assert (second.is_admitted, third.is_admitted) == (False, True)


def test_who_stands_still_gives_way_visitors_first_and_no_more_than_is_needed() -> None:
    pool = ReceivePool(at_once, total_bytes=150 * MIB)
    source, visitor, early = Client(pool), Client(pool, is_visitor=True), Client(pool)
    for client, since in ((source, 1.0), (visitor, 3.0), (early, 2.0)):
        assert client.ask(MAX_REQUEST_BYTES)
        client.stands_still_since = since
    newcomer, last = Client(pool), Client(pool)
    assert not newcomer.ask(MAX_REQUEST_BYTES)
    assert pool.press(1.5) is not None
    assert [each.was_dropped for each in (source, visitor, early)] == [False, False, False]
    assert pool.press(4.0) is None
    assert (visitor.was_dropped, source.was_dropped, early.was_dropped) == (True, False, False)
    assert newcomer.is_admitted
    assert newcomer.ask(MAX_REQUEST_BYTES)
    assert not last.ask(MAX_REQUEST_BYTES)
    source.stands_still_since = None  # it moves, or we do not read it
    assert pool.press(4.0) is None
    assert (source.was_dropped, early.was_dropped) == (False, True)
    assert last.is_admitted


def test_nobody_gives_way_while_nobody_waits() -> None:
    pool = ReceivePool(at_once, total_bytes=SMALL)
    first = Client(pool)
    assert first.ask(MAX_REQUEST_BYTES)
    first.stands_still_since = 0.0
    assert pool.press(1000.0) is None
    assert not first.was_dropped


@settings(deadline=None)  # the operating system clears memory when it likes
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4), st.integers(1, 32)), max_size=80))
def test_it_is_never_exceeded_and_whoever_waits_gets_it_in_the_end(
    steps: list[tuple[int, int, int]],
) -> None:
    """Random lives of eight connections: ask, finish, stand still, leave and come, press."""
    total = 64 * MIB
    pool = ReceivePool(at_once, total_bytes=total)
    clients = [Client(pool) for _ in range(8)]
    for number, what, size in steps:
        client = clients[number]
        if client.was_dropped:
            pass  # there was no place for its successor
        elif what == 0 and client.memory is None:
            client.ask(size * MIB)
        elif what == 1 and client.memory is not None:
            client.done()
        elif what == 2 and client.memory is not None:
            client.stands_still_since = 0.0
        elif what == 3:
            client.give_way()
        else:
            pool.press(2.0)
        for at, each in enumerate(clients):
            if each.was_dropped and pool.has_place:
                clients[at] = Client(pool)
        held = sum(each.memory_bytes for each in clients if each.memory_bytes > OWN_RECEIVE_BYTES)
        there = [each for each in clients if not each.was_dropped]
        assert held + len(there) * OWN_RECEIVE_BYTES <= pool.used_bytes <= total
    for _ in range(len(clients)):  # each of which lets one more in, at least
        for each in clients:
            each.done()
            if not pool.waits(each):
                pool.leave(each)
    assert not any(pool.waits(each) for each in clients)


# Over real sockets.


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="nbd-") as path:
        yield Path(path)


async def stalled(stack: ExitStack, server: NbdServer, count: int) -> list[Peer]:
    """Visitors that have sent half of the largest write each, and say no more."""
    loop = asyncio.get_running_loop()
    peers = []
    for _ in range(count):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.setblocking(False)
        await loop.sock_connect(sock, str(server.path))
        peer = Peer(sock)
        await peer.say(FLAGS + go("d"))
        await peer.hear(GREETING_BYTES + GO_ANSWER_BYTES)
        peers.append(peer)
    half = write(0, bytes(MAX_BLOCK_BYTES))[: 2 * MIB]
    for peer in peers:
        # What does not fit any more stays in the kernel, and this with the peer.
        with suppress(TimeoutError):
            await asyncio.wait_for(peer.say(half), 0.2)
    return peers


def receive_bytes(server: NbdServer) -> int:
    return sum(each.share.memory_bytes for each in server.connections)


async def test_a_flood_of_half_requests_is_bounded_and_no_source_waits_for_it(
    directory: Path,
) -> None:
    """Sixty visitors want 32 MiB each, and stand still. A source's small writes are answered at
    once, its largest within seconds; the bound holds at every moment."""
    export = MemoryExport()
    server = await serve_unix(directory / "s", Shelf(d=export))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, receive_bytes(server))
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    with ExitStack() as stack:
        async with connected(server.path) as source:
            peers = await stalled(stack, server, 60)
            async with asyncio.timeout(10 * STALL_SECONDS):  # it would be 50 times that
                for number in range(50):
                    await source.say(write(number * 4096, bytes([number]) * (4 * KIB)))
                    assert await source.hear(16) == ok()
                await source.say(write(1 * MIB, os.urandom(1000 * KIB)))
                assert await source.hear(16) == ok()
            payload = os.urandom(1 * MIB) * 32
            async with asyncio.timeout(300 * STALL_SECONDS):
                await source.say(write(0, payload))
                assert await source.hear(16) == ok()
            assert export.content[:MAX_BLOCK_BYTES] == payload
            assert len(peers) == 60
        watching.cancel()
        await server.close()
    assert most <= RECEIVE_BYTES_MAX
    gc.collect()


async def test_memory_of_a_connection_that_ended_is_free_again(directory: Path) -> None:
    pool = ReceivePool(asyncio.get_running_loop().call_soon_threadsafe, total_bytes=SMALL)
    export = MemoryExport()
    server = await serve_unix(directory / "s", Shelf(d=export), pool=pool)
    payload = bytes(MAX_BLOCK_BYTES)
    for _ in range(5):
        async with connected(server.path) as peer:
            await peer.say(write(0, payload)[: 3 * MIB])
            await export.until(lambda: any(c.share.memory_bytes > MIB for c in server.connections))
        await export.until(lambda: len(export.ends) == len(export.opened_by))
    async with connected(server.path) as peer:
        await peer.say(write(0, payload))
        assert await peer.hear(16) == ok()
    await export.until(lambda: len(export.ends) == len(export.opened_by))
    await server.close()
    await asyncio.sleep(0)
    assert pool.used_bytes == 0
