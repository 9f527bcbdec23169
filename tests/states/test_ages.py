# SPDX-License-Identifier: Apache-2.0
"""Ages of stamps: never the difference of two walls, never negative."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicator.states.ages import ANCHORS_MAX, StampAges

S = 1_000_000_000
WALL = 1_700_000_000 * S


def noted(*pairs: tuple[float, float]) -> StampAges:
    """Of (stamp, moment) in seconds."""
    ages = StampAges()
    for stamp, moment in pairs:
        ages.note(WALL + int(stamp * S), int(moment * S))
    return ages


def age(ages: StampAges, stamp: float, now: float) -> float | None:
    return ages.age_seconds(WALL + int(stamp * S), int(now * S))


def test_without_an_anchor_nobody_can_say() -> None:
    assert age(StampAges(), 5, 5) is None


def test_an_age_goes_by_our_own_clock() -> None:
    ages = noted((0, 100), (10, 110))
    assert age(ages, 10, 117) == 7
    assert age(ages, 4, 117) == 13
    assert age(ages, -30, 117) == 47
    assert age(ages, 12, 117) == 5


def test_a_stamp_from_the_future_is_of_now() -> None:
    assert age(noted((0, 100)), 86_400, 101) == 0


def test_a_step_of_the_sources_clock_makes_nothing_younger_than_it_can_be() -> None:
    ages = noted((0, 100), (1, 101), (86_401, 102), (86_402, 103))
    assert age(ages, 1, 203) == 102
    assert age(ages, 86_402, 203) == 100
    assert age(ages, 50_000, 203) == 101  # between both sides of the step: bounded by them


def test_another_clock_begins_anew() -> None:
    ages = noted((1000, 100), (5, 200))
    assert age(ages, 5, 207) == 7
    assert age(ages, 1000, 207) == 0


@given(
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6)), max_size=60),
    st.integers(-(10**7), 10**8),
    st.integers(0, 10**6),
)
def test_no_age_is_negative_or_beyond_the_anchors(
    steps: list[tuple[int, int]], stamp: int, later: int
) -> None:
    ages, at, moment = StampAges(), 0, 0
    for stamp_step, moment_step in steps:
        at, moment = at + stamp_step, moment + moment_step
        ages.note(at, moment)
    found = ages.age_seconds(stamp, moment + later)
    assert found is None or found >= 0


def test_what_is_kept_is_bounded_and_still_tells() -> None:
    ages = StampAges()
    for second in range(5 * ANCHORS_MAX):
        ages.note(WALL + second * S, second * S)
    assert len(ages._stamps) <= ANCHORS_MAX
    last = 5 * ANCHORS_MAX - 1
    for second in range(0, last, 37):
        assert age(ages, second, last) == last - second
