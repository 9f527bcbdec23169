# SPDX-License-Identifier: Apache-2.0
"""Restores through the real client, with real files, a real qemu-img and real deaths."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from receiver.restore import image as restore_image
from receiver.restore.qcow2 import compare, convert, find_qemu_img
from receiver.service import Receiver
from replicator.base.errors import (
    DamageError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.base.storage import SystemStorage
from replicator.control.orders import RESTORE
from replicator.control.requests import RestoreRequest
from tests.receiver.restored_checksum import checksum_by_hand
from tests.receiver_service.dr_site import DrSite, launched
from tests.receiver_service.test_orders import feed, good, leave, order, story
from tests.receiver_service.test_views import run

DISKS = ["vda", "vdb"]


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


@pytest.fixture
async def receiver(site: DrSite) -> AsyncIterator[Receiver]:
    async with site.running() as receiver:
        yield receiver


def slow_qemu_img(folder: Path) -> tuple[Path, Path]:
    """(where one lies that never ends, the FIFO that tells the process once it runs)."""
    programs, started = folder / "programs", folder / "started"
    programs.mkdir()
    os.mkfifo(started)
    slow = programs / "qemu-img"
    slow.write_text(f"#!/bin/sh\necho $$ > {started}\nexec sleep 1000\n")
    slow.chmod(0o755)
    return programs, started


async def test_qcow2_images_hold_the_point(site: DrSite, receiver: Receiver) -> None:
    source = story()
    await leave(await feed(site, source), receiver)
    target = site.folder / "restored"
    done = await order(
        site.control.order,
        RESTORE,
        "web",
        RestoreRequest(at="good", to=str(target), format="qcow2"),
    )
    assert done.result.files == [str(target / f"{name}.qcow2") for name in DISKS]
    assert sorted(os.listdir(target)) == [f"{name}.qcow2" for name in DISKS]
    for image in done.result.images:
        content = good(source).disks[image.disk]
        plain = site.folder / f"{image.disk}.plain"
        plain.write_bytes(content)
        code, output = await run("qemu-img", "compare", "-F", "qcow2", str(plain), image.path)
        assert code == 0, output
        code, output = await run("qemu-img", "info", "--output=json", image.path)
        assert json.loads(output)["format"] == "qcow2"
        assert (image.format, image.verified) == ("qcow2", True)
        assert (image.size, image.checksum) == (len(content), checksum_by_hand(content))
        assert Path(image.path).stat().st_mode & 0o777 == 0o600


async def test_qcow2_without_qemu_img_is_refused_before_anything_is_written(
    site: DrSite, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave(await feed(site, story()), receiver)
    monkeypatch.setenv("PATH", str(site.folder))
    with pytest.raises(UsageError, match="no qemu-img") as caught:
        await order(
            site.control.order,
            RESTORE,
            "web",
            RestoreRequest(at="good", to=str(site.folder / "new"), format="qcow2"),
        )
    assert "qemu-utils" in caught.value.hint
    assert not (site.folder / "new").exists()


async def test_a_restore_that_the_shutdown_interrupts_is_gone_on_with(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While qemu-img is at work, which is killed; then in the other life, from what is left."""
    source = story()
    target = site.folder / "restored"
    programs, started = slow_qemu_img(site.folder)
    path = os.environ["PATH"]
    async with site.running() as receiver:
        await leave(await feed(site, source), receiver)
        monkeypatch.setenv("PATH", f"{programs}:{path}")
        restoring = asyncio.create_task(
            order(
                site.control.order,
                RESTORE,
                "web",
                RestoreRequest(at="good", to=str(target), format="qcow2"),
            )
        )
        process = int(await asyncio.to_thread(started.read_text))
        receiver.workers["web"].begin_closing()
        with pytest.raises(UnreachableError, match="shutting down") as caught:
            await restoring
        assert "--resume" in caught.value.hint
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    monkeypatch.setenv("PATH", path)
    assert sorted(os.listdir(target)) == ["restore.json", "vda.qcow2.partial", "vda.raw.partial"]
    async with site.running():
        with pytest.raises(UsageError, match="holds the beginnings"):
            await order(
                site.control.order,
                RESTORE,
                "web",
                RestoreRequest(at="good", to=str(target), format="qcow2"),
            )
        with pytest.raises(UsageError, match="format qcow2 there, raw wanted"):
            await order(
                site.control.order,
                RESTORE,
                "web",
                RestoreRequest(at="good", to=str(target), resume=True),
            )
        done = await order(
            site.control.order,
            RESTORE,
            "web",
            RestoreRequest(at="good", to=str(target), format="qcow2", resume=True),
        )
    assert sorted(os.listdir(target)) == [f"{name}.qcow2" for name in DISKS]
    for image in done.result.images:
        assert image.checksum == checksum_by_hand(good(source).disks[image.disk])


