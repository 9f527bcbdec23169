# SPDX-License-Identifier: Apache-2.0
"""The client over real sockets: against our server, against nbdkit and qemu-nbd, and failing."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from replicator.base.errors import NotFoundError, UnreachableError, UsageError
from replicator.nbd.connection import Connection
from replicator.nbd.constants import Command, CommandFlag, WireError
from replicator.nbd.exports import Client, EndKind, ExportInfo
from replicator.nbd.limits import MAX_BLOCK_BYTES
from replicator.nbd.request import Request
from replicator.nbd.server import serve_unix
from replicator.nbd.uri import TcpAddress, UnixAddress
from tests.nbd.exports_of_memory import ALL_ABLE, MemoryExport, Shelf
from tests.nbd.test_server import PatientExport, serving
from tests.peers.nbd_client import NbdClient, NbdError
from tests.peers.nbd_servers import nbdkit, qemu_nbd


def address(directory: Path, name: str = "d") -> UnixAddress:
    return UnixAddress(directory / "s", name)


async def exercise(disk: NbdClient) -> None:
    """Random writes, zeroes and trims against a model; every byte is read back."""
    chance = random.Random(1)
    model = bytearray(disk.size_bytes)
    for _ in range(60):
        offset = chance.randrange(disk.size_bytes // 512) * 512
        length = min(chance.randrange(1, 300) * 512, disk.size_bytes - offset)
        if chance.random() < 0.3:
            await disk.write_zeroes(offset=offset, length=length, no_hole=chance.random() < 0.5)
            model[offset : offset + length] = bytes(length)
        else:
            data = chance.randbytes(length)
            await disk.pwrite(data, offset=offset, fua=chance.random() < 0.2)
            model[offset : offset + length] = data
    await disk.flush()
    assert await disk.pread(offset=0, length=disk.size_bytes) == bytes(model)


@pytest.mark.parametrize("structured", [False, True])
async def test_against_our_own_server(directory: Path, structured: bool) -> None:
    export = MemoryExport(
        ExportInfo(size_bytes=4 << 20, can_fua=True, can_trim=True, can_write_zeroes=True)
    )
    async with serving(directory, export):
        async with await NbdClient.connect(address(directory), structured=structured) as disk:
            assert disk.export.structured is structured
            await exercise(disk)
        await export.until(lambda: export.ends)
        assert (export.ends[0].kind, export.ends[0].clean) == (EndKind.DISC, True)


async def test_against_nbdkit(directory: Path) -> None:
    with nbdkit(directory, "memory", "4M") as uri:
        async with await NbdClient.connect(uri) as disk:
            assert disk.export.structured
            await exercise(disk)


async def test_against_qemu_nbd(directory: Path) -> None:
    image = directory / "image"
    image.write_bytes(bytes(4 << 20))
    with qemu_nbd(directory, image) as uri:
        async with await NbdClient.connect(uri) as disk:
            assert disk.export.structured
            await exercise(disk)
            sparse = await disk.pread(offset=0, length=disk.size_bytes)
    assert image.read_bytes() == sparse


async def test_over_tcp(directory: Path) -> None:
    export = MemoryExport()
    lost = asyncio.Event()

    def accept() -> Connection:
        return Connection(Shelf(d=export), handshake_done=lambda _: None, lost=lambda _: lost.set())

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with await NbdClient.connect(TcpAddress("127.0.0.1", port, "d")) as disk:
        await disk.pwrite(b"a" * 512, offset=512)
        assert await disk.pread(offset=0, length=1024) == bytes(512) + b"a" * 512
    server.close()
    await lost.wait()
    await server.wait_closed()


async def test_large_requests_are_split_and_put_together(directory: Path) -> None:
    export = MemoryExport(ExportInfo(size_bytes=80 << 20))
    data = random.Random(2).randbytes(1 << 20) * 70
    async with serving(directory, export), await NbdClient.connect(address(directory)) as disk:
        await disk.pwrite(data, offset=512)
        assert await disk.pread(offset=512, length=len(data)) == data
    lengths = [length for command, _, length, _, _ in export.log if command == Command.WRITE]
    assert sorted(lengths) == sorted([MAX_BLOCK_BYTES, MAX_BLOCK_BYTES, 6 << 20])


async def test_flags_reach_the_export(directory: Path) -> None:
    export = MemoryExport()
    async with serving(directory, export), await NbdClient.connect(address(directory)) as disk:
        await disk.pwrite(bytes(512), offset=0, fua=True)
        await disk.write_zeroes(offset=0, length=512, no_hole=True, fua=True)
        await disk.trim(offset=0, length=1024)
    assert export.log[:3] == [
        (Command.WRITE, 0, 512, CommandFlag.FUA, 0),
        (Command.WRITE_ZEROES, 0, 512, CommandFlag.FUA | CommandFlag.NO_HOLE, 0),
        (Command.TRIM, 0, 1024, 0, 0),
    ]


async def test_a_refused_request_is_an_error_with_its_place_and_no_end(directory: Path) -> None:
    async with (
        serving(directory, MemoryExport()),
        await NbdClient.connect(address(directory)) as disk,
    ):
        with pytest.raises(NbdError) as caught:
            await disk.pwrite(bytes(512), offset=ALL_ABLE.size_bytes)
        assert caught.value.error == WireError.ENOSPC
        for word in ("WRITE", "512", str(ALL_ABLE.size_bytes), "ENOSPC", "past the end"):
            assert word in str(caught.value)
        await disk.pwrite(bytes(512), offset=0)


async def test_many_calls_at_once(directory: Path) -> None:
    export = MemoryExport()
    async with serving(directory, export), await NbdClient.connect(address(directory)) as disk:
        await asyncio.gather(*(disk.pwrite(bytes([n]) * 4096, offset=n * 4096) for n in range(200)))
        pieces = await asyncio.gather(
            *(disk.pread(offset=n * 4096, length=4096) for n in range(200))
        )
    assert pieces == [bytes([n]) * 4096 for n in range(200)]


async def test_an_unknown_export(directory: Path) -> None:
    async with serving(directory, MemoryExport()):
        with pytest.raises(NotFoundError, match="nothing"):
            await NbdClient.connect(address(directory, "nothing"))


async def test_nobody_there(directory: Path) -> None:
    with pytest.raises(UnreachableError, match="cannot connect"):
        await NbdClient.connect(address(directory))
    with pytest.raises(UsageError):
        await NbdClient.connect("http://example.com")


async def test_a_server_that_says_nothing(directory: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(directory / "s"))
        silent.listen()
        with pytest.raises(UnreachableError, match="in time"):
            await NbdClient.connect(address(directory), timeout_seconds=0.05)


async def test_the_end_of_the_server_reaches_all_who_wait(directory: Path) -> None:
    export = PatientExport()
    server = await serve_unix(directory / "s", Shelf(d=export))
    disk = await NbdClient.connect(address(directory))
    waiting = [asyncio.create_task(disk.flush()) for _ in range(3)]
    await export.until(lambda: len(export.kept) == 3)
    await server.close()
    for task in waiting:
        with pytest.raises(UnreachableError, match="closed the connection"):
            await task
    with pytest.raises(UnreachableError):
        await disk.flush()
    await disk.disconnect()


async def test_one_who_gives_up_does_not_disturb_the_others(directory: Path) -> None:
    export = PatientExport()
    async with serving(directory, export), await NbdClient.connect(address(directory)) as disk:
        first = asyncio.create_task(disk.pread(offset=0, length=512))
        second = asyncio.create_task(disk.pread(offset=512, length=512))
        await export.until(lambda: len(export.kept) == 2)
        first.cancel()
        (connection,) = export.opened_by
        for request in export.kept:
            connection.reply_data(request, bytes([request.offset // 512]) * 512)
        assert await second == b"\1" * 512
        assert first.cancelled() or first.cancelling()


class CountingExport(MemoryExport):
    """Remembers the most requests that were ever open at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        assert isinstance(connection, Connection)
        self.most = max(self.most, connection.protocol.outstanding)
        super().submit(connection, batch)


async def test_abort_is_an_end_without_a_word(directory: Path) -> None:
    export = CountingExport()
    async with serving(directory, export):
        disk = await NbdClient.connect(address(directory))
        await asyncio.gather(*(disk.flush() for _ in range(100)))
        disk.abort()
        await export.until(lambda: export.ends)
        assert (export.ends[0].kind, export.ends[0].clean) == (EndKind.EOF, True)
        assert 1 <= export.most <= 16
        await disk.disconnect()
