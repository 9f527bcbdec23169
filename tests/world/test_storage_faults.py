# SPDX-License-Identifier: Apache-2.0
"""The simulated disk loses what a real one may lose, and nothing else."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest

from replicator.base.storage import read_whole, write_all, write_durably
from tests.world.storage import PAGE_BYTES, SECTOR_BYTES, Failure, SimStorage, Stopped, Volume

FILE = Path("/data/file")
ROUNDS = 60


def disk(*volumes: Volume) -> SimStorage:
    storage = SimStorage(*volumes)
    storage.make_directory(FILE.parent)
    return storage


def content(storage: SimStorage, path: Path = FILE) -> bytes:
    return read_whole(storage, path, 1 << 30)


def test_what_was_synced_with_its_name_survives_every_power_cut() -> None:
    for seed in range(ROUNDS):
        storage = disk()
        file = storage.create(FILE)
        file.pwritev([b"a" * 10_000], 0)
        file.datasync()
        storage.sync_directory(FILE.parent)
        assert storage.is_synced(FILE)
        storage.power_cut(Random(seed))
        assert content(storage) == b"a" * 10_000


def test_an_unsynced_overwrite_comes_back_as_any_mix_of_whole_sectors() -> None:
    mixes = set()
    for seed in range(ROUNDS):
        storage = disk()
        file = storage.create(FILE)
        file.pwritev([b"a" * PAGE_BYTES], 0)
        file.datasync()
        storage.sync_directory(FILE.parent)
        file.pwritev([b"b" * PAGE_BYTES], 0)
        assert not storage.is_synced(FILE)
        storage.power_cut(Random(seed))
        found = content(storage)
        sectors = [found[at : at + SECTOR_BYTES] for at in range(0, PAGE_BYTES, SECTOR_BYTES)]
        assert all(sector in (b"a" * SECTOR_BYTES, b"b" * SECTOR_BYTES) for sector in sectors)
        mixes.add(found)
    assert len(mixes) > ROUNDS // 2


def test_an_unsynced_append_comes_back_at_any_length_with_holes_or_stale_bytes() -> None:
    lengths, filler = set(), set()
    for seed in range(ROUNDS * 4):
        storage = disk()
        write_durably(storage, Path("/data/old"), b"s" * 20_000)
        storage.unlink(Path("/data/old"))
        file = storage.create(FILE)
        file.datasync()
        storage.sync_directory(FILE.parent)
        file.pwritev([b"n" * 9_000], 0)
        storage.power_cut(Random(seed))
        found = content(storage)
        lengths.add(len(found))
        filler |= set(found)
    assert {0, 9_000} <= lengths
    assert len(lengths) > 10
    assert filler == set(b"n\0s")


def test_names_that_were_not_synced_are_lost_or_kept_and_a_replace_is_whole() -> None:
    seen = set()
    for seed in range(ROUNDS):
        storage = disk()
        write_durably(storage, Path("/data/a"), b"old")
        new = storage.create(Path("/data/b"))
        new.pwritev([b"new"], 0)
        new.datasync()
        new.close()
        storage.replace(Path("/data/b"), Path("/data/a"))
        storage.create(Path("/data/c")).close()
        storage.power_cut(Random(seed))
        seen.add((tuple(storage.names(Path("/data"))), content(storage, Path("/data/a"))))
    assert {text for _, text in seen} == {b"old", b"new"}
    assert {("c" in names) for names, _ in seen} == {True, False}
    assert all(not (text == b"new" and "b" in names) for names, text in seen)


def test_a_durable_replace_is_the_old_or_the_new_at_every_stop_and_power_cut() -> None:
    for seed in range(10):
        for nth in range(1, 20):
            storage = disk()
            write_durably(storage, FILE, b"old")
            storage.stop_at(nth)
            finished = True
            try:
                write_durably(storage, FILE, b"new")
            except Stopped:
                finished = False
            storage.power_cut(Random(seed))
            assert content(storage) == b"new" if finished else content(storage) in (b"old", b"new")
            if finished:
                break
        assert nth > 4


def test_a_kill_ends_the_handles_and_leaves_the_page_cache() -> None:
    storage = disk()
    file = storage.create(FILE)
    file.pwritev([b"unsynced"], 0)
    storage.kill()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.size()
    file.close()
    assert content(storage) == b"unsynced"
    assert not storage.is_synced(FILE)


def test_after_a_failed_sync_a_good_one_proves_nothing() -> None:
    lost = 0
    for seed in range(ROUNDS):
        storage = disk()
        file = storage.create(FILE)
        file.truncate(512)
        file.datasync()
        storage.sync_directory(FILE.parent)
        file.pwritev([b"x" * 512], 0)
        storage.plan(Failure(frozenset({"datasync"}), 1, errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            file.datasync()
        file.datasync()
        assert file.pread(512, 0) == b"x" * 512
        storage.power_cut(Random(seed))
        lost += content(storage) == bytes(512)
    assert 0 < lost < ROUNDS


def test_after_a_failed_sync_only_what_is_written_again_becomes_durable() -> None:
    for seed in range(ROUNDS):
        storage = disk()
        file = storage.create(FILE)
        file.truncate(512)
        file.datasync()
        storage.sync_directory(FILE.parent)
        file.pwritev([b"x" * 512], 0)
        storage.plan(Failure(frozenset({"datasync"}), 1, errno.EIO))
        with pytest.raises(OSError, match="Input/output"):
            file.datasync()
        file.pwritev([b"x" * 512], 0)
        file.datasync()
        storage.power_cut(Random(seed))
        assert content(storage) == b"x" * 512


def test_planned_failures_strike_the_nth_call_below_their_path() -> None:
    storage = disk()
    storage.make_directory(Path("/other"))
    writes = frozenset({"pwritev"})
    storage.plan(
        Failure(writes, 2, errno.EIO, under=Path("/data")),
        Failure(writes, 3, errno.ENOSPC, under=Path("/data"), written=2),
    )
    file, other = storage.create(FILE), storage.create(Path("/other/file"))
    assert file.pwritev([b"abcd"], 0) == 4
    assert other.pwritev([b"abcd"], 0) == 4
    with pytest.raises(OSError, match="Input/output"):
        file.pwritev([b"abcd"], 0)
    assert file.pwritev([b"ef", b"gh"], 4) in (2, 4)
    storage.heal()
    storage.plan(Failure(writes, 1, errno.ENOSPC, forever=True))
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            file.pwritev([b"x"], 0)
    storage.heal()
    assert file.pwritev([b"x"], 0) == 1
    assert storage.calls["pwritev"] == 8
    file.close()
    other.close()


def test_a_volume_fills_up_short_first_and_frees_what_is_deleted_or_punched() -> None:
    small = Volume(Path("/small"), 3 * PAGE_BYTES)
    storage = disk(small)
    file = storage.create(Path("/small/a"))
    assert file.pwritev([b"x" * PAGE_BYTES, b"y" * 4 * PAGE_BYTES], 100) == 3 * PAGE_BYTES - 100
    with pytest.raises(OSError, match="No space"):
        file.pwritev([b"x"], 3 * PAGE_BYTES)
    assert file.pwritev([b"over"], 0) == 4
    assert storage.free_bytes(Path("/small/a")) == 0
    file.punch(PAGE_BYTES, PAGE_BYTES)
    assert storage.free_bytes(Path("/small")) == PAGE_BYTES
    storage.unlink(Path("/small/a"))
    assert storage.free_bytes(Path("/small")) == PAGE_BYTES  # the handle keeps it
    file.close()
    assert storage.free_bytes(Path("/small")) == 3 * PAGE_BYTES
    other = storage.create(FILE)
    assert write_all(other, [b"z" * 10 * PAGE_BYTES], 0) == 10 * PAGE_BYTES
    other.close()


def test_a_volatile_volume_is_empty_after_a_power_cut_and_keeps_through_a_kill() -> None:
    storage = disk(Volume(Path("/memory"), volatile=True))
    write_durably(storage, Path("/memory/a"), b"a")
    storage.kill()
    assert storage.names(Path("/memory")) == ["a"]
    storage.power_cut(Random(1))
    assert storage.names(Path("/memory")) == []
    assert storage.exists(FILE.parent)


def test_rot_changes_one_byte() -> None:
    storage = disk()
    write_durably(storage, FILE, b"abc")
    storage.flip(FILE, 1, 3)
    assert content(storage) == b"aac"
