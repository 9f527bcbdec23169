# SPDX-License-Identifier: Apache-2.0
"""What a refused restore says to do is done, in the very state in which it is said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from receiver.service import Receiver
from replicator.base.errors import (
    DamageError,
    NoSpaceError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.control.orders import RESTORE
from replicator.control.requests import RestoreRequest
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.test_orders import feed, good, leave, order, story

DISKS = ["vda", "vdb"]


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


@pytest.fixture
async def receiver(site: DrSite) -> AsyncIterator[Receiver]:
    async with site.running() as receiver:
        await leave(await feed(site, story()), receiver)
        yield receiver


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 64 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tiny", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def restore(site: DrSite, to: Path, **wanted: object) -> None:
    """The good point, and nothing but it."""
    request = RestoreRequest(**{"at": "good", "to": str(to), **wanted})  # type: ignore[arg-type]
    await order(site.control.order, RESTORE, "web", request)
    assert sorted(path.name for path in to.iterdir()) == [f"{name}.raw" for name in DISKS]
    for name in DISKS:
        assert (to / f"{name}.raw").read_bytes() == good(story()).disks[name]


async def refused(site: DrSite, to: Path, kind: type[ReplicatorError], **wanted: object) -> str:
    """What is said to do about it."""
    with pytest.raises(kind) as caught:
        await restore(site, to, **wanted)
    return caught.value.hint


async def test_without_qemu_img_raw_images_are_restored_there(
    site: DrSite, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(site.folder))
    target = site.folder / "new"
    hint = await refused(site, target, UsageError, format="qcow2")
    assert "or restore raw images" in hint
    await restore(site, target)


async def test_where_an_image_lies_another_folder_is_named(
    site: DrSite, receiver: Receiver
) -> None:
    target = site.folder / "used"
    target.mkdir()
    (target / "vdb.raw").write_bytes(b"somebody's")
    assert "name another folder" in await refused(site, target, UsageError)
    assert (target / "vdb.raw").read_bytes() == b"somebody's"
    await restore(site, site.folder / "other")


async def test_a_part_that_nobody_knows_is_removed(site: DrSite, receiver: Receiver) -> None:
    target = site.folder / "used"
    target.mkdir()
    (target / "vda.raw.partial").write_bytes(b"half")
    assert "remove it" in await refused(site, target, UsageError)
    (target / "vda.raw.partial").unlink()
    await restore(site, target)


async def test_beginnings_are_gone_on_with_or_removed(site: DrSite, receiver: Receiver) -> None:
    target = await begun(site)
    assert "--resume" in await refused(site, target, UsageError)
    hint = await refused(site, target, UsageError, resume=True)
    assert "name the same group, point and format, or remove restore.json and *.partial" in hint
    request = RestoreRequest(at="good", to=str(target), format="qcow2", resume=True)
    done = await order(site.control.order, RESTORE, "web", request)
    assert sorted(done.result.files) == sorted(str(path) for path in target.iterdir())
    again = await begun(site, "again")
    remove_beginnings(again)
    await restore(site, again)


async def test_beginnings_that_cannot_be_read_are_removed(site: DrSite, receiver: Receiver) -> None:
    target = await begun(site)
    (target / "restore.json").write_text("{")
    hint = await refused(site, target, DamageError, resume=True)
    assert "remove it and *.partial, and restore again" in hint
    remove_beginnings(target)
    await restore(site, target)


async def test_without_room_a_folder_on_a_larger_disk_is_named(
    site: DrSite, receiver: Receiver, tiny: Path
) -> None:
    assert "a larger disk" in await refused(site, tiny / "new", NoSpaceError)
    assert not (tiny / "new").exists()
    await restore(site, site.folder / "new")


async def begun(site: DrSite, name: str = "begun") -> Path:
    """Where a restore into qcow2 was interrupted."""
    target, programs = site.folder / name, site.folder / f"{name}-programs"
    programs.mkdir()
    (programs / "qemu-img").write_text("#!/bin/sh\nkill -TERM $$\n")
    (programs / "qemu-img").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(programs), prepend=os.pathsep)
        with pytest.raises(UnreachableError, match="SIGTERM"):
            await restore(site, target, format="qcow2")
    assert (target / "restore.json").exists()
    return target


def remove_beginnings(folder: Path) -> None:
    """The files that the hints name."""
    for path in (folder / "restore.json", *folder.glob("*.partial")):
        path.unlink()
