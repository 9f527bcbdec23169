# SPDX-License-Identifier: Apache-2.0
"""The server over real sockets: who gets in, what an export sees, and how connections end."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from replicator.base.errors import OwnedError, UsageError
from replicator.nbd import server as server_module
from replicator.nbd.constants import Command, Option, WireError
from replicator.nbd.exports import Client, EndKind, Export, ExportInfo
from replicator.nbd.limits import (
    MAX_BLOCK_BYTES,
    MAX_OUTSTANDING_READ_BYTES,
    MAX_OUTSTANDING_REQUESTS,
    TRANSMISSION_BUFFER_BYTES,
    UNSENT_HIGH_BYTES,
)
from replicator.nbd.request import Request
from replicator.nbd.server import NbdServer, serve_unix
from tests.nbd.dialogue import FLAGS, GREETING_BYTES, go, ok, option, request, simple_error, write
from tests.nbd.exports_of_memory import ALL_ABLE, HoldingExport, MemoryExport, Shelf

GO_ANSWER_BYTES = 32 + 20


class Peer:
    """A client that says exactly what it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def say(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def hear(self, count: int) -> bytes:
        """Exactly `count` bytes, or fewer if the server hangs up before."""
        heard = b""
        while len(heard) < count:
            try:
                piece = await asyncio.get_running_loop().sock_recv(self.sock, count - len(heard))
            except ConnectionResetError:
                return heard  # it hung up on what we were still saying
            if not piece:
                break
            heard += piece
        return heard


@asynccontextmanager
async def connected(path: Path, name: str | None = "d") -> AsyncIterator[Peer]:
    """A raw connection; with a name, already in transmission."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(path))
        peer = Peer(sock)
        if name is not None:
            await peer.say(FLAGS + go(name))
            assert len(await peer.hear(GREETING_BYTES + GO_ANSWER_BYTES)) == 70
        yield peer


@asynccontextmanager
async def serving(
    directory: Path, export: Export | Shelf, **options: Any
) -> AsyncIterator[NbdServer]:
    """A server of one export `d`, or of several by name."""
    shelf = export if isinstance(export, Shelf) else Shelf(d=export)
    server = await serve_unix(directory / "s", shelf, **options)
    try:
        yield server
    finally:
        await server.close()


async def idle_steps() -> None:
    """Give the loop every chance to do what it must not do; there is no event for that."""
    for _ in range(100):
        await asyncio.sleep(0)


# Who gets in.


async def test_the_socket_has_its_mode_and_goes_with_the_server(directory: Path) -> None:
    async with serving(directory, MemoryExport(), mode=0o660) as server:
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o660
    assert not server.path.exists()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(directory / "s"))
    async with serving(directory, MemoryExport()):
        with pytest.raises(OwnedError):
            await serve_unix(directory / "s", Shelf())
        async with connected(directory / "s"):
            pass


async def test_a_file_that_is_no_socket_stays(directory: Path) -> None:
    (directory / "s").write_text("precious")
    with pytest.raises(UsageError):
        await serve_unix(directory / "s", Shelf())
    assert (directory / "s").read_text() == "precious"


async def test_the_socket_of_a_successor_stays(directory: Path) -> None:
    first = await serve_unix(directory / "s", Shelf(d=MemoryExport()))
    (directory / "s").unlink()
    async with serving(directory, MemoryExport()) as second:
        await first.close()
        async with connected(second.path):
            pass


async def test_an_unknown_group_is_refused(directory: Path) -> None:
    with pytest.raises(UsageError, match="no group"):
        await serve_unix(directory / "s", Shelf(), group="no-such-group")
    assert not (directory / "s").exists()


async def test_idle_peers_cannot_take_all_places(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_HANDSHAKES", 2)
    async with (
        serving(directory, MemoryExport()) as server,
        connected(server.path, None) as first,
        connected(server.path, None) as second,
    ):
        assert len(await first.hear(GREETING_BYTES)) == GREETING_BYTES
        assert len(await second.hear(GREETING_BYTES)) == GREETING_BYTES
        await first.say(FLAGS + option(Option.STRUCTURED_REPLY))
        assert len(await first.hear(20)) == 20  # so the second has said nothing for longer
        async with connected(server.path) as third:
            assert await second.hear(1) == b""
            await third.say(write(0, bytes(512)))
            assert await third.hear(16) == ok()
        await first.say(go("d"))
        assert len(await first.hear(GO_ANSWER_BYTES)) == GO_ANSWER_BYTES
        assert len(server.connections) <= 3


async def test_connections_are_bounded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    async with (
        serving(directory, MemoryExport()) as server,
        connected(server.path),
        connected(server.path, None) as second,
    ):
        assert await second.hear(1) == b""


async def test_a_handshake_has_to_end(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_SECONDS", 0.05)
    async with (
        serving(directory, MemoryExport()) as server,
        connected(server.path) as peer,
        connected(server.path, None) as idle,
    ):
        await idle.say(FLAGS)
        assert len(await idle.hear(GREETING_BYTES + 1)) == GREETING_BYTES
        await peer.say(write(0, bytes(512)))
        assert await peer.hear(16) == ok()


# What an export sees.


class WatchfulExport(MemoryExport):
    """Looks, while it is asked, at what has reached the peer already."""

    def __init__(self) -> None:
        super().__init__()
        self.peer: socket.socket | None = None
        self.heard: list[bytes] = []

    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        super().submit(connection, batch)
        assert self.peer is not None
        try:
            self.heard.append(self.peer.recv(1000, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            self.heard.append(b"")


async def test_no_reply_of_a_step_leaves_before_the_export_has_seen_it(directory: Path) -> None:
    export = WatchfulExport()
    async with serving(directory, export) as server, connected(server.path) as peer:
        export.peer = peer.sock
        await peer.say(
            write(0, bytes(512), cookie=1)
            + write(ALL_ABLE.size_bytes, bytes(512), cookie=2)
            + request(Command.FLUSH, cookie=3)
        )
        answer = await peer.hear(48)
        assert export.heard == [b""]
        assert export.batches == [3]
        assert [entry[-1] for entry in export.log] == [0, WireError.ENOSPC, 0]
        assert simple_error(WireError.ENOSPC, 2) in answer
        assert ok(1) + ok(3) in answer


async def test_payloads_stay_while_the_connection_is_held(directory: Path) -> None:
    export = HoldingExport()
    async with serving(directory, export) as server, connected(server.path) as peer:
        await peer.say(write(0, b"a" * 4096, cookie=1) + write(4096, b"b" * 4096, cookie=2))
        await export.until(lambda: len(export.waiting) == 2)
        await peer.say(b"".join(write(8192, b"c" * 4096, cookie=n) for n in range(3, 30)))
        await idle_steps()
        assert [bytes(each.payload[:1]) for _, each in export.waiting] == [b"a", b"b"]
        while len(export.log) < 29 or export.waiting:
            await export.until(lambda: export.waiting)
            export.answer_all()
        answer = await peer.hear(16 * 29)
        assert answer == b"".join(ok(n) for n in range(1, 30))
        assert export.content[: 3 * 4096] == b"a" * 4096 + b"b" * 4096 + b"c" * 4096


class PatientExport(MemoryExport):
    """Keeps requests, without holding the connection, and answers when told."""

    def __init__(self, info: ExportInfo = ALL_ABLE) -> None:
        super().__init__(info)
        self.kept: list[Request] = []

    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        for each in batch:
            self.remember(each)
        self.kept.extend(each for each in batch if not each.answered)


async def test_answers_may_come_later_and_in_any_order(directory: Path) -> None:
    export = PatientExport()
    async with serving(directory, export) as server, connected(server.path) as peer:
        await peer.say(request(Command.READ, 0, 512, cookie=1) + request(Command.FLUSH, cookie=2))
        await export.until(lambda: len(export.kept) == 2)
        (connection,) = server.connections
        assert connection.protocol.outstanding == 2
        read, flush = export.kept
        connection.reply(flush)
        assert await peer.hear(16) == ok(2)
        connection.reply_data(read, b"x" * 512)
        assert await peer.hear(16 + 512) == ok(1) + b"x" * 512
        assert connection.protocol.outstanding == 0


async def test_a_peer_that_does_not_collect_its_replies_is_not_read_from(directory: Path) -> None:
    export = MemoryExport()
    count, size = 200, 1 << 20
    async with serving(directory, export) as server, connected(server.path) as peer:
        await peer.say(request(Command.READ, 0, size) * count)
        (connection,) = server.connections
        await idle_steps()
        bound = UNSENT_HIGH_BYTES + MAX_OUTSTANDING_READ_BYTES
        assert len(export.log) < count
        assert 0 < connection.unsent_bytes <= bound
        heard = 0
        while heard < count * (16 + size):
            heard += len(await peer.hear(min(1 << 20, count * (16 + size) - heard)))
        assert len(export.log) == count
        assert connection.unsent_bytes == 0


async def test_too_many_unanswered_requests_stop_the_reading_until_they_are_answered(
    directory: Path,
) -> None:
    export = PatientExport()
    count = 3000
    async with serving(directory, export) as server, connected(server.path) as peer:
        saying = asyncio.create_task(peer.say(request(Command.WRITE_ZEROES, 0, 512) * count))
        answered = 0
        while answered < count:
            await export.until(
                lambda: len(export.kept) >= min(MAX_OUTSTANDING_REQUESTS, count - answered)  # noqa: B023
            )
            assert len(export.kept) <= MAX_OUTSTANDING_REQUESTS
            answered += len(export.kept)
            batch, export.kept = export.kept, []
            export.opened_by[0].reply_all(batch)
        await saying
        assert len(await peer.hear(16 * count)) == 16 * count


async def test_a_large_write_leaves_nothing_behind(directory: Path) -> None:
    export = MemoryExport()
    async with serving(directory, export) as server, connected(server.path) as peer:
        payload = os.urandom(1 << 20) * 32
        assert len(payload) == MAX_BLOCK_BYTES
        await peer.say(write(0, payload))
        assert await peer.hear(16) == ok()
        assert export.content[:MAX_BLOCK_BYTES] == payload
        gc.collect()
        views = [each for each in gc.get_objects() if isinstance(each, memoryview)]
        assert max((view.nbytes for view in views), default=0) <= TRANSMISSION_BUFFER_BYTES


# How connections end.


async def test_disc_is_a_clean_end_after_the_last_answer(directory: Path) -> None:
    export = PatientExport()
    async with serving(directory, export) as server, connected(server.path) as peer:
        await peer.say(request(Command.FLUSH) + request(Command.DISC))
        await export.until(lambda: len(export.log) == 2)
        (connection,) = server.connections
        assert export.commands() == [Command.FLUSH, Command.DISC]
        assert connection.protocol.disc_received
        assert export.ends == []
        connection.reply(export.kept[0])
        assert await peer.hear(17) == ok()
        (end,) = export.ends
        assert (end.kind, end.clean) == (EndKind.DISC, True)


async def test_eof_after_all_answers_is_clean(directory: Path) -> None:
    export = MemoryExport()
    async with serving(directory, export) as server:
        async with connected(server.path) as peer:
            await peer.say(write(0, bytes(512)))
            assert await peer.hear(16) == ok()
        await export.until(lambda: export.ends)
        (end,) = export.ends
        assert (end.kind, end.clean) == (EndKind.EOF, True)


@pytest.mark.parametrize("cut", [1, 27, 28, 100, 539])
async def test_eof_within_a_request_says_so(directory: Path, cut: int) -> None:
    export = MemoryExport()
    async with serving(directory, export) as server:
        async with connected(server.path) as peer:
            await peer.say(write(0, bytes(512))[:cut])
        await export.until(lambda: export.ends)
        (end,) = export.ends
        assert (end.kind, end.mid_request, end.clean) == (EndKind.EOF, True, False)
        assert export.log == []


async def test_eof_before_an_answer_says_so_and_late_answers_go_nowhere(directory: Path) -> None:
    export = PatientExport()
    async with serving(directory, export) as server:
        async with connected(server.path) as peer:
            await peer.say(request(Command.READ, 0, 512) + request(Command.FLUSH))
            await export.until(lambda: len(export.kept) == 2)
        await export.until(lambda: export.ends)
        (end,) = export.ends
        assert (end.kind, end.unanswered, end.clean) == (EndKind.EOF, 2, False)
        (connection,) = server.connections
        connection.reply_data(export.kept[0], bytes(512))
        connection.reply_all(export.kept)
        connection.release()


async def test_a_broken_protocol_ends_with_its_reason(directory: Path) -> None:
    export = MemoryExport()
    async with serving(directory, export) as server, connected(server.path) as peer:
        await peer.say(b"x" * 28)
        assert await peer.hear(1) == b""
        (end,) = export.ends
        assert (end.kind, end.reason) == (EndKind.ERROR, "wrong request magic")


async def test_an_export_may_end_a_connection(directory: Path) -> None:
    export = PatientExport()
    async with serving(directory, export) as server, connected(server.path) as peer:
        await peer.say(request(Command.FLUSH))
        await export.until(lambda: export.kept)
        (connection,) = server.connections
        connection.close("fail-open")
        (end,) = export.ends
        assert (end.kind, end.unanswered, end.reason) == (EndKind.CLOSED, 1, "fail-open")
        assert connection.hung_up()
        assert await peer.hear(1) == b""
        await export.until(lambda: export.ends)


class BrokenExport(MemoryExport):
    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        raise RuntimeError("a bug in the export")


async def test_a_bug_in_the_export_ends_the_connection_and_is_heard_of(directory: Path) -> None:
    export = BrokenExport()
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    async with serving(directory, export) as server, connected(server.path) as peer:
        await peer.say(request(Command.FLUSH))
        assert await peer.hear(1) == b""
        (end,) = export.ends
        assert (end.kind, end.unanswered) == (EndKind.ERROR, 1)
        assert [str(context["exception"]) for context in heard] == ["a bug in the export"]


async def test_closing_the_server_ends_all_connections_and_keeps_given_replies(
    directory: Path,
) -> None:
    export = PatientExport()
    async with serving(directory, export) as server, connected(server.path) as peer:
        await peer.say(request(Command.FLUSH, cookie=1) + request(Command.FLUSH, cookie=2))
        await export.until(lambda: len(export.kept) == 2)
        export.opened_by[0].reply(export.kept[0])
        await server.close()
        assert await peer.hear(100) == ok(1)
        (end,) = export.ends
        assert (end.kind, end.unanswered) == (EndKind.CLOSED, 1)


async def test_a_hang_up_shows_before_it_is_read(directory: Path) -> None:
    export = HoldingExport()
    async with serving(directory, export) as server:
        async with connected(server.path) as peer:
            await peer.say(write(0, bytes(512), cookie=1))
            await export.until(lambda: export.waiting)
            (connection,) = server.connections
            assert not connection.hung_up()
            await peer.say(write(512, bytes(512), cookie=2))
            assert not connection.hung_up(), "data is no hang-up"
        assert connection.hung_up()
        await idle_steps()
        assert export.ends == [], "a held connection reads nothing, not even its end"
        export.answer_all()
        await export.until(lambda: export.ends)
        assert connection.hung_up()
        assert len(export.ends) == 1
