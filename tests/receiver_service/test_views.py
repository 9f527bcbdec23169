# SPDX-License-Identifier: Apache-2.0
"""Views as real clients see them: qemu-img, nbdcopy, our own; and what damage looks like."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from receiver.blocks.holes import Extents
from receiver.views.files import ViewDisk
from receiver.views.open_views import ViewOptions, Views
from replicator.base.errors import DamageError, NotFoundError, UsageError
from replicator.base.storage import File, SystemStorage
from replicator.control.types import Point, View
from replicator.nbd.constants import WireError
from tests.peers.nbd_client import NbdClient, NbdError
from tests.receiver.content_extents import extents_of

POINT = Point(sequence=7, time="2026-01-01T00:00:00.000000Z", until="", kind="crash")


class Memory:
    """A disk in memory; a read across `damaged` fails; reads wait while `gate` is closed."""

    def __init__(self, content: bytes, damaged: int = -1) -> None:
        self.content = content
        self.damaged = damaged
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def read(self, offset: int, length: int) -> bytes:
        self.entered.set()
        assert self.gate.wait(30)
        if offset <= self.damaged < offset + length:
            raise DamageError(f"history/0.seg: payload fails its checksum at {self.damaged}")
        return self.content[offset : offset + length]

    def extents(self, offset: int, length: int) -> Extents:
        return extents_of(self.content, offset, length)


class Release:
    """Counts how often a point was let go of."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
async def views(tmp_path: Path) -> AsyncIterator[Views]:
    (tmp_path / "g").mkdir()
    views = Views(tmp_path)
    yield views
    await views.close_all()


async def run(*command: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def show(views: Views, *contents: bytes) -> View:
    disks = [
        ViewDisk(f"vd{chr(97 + number)}", len(content), Memory(content))
        for number, content in enumerate(contents)
    ]
    return await views.open("g", POINT, disks, Release())


async def test_qemu_img_and_nbdcopy_find_the_bytes_of_the_point(
    views: Views, tmp_path: Path
) -> None:
    rng = random.Random(1)
    first, second = rng.randbytes(3 << 20), rng.randbytes(70_000) + bytes(5 << 20)
    view = await show(views, first, second)
    for name, content in (("vda", first), ("vdb", second)):
        plain = tmp_path / f"{name}.raw"
        plain.write_bytes(content)
        code, output = await run("qemu-img", "compare", str(plain), view.disks[name])
        assert code == 0, output
        copied = tmp_path / f"{name}.copy"
        code, output = await run("nbdcopy", view.disks[name], str(copied))
        assert code == 0, output
        assert copied.read_bytes() == content


async def test_a_size_that_is_no_multiple_of_a_sector_is_served_to_its_last_byte(
    views: Views,
) -> None:
    content = random.Random(2).randbytes(100_001)
    view = await show(views, content)
    async with await NbdClient.connect(view.disks["vda"]) as client:
        assert await client.pread(offset=0, length=100_001) == content
        assert await client.pread(offset=100_000, length=1) == content[-1:]


async def test_nobody_can_write(views: Views) -> None:
    view = await show(views, bytes(8192))
    async with await NbdClient.connect(view.disks["vda"]) as client:
        with pytest.raises(NbdError) as refused:
            await client.pwrite(b"x" * 512, offset=0)
    assert refused.value.error == WireError.EPERM


async def test_damage_is_an_error_of_that_read_alone(views: Views) -> None:
    disk = Memory(b"a" * 16384, damaged=5000)
    view = await views.open("g", POINT, [ViewDisk("vda", 16384, disk)], Release())
    async with await NbdClient.connect(view.disks["vda"]) as client:
        whole = await asyncio.gather(
            client.pread(offset=0, length=4096),
            client.pread(offset=4096, length=4096),
            return_exceptions=True,
        )
        assert whole[0] == b"a" * 4096
        assert isinstance(whole[1], NbdError)
        assert whole[1].error == WireError.EIO
        assert await client.pread(offset=8192, length=4096) == b"a" * 4096


async def test_closing_waits_for_reads_under_way_before_it_lets_go_of_the_point(
    views: Views,
) -> None:
    disk, release = Memory(bytes(8192)), Release()
    view = await views.open("g", POINT, [ViewDisk("vda", 8192, disk)], release)
    disk.gate.clear()
    client = await NbdClient.connect(view.disks["vda"])
    reading = asyncio.create_task(client.pread(offset=0, length=4096))
    await asyncio.to_thread(disk.entered.wait)
    closing = asyncio.create_task(views.close(view.id))
    done, _ = await asyncio.wait([closing], timeout=0.3)
    assert not done
    assert release.count == 0
    disk.gate.set()
    await closing
    assert release.count == 1
    await asyncio.gather(reading, return_exceptions=True)
    client.abort()
    assert views.listed() == []
    with pytest.raises(NotFoundError):
        await views.close(view.id)


async def test_a_path_that_is_too_long_is_refused_with_the_reason(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    views, release = Views(deep), Release()
    with pytest.raises(UsageError, match="longer than the 107"):
        await views.open("g", POINT, [ViewDisk("vda", 512, Memory(bytes(512)))], release)
    assert release.count == 1
    await views.close_all()


async def test_sockets_of_a_dead_receiver_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "g" / "views"
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "0badcafe.sock"))
    views = Views(tmp_path)
    views.clear_stale("g")
    views.clear_stale("never-seen")
    assert list(folder.iterdir()) == []
    await views.close_all()


class StuckDisk(SystemStorage):
    """Does not answer while `gate` is down."""

    def __init__(self) -> None:
        self.asked, self.gate = threading.Event(), threading.Event()

    def create(self, path: Path) -> File:
        self.asked.set()
        assert self.gate.wait(30)
        return super().create(path)


async def test_a_disk_that_does_not_answer_holds_up_that_view_and_not_the_loop(
    tmp_path: Path,
) -> None:
    """All groups are served by one event loop."""
    disk = StuckDisk()
    views = Views(tmp_path, storage=disk)
    (tmp_path / "g").mkdir()
    (tmp_path / "other").mkdir()
    shown = [ViewDisk("vda", 4096, Memory(bytes(4096)))]
    opening = asyncio.create_task(
        views.open("g", POINT, shown, Release(), ViewOptions(writable=True))
    )
    await asyncio.to_thread(disk.asked.wait)
    view = await views.open("other", POINT, shown, Release())
    await views.close(view.id)
    assert not opening.done()
    disk.gate.set()
    await views.close((await opening).id)
    await views.close_all()


def open_files() -> list[str]:
    """Paths of what this process has open."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(os.readlink(each))
    return found


async def test_an_order_that_is_given_up_leaves_nothing_of_its_view(tmp_path: Path) -> None:
    disk, release = StuckDisk(), Release()
    views = Views(tmp_path, storage=disk)
    (tmp_path / "g").mkdir()
    shown = [ViewDisk("vda", 4096, Memory(bytes(4096)))]
    opening = asyncio.create_task(
        views.open("g", POINT, shown, release, ViewOptions(writable=True))
    )
    await asyncio.to_thread(disk.asked.wait)
    opening.cancel()
    disk.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert not [each for each in open_files() if each.startswith(str(tmp_path))]
    assert list((tmp_path / "g/views").iterdir()) == []
    assert release.count == 1
    await views.close_all()
