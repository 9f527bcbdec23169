# SPDX-License-Identifier: Apache-2.0
"""The server as the clients that people use see it: libnbd's tools, QEMU's tools, fio.

Requires libnbd-bin, qemu-utils and fio. The clients run as processes beside the loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from replicator.nbd.constants import Command, CommandFlag
from replicator.nbd.exports import EndKind, ExportInfo
from replicator.nbd.limits import MAX_BLOCK_BYTES
from replicator.nbd.uri import UnixAddress
from tests.nbd.exports_of_memory import ALL_ABLE, MemoryExport, Shelf
from tests.nbd.test_server import serving

SIZE = ALL_ABLE.size_bytes
SECONDS = 60


async def run(*command: str | Path) -> str:
    """What the program printed. It has to succeed."""
    child = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS):
            out, err = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        raise
    assert child.returncode == 0, f"{command}: {err.decode()}{out.decode()}"
    return out.decode()


def uri(directory: Path, name: str = "d") -> str:
    return str(UnixAddress(directory / "s", name))


def sparse_image(path: Path, size: int = SIZE) -> bytes:
    """Data, zeroes and holes."""
    chance = random.Random(3)
    with path.open("wb") as image:
        image.truncate(size)
        for _ in range(30):
            image.seek(chance.randrange(size // 4096 - 64) * 4096)
            image.write(chance.randbytes(chance.randrange(1, 64) * 4096))
        image.seek(size - 512)
        image.write(b"end!" * 128)
    return path.read_bytes()


# libnbd


async def test_nbdinfo_reads_what_we_say(directory: Path) -> None:
    export = MemoryExport(
        ExportInfo(size_bytes=SIZE, can_write_zeroes=True, description="the first disk of web")
    )
    async with serving(directory, Shelf(**{"web/vda": export})):
        told: dict[str, Any] = json.loads(await run("nbdinfo", "--json", uri(directory, "web/vda")))
    assert told["protocol"] == "newstyle-fixed"
    assert told["structured"] is True
    (seen,) = told["exports"]
    assert seen["export-size"] == SIZE
    assert seen["description"] == "the first disk of web"
    assert (seen["block_size_minimum"], seen["block_size_preferred"]) == (512, 4096)
    assert seen["block_size_maximum"] == MAX_BLOCK_BYTES
    assert seen["is_read_only"] is False
    assert (seen["can_flush"], seen["can_zero"]) == (True, True)
    for never in ("can_trim", "can_fua", "can_multi_conn", "can_fast_zero", "can_cache"):
        assert seen[never] is False, never
    assert "base:allocation" not in seen.get("contexts", [])


async def test_nbdinfo_lists_all_exports(directory: Path) -> None:
    shelf = Shelf(
        **{
            "web/vda": MemoryExport(ExportInfo(size_bytes=1 << 20)),
            "web/vdb": MemoryExport(ExportInfo(size_bytes=2 << 20, read_only=True)),
        }
    )
    async with serving(directory, shelf):
        told = json.loads(await run("nbdinfo", "--list", "--json", uri(directory, "")))
    sizes = {each["export-name"]: each["export-size"] for each in told["exports"]}
    assert sizes == {"web/vda": 1 << 20, "web/vdb": 2 << 20}


@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_there_and_back(directory: Path, connections: int) -> None:
    content = sparse_image(directory / "image")
    export = MemoryExport()
    export.content[:] = b"\xa5" * SIZE
    async with serving(directory, export):
        many = f"--connections={connections}"
        await run("nbdcopy", many, "--flush", directory / "image", uri(directory))
        assert export.content == content
        assert Command.WRITE_ZEROES in export.commands()
        assert Command.FLUSH in export.commands()
        await run("nbdcopy", many, uri(directory), directory / "back")
    assert (directory / "back").read_bytes() == content
    assert (len(export.opened_by) > 2) is (connections > 1), "nbdcopy opens as many as it has cores"
    assert all(end.clean for end in export.ends)


# QEMU


async def test_qemu_img_converts_compares_and_sees_a_difference(directory: Path) -> None:
    content = sparse_image(directory / "image")
    export = MemoryExport()
    async with serving(directory, export):
        told = json.loads(await run("qemu-img", "info", "--output=json", uri(directory)))
        assert told["virtual-size"] == SIZE
        raw = ("-f", "raw", "-O", "raw")
        await run("qemu-img", "convert", "-n", *raw, directory / "image", uri(directory))
        assert export.content == content
        both = (directory / "image", uri(directory))
        assert "identical" in await run("qemu-img", "compare", "-f", "raw", "-F", "raw", *both)
        export.content[SIZE - 1] ^= 1
        with pytest.raises(AssertionError, match=f"mismatch at offset {SIZE - 512}"):
            await run("qemu-img", "compare", "-f", "raw", "-F", "raw", *both)
        await run("qemu-img", "convert", *raw, uri(directory), directory / "back")
    assert (directory / "back").read_bytes() == export.content
    assert all((end.kind, end.clean) == (EndKind.DISC, True) for end in export.ends)


async def qemu_io(directory: Path, *commands: str, options: tuple[str, ...] = ()) -> str:
    words = [word for command in commands for word in ("-c", command)]
    out = await run(
        "qemu-io", "-f", "raw", "-d", "unmap", "-t", "writeback", *options, *words, uri(directory)
    )
    assert "failed" not in out, out
    assert "Pattern verification" not in out, out
    return out


async def test_qemu_io_splits_what_is_too_large_and_loses_nothing(directory: Path) -> None:
    export = MemoryExport()
    async with serving(directory, export):
        await qemu_io(
            directory,
            "write -P 0x41 512 40M",
            "read -P 0x41 512 40M",
            "write -z 1M 36M",
            "read -P 0x41 512 1047040",
            "read -P 0 1M 36M",
            "read -P 0x41 37M 512",
        )
    lengths = [length for _, _, length, _, error in export.log if not error]
    assert max(lengths) <= MAX_BLOCK_BYTES
    assert MAX_BLOCK_BYTES in lengths
    assert not any(error for *_, error in export.log)


async def test_qemu_io_s_flags_arrive(directory: Path) -> None:
    export = MemoryExport()
    async with serving(directory, export):
        await qemu_io(directory, "write -f -P 1 0 4k", "write -z 4k 4k", "write -z -u 8k 4k")
        await qemu_io(directory, "discard 0 1M", "flush")
    seen = {(command, offset, length, flags) for command, offset, length, flags, _ in export.log}
    assert (Command.WRITE, 0, 4096, CommandFlag.FUA) in seen
    assert (Command.WRITE_ZEROES, 4096, 4096, CommandFlag.NO_HOLE) in seen
    assert (Command.WRITE_ZEROES, 8192, 4096, 0) in seen
    assert (Command.TRIM, 0, 1 << 20, 0) in seen
    assert (Command.FLUSH, 0, 0, 0) in seen


async def test_qemu_io_is_told_that_an_export_is_read_only(directory: Path) -> None:
    export = MemoryExport(ExportInfo(size_bytes=SIZE, read_only=True))
    async with serving(directory, export):
        await qemu_io(directory, "read -P 0 0 4k", options=("-r",))
        with pytest.raises(AssertionError, match="Permission denied"):
            await qemu_io(directory, "write 0 4k")
    assert Command.WRITE not in export.commands()


async def test_qemu_does_the_rest_for_unaligned_guests(directory: Path) -> None:
    export = MemoryExport()
    export.content[:4096] = b"\x11" * 4096
    async with serving(directory, export):
        await qemu_io(directory, "write -P 0x22 100 1000")
    assert export.content[:100] == b"\x11" * 100
    assert export.content[100:1100] == b"\x22" * 1000
    assert export.content[1100:4096] == b"\x11" * 2996
    assert not any(error for *_, error in export.log)


# fio


async def test_fio_verifies_what_it_wrote(directory: Path) -> None:
    export = MemoryExport()
    async with serving(directory, export):
        out = await run(
            "fio",
            "--name=verify",
            "--ioengine=nbd",
            f"--uri={uri(directory)}",
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--bs_unaligned=0",
            "--blockalign=512",
            "--iodepth=32",
            f"--size={SIZE}",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",  # it would leave a file behind
            "--output-format=json",
        )
        await export.until(lambda: len(export.ends) == len(export.opened_by))
    (job,) = json.loads(out[out.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["read"]["total_ios"] == job["write"]["total_ios"] > 100
    assert not any(error for *_, error in export.log)
    assert max(export.batches) > 1, "a deep queue arrives in batches"
    assert {end.kind for end in export.ends} <= {EndKind.EOF, EndKind.DISC}
    assert all(end.clean for end in export.ends), os.fspath(directory)
