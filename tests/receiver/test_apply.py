# SPDX-License-Identifier: Apache-2.0
"""Batches: their limits, their order on the disk, full disks, very large zeroes."""

from __future__ import annotations

import errno
import json

import pytest

from receiver.group.parts import Limits
from replicator.base.errors import NoSpaceError
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World
from tests.world.faults import Failure
from tests.world.storage import SimFile, SimStorage, Stopped


def started(limits: Limits = SMALL) -> World:
    world = World(limits=limits)
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"1" * 9000)
    world.cut()
    world.settle()
    return world


def state_of(world: World) -> dict[str, object]:
    found = json.loads(world._read(GROUP_DIRECTORY / "disks" / "state.json"))
    assert isinstance(found, dict)
    return found


def test_a_batch_ends_at_a_cut_or_at_its_limit() -> None:
    world = started()
    for _ in range(12):
        world.write("a", 0, b"2" * 4096)
    world.cut()
    world.write("a", 0, b"3" * 512)
    world.cut()
    before = len(world.group.history.batch_list.all)
    world.settle()
    batches = world.group.history.batch_list.all[before:]
    assert [batch.point.sequence if batch.point else None for batch in batches] == [
        None,
        None,
        2,
        3,
    ]
    world.check()


def test_blocks_that_do_not_change_have_neither_image_nor_write() -> None:
    world = started()
    written = world.storage.written_bytes
    world.write("a", 0, b"1" * 9000)
    world.cut()
    world.settle()
    assert world.group.history.batch_list.all[-1].images.block_count == 0
    assert world.storage.written_bytes - written < 16_000
    world.check()


def test_a_history_that_was_cut_back_goes_on_with_its_own_chain() -> None:
    """A sync of it fails; the batch is written again, and every record follows the one before."""
    world = started()
    for value in (b"3", b"4"):
        world.write("a", 0, value * 4096)
        world.cut()
    world.ship_all()
    history = GROUP_DIRECTORY / "history"
    world.storage.plan(Failure(frozenset(["datasync"]), 1, errno.EIO, under=history))
    with pytest.raises(OSError, match="Input/output"):
        world.apply()
    world.storage.heal()
    world.apply_all()
    world.crash(power=True)
    world.check()


def test_the_text_of_a_domain_whose_sync_failed_is_written_again() -> None:
    """The segment that the batch is written into again has not got it."""
    world = started()
    world.log(world.source.domain_xml("vm", "<domain/>"))
    world.cut()
    world.ship_all()
    history = GROUP_DIRECTORY / "history"
    world.storage.plan(Failure(frozenset(["datasync"]), 1, errno.EIO, under=history))
    with pytest.raises(OSError, match="Input/output"):
        world.apply()
    world.storage.heal()
    world.apply_all()
    world.crash(power=True)
    newest = world.group.points.newest
    assert newest is not None
    view = world.group.showing.view(newest.sequence)
    assert view.domains == {"vm": "<domain/>"}
    view.close()


def test_that_a_batch_is_applied_is_said_again_where_an_append_lost_it() -> None:
    """The append behind it fails, and cannot be taken back."""
    world = started()
    world.write("a", 0, b"2" * 4096)
    world.cut()
    world.ship_all()
    world.apply()
    world.write("a", 4096, b"3" * 4096)
    world.cut()
    world.ship_all()
    history = GROUP_DIRECTORY / "history"
    calls = frozenset(["pwritev", "truncate"])
    world.storage.plan(Failure(calls, 1, errno.EIO, forever=True, under=history))
    with pytest.raises(OSError, match="Input/output"):
        world.apply()
    world.storage.heal()
    world.group.history.log.make_sound()
    assert not world.group.history.is_durable, "it is still to be said"
    world.group.history.sync()
    world.crash(power=True)
    assert world.group.history.batch_list.unapplied is None
    world.settle()
    world.check()


def test_a_batch_costs_three_syncs_under_load() -> None:
    world = started(Limits())
    for value in range(2, 12):
        world.write("a", 0, bytes([value]) * 4096)
        world.cut()
    world.ship_all()
    world.apply()
    before = world.storage.calls["datasync"]
    world.apply(8)
    assert world.storage.calls["datasync"] - before == 24, (
        "its images, beside them which batch the replica holds, and the replica"
    )


def test_the_state_file_is_right_at_every_call() -> None:
    """Says "consistent" only while the replica is that point."""
    at = 1
    while True:
        world = started()
        world.write("a", 512, b"2" * 5000)
        world.cut()
        world.ship_all()
        world.storage.stop_at(at)
        try:
            world.apply_all()
        except Stopped:
            world.storage.kill()
            world.check_state_file()
        else:
            assert state_of(world)["consistent"] is True
            point = state_of(world)["point"]
            assert isinstance(point, dict)
            assert point["sequence"] == 2
            return
        at += 1


