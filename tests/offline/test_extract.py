# SPDX-License-Identifier: Apache-2.0
"""Every point of a bare group directory comes out as it was, and nothing is written but that."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from journal.dump import inspect_path
from receiver.check.places import find_histories, the_history
from receiver.offline.extract import extract
from receiver.offline.reading import choose, read_index
from replicator.base.daemon import hold_lock
from replicator.base.errors import (
    DamageError,
    NoPointError,
    NoSpaceError,
    NotFoundError,
    ReplicatorError,
    UsageError,
)
from replicator.base.storage import File, SystemStorage
from replicator.cli.main import run
from tests.offline import by_hand
from tests.offline.copies import COMPACTED, LONG, SEEDS, BareHistory, export
from tests.receiver.history_of_seed import live
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World
from tests.world.faults import Failure

Captured = pytest.CaptureFixture[str]


def contents(files: list[Path]) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in files if path.suffix == ".raw"}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_point_of_a_history_that_lived_through_anything(tmp_path: Path, seed: int) -> None:
    bare, storage = BareHistory(tmp_path, seed), SystemStorage()
    before = {path: path.read_bytes() for path in bare.group_dir.rglob("*") if path.is_file()}
    index = read_index(storage, bare.place)
    points = index.kept_points()
    assert [point.sequence for point in points] == [
        point.sequence for point in bare.world.group.points.all
    ]
    for point in points:
        files = extract(storage, bare.place, index, point, tmp_path / f"out{point.sequence}")
        assert contents(files) == {
            name: bytes(content) for name, content in bare.world.expected[point.sequence].items()
        }
    after = {path: path.read_bytes() for path in bare.group_dir.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("seed", range(200, 220))
def test_every_point_on_the_simulated_disk(seed: int) -> None:
    world = live(seed, steps=25)
    (place,) = find_histories(world.storage, GROUP_DIRECTORY)
    index = read_index(world.storage, place)
    for point in index.kept_points():
        out = Path(f"/data/out{point.sequence}")
        for path in extract(world.storage, place, index, point, out):
            content = world.storage.open(path).pread(1 << 20, 0)
            assert content == bytes(world.expected[point.sequence][path.stem])


def half_applied() -> World:
    """Three points; the third's batch is in the history, and half of it in the replica."""
    world = World(limits=SMALL)
    world.begin_stream(from_zero=True)
    for value in (1, 2, 3):
        world.write("a", 0, noise(value, 4096))
        world.write("b", 4096, noise(value, 4096))
        world.cut()
        if value == 3:
            world.ship(99)
            world.acknowledge()
            under = GROUP_DIRECTORY / "disks" / "b.raw"
            world.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.EIO, under=under))
            with pytest.raises(OSError, match="Input/output"):
                world.apply()
            world.storage.heal()
        else:
            world.settle()
    assert world.group.history.batch_list.unapplied is not None
    return world


