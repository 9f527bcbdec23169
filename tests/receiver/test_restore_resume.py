# SPDX-License-Identifier: Apache-2.0
"""A restore that dies at any call, and is gone on with, makes the same images as one that lives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from receiver.points.values import Point
from receiver.restore.progress import (
    PIECE_BYTES,
    DiskProgress,
    RestoreProgress,
    beginning,
    decode,
)
from receiver.restore.restore import Restored, RestoreOrder, restore_view
from receiver.views.point_view import PointView
from replicator.base.errors import (
    DamageError,
    OwnedError,
    ReplicatorError,
    UnreachableError,
    UsageError,
    VersionError,
)
from replicator.base.storage import write_durably
from tests.receiver.restored_checksum import checksum_by_hand
from tests.receiver.source import noise
from tests.receiver.world import World
from tests.world.storage import Stopped

MIB = 1 << 20
TARGET = Path("/restored/here")
NOTED = TARGET / "restore.json"
PARTIAL = TARGET / "a.raw.partial"
FILES = ["a.raw", "b.raw", "vm.xml"]
ORDER = RestoreOrder("g")
RESUME = replace(ORDER, resume=True)


def nobody(_done: int, _total: int) -> None:
    """Nobody looks."""


def made(seed: int = 0) -> World:
    world = World(seed=seed, disks=[("a", 13 * MIB), ("b", 6 * 4096)])
    world.begin_stream(from_zero=True)
    world.log(world.source.domain_xml("vm", "<domain/>"))
    world.write("a", 4 * MIB, noise(1, 4 * MIB))
    world.write("a", 9 * MIB, noise(2, 70_000))
    world.write("a", 12 * MIB, noise(3, 70_000))
    world.write("b", 0, b"1" * 600)
    world.cut()
    world.settle()
    world.write("a", 5 * MIB, b"2" * 70_000)
    world.cut()
    world.settle()
    return world


@pytest.fixture
def world() -> World:
    return made()


def restore(
    world: World,
    order: RestoreOrder = RESUME,
    progress: Callable[[int, int], None] = nobody,
    view: PointView | None = None,
) -> Restored:
    view = view or world.group.showing.view(1)
    try:
        return restore_view(view, TARGET, progress, order, world.storage, piece_bytes=4 * MIB)
    finally:
        view.close()


def check_files(world: World) -> None:
    assert world.storage.names(TARGET) == FILES
    for name in ("a", "b"):
        assert world._read(TARGET / f"{name}.raw") == world.expected[1][name]
    assert world._read(TARGET / "vm.xml") == b"<domain/>"
    assert all(world.storage.is_synced(TARGET / name) for name in FILES)


def check_done(world: World, done: Restored) -> None:
    check_files(world)
    for image in done.images:
        assert image.checksum == checksum_by_hand(world.expected[1][image.disk], 4 * MIB)


def run_stopped(world: World, at: int) -> bool:
    """Whether it died before it was done."""
    view = world.group.showing.view(1)
    world.storage.stop_at(at)
    try:
        restore_view(view, TARGET, nobody, RESUME, world.storage, piece_bytes=4 * MIB)
    except Stopped:
        return True
    world.storage.heal()
    return False


def is_done(world: World) -> bool:
    """It died between the last change and its return."""
    return world.storage.names(TARGET) == FILES


def interrupted(world: World, at: int) -> None:
    """The receiver shuts down when `at` bytes, both passes counted, are behind it."""

    def stop(done: int, _total: int) -> None:
        if done * 2 >= at:
            raise UnreachableError("shutting down")

    with pytest.raises(UnreachableError):
        restore(world, ORDER, stop)


def reads_of(view: PointView, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    reads: list[tuple[str, int]] = []
    read = view.read

    def noting(name: str, offset: int, length: int) -> bytes:
        reads.append((name, offset // MIB))
        return read(name, offset, length)

    monkeypatch.setattr(view, "read", noting)
    return reads


@pytest.mark.parametrize("power", [False, True])
def test_a_death_before_every_call_then_resume_makes_the_same(power: bool) -> None:
    at = deaths = 0
    world = made()
    while True:
        at += 1
        world.rng.seed(at)
        died = run_stopped(world, at)
        world.crash(power=power)
        if not died:
            break
        deaths += 1
        if not is_done(world):
            check_done(world, restore(world))
        check_files(world)
        for name in FILES:
            world.storage.unlink(TARGET / name)
        world.storage.sync_directory(TARGET)
    assert deaths > 40


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    deaths=st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=2, max_size=6),
)
def test_any_number_of_deaths(seed: int, deaths: list[tuple[int, bool]]) -> None:
    world = made(seed)
    for at, power in deaths:
        if is_done(world):
            break
        run_stopped(world, at)
        world.crash(power=power)
    if not is_done(world):
        restore(world)
    check_files(world)


def test_only_what_was_not_finished_is_copied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(world, 13 * MIB)
    assert world.storage.names(TARGET) == ["a.raw.partial", "restore.json"]
    view = world.group.showing.view(1)
    reads = reads_of(view, monkeypatch)
    check_done(world, restore(world, view=view))
    assert reads == [("a", 9), ("a", 12), ("b", 0)]


def test_a_finished_piece_that_rotted_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(world, 13 * MIB)
    world.storage.flip(PARTIAL, 2 * MIB)  # in a piece that holds nothing
    world.storage.flip(PARTIAL, 6 * MIB)
    view = world.group.showing.view(1)
    reads = reads_of(view, monkeypatch)
    check_done(world, restore(world, view=view))
    assert reads == [("a", 4), ("a", 9), ("a", 12), ("b", 0)]
    assert world.storage.allocated_bytes(TARGET / "a.raw") <= 4 * MIB + 4 * 65_536


def test_what_version_0_1_0_began_is_copied_again(world: World) -> None:
    """Its sums were of whole pieces, zeroes and all."""
    interrupted(world, 13 * MIB)
    text = world._read(NOTED)
    old = text.replace(b'"version":2', b'"version":1').replace(b"[1,", b'["' + b"0" * 32 + b'",')
    write_durably(world.storage, NOTED, old)
    check_done(world, restore(world))


def test_what_lies_behind_the_finished_pieces_is_cut_off(world: World) -> None:
    """A power cut may leave anything there, and the copy writes no zeroes into holes."""
    interrupted(world, 9 * MIB)
    file = world.storage.open(PARTIAL, writable=True)
    file.pwritev([b"stale"], 8 * MIB + 512 * 1024)
    file.close()
    restore(world, replace(RESUME, verify=False))
    check_files(world)


def test_rot_after_resuming_is_found_when_read_back(world: World) -> None:
    interrupted(world, 13 * MIB)

    def flip(done: int, _total: int) -> None:
        if done * 2 >= 13 * MIB and not flipped:
            flipped.append(done)
            world.storage.flip(PARTIAL, 100)

    flipped: list[int] = []
    with pytest.raises(DamageError, match=f"a.raw.partial: bytes 0 to {4 * MIB}"):
        restore(world, RESUME, flip)
    assert not world.storage.exists(TARGET)


def test_leftovers_refuse_without_resume(world: World) -> None:
    interrupted(world, 13 * MIB)
    with pytest.raises(UsageError, match="holds the beginnings of a restore") as caught:
        restore(world, ORDER)
    assert "--resume" in caught.value.hint
    assert world.storage.names(TARGET) == ["a.raw.partial", "restore.json"]


@pytest.mark.parametrize(
    ("order", "sequence", "text"),
    [
        (replace(RESUME, group="h"), 1, "group g there, h wanted"),
        (replace(RESUME, writes=3), 1, "writes 0 there, 3 wanted"),
        (RESUME, 2, "sequence 1 there, 2 wanted"),
    ],
)
def test_the_beginnings_of_another_restore_are_left_alone(
    world: World, order: RestoreOrder, sequence: int, text: str
) -> None:
    interrupted(world, 13 * MIB)
    with pytest.raises(UsageError, match=text):
        restore(world, order, view=world.group.showing.view(sequence))
    check_done(world, restore(world))


def test_other_disks_are_another_restore(world: World) -> None:
    interrupted(world, 13 * MIB)
    noted = msgspec.json.decode(world._read(NOTED), type=RestoreProgress)
    other = msgspec.structs.replace(noted, disks=noted.disks[:1])
    write_durably(world.storage, NOTED, other.encode())
    with pytest.raises(UsageError, match=r"disks a \(13631488 bytes\) there, a .*, b .* wanted"):
        restore(world)


def test_partials_without_a_progress_file_are_not_ours(world: World) -> None:
    interrupted(world, 13 * MIB)
    world.storage.unlink(NOTED)
    for order in (ORDER, RESUME):
        with pytest.raises(UsageError, match=r"no restore.json beside it"):
            restore(world, order)
    assert world.storage.names(TARGET) == ["a.raw.partial"]


def test_a_file_under_its_own_name_that_came_meanwhile_is_not_overwritten(world: World) -> None:
    interrupted(world, 13 * MIB)
    world.storage.create(TARGET / "b.raw").close()
    with pytest.raises(UsageError, match=r"b.raw exists already"):
        restore(world)
    assert world.storage.names(TARGET) == ["a.raw.partial", "b.raw", "restore.json"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda text: text[:-9], DamageError),
        (lambda text: text.replace(b'"version":2', b'"version":9'), VersionError),
        (lambda text: text.replace(b'"piece_bytes":4194304', b'"piece_bytes":8'), DamageError),
        (lambda text: text.replace(b'"size_bytes":13631488', b'"size_bytes":8'), DamageError),
        (lambda text: text.replace(b'"pieces":[1,"', b'"pieces":[1,"z'), DamageError),
        (lambda text: text.replace(b'"pieces":[1,"', b'"pieces":[9,"'), DamageError),
        (lambda text: text.replace(b'"pieces":[1,"', b'"pieces":[0,"'), DamageError),
        (lambda text: text.replace(b'"group":"', b'"group":"\xff'), DamageError),
    ],
)
def test_a_progress_file_that_makes_no_sense_is_refused_and_left(
    world: World, change: Callable[[bytes], bytes], kind: type[ReplicatorError]
) -> None:
    interrupted(world, 13 * MIB)
    text = world._read(NOTED)
    assert change(text) != text
    write_durably(world.storage, NOTED, change(text))
    with pytest.raises(kind, match=r"restore.json") as caught:
        restore(world)
    assert "remove" in caught.value.hint
    assert world.storage.names(TARGET) == ["a.raw.partial", "restore.json"]


def test_one_restore_at_a_time_into_a_directory(world: World) -> None:
    refused: list[OwnedError] = []

    def again(_done: int, _total: int) -> None:
        if not refused:
            with pytest.raises(OwnedError, match="is under way") as caught:
                restore(world)
            refused.append(caught.value)

    check_done(world, restore(world, ORDER, again))
    assert refused


def test_every_field_of_the_progress_file_is_documented() -> None:
    document = (Path(__file__).parents[2] / "docs/formats.md").read_text()
    _, _, chapter = document.partition("\n## Restore in the making\n")
    for kind in (RestoreProgress, DiskProgress):
        for field in kind.__struct_fields__:
            assert f"`{field}`" in chapter or f'"{field}"' in chapter, field
    assert f"| `piece_bytes` | {PIECE_BYTES} |" in chapter


def test_what_was_taken_from_an_unverified_image_is_not_gone_on_with_as_true() -> None:
    point, disks = Point(1, 0, 0, "crash"), [("a", 4096)]
    taken, wanted = (
        beginning("g", point, 0, disks, "raw", PIECE_BYTES, made_directory=True, unverified=each)
        for each in (True, False)
    )
    assert list(taken.differences(wanted)) == ["unverified True there, False wanted"]
    assert not list(taken.differences(decode(taken.encode(), "")))
