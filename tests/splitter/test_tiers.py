# SPDX-License-Identifier: Apache-2.0
"""Room for segments: who gets how much, and when a tier is used up."""

from __future__ import annotations

import pytest

from agent.splitter.tiers import (
    SEGMENT_BYTES_LEAST,
    SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN,
    SpoolTiers,
    Tier,
    segment_bytes,
)
from journal.segment import HEADER_BYTES, segment_name
from replicator.base.errors import NoSpaceError
from replicator.base.units import GIB, KIB, MIB
from tests.splitter.rig import DISK, MEMORY
from tests.world.storage import SimStorage

FOLDER = f"{1:016x}-{'0' * 32}"


def fill(storage: SimStorage, tier: Tier, group: str, number: int, size: int) -> None:
    """A segment of that size, as a stream would have written it."""
    folder = tier.directory / group / FOLDER
    storage.make_directory(folder)
    file = storage.create(folder / segment_name(number))
    file.pwritev([b"x" * size], 0)
    file.close()


def tier(storage: SimStorage, limit: int) -> Tier:
    return Tier(storage, MEMORY, limit, sticky=False)


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (MIB, SEGMENT_BYTES_MIN),
        (64 * MIB, 4 * MIB),
        (GIB, SEGMENT_BYTES_MAX),
        (100 * GIB, SEGMENT_BYTES_MAX),
    ],
)
def test_segments_are_a_sixteenth_of_the_tier_within_bounds(limit: int, size: int) -> None:
    assert segment_bytes(limit) == size


def test_open_claims_of_other_groups_count_in_full() -> None:
    storage = SimStorage()
    memory = tier(storage, 3 * SEGMENT_BYTES_MIN)
    assert memory.claim("a", 4096) is not None
    assert memory.claim("b", 4096) is not None
    assert memory.claim("c", 4096) is not None
    assert memory.claim("d", 4096) is None
    memory.release("b")
    assert memory.claim("d", 4096) is not None


def test_what_is_left_makes_a_short_segment_if_the_batch_fits() -> None:
    memory = tier(SimStorage(), SEGMENT_BYTES_MIN + SEGMENT_BYTES_LEAST)
    assert memory.claim("a", 4096) is not None
    assert memory.claim("b", SEGMENT_BYTES_LEAST) is None
    short = memory.claim("b", 4096)
    assert short is not None
    assert short.bytes == SEGMENT_BYTES_LEAST
    assert short.fits(SEGMENT_BYTES_LEAST - HEADER_BYTES)
    assert not short.fits(SEGMENT_BYTES_LEAST)


def test_a_batch_larger_than_a_segment_gets_one_of_its_own() -> None:
    claim = tier(SimStorage(), 64 * MIB).claim("a", 32 * MIB)
    assert claim is not None
    assert claim.bytes == 32 * MIB + HEADER_BYTES


def test_files_count_as_the_filesystem_counts_them_until_somebody_unlinks_them() -> None:
    storage = SimStorage()
    memory = tier(storage, MIB)
    for number in range(4):
        fill(storage, memory, "a", number, 256 * KIB)
    assert memory.claim("b", 4096) is None
    assert memory.group_bytes("a") == MIB
    storage.unlink(MEMORY / "a" / FOLDER / segment_name(0))
    assert memory.claim("b", 4096) is not None
    assert memory.group_bytes("a") == 768 * KIB
    assert memory.group_bytes("b") == 0


def test_what_is_no_group_of_ours_does_not_count() -> None:
    storage = SimStorage()
    memory = tier(storage, MIB)
    storage.make_directory(MEMORY / ".lost+found")
    assert memory.claim("a", 4096) is not None


def test_memory_then_disk_then_full() -> None:
    storage = SimStorage()
    tiers = SpoolTiers(
        Tier(storage, MEMORY, SEGMENT_BYTES_MIN, sticky=False),
        Tier(storage, DISK, SEGMENT_BYTES_MIN, sticky=True),
    )
    assert tiers.claim("a", 4096).tier is tiers.memory
    assert tiers.claim_inline("b", 4096) is None
    assert tiers.claim("b", 4096).tier is tiers.disk
    with pytest.raises(NoSpaceError, match="256 KiB in memory and 256 KiB on disk"):
        tiers.claim("c", 4096)
    tiers.release("a")
    assert tiers.claim("b", 4096).tier is tiers.memory, "and the claim on disk is given back"
    assert tiers.claim("c", 4096).tier is tiers.disk


def test_a_memory_directory_that_is_not_in_memory_is_never_used_in_line() -> None:
    storage = SimStorage()
    tiers = SpoolTiers(
        Tier(storage, MEMORY, MIB, sticky=True), Tier(storage, DISK, MIB, sticky=True)
    )
    assert tiers.claim_inline("a", 4096) is None
    assert tiers.claim("a", 4096).tier is tiers.memory


def test_no_disk_tier_at_all() -> None:
    storage = SimStorage()
    tiers = SpoolTiers(
        Tier(storage, MEMORY, SEGMENT_BYTES_MIN, sticky=False), Tier(storage, DISK, 0, sticky=True)
    )
    tiers.claim("a", 4096)
    with pytest.raises(NoSpaceError):
        tiers.claim("b", 4096)
