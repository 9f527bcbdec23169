# SPDX-License-Identifier: Apache-2.0
"""The source's monotonic clock in the receiver's time."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.points.source_clock import PAIRS_MAX, STREAMS_MAX, Pair, SourceClock
from receiver.points.values import Point

S = 1_000_000_000
BOOT_NS = 1_772_366_400 * S  # when, by the receiver, the source's monotonic clock was 0
STREAM, OTHER = UUID(int=1), UUID(int=2)


def pair(monotonic_ns: int, under_way_ns: int = 0, stream: UUID | None = STREAM) -> Pair:
    wall_ns = 17 * S + monotonic_ns  # set to anything
    return Pair(wall_ns, monotonic_ns, BOOT_NS + monotonic_ns + under_way_ns, stream)


def test_nobody_knows_before_the_source_has_said_so() -> None:
    clock = SourceClock()
    assert clock.when(STREAM, 5 * S) is None
    clock.heard(pair(5 * S, stream=None))
    assert clock.when(STREAM, 5 * S) is None
    clock.heard(pair(6 * S))
    assert clock.when(STREAM, 5 * S) == BOOT_NS + 5 * S
    assert clock.when(OTHER, 5 * S) is None, "perhaps of another boot"
    assert clock.when(STREAM, 0) is None, "an older splitter does not stamp it"


@given(st.lists(st.integers(0, 30 * S), min_size=1, max_size=30))
def test_the_one_that_came_through_fastest_counts(under_way: list[int]) -> None:
    clock = SourceClock()
    for number, delay_ns in enumerate(under_way):
        clock.heard(pair((number + 1) * S, delay_ns))
    assert clock.when(STREAM, 9 * S) == BOOT_NS + 9 * S + min(under_way)


def test_what_a_stream_said_is_kept_over_sessions_and_others_are_not_mixed_in() -> None:
    clock = SourceClock()
    clock.heard(pair(5 * S))
    clock.begin_session()  # the machine was booted anew: its clock begins at 0
    clock.heard(Pair(0, 2 * S, BOOT_NS + 100 * S, OTHER))
    assert clock.when(STREAM, 6 * S) == BOOT_NS + 6 * S
    assert clock.when(OTHER, 3 * S) == BOOT_NS + 101 * S


def test_memory_is_bounded() -> None:
    clock = SourceClock()
    for number in range(PAIRS_MAX + 50):
        clock.heard(pair(number * S, stream=UUID(int=number)))
    assert len(clock.pairs) == PAIRS_MAX
    known = [number for number in range(PAIRS_MAX + 50) if clock.when(UUID(int=number), S)]
    assert known == list(range(PAIRS_MAX + 50 - STREAMS_MAX, PAIRS_MAX + 50))


def made(number: int, monotonic_ns: int, made_ns: int = 0, ordinal: int = 1) -> Point:
    return Point(number, 7, 7, "crash", ordinal=ordinal, monotonic_ns=monotonic_ns, made_ns=made_ns)


def test_a_point_is_dated_by_its_stream_or_by_the_point_before_it() -> None:
    clock = SourceClock()
    first = made(1, 5 * S, BOOT_NS)
    assert clock.dated(STREAM, made(2, 8 * S), first).made_ns == BOOT_NS + 3 * S
    assert clock.dated(STREAM, made(2, 8 * S, ordinal=2), first).made_ns == 0, "another boot, maybe"
    assert clock.dated(STREAM, made(2, 8 * S), made(1, 5 * S)).made_ns == 0
    assert clock.dated(STREAM, made(2, 8 * S), made(1, 0, BOOT_NS)).made_ns == 0
    assert clock.dated(STREAM, made(2, 0), first).made_ns == 0, "an older splitter says nothing"
    assert clock.dated(STREAM, made(2, 8 * S, 9), first).made_ns == 9, "known since it came"
    clock.heard(pair(6 * S))
    assert clock.dated(STREAM, made(2, 8 * S), first).made_ns == BOOT_NS + 8 * S


@pytest.mark.parametrize("drift_ppm", [-50, 50])
def test_two_quartzes_that_drift_apart_stay_within_milliseconds(drift_ppm: int) -> None:
    clock = SourceClock()
    for second in range(5, 24 * 3600, 5):
        heard_ns = BOOT_NS + second * S + second * S * drift_ppm // 1_000_000
        clock.heard(Pair(0, second * S, heard_ns, STREAM))
    found = clock.when(STREAM, 24 * 3600 * S)
    assert found is not None
    truth = BOOT_NS + 24 * 3600 * S + 24 * 3600 * S * drift_ppm // 1_000_000
    assert abs(found - truth) < S // 25