def test_in_a_sync_the_replica_is_not_consistent() -> None:
    world = started()
    world.begin_stream(from_zero=False)
    world.settle()
    assert state_of(world) == {
        "consistent": False,
        "reason": "a sync is under way",
        "point": None,
    }


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "alive"])
def test_what_a_failed_sync_left_in_the_page_cache_is_written_again(*, dies: bool) -> None:
    """Its pages look right, are clean, and are not on the disk: a later sync makes nothing of it
    durable."""
    world = started()
    for _ in range(8):  # of what is not on the disk a power cut may leave any part
        world.write("a", 0, world.rng.randbytes(9000))
        world.cut()
        world.ship_all()
        world.storage.plan(
            Failure(
                frozenset(["datasync"]), 1, errno.EIO, under=GROUP_DIRECTORY / "disks" / "a.raw"
            )
        )
        with pytest.raises(OSError, match=r"a\.raw"):
            world.apply_all()
        world.storage.heal()
        if dies:
            world.crash(power=False)
        world.apply_all()
        world.crash(power=True)
        world.apply_all()
        world.check()


# -- full disks


@pytest.mark.parametrize("where", ["history", "disks"])
def test_a_full_disk_pauses_and_goes_on(where: str) -> None:
    world = started()
    world.write("a", 0, b"2" * 12_000)
    world.cut()
    world.ship_all()
    raw = world.raw("a")
    world.storage.plan(
        Failure(
            frozenset(["pwritev"]), 1, errno.ENOSPC, forever=True, under=GROUP_DIRECTORY / where
        )
    )
    for _ in range(3):
        with pytest.raises(NoSpaceError, match="is full"):
            world.group.apply_next()
        assert "is full" in world.group.showing.pause_reason
        world.check()
    if where == "history":
        assert world.raw("a") == raw, "nothing is overwritten that cannot be undone"
    world.write("b", 0, b"2" * 512)
    world.cut()
    world.ship_all()  # the inbox goes on
    world.storage.heal()
    world.apply_all()
    assert world.group.showing.pause_reason == ""
    world.check()
    assert world.group.applier.is_point_applied(world.group.points.all[-1].sequence)


@pytest.mark.parametrize("seed", range(6))
def test_a_disk_of_any_size_never_breaks_undo(seed: int) -> None:
    """Fills up somewhere; a crash in that state; then there is room again."""
    storage = SimStorage(capacity_bytes=260_000 + seed * 13_000)
    world = World(seed=seed, storage=storage)
    world.begin_stream(from_zero=True)
    for value in range(1, 40):
        world.write("a", value % 9 * 4096, world.rng.randbytes(6000))
        world.cut()
        try:
            world.settle()
        except NoSpaceError:
            break
    else:
        pytest.fail("the disk never filled up")
    world.check()
    world.crash(power=True)
    world.check()
    storage._root_volume.capacity_bytes = 1 << 40
    world.settle()
    world.check()


# -- very large zeroes


def test_a_large_zero_is_applied_in_parts() -> None:
    world = started()
    world.write("a", 0, b"2" * 36_864)
    world.cut()
    world.settle()
    world.zero("a", 100, 37_000)
    world.write("a", 8192, b"3" * 512)
    world.cut()
    before = len(world.group.history.batch_list.all)
    world.settle()
    batches = world.group.history.batch_list.all[before:]
    assert [batch.kind for batch in batches][:2] == ["zero", "log"]
    assert max(batch.images.block_count for batch in batches) <= 6
    world.check()


def test_a_sync_from_zero_of_a_full_replica_is_settled_in_parts() -> None:
    world = started()
    world.write("a", 0, world.rng.randbytes(36_864))
    world.write("b", 0, world.rng.randbytes(24_576))
    world.cut("full")
    world.settle()
    world.begin_stream(from_zero=True)
    world.write("a", 4096, b"x" * 4096)
    world.cut()
    world.ship_all()
    for _ in range(3):
        world.apply()
        world.crash(power=True)
    world.apply_all()
    kinds = [batch.kind for batch in world.group.history.batch_list.all]
    assert "zero" in kinds
    world.check()
    assert not any(world.raw("b"))


def test_zeroes_that_free_nothing_do_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without holes: zeroed blocks stay allocated."""

    def fill(file: SimFile, offset: int, length: int) -> None:
        file.pwritev([bytes(length)], offset)

    monkeypatch.setattr(SimFile, "punch", fill)
    world = started()
    world.write("a", 0, world.rng.randbytes(36_864))
    world.cut()
    world.settle()
    world.zero("a", 0, 37_376)
    world.cut()
    world.settle()
    world.check()
    assert not any(world.raw("a"))
