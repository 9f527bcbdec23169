# SPDX-License-Identifier: Apache-2.0
"""Ordinals, LSNs and sequences are never given twice, whatever happens in between."""

from __future__ import annotations

import errno
from random import Random
from uuid import UUID

import pytest

from agent.splitter.reservation import (
    LSN_STEP,
    SEQUENCES_PER_START,
    NewStream,
    Reservation,
    first_sequence,
)
from journal.spool import StreamName
from replicator.base.errors import DamageError
from tests.splitter.rig import DISK, MEMORY, STATE
from tests.world.faults import Failure
from tests.world.storage import SimStorage, Stopped, Volume

SPOOL = [MEMORY / "g", DISK / "g"]


def disk() -> SimStorage:
    return SimStorage(Volume(MEMORY, volatile=True), Volume(DISK), Volume(STATE))


def reservation(storage: SimStorage) -> Reservation:
    return Reservation(storage, STATE, "g", SPOOL)


def test_the_very_first_stream() -> None:
    fresh = reservation(disk())
    assert fresh.known_ordinal() == 0
    assert fresh.new_stream() == NewStream(1, 0)
    assert fresh.limit_lsn == LSN_STEP
    fresh.extend()
    assert fresh.limit_lsn == 2 * LSN_STEP


def test_each_further_one_is_beyond_all_before_and_what_is_asked_for() -> None:
    storage = disk()
    reservation(storage).new_stream()
    assert reservation(storage).new_stream() == NewStream(2, LSN_STEP)
    assert reservation(storage).new_stream(above_ordinal=9) == NewStream(10, 2 * LSN_STEP)
    assert reservation(storage).new_stream(above_ordinal=3) == NewStream(11, 3 * LSN_STEP)


def test_what_an_extension_gave_is_taken() -> None:
    storage = disk()
    first = reservation(storage)
    first.new_stream()
    first.extend()
    assert reservation(storage).new_stream().first_lsn == 2 * LSN_STEP


def test_without_its_file_the_spool_is_the_bound() -> None:
    storage = disk()
    folder = DISK / "g" / StreamName(7, UUID(int=1)).directory
    storage.make_directory(folder)
    file = storage.create(folder / f"{3 * LSN_STEP:016x}.seg")
    file.pwritev([bytes(4096)], 0)
    file.close()
    fresh = reservation(storage)
    assert fresh.known_ordinal() == 7
    assert fresh.new_stream() == NewStream(8, 4 * LSN_STEP)


def test_no_number_is_given_twice_over_any_crash() -> None:
    """The machine dies before each system call of a reservation, in any way it may."""
    for seed in range(60):
        rng = Random(seed)
        storage = disk()
        ordinals: list[int] = []
        limit = 0
        for _ in range(6):
            storage.stop_at(rng.randrange(1, 30))
            try:
                mine = reservation(storage)
                given = mine.new_stream()
                assert given.first_lsn >= limit, f"seed {seed}"
                ordinals.append(given.ordinal)
                limit = mine.limit_lsn
                mine.extend()
                limit = mine.limit_lsn
            except Stopped:
                pass
            if rng.random() < 0.7:
                storage.power_cut(rng)
            else:
                storage.kill()
        assert len(ordinals) == len(set(ordinals)), f"seed {seed}"


@pytest.mark.parametrize("call", ["new_stream", "extend"])
@pytest.mark.parametrize("fails", ["pwritev", "datasync", "replace", "sync_directory"])
def test_nothing_is_used_that_is_not_durable_yet(call: str, fails: str) -> None:
    """Neither by a stream that runs while it is reserved, nor after that failed."""
    storage = disk()
    mine = reservation(storage)
    given = mine.new_stream()
    limit = mine.limit_lsn
    seen: list[int] = []
    storage.plan(Failure(frozenset({fails}), 1, errno.EIO, under=STATE))
    with pytest.raises(OSError, match="Input/output"):
        getattr(mine, call)()
    seen.append(mine.limit_lsn)
    assert seen == [limit]
    storage.heal()
    again = mine.new_stream()
    assert again.ordinal > given.ordinal
    assert again.first_lsn >= limit


@pytest.mark.parametrize(
    "content", [b"", b"{}x", b'{"ordinal": -1}', b'{"ordinal": "1"}', b"[]", b"x" * 5000]
)
def test_a_state_file_that_is_none_is_named(content: bytes) -> None:
    storage = disk()
    path = STATE / "splitter" / "g.json"
    storage.make_directory(path.parent)
    file = storage.create(path)
    file.pwritev([content], 0)
    file.close()
    with pytest.raises((DamageError, OSError), match=r"g\.json|larger"):
        reservation(storage)


def test_each_start_has_sequences_of_its_own() -> None:
    storage = disk()
    assert [first_sequence(storage, STATE) for _ in range(3)] == [
        1,
        SEQUENCES_PER_START + 1,
        2 * SEQUENCES_PER_START + 1,
    ]


def test_a_group_cannot_take_the_place_of_the_count_of_starts() -> None:
    storage = disk()
    first_sequence(storage, STATE)
    Reservation(storage, STATE, "starts", SPOOL).new_stream()
    assert first_sequence(storage, STATE) == SEQUENCES_PER_START + 1


def test_a_count_of_starts_that_is_none_is_damage() -> None:
    storage = disk()
    storage.make_directory(STATE / "splitter")
    file = storage.create(STATE / "splitter" / "starts")
    file.pwritev([b"many\n"], 0)
    file.close()
    with pytest.raises(DamageError, match="starts"):
        first_sequence(storage, STATE)
