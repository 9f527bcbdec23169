# SPDX-License-Identifier: Apache-2.0
"""Stamps of points: never backwards, honest about steps, and back at the wall clock in time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.clock import NS_PER_S, PointClock, SystemClock, rfc3339, rfc3339_exact

BOOT_UTC_NS = 1_772_330_584 * NS_PER_S
HOUR_NS = 3600 * NS_PER_S


@dataclass(slots=True)
class SteppedClock:
    """A machine's two clocks, moved by hand. `step` is what an operator or NTP does."""

    utc: int = BOOT_UTC_NS
    monotonic: int = 5 * NS_PER_S

    def utc_ns(self) -> int:
        return self.utc

    def monotonic_ns(self) -> int:
        return self.monotonic

    def run(self, elapsed_ns: int) -> None:
        self.utc += elapsed_ns
        self.monotonic += elapsed_ns

    def step(self, step_ns: int) -> None:
        self.utc += step_ns


def test_while_the_wall_clock_runs_forward_it_is_the_stamp() -> None:
    clock = SteppedClock()
    points = PointClock(clock)
    for _ in range(3):
        clock.run(NS_PER_S)
        assert points.stamp() == (clock.utc, 0)


def test_after_a_step_back_stamps_go_on_at_half_pace_until_the_wall_clock_is_there() -> None:
    clock = SteppedClock()
    points = PointClock(clock)
    before, _ = points.stamp()
    clock.step(-HOUR_NS)
    clock.run(NS_PER_S)
    stamp, noted = points.stamp()
    assert (stamp - before, noted) == (NS_PER_S // 2, -HOUR_NS)
    seconds = 1
    while stamp != clock.utc:
        previous = stamp
        clock.run(NS_PER_S)
        seconds += 1
        stamp, noted = points.stamp()
        assert stamp == max(clock.utc, previous + NS_PER_S // 2)
        assert noted == 0  # once for each step
    assert seconds == 7200  # an hour lost at half a second a second


def test_a_step_forward_is_followed_at_once_and_noted_once() -> None:
    clock = SteppedClock()
    points = PointClock(clock)
    points.stamp()
    clock.step(HOUR_NS)
    clock.run(NS_PER_S)
    assert points.stamp() == (clock.utc, HOUR_NS)
    clock.run(NS_PER_S)
    assert points.stamp() == (clock.utc, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_ntp_slews_is_not_noted_and_half_a_second_is(sign: int) -> None:
    clock = SteppedClock()
    points = PointClock(clock)
    for step_ns, noted in ((PointClock.NOTED_STEP_NS - 1, False), (PointClock.NOTED_STEP_NS, True)):
        clock.run(10 * NS_PER_S)
        clock.step(sign * step_ns)
        assert points.stamp()[1] == (sign * step_ns if noted else 0)


def test_a_step_before_the_first_stamp_is_noted_there() -> None:
    clock = SteppedClock()
    points = PointClock(clock)
    clock.step(HOUR_NS)
    assert points.stamp() == (clock.utc, HOUR_NS)


def test_a_restart_goes_on_from_the_last_stamp_that_was_given() -> None:
    clock = SteppedClock()
    last, _ = PointClock(clock).stamp()
    clock.step(-HOUR_NS)  # while nobody ran
    points = PointClock(clock, last_stamp_ns=last)
    clock.run(NS_PER_S)
    assert points.stamp() == (last + NS_PER_S // 2, 0)


def test_what_somebody_holds_is_never_reached_again() -> None:
    clock = SteppedClock()
    points = PointClock(clock)
    points.stamp()
    points.behind(clock.utc + HOUR_NS)
    assert points.passing_ns() == clock.utc + HOUR_NS + 1
    clock.run(NS_PER_S)
    assert points.stamp() == (clock.utc - NS_PER_S + HOUR_NS + NS_PER_S // 2, 0)
    points.behind(clock.utc)  # long past: nothing to go by
    clock.run(2 * HOUR_NS)
    assert points.stamp()[0] == clock.utc


moves = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 10 * HOUR_NS)),
        st.one_of(st.just(0), st.integers(-10 * HOUR_NS, 10 * HOUR_NS)),
    ),
    max_size=30,
)


@given(moves)
def test_whatever_the_clocks_do_stamps_rise_and_never_run_ahead(
    steps: list[tuple[int, int]],
) -> None:
    clock = SteppedClock()
    points = PointClock(clock)
    stamps = [points.stamp()[0]]
    highest_utc = clock.utc
    for elapsed_ns, step_ns in steps:
        clock.run(elapsed_ns)
        clock.step(step_ns)
        highest_utc = max(highest_utc, clock.utc)
        stamp, noted = points.stamp()
        assert noted == (step_ns if abs(step_ns) >= PointClock.NOTED_STEP_NS else 0)
        assert stamp >= clock.utc
        # Beyond the highest wall clock ever seen only by what really passed, at half pace, and
        # by the rest of a microsecond: they are whole.
        assert stamp - highest_utc <= sum(max(ran // 2, 1000) for ran, _ in steps) + 1000
        assert stamp % 1000 == 0
        stamps.append(stamp)
    assert all(later - earlier >= 1000 for earlier, later in pairwise(stamps))


@given(
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(-3000, 3000) | st.just(0), st.booleans()),
        max_size=40,
    )
)
def test_what_is_written_between_two_stamps_lies_between_them(
    moves: list[tuple[int, int, bool]],
) -> None:
    """Whatever the clock does: so a write's time tells on which side of a cut it is."""
    clock = SteppedClock()
    points = PointClock(clock)
    last_ns, is_stamp = points.stamp()[0], True
    for elapsed_ns, step_ns, cuts in moves:
        clock.run(elapsed_ns)
        clock.step(step_ns)
        now_ns = points.stamp()[0] if cuts else points.passing_ns()
        assert now_ns >= last_ns + (cuts or is_stamp)
        last_ns, is_stamp = now_ns, cuts


def test_while_the_wall_clock_runs_forward_a_write_has_its_time_to_the_nanosecond() -> None:
    clock = SteppedClock()
    points = PointClock(clock)
    points.stamp()
    clock.run(1_234_567)
    assert points.passing_ns() == clock.utc
    assert points.stamp()[0] == clock.utc + 433


def test_the_machines_clocks_are_those_of_the_system() -> None:
    clock = SystemClock()
    before = time.time_ns(), time.monotonic_ns()
    assert clock.utc_ns() - before[0] < HOUR_NS
    assert 0 <= clock.monotonic_ns() - before[1] < HOUR_NS


@pytest.mark.parametrize(
    ("utc_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (BOOT_UTC_NS + 5999, "2026-03-01T02:03:04.000005Z"),  # rounded down
        (BOOT_UTC_NS + NS_PER_S - 1, "2026-03-01T02:03:04.999999Z"),
        ((1 << 64) - 1, "2554-07-21T23:34:33.709551Z"),  # the largest that a record can hold
    ],
)
def test_times_are_printed_in_utc_to_the_microsecond(utc_ns: int, text: str) -> None:
    assert rfc3339(utc_ns) == text
    assert rfc3339_exact(utc_ns) == f"{text[:-1]}{utc_ns % 1000:03d}Z"