def test_a_batch_that_is_half_in_the_replica_does_not_spoil_older_points(tmp_path: Path) -> None:
    world = half_applied()
    export(world, tmp_path / "g")
    storage = SystemStorage()
    place = the_history(storage, tmp_path / "g")
    index = read_index(storage, place)
    assert (tmp_path / "g/disks/a.raw").read_bytes()[:4096] == noise(3, 4096)  # it is half there
    first, second, third = index.kept_points()
    for point in (first, second):
        files = extract(storage, place, index, point, tmp_path / f"out{point.sequence}")
        expected = world.expected[point.sequence]
        assert contents(files) == {name: bytes(disk) for name, disk in expected.items()}
    with pytest.raises(NoPointError, match="may not be in the replica yet"):
        extract(storage, place, index, third, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def bare(tmp_path: Path) -> BareHistory:
    return BareHistory(tmp_path / "data" / "groups", LONG)


def test_damage_is_never_extracted(bare: BareHistory, tmp_path: Path) -> None:
    storage = SystemStorage()
    bad = bare.segments[3]
    content = bytearray(bad.read_bytes())
    from tests.offline.test_verify import images_of

    offset, size = images_of(bytes(content))[-1]
    content[offset + size // 2] ^= 1
    bad.write_bytes(content)
    index = read_index(storage, bare.place)
    refused: list[str] = []
    left: list[Path] = []
    for point in index.kept_points():
        out = tmp_path / f"out{point.sequence}"
        expected = bare.world.expected[point.sequence]
        try:
            files = extract(storage, bare.place, index, point, out)
        except DamageError as error:
            refused.append(error.message)
            left += [out] if out.exists() else []
        else:
            assert contents(files) == {name: bytes(disk) for name, disk in expected.items()}
    assert {text.partition(" fails")[0] for text in refused} == {
        f"{bad}: before-image at offset {offset - 64}"
    }
    assert left == []


def test_points_behind_a_missing_segment_can_still_be_extracted(
    bare: BareHistory, tmp_path: Path
) -> None:
    storage = SystemStorage()
    all_points = [point.sequence for point in read_index(storage, bare.place).kept_points()]
    bare.segments[2].unlink()
    index = read_index(storage, bare.place)
    assert index.damage is not None
    left = index.kept_points()
    assert 0 < len(left) < len(all_points)
    for point in left:
        files = extract(storage, bare.place, index, point, tmp_path / f"out{point.sequence}")
        expected = bare.world.expected[point.sequence]
        assert contents(files) == {name: bytes(disk) for name, disk in expected.items()}


# -- the command


def extract_command(bare: BareHistory, out: Path, *more: str, at: str = "latest") -> int:
    return run(["journal", "extract", str(bare.group_dir), "--at", at, "--to", str(out), *more])


def test_the_command(bare: BareHistory, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    assert extract_command(bare, out, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    newest = bare.world.group.points.all[-1]
    assert document["point"] == newest.sequence
    assert contents([Path(file) for file in document["files"]]) == {
        name: bytes(disk) for name, disk in bare.world.expected[newest.sequence].items()
    }
    assert extract_command(bare, out) == 2
    assert "exists already" in capsys.readouterr().err
    assert extract_command(bare, tmp_path / "one", "--disk", "a") == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["a.raw"]
    assert extract_command(bare, tmp_path / "none", "--disk", "z") == 10
    assert extract_command(bare, tmp_path / "none", at="#999") == 10
    assert not (tmp_path / "none").exists()


def test_a_running_receiver_is_not_disturbed(
    bare: BareHistory, tmp_path: Path, capsys: Captured
) -> None:
    with hold_lock(tmp_path / "data" / "lock", "receiver dr"):
        assert extract_command(bare, tmp_path / "out") == 11
        assert "a receiver runs on" in capsys.readouterr().err
    assert extract_command(bare, tmp_path / "out") == 0


def test_nothing_is_extracted_where_replicas_and_histories_are_kept(
    bare: BareHistory, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "link").symlink_to(bare.group_dir)
    for out in (bare.group_dir / "out", tmp_path / "data", tmp_path / "link"):
        assert extract_command(bare, out) == 2
    assert "where replicas and histories are kept" in capsys.readouterr().err
    assert not (bare.group_dir / "out").exists()


def test_without_the_replica_that_is_said(bare: BareHistory, tmp_path: Path) -> None:
    (bare.group_dir / "disks" / "a.raw").unlink()
    storage = SystemStorage()
    index = read_index(storage, bare.place)
    with pytest.raises(NotFoundError, match="is not here"):
        extract(
            storage, bare.place, index, choose(index, "latest", 1, None).point, tmp_path / "out"
        )


def test_one_group_must_be_named(tmp_path: Path) -> None:
    BareHistory(tmp_path / "data" / "groups" / "x", LONG)
    one = tmp_path / "data/groups/x/g"
    one.rename(tmp_path / "data/groups/one")
    (tmp_path / "data/groups/x").rmdir()
    BareHistory(tmp_path / "data" / "groups", LONG)
    with pytest.raises(UsageError, match="several groups"):
        the_history(SystemStorage(), tmp_path / "data")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_leaves_nothing_and_is_named(code: int) -> None:
    world = half_applied()
    (place,) = find_histories(world.storage, GROUP_DIRECTORY)
    index = read_index(world.storage, place)
    world.storage.plan(Failure(frozenset(["pwritev"]), 1, code, under=Path("/data/out")))
    with pytest.raises(ReplicatorError, match="extracting into /data/out") as failed:
        extract(world.storage, place, index, index.kept_points()[0], Path("/data/out"))
    assert isinstance(failed.value, NoSpaceError) == (code == errno.ENOSPC)
    world.storage.heal()
    assert not world.storage.exists(Path("/data/out"))


def test_a_segment_that_the_disk_cannot_give_is_as_good_as_bad(
    bare: BareHistory, tmp_path: Path
) -> None:
    storage = FailingReads(bare.segments[2])
    index = read_index(storage, bare.place)
    assert index.damage is not None
    assert f"{bare.segments[2]}: cannot be read: Input/output error" in index.damage.message
    point = index.kept_points()[-1]
    files = extract(storage, bare.place, index, point, tmp_path / "out")
    expected = bare.world.expected[point.sequence]
    assert contents(files) == {name: bytes(disk) for name, disk in expected.items()}
    storage.bad = bare.segments[-1]
    with pytest.raises(DamageError, match="cannot be read"):
        read_index(storage, bare.place)


class FailingReads(SystemStorage):
    """A machine on which one file can be opened, and not read."""

    def __init__(self, bad: Path) -> None:
        self.bad = bad

    def open(self, path: Path, *, writable: bool = False) -> File:
        file = super().open(path, writable=writable)
        if path == self.bad:
            file.pread = self._fail  # type: ignore[method-assign]
        return file

    @staticmethod
    def _fail(size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_what_an_interrupted_compaction_left_over_is_passed_by(tmp_path: Path) -> None:
    bare, before = BareHistory(tmp_path, COMPACTED), BareHistory(tmp_path / "before", LONG)
    for path in before.segments[1:3]:
        (bare.place.folder / path.name).write_bytes(path.read_bytes())
    verification, reports = bare.verify()
    assert verification.faults == []
    left = [each for each in reports if any("stands for it" in note for note in each.notes)]
    assert [each.path.name for each in left] == [path.name for path in before.segments[1:3]]
    assert any("left over" in line for line in inspect_path(bare.group_dir))
    storage = SystemStorage()
    index = read_index(storage, bare.place)
    points = index.kept_points()
    assert [point.sequence for point in points] == sorted(verification.points)
    for point in points:
        expected = {n: bytes(disk) for n, disk in bare.world.expected[point.sequence].items()}
        files = extract(storage, bare.place, index, point, tmp_path / f"out{point.sequence}")
        assert contents(files) == expected
        by_hand_out = tmp_path / f"hand{point.sequence}"
        by_hand_out.mkdir()
        by_hand.main(bare.group_dir, point.sequence, by_hand_out)
        assert contents(list(by_hand_out.iterdir())) == expected


def test_a_point_that_is_on_record_as_damaged_is_refused(tmp_path: Path) -> None:
    """Its images have good checksums, and hold rot all the same."""
    world = World(limits=SMALL)
    world.begin_stream(from_zero=True)
    for value in (1, 2, 3):
        world.write("a", value * 4096, noise(value, 4096))
        world.cut()
        world.settle()
    world.storage.flip(GROUP_DIRECTORY / "disks" / "a.raw", 2 * 4096)
    scrub = world.group.scrub
    scrub.begin()
    while scrub.state.is_running:
        segment = scrub.step()
        if segment is not None:
            scrub.take_segment(segment, scrub.read_segment(segment))
    world.write("a", 2 * 4096, noise(9, 4096))
    world.cut()
    world.settle()
    export(world, tmp_path / "g")
    storage, (place,) = SystemStorage(), find_histories(SystemStorage(), tmp_path / "g")
    index = read_index(storage, place)
    first, damaged, also, last = index.kept_points()
    for point in (damaged, also):
        with pytest.raises(DamageError, match="disk a: 4096 bytes at 8192"):
            extract(storage, place, index, point, tmp_path / "refused")
    for point in (first, last):
        files = extract(storage, place, index, point, tmp_path / f"out{point.sequence}")
        assert contents(files) == world.expected[point.sequence]
    (file,) = extract(storage, place, index, damaged, tmp_path / "b", only=["b"])
    assert file.read_bytes() == world.expected[damaged.sequence]["b"], "the other disk is whole"