async def test_a_receiver_that_was_killed_goes_on_in_its_next_life(
    site: DrSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = story()
    target = site.folder / "restored"
    programs, started = slow_qemu_img(site.folder)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{programs}:{path}")
    async with launched(site) as process:
        await (await feed(site, source)).close()
        restoring = asyncio.create_task(
            order(
                site.control.order,
                RESTORE,
                "web",
                RestoreRequest(at="good", to=str(target), format="qcow2"),
            )
        )
        converting = int(await asyncio.to_thread(started.read_text))
        await process.end(signal.SIGKILL)
        with pytest.raises(UnreachableError):
            await restoring
        os.kill(converting, signal.SIGKILL)  # systemd would have done it
    monkeypatch.setenv("PATH", path)
    assert sorted(os.listdir(target)) == ["restore.json", "vda.qcow2.partial", "vda.raw.partial"]
    async with launched(site):
        done = await order(
            site.control.order,
            RESTORE,
            "web",
            RestoreRequest(at="good", to=str(target), format="qcow2", resume=True),
        )
    assert sorted(os.listdir(target)) == [f"{name}.qcow2" for name in DISKS]
    for image in done.result.images:
        assert image.verified
        assert image.checksum == checksum_by_hand(good(source).disks[image.disk])


async def test_a_qemu_img_that_a_signal_ends_is_an_interruption(
    site: DrSite, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd stops a service: each process of it gets SIGTERM."""
    await leave(await feed(site, story()), receiver)
    target = site.folder / "restored"
    programs, started = slow_qemu_img(site.folder)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    restoring = asyncio.create_task(
        order(
            site.control.order,
            RESTORE,
            "web",
            RestoreRequest(at="good", to=str(target), format="qcow2"),
        )
    )
    os.kill(int(await asyncio.to_thread(started.read_text)), signal.SIGTERM)
    with pytest.raises(UnreachableError, match="qemu-img was ended by SIGTERM") as caught:
        await restoring
    assert "--resume" in caught.value.hint
    assert sorted(os.listdir(target)) == ["restore.json", "vda.qcow2.partial", "vda.raw.partial"]


async def test_nothing_is_restored_where_replicas_and_histories_are_kept(
    site: DrSite, receiver: Receiver
) -> None:
    await leave(await feed(site, story()), receiver)
    (site.folder / "link").symlink_to(site.data_dir / "groups")
    for target in (
        site.data_dir,
        site.data_dir / "groups" / "web" / "disks",
        site.data_dir / "new" / "folder",
        site.folder / "link" / "web",
        site.folder / "." / "data" / ".." / "data",
    ):
        with pytest.raises(UsageError, match="where replicas and histories are kept"):
            await order(
                site.control.order, RESTORE, "web", RestoreRequest(at="good", to=str(target))
            )
    assert not (site.data_dir / "new").exists()
    assert not list(site.data_dir.rglob("*.partial"))


async def test_rot_between_writing_and_reading_back_is_damage(
    site: DrSite, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave(await feed(site, story()), receiver)
    target = site.folder / "restored"

    def rot(storage: SystemStorage, path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(70_000)
            file.write(b"?")

    monkeypatch.setattr(restore_image, "drop_cache", rot)
    with pytest.raises(DamageError, match=r"vda.raw.partial: bytes 0 to 2097152 are not"):
        await order(site.control.order, RESTORE, "web", RestoreRequest(at="good", to=str(target)))
    assert not target.exists()
    done = await order(
        site.control.order, RESTORE, "web", RestoreRequest(at="good", to=str(target), verify=False)
    )
    assert [image.verified for image in done.result.images] == [False, False]


async def test_qemu_img_tells_a_difference_and_what_fails_it(tmp_path: Path) -> None:
    qemu_img = find_qemu_img()
    raw, made = tmp_path / "a:b,c.raw", tmp_path / "a.qcow2"
    raw.write_bytes(b"1" * 65_536)
    list(convert(qemu_img, raw, made))
    list(compare(qemu_img, raw, made))
    raw.write_bytes(b"1" * 65_535 + b"2")
    with pytest.raises(DamageError, match="is not what was converted: Content mismatch"):
        list(compare(qemu_img, raw, made))
    with pytest.raises(ReplicatorError, match="No such file"):
        list(convert(qemu_img, tmp_path / "none", made))
