# SPDX-License-Identifier: Apache-2.0
"""Holes of a view, as the clients that people use see them: they are told, and not read.

Requires libnbd-bin and qemu-utils."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.blocks.holes import Extents, laid_over, span_of
from receiver.views.files import ViewDisk
from receiver.views.open_views import ViewOptions, Views
from replicator.base.units import GIB, KIB, MIB
from tests.receiver_service.test_views import POINT, Release, run

SIZE = 9 * GIB + 700
DATA = {0: b"a" * 64 * KIB, 5 * GIB - 4096: b"b" * 12 * KIB, SIZE - 700: b"c" * 700}


class Sparse:
    """A disk of nine GiB and a short block, with three places that hold something."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> bytes:
        content = bytearray(length)
        with self._lock:
            self.read_bytes += length
        for start, data in DATA.items():
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                content[low - offset : high - offset] = data[low - start : high - start]
        return bytes(content)

    def extents(self, offset: int, length: int) -> Extents:
        first, end = span_of(offset, length)
        stop = min(end * 4096, offset + length)
        pieces = [
            (max(start, offset), min(start + len(data), stop) - max(start, offset), False)
            for start, data in DATA.items()
            if start < stop and offset < start + len(data)
        ]
        assert first * 4096 <= offset
        return laid_over([(stop - offset, True)], offset, pieces)


@pytest.fixture
async def views(tmp_path: Path) -> AsyncIterator[Views]:
    (tmp_path / "g").mkdir()
    views = Views(tmp_path)
    yield views
    await views.close_all()


async def show(views: Views, disk: Sparse, *, writable: bool = False) -> str:
    options = ViewOptions(writable=writable)
    view = await views.open("g", POINT, [ViewDisk("vda", SIZE, disk)], Release(), options)
    return view.disks["vda"]


async def told(*command: str) -> str:
    code, output = await run(*command)
    assert code == 0, output
    return output


async def holes_of(uri: str) -> list[tuple[int, int, bool]]:
    """By nbdinfo, neighbours of one kind together: (offset, length, whether it is a hole)."""
    found: list[tuple[int, int, bool]] = []
    for each in json.loads(await told("nbdinfo", "--map", "--json", uri)):
        kind = each["type"] == 3
        assert each["type"] in (0, 3)
        if found and found[-1][2] is kind:
            found[-1] = (found[-1][0], found[-1][1] + each["length"], kind)
        else:
            found.append((each["offset"], each["length"], kind))
    return found


@pytest.mark.parametrize("writable", [False, True])
async def test_nbdinfo_maps_a_disk_of_more_than_four_gib(views: Views, writable: bool) -> None:
    disk = Sparse()
    uri = await show(views, disk, writable=writable)
    last = SIZE - 700
    assert await holes_of(uri) == [
        (0, 64 * KIB, False),
        (64 * KIB, 5 * GIB - 4096 - 64 * KIB, True),
        (5 * GIB - 4096, 12 * KIB, False),
        (5 * GIB + 8 * KIB, last - 5 * GIB - 8 * KIB, True),
        (last, 700, False),
    ]
    assert disk.read_bytes == 0
    assert "base:allocation" in await told("nbdinfo", uri)


async def test_qemu_maps_it_and_copies_no_hole(views: Views, tmp_path: Path) -> None:
    disk = Sparse()
    uri = await show(views, disk)
    mapped = json.loads(await told("qemu-img", "map", "-f", "raw", "--output", "json", uri))
    data = [(each["start"], each["length"]) for each in mapped if each["data"]]
    assert [start for start, _ in data] == [0, 5 * GIB - 4096, (SIZE - 700) // 512 * 512]
    assert all(each["zero"] for each in mapped if not each["data"])
    target = tmp_path / "disk.qcow2"
    await told("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, str(target))
    assert disk.read_bytes < 4 * MIB
    await told("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, str(target))


async def test_nbdcopy_reads_no_hole(views: Views, tmp_path: Path) -> None:
    disk = Sparse()
    uri, target = await show(views, disk), tmp_path / "disk.raw"
    await told("nbdcopy", uri, str(target))
    assert disk.read_bytes < 4 * MIB
    assert target.stat().st_blocks * 512 < 8 * MIB
    with target.open("rb") as file:
        for start, content in DATA.items():
            file.seek(start)
            assert file.read(len(content)) == content
    assert target.stat().st_size == SIZE


async def test_what_is_written_and_trimmed_changes_the_map(views: Views) -> None:
    disk = Sparse()
    uri = await show(views, disk, writable=True)
    commands = ["write 1G 8k", "discard 0 32k", "write -z 5G 4k", "write 3000000000 512"]
    arguments = [word for command in commands for word in ("-c", command)]
    await told("qemu-io", "-f", "raw", *arguments, uri)
    at = 3_000_000_000 // 4096 * 4096
    data = [(offset, length) for offset, length, hole in await holes_of(uri) if not hole]
    assert data == [
        (32 * KIB, 32 * KIB),
        (GIB, 8 * KIB),
        (at, 4096),
        (5 * GIB - 4096, 4096),
        (5 * GIB + 4096, 4096),
        (SIZE - 700, 700),
    ]
