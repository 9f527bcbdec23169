# SPDX-License-Identifier: Apache-2.0
"""Writable views, views on TCP, and views whose time is over, as real clients see them.

Requires libnbd-bin and qemu-utils."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.views.files import ViewDisk
from receiver.views.open_views import ViewOptions, Views
from replicator.base.address import Address
from replicator.base.errors import NotFoundError, UsageError
from replicator.base.pki import init_ca, issue
from replicator.base.units import MIB
from replicator.control.types import View
from replicator.nbd.constants import WireError
from replicator.wire.identity import server_context
from tests.peers.nbd_client import NbdClient, NbdError
from tests.receiver_service.test_views import POINT, Memory, Release, run

ADMIN = frozenset(["admin"])
CONTENT = random.Random(4).randbytes(3 * MIB) + bytes(5 * MIB)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    init_ca(folder)
    issue(folder, "dr1", sans=("localhost", "127.0.0.1"))
    issue(folder, "admin", sans=())
    issue(folder, "tenant", sans=())
    return folder


@pytest.fixture
async def views(tmp_path: Path, pki: Path) -> AsyncIterator[Views]:
    (tmp_path / "g").mkdir()
    tls = server_context(pki / "ca.crt", pki / "dr1.crt", pki / "dr1.key")
    views = Views(tmp_path, tls=lambda: tls)
    yield views
    await views.close_all()


async def show(views: Views, options: ViewOptions, content: bytes = CONTENT) -> View:
    return await views.open(
        "g", POINT, [ViewDisk("vda", len(content), Memory(content))], Release(), options
    )


def credentials(pki: Path, folder: Path, name: str) -> Path:
    """As libnbd and QEMU want them: a folder with fixed names."""
    folder.mkdir()
    shutil.copy(pki / "ca.crt", folder / "ca-cert.pem")
    shutil.copy(pki / f"{name}.crt", folder / "client-cert.pem")
    shutil.copy(pki / f"{name}.key", folder / "client-key.pem")
    return folder


# -- writable


async def test_what_is_written_is_read_and_the_point_stays_as_it_is(
    views: Views, tmp_path: Path
) -> None:
    memory = Memory(CONTENT)
    view = await views.open(
        "g", POINT, [ViewDisk("vda", len(CONTENT), memory)], Release(), ViewOptions(writable=True)
    )
    commands = ["write -P 7 1000 5000", "write -z 100000 70000", "discard 2M 1M", "flush"]
    arguments = [word for command in commands for word in ("-c", command)]
    code, output = await run("qemu-io", "-f", "raw", *arguments, view.disks["vda"])
    assert code == 0, output
    wanted = bytearray(CONTENT)
    wanted[1000:6000] = bytes([7]) * 5000
    wanted[100_000:170_000] = bytes(70_000)
    wanted[2 * MIB : 3 * MIB] = bytes(MIB)
    copied = tmp_path / "copy.raw"
    code, output = await run("nbdcopy", view.disks["vda"], str(copied))
    assert code == 0, output
    assert copied.read_bytes() == bytes(wanted)
    assert memory.content == CONTENT
    (listed,) = views.listed()
    assert listed.writable
    assert listed.overlay_bytes is not None
    assert 0 < listed.overlay_bytes < MIB


async def test_a_whole_image_can_be_copied_into_a_view(views: Views, tmp_path: Path) -> None:
    view = await show(views, ViewOptions(writable=True))
    image = tmp_path / "new.raw"
    image.write_bytes(random.Random(9).randbytes(2 * MIB) + bytes(6 * MIB))
    code, output = await run("nbdcopy", "--flush", str(image), view.disks["vda"])
    assert code == 0, output
    code, output = await run("qemu-img", "compare", "-f", "raw", str(image), view.disks["vda"])
    assert code == 0, output


async def test_a_full_overlay_says_so_and_harms_nothing(views: Views) -> None:
    view = await show(views, ViewOptions(writable=True, overlay_bytes=MIB))
    async with await NbdClient.connect(view.disks["vda"]) as client:
        await client.pwrite(b"x" * MIB, offset=0)
        with pytest.raises(NbdError) as full:
            await client.pwrite(b"y" * 4096, offset=2 * MIB)
        assert full.value.error == WireError.ENOSPC
        assert await client.pread(offset=2 * MIB, length=4096) == CONTENT[2 * MIB :][:4096]
        await client.pwrite(b"z" * 4096, offset=0)


async def test_an_overlay_goes_with_its_view_and_a_dead_ones_at_the_start(
    views: Views, tmp_path: Path
) -> None:
    view = await show(views, ViewOptions(writable=True))
    folder = tmp_path / "g" / "views" / view.id
    assert [path.name for path in folder.iterdir()] == ["vda.overlay"]
    await views.close(view.id)
    assert not folder.exists()
    folder.mkdir()
    (folder / "vda.overlay").write_bytes(b"left by a dead process")
    views.clear_stale("g")
    assert not folder.exists()


# -- TCP


async def test_over_tls_with_a_certificate_of_the_same_ca(
    views: Views, pki: Path, tmp_path: Path
) -> None:
    view = await show(views, ViewOptions(listen=Address("127.0.0.1", 0), allowed=ADMIN))
    uri = view.disks["vda"]
    assert uri.startswith("nbds://127.0.0.1:")
    folder = credentials(pki, tmp_path / "x509", "admin")
    copied = tmp_path / "copy.raw"
    code, output = await run("nbdcopy", f"{uri}?tls-certificates={folder}", str(copied))
    assert code == 0, output
    assert copied.read_bytes() == CONTENT
    address = uri.removeprefix("nbds://").removesuffix("/vda")
    host, port = address.rsplit(":", 1)
    code, output = await run(
        "qemu-img",
        "info",
        "--object",
        f"tls-creds-x509,id=tls,dir={folder},endpoint=client",
        "--image-opts",
        f"driver=nbd,host={host},port={port},export=vda,tls-creds=tls",
    )
    assert code == 0, output
    assert "8 MiB" in output


async def test_without_tls_nothing_is_said(views: Views) -> None:
    view = await show(views, ViewOptions(listen=Address("127.0.0.1", 0), allowed=ADMIN))
    plain = view.disks["vda"].replace("nbds://", "nbd://")
    code, output = await run("nbdinfo", plain)
    assert code != 0
    assert "8388608" not in output
    assert len(views.listed()) == 1


async def test_a_certificate_of_another_ca_gets_no_further_than_tls(
    views: Views, tmp_path: Path, pki: Path
) -> None:
    view = await show(views, ViewOptions(listen=Address("127.0.0.1", 0), allowed=ADMIN))
    other = tmp_path / "other"
    other.mkdir()
    init_ca(other)
    issue(other, "admin", sans=())
    folder = credentials(other, tmp_path / "x509", "admin")
    shutil.copy(pki / "ca.crt", folder / "ca-cert.pem")
    code, _ = await run("nbdinfo", f"{view.disks['vda']}?tls-certificates={folder}")
    assert code != 0
    good = credentials(pki, tmp_path / "good", "admin")
    code, output = await run("nbdinfo", f"{view.disks['vda']}?tls-certificates={good}")
    assert code == 0, output


async def test_another_tenants_certificate_reads_nothing(
    views: Views, pki: Path, tmp_path: Path
) -> None:
    view = await show(views, ViewOptions(listen=Address("127.0.0.1", 0), allowed=ADMIN))
    folder = credentials(pki, tmp_path / "x-tenant", "tenant")
    code, output = await run("nbdinfo", f"{view.disks['vda']}?tls-certificates={folder}")
    assert code != 0
    assert "8388608" not in output
    good = credentials(pki, tmp_path / "x-admin", "admin")
    code, output = await run("nbdinfo", f"{view.disks['vda']}?tls-certificates={good}")
    assert code == 0, output


async def test_plain_on_loopback_alone(views: Views) -> None:
    options = ViewOptions(listen=Address("127.0.0.1", 0), is_plain=True)
    view = await show(views, options)
    assert view.disks["vda"].startswith("nbd://127.0.0.1:")
    async with await NbdClient.connect(view.disks["vda"]) as client:
        assert await client.pread(offset=0, length=4096) == CONTENT[:4096]
    with pytest.raises(UsageError, match="loopback"):
        await show(views, ViewOptions(listen=Address("0.0.0.0", 0), is_plain=True))


async def test_a_port_that_is_taken_is_named_and_the_point_let_go_of(views: Views) -> None:
    first = await show(views, ViewOptions(listen=Address("127.0.0.1", 0), is_plain=True))
    port = int(first.disks["vda"].rsplit(":", 1)[1].split("/")[0])
    release = Release()
    with pytest.raises(UsageError, match=rf"cannot listen on 127.0.0.1:{port}"):
        await views.open(
            "g",
            POINT,
            [ViewDisk("vda", len(CONTENT), Memory(CONTENT))],
            release,
            ViewOptions(listen=Address("127.0.0.1", port), is_plain=True),
        )
    assert release.count == 1


# -- time


async def test_a_view_closes_by_itself_when_its_time_is_over(views: Views) -> None:
    release = Release()
    view = await views.open(
        "g",
        POINT,
        [ViewDisk("vda", len(CONTENT), Memory(CONTENT))],
        release,
        ViewOptions(lifetime_seconds=0.05),
    )
    assert view.expires is not None
    assert view.expires > view.opened
    tending = views._open[view.id].tending
    assert tending is not None
    async with asyncio.timeout(10):
        await tending
    assert views.listed() == []
    assert release.count == 1
    with pytest.raises(NotFoundError):
        await views.close(view.id)
