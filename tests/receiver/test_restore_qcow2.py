# SPDX-License-Identifier: Apache-2.0
"""A restore into qcow2 that dies at any step of its files, and is gone on with. Real files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from receiver.restore.restore import RestoreOrder, restore_view
from replicator.base.errors import DamageError, NoSpaceError
from replicator.base.storage import File, SystemStorage
from tests.receiver.source import noise
from tests.receiver.world import World
from tests.world.storage import Stopped

ORDER = RestoreOrder("g", format="qcow2", resume=True)
FILES = ["a.qcow2", "b.qcow2", "vm.xml"]


class MortalStorage(SystemStorage):
    """The process dies before the nth call that changes a directory."""

    def __init__(self, dies_at: int) -> None:
        self._left = dies_at

    def _step(self) -> None:
        self._left -= 1
        if self._left <= 0:
            raise Stopped

    def create(self, path: Path) -> File:
        self._step()
        return super().create(path)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)


def nobody(_done: int, _total: int) -> None:
    """Nobody looks."""


@pytest.fixture
def world() -> World:
    world = World(disks=[("a", 1 << 20), ("b", 6 * 4096)])
    world.begin_stream(from_zero=True)
    world.log(world.source.domain_xml("vm", "<domain/>"))
    world.write("a", 70_144, noise(1, 70_144))
    world.write("b", 0, b"1" * 512)
    world.cut()
    world.settle()
    return world


def check(world: World, target: Path) -> None:
    assert sorted(os.listdir(target)) == FILES
    for name in ("a", "b"):
        plain = target.parent / f"{name}.plain"
        words: list[str | Path] = [
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            target / f"{name}.qcow2",
            plain,
        ]
        subprocess.run(["qemu-img", *words], check=True)
        assert plain.read_bytes() == world.expected[1][name]
    assert (target / "vm.xml").read_text() == "<domain/>"


def test_a_death_before_every_step_then_resume(world: World, tmp_path: Path) -> None:
    at = 0
    with_view = world.group.showing.view(1)
    while True:
        at += 1
        target = tmp_path / str(at) / "new"
        try:
            restore_view(with_view, target, nobody, ORDER, MortalStorage(at))
        except Stopped:
            if not target.exists() or sorted(os.listdir(target)) != FILES:
                restore_view(with_view, target, nobody, ORDER, SystemStorage())
            check(world, target)
        else:
            check(world, target)
            break
    assert at > 20
    with_view.close()


def test_there_must_be_room_for_both_images(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = world.group.showing.view(1)
    storage = SystemStorage()
    monkeypatch.setattr(storage, "free_bytes", lambda _path: 2 * view.allocated_bytes - 1)
    with pytest.raises(NoSpaceError):
        restore_view(view, tmp_path / "new", nobody, ORDER, storage)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(storage, "free_bytes", lambda _path: 2 * view.allocated_bytes)
    restore_view(view, tmp_path / "new", nobody, ORDER, storage)
    check(world, tmp_path / "new")


def test_a_conversion_that_went_wrong_leaves_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A qemu-img that converts something else."""
    programs = tmp_path / "programs"
    programs.mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"?" * (1 << 20))
    false = programs / "qemu-img"
    real = subprocess.run(["which", "qemu-img"], check=True, capture_output=True, text=True).stdout
    false.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = convert ] && exec {real.strip()} convert -f raw -O qcow2 {other} "$7"\n'
        f'exec {real.strip()} "$@"\n'
    )
    false.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(DamageError, match=r"a.qcow2.partial is not what was converted"):
        restore_view(world.group.showing.view(1), tmp_path / "new", nobody, ORDER)
    assert not (tmp_path / "new").exists()
