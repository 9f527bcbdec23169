# SPDX-License-Identifier: Apache-2.0
"""What is kept back on the disk: how much, when it is given back and made again, what is said."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from receiver.data_dir.reserve import (
    BYTES_MAX,
    PIECES,
    UNRESERVED,
    Reserve,
    check_room,
    size_for,
    start_bytes,
)
from replicator.base.errors import NoSpaceError
from replicator.base.storage import File, SystemStorage, write_all
from replicator.base.units import GIB, KIB, MIB
from tests.world.faults import Failure
from tests.world.storage import SimStorage

DATA = Path("/data")
DISK = 100 * MIB
FOLDER = DATA / "reserve"


def disk(size: int = DISK) -> tuple[SimStorage, Reserve]:
    storage = SimStorage(capacity_bytes=size)
    storage.make_directory(DATA)
    return storage, Reserve(storage, DATA)


def fill(storage: SimStorage, left: int = 0) -> None:
    """All but `left` bytes of the disk."""
    with_name = DATA / f"big-{len(storage.names(DATA))}"
    file = storage.create(with_name)
    write_all(file, [bytes(max(storage.free_bytes(DATA) - left, 0))], 0)
    file.close()


def raises(code: int, times: int) -> Callable[[], str]:
    """A step that fails so often."""
    left = [times]

    def step() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(code, "full", "/data/f")
        return "done"

    return step


# -- how much


def test_it_is_2_percent_of_the_disk_at_most_256_mib_and_none_on_small_ones() -> None:
    assert size_for(31 * MIB) == 0
    assert size_for(32 * MIB) == 640 * KIB
    assert size_for(100 * MIB) == 2 * MIB - 2 * MIB % (4 * KIB * PIECES)
    assert size_for(10 * GIB) == 10 * GIB // 50 // (4 * KIB * PIECES) * (4 * KIB * PIECES)
    assert size_for(100 * GIB) == size_for(1000 * GIB) == BYTES_MAX


@pytest.mark.parametrize("size", [32 * MIB, 100 * MIB, GIB, 100 * GIB])
def test_a_start_needs_no_more_than_it_leaves(size: int) -> None:
    assert start_bytes(size) <= size_for(size)


# -- making


def test_it_is_made_where_four_times_as_much_is_free() -> None:
    storage, reserve = disk()
    fill(storage, 4 * size_for(DISK) - 4096)
    reserve.tend()
    assert reserve.held_bytes == 0
    assert not reserve.is_given, "there never was one: nothing is held up"
    reserve.check()
    storage.unlink(DATA / "big-0")
    reserve.tend()
    assert reserve.held_bytes == size_for(DISK)
    assert len(storage.names(FOLDER)) == PIECES
    free = storage.free_bytes(DATA)
    reserve.tend()
    assert storage.free_bytes(DATA) == free


def test_there_is_none_on_a_small_disk() -> None:
    storage, reserve = disk(31 * MIB)
    reserve.tend()
    assert storage.names(DATA) == []
    fill(storage)
    with pytest.raises(OSError, match="full"):
        reserve.with_room(raises(errno.ENOSPC, 1), "a drop")


def test_a_filesystem_that_cannot_keep_blocks_back_has_none_and_is_asked_again_quietly() -> None:
    storage, reserve = disk()
    storage.plan(Failure(frozenset(["create"]), 3, errno.EOPNOTSUPP, forever=True))
    with capture_logs() as logs:
        for _ in range(3):
            reserve.tend()
    assert [line["event"] for line in logs] == ["reserve.not_made"]
    assert not reserve.is_given
    assert not storage.exists(FOLDER)


def test_nobody_waits_while_the_first_one_is_made() -> None:
    _, reserve = disk()
    seen: list[bool] = []
    make = SimStorage.create

    def watched(storage: SimStorage, path: Path) -> File:
        seen.append(reserve.is_given)
        return make(storage, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimStorage, "create", watched)
        reserve.tend()
    assert seen == [False] * PIECES


# -- giving back


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_step_that_meets_a_full_disk_or_quota_is_done_again_with_it(code: int) -> None:
    storage, reserve = disk()
    reserve.tend()
    fill(storage)
    with capture_logs() as logs:
        assert reserve.with_room(raises(code, 1), "a drop") == "done"
    assert [(line["event"], line["needed_for"]) for line in logs] == [("reserve.given", "a drop")]
    assert storage.free_bytes(DATA) == size_for(DISK)
    assert reserve.is_given


def test_any_other_error_is_no_reason_to_give_it_back() -> None:
    _, reserve = disk()
    reserve.tend()
    with pytest.raises(OSError, match="full"):
        reserve.with_room(raises(errno.EIO, 1), "a drop")
    assert reserve.held_bytes


def test_while_it_is_given_back_others_wait_until_it_is_made_again() -> None:
    storage, reserve = disk()
    reserve.tend()
    fill(storage)
    reserve.with_room(raises(errno.ENOSPC, 1), "a drop")
    for each in (reserve, Reserve(storage, DATA)):
        with pytest.raises(NoSpaceError, match="given back") as refused:
            each.check()
        assert "points drop" in refused.value.hint
        each.tend()
        assert each.is_given, "a quarter of the room is there"
    storage.unlink(DATA / "big-1")
    reserve.tend()
    reserve.check()
    assert reserve.held_bytes == size_for(DISK)


def test_full_twice_in_a_row_is_said() -> None:
    storage, reserve = disk()
    reserve.tend()
    fill(storage)
    with capture_logs() as logs, pytest.raises(NoSpaceError, match="used up as well") as refused:
        reserve.with_room(raises(errno.ENOSPC, 2), "a drop")
    assert "other means" in refused.value.hint
    with capture_logs() as again, pytest.raises(NoSpaceError, match="used up as well"):
        reserve.with_room(raises(errno.ENOSPC, 1), "the audit")
    events = [line["event"] for line in [*logs, *again]]
    assert events == ["reserve.given", "reserve.used_up"]


def test_a_step_that_looks_finds_it_given_back_if_no_file_can_be_made() -> None:
    storage, reserve = disk()
    reserve.tend()
    reserve.ready("a view")
    assert reserve.held_bytes
    storage.plan(Failure(frozenset(["create"]), 1, errno.ENOSPC))  # no inodes, though blocks
    reserve.ready("a view")
    assert reserve.is_given
    assert storage.names(DATA) == ["reserve"], "no probe is left"


# -- starts


def test_all_groups_may_look_at_the_same_moment(tmp_path: Path) -> None:
    """As they do while the budget keeps them waiting: none stops for what another is probing."""
    reserve = Reserve(SystemStorage(), tmp_path)
    with ThreadPoolExecutor(4) as pool:
        looks = [pool.submit(reserve.ready, "the budget") for _ in range(400)]
        for look in looks:
            look.result()
    assert list(tmp_path.iterdir()) == []


def test_a_start_on_a_full_disk_takes_it() -> None:
    storage, reserve = disk()
    reserve.tend()
    fill(storage)
    check_room(storage, DATA)
    again = Reserve(storage, DATA)
    again.prepare_start()
    assert again.is_given
    fill(storage)
    with pytest.raises(NoSpaceError, match="a start needs"):
        Reserve(storage, DATA).prepare_start()


def test_a_start_with_room_leaves_it_alone() -> None:
    _, reserve = disk()
    reserve.tend()
    reserve.prepare_start()
    assert reserve.held_bytes


@pytest.mark.parametrize("stop", range(1, 40, 3))
def test_a_crash_while_it_is_made_or_given_back_counts_as_given_back(stop: int) -> None:
    storage, reserve = disk()
    storage.plan(Failure(frozenset(["create", "unlink", "pwritev"]), stop, errno.EIO))
    reserve.tend()
    storage.heal()
    reserve.tend()
    assert Reserve(storage, DATA).held_bytes == size_for(DISK)
    storage.unlink(FOLDER / "3")
    again = Reserve(storage, DATA)
    assert again.is_given
    again.tend()
    assert not again.is_given


def test_where_nothing_is_kept_back_nothing_waits() -> None:
    UNRESERVED.check()
    UNRESERVED.ready("a view")
    assert UNRESERVED.with_room(raises(errno.ENOSPC, 0), "a drop") == "done"
    assert not UNRESERVED.is_given
