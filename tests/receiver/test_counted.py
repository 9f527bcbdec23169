# SPDX-License-Identifier: Apache-2.0
"""The counted clock by hand: steps both ways, boots with a right and a wrong clock, restarts in
each state; and that it never runs ahead of what passed, whatever the machine's clock does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.counted import rules
from receiver.counted.ages import RIPENING_NS, Ages, Jump
from receiver.counted.rules import JUMPS_MAX, TOLERANCE_NS, Counted
from replicator.base.clock import NS_PER_S
from tests.receiver.machine import FakeMachine

S = NS_PER_S
HOUR, DAY, WEEK = 3600 * S, 86_400 * S, 7 * 86_400 * S


class Life:
    """A machine, and the counted clock on it."""

    def __init__(self) -> None:
        self.machine = FakeMachine()
        self.clock = rules.begun(self.machine.read(), None)

    def run(self, seconds: int = 1, *, step_ns: int = 1 * S) -> Counted:
        for _ in range(seconds):
            self.machine.pass_by(step_ns)
            self.clock = rules.run(self.clock, self.machine.read())
        return self.clock

    def restart(self) -> Counted:
        """From what was kept just now."""
        self.clock = rules.resumed(self.clock, self.machine.read())
        return self.clock

    @property
    def off_ns(self) -> int:
        """From the true time."""
        return self.clock.counted_ns - self.machine.true_ns


# -- starting


def test_with_nothing_there_it_shows_the_wall_clock() -> None:
    life = Life()
    assert life.clock.counted_ns == life.machine.wall_ns
    assert life.clock.state == "good"


@pytest.mark.parametrize(
    ("ago_ns", "state"),
    [(0, "good"), (10 * S, "good"), (11 * S, "unconfirmed"), (DAY, "unconfirmed")],
)
def test_with_points_and_no_clock_kept_it_goes_on_from_the_newest_stamp(
    ago_ns: int, state: str
) -> None:
    machine = FakeMachine()
    clock = rules.begun(machine.read(), machine.wall_ns - ago_ns)
    assert (clock.counted_ns, clock.state) == (machine.wall_ns - ago_ns, state)


def test_a_restart_in_the_same_boot_does_not_ask_the_wall_clock() -> None:
    life = Life()
    life.run()
    life.machine.pass_by(3 * HOUR)
    life.machine.step_ns = WEEK
    assert life.restart().state == "stepped"
    assert life.off_ns == 0
    life.machine.step_ns = 0
    assert life.run().state == "good"
    assert life.off_ns == 0


@pytest.mark.parametrize("step_ns", [0, WEEK, -WEEK])
def test_after_a_boot_it_goes_on_from_where_it_was_kept(step_ns: int) -> None:
    life = Life()
    life.run()
    kept = life.clock.counted_ns
    life.machine.reboot(2 * HOUR)
    life.machine.step_ns = step_ns
    clock = life.restart()
    assert clock.counted_ns == kept
    assert clock.state == ("stepped" if step_ns < 0 else "unconfirmed")
    assert clock.gap_ns == (0 if step_ns < 0 else 2 * HOUR + step_ns)
    assert life.run(60).counted_ns - kept == (54 * S if step_ns < 0 else 60 * S)


def test_a_machine_that_was_put_back_to_an_earlier_state_counts_as_another_boot() -> None:
    life = Life()
    life.run(100)
    back = replace(life.machine.read(), boottime_ns=7 * S, wall_ns=life.machine.wall_ns + HOUR)
    kept = life.clock.counted_ns
    clock = rules.resumed(life.clock, back)
    assert (clock.counted_ns, clock.state) == (kept, "unconfirmed")


def test_a_short_boot_is_no_news() -> None:
    life = Life()
    life.run()
    life.machine.reboot(9 * S)
    assert life.restart().state == "good"
    life.run(10_000)
    assert abs(life.off_ns) < S, "drawn to the wall clock"


# -- running


@pytest.mark.parametrize("step_ns", [WEEK, 11 * S])
def test_a_step_ahead_moves_nothing_and_is_over_when_it_is_over(step_ns: int) -> None:
    life = Life()
    life.run()
    life.machine.step_ns = step_ns
    assert life.run(12).state == "stepped"
    since = life.clock.since_ns
    assert life.run(5).since_ns == since
    assert life.off_ns == 0
    life.machine.step_ns = 0
    assert (life.run().state, life.clock.since_ns) == ("good", 0)
    assert life.off_ns == 0


def test_a_step_back_is_waited_for_at_nine_tenths() -> None:
    life = Life()
    life.run()
    life.machine.step_ns = -100 * S
    assert life.run(100).state == "stepped"
    assert life.off_ns == -10 * S
    assert life.run(810).state == "good"
    life.run(100_000)
    assert abs(life.off_ns + 100 * S) < S


def test_a_long_sleep_behind_the_wall_clock_does_not_overshoot() -> None:
    life = Life()
    life.machine.step_ns = -100 * S
    life.run(1, step_ns=DAY)
    assert life.clock.counted_ns == life.machine.wall_ns
    assert life.clock.state == "good"


def test_a_small_difference_is_drawn_in_by_a_thousandth() -> None:
    life = Life()
    life.machine.step_ns = 5 * S
    life.run(1000)
    assert life.off_ns == S
    life.run(5000)
    assert life.off_ns == 5 * S
    life.machine.step_ns = -4 * S
    life.run(1000)
    assert life.off_ns == 4 * S


def test_a_virtual_machine_that_stood_still_is_a_step() -> None:
    life = Life()
    life.run()
    life.machine.pause(HOUR)
    assert life.run().state == "stepped"
    assert life.off_ns == -HOUR


def test_a_clock_that_ntp_sets_right_after_a_boot_is_good_without_being_accepted() -> None:
    life = Life()
    life.run()
    life.machine.reboot()
    life.machine.step_ns = WEEK
    assert life.restart().state == "unconfirmed"
    life.run(60)
    life.machine.step_ns = 0
    assert life.run().state == "good"
    assert life.off_ns == 0


# -- accepting


def test_what_agents_accept_is_a_jump_for_deletion_and_the_lock() -> None:
    life = Life()
    life.run()
    life.machine.pause(DAY)
    life.run()
    life.clock = rules.accepted_by_agents(life.clock, life.machine.wall_ns)
    assert (life.off_ns, life.clock.state) == (0, "good")
    ages = life.clock.ages(life.machine.wall_ns)
    assert ages.now_ns == life.clock.counted_ns - DAY
    life.run(599)
    assert life.clock.ages(life.machine.wall_ns).now_ns == life.clock.counted_ns - DAY
    life.run()
    ages = life.clock.ages(life.machine.wall_ns)
    assert ages.now_ns == life.clock.counted_ns
    assert ages.locked_after_ns(HOUR) == life.clock.counted_ns - DAY - 600 * S - (HOUR - 600 * S)
    assert ages.hint


def test_a_jump_that_turns_out_wrong_is_never_ripe() -> None:
    """Source and receiver believe the same wrong time server for some minutes."""
    life = Life()
    life.run()
    life.machine.step_ns = WEEK
    life.run()
    life.clock = rules.accepted_by_agents(life.clock, life.machine.wall_ns)
    life.run(300)
    life.machine.step_ns = 0
    life.run(100 * 3600)
    ages = life.clock.ages(life.machine.wall_ns)
    assert life.clock.state == "stepped"
    assert ages.now_ns <= life.machine.true_ns


def test_what_a_person_accepts_is_believed_at_once_by_all() -> None:
    life = Life()
    life.machine.pause(DAY)
    life.run()
    life.clock = rules.accepted_by_agents(life.clock, life.machine.wall_ns)
    life.machine.pause(HOUR)
    life.run()
    life.clock = rules.accepted_by_order(life.clock, life.machine.wall_ns)
    ages = life.clock.ages(life.machine.wall_ns)
    assert life.off_ns == 0
    assert ages.now_ns == life.clock.counted_ns
    assert ages.locked_after_ns(HOUR) == life.clock.counted_ns - HOUR
    assert not ages.hint


def test_a_wall_clock_that_is_behind_is_not_accepted() -> None:
    life = Life()
    life.machine.step_ns = -DAY
    life.run()
    before = life.clock.counted_ns
    life.clock = rules.accepted_by_order(life.clock, life.machine.wall_ns)
    assert (life.clock.counted_ns, life.clock.state) == (before, "stepped")


def test_jumps_are_bounded_and_the_lock_believes_less_by_that() -> None:
    life = Life()
    for _ in range(3 * JUMPS_MAX):
        life.machine.pause(HOUR)
        life.run()
        life.clock = rules.accepted_by_agents(life.clock, life.machine.wall_ns)
    assert len(life.clock.jumps) == JUMPS_MAX
    assert sum(each.by_ns for each in life.clock.jumps) == 3 * JUMPS_MAX * HOUR


# -- whatever happens

moves = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(0, 100 * S)),
        st.tuples(st.just("step"), st.integers(-30 * DAY, 30 * DAY)),
        st.tuples(st.just("step"), st.integers(-12 * S, 12 * S)),
        st.tuples(st.just("boot"), st.integers(0, DAY)),
        st.tuples(st.just("pause"), st.integers(0, DAY)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("lose"), st.integers(0, 60)),
    ),
    max_size=40,
)


@given(moves)
def test_it_never_goes_back_and_never_counts_more_than_passed(moves: list[tuple[str, int]]) -> None:
    life = Life()
    began_ns, kept = life.machine.true_ns, life.clock
    for what, much in moves:
        before_ns = life.clock.counted_ns
        if what == "pass":
            life.run(1, step_ns=much)
        elif what == "step":
            life.machine.step_ns = much
            life.run(0)
        elif what == "boot":
            life.machine.reboot(much)
            life.restart()
        elif what == "pause":
            life.machine.pause(much)
        elif what == "restart":
            life.restart()
        else:  # a power cut: what was kept some time ago is all there is
            life.machine.reboot()
            life.clock, before_ns = kept, 0
            life.restart()
        if much % 3 == 0:
            kept = life.clock
        assert life.clock.counted_ns >= before_ns
        passed_ns = life.machine.true_ns - began_ns
        counted_ns = life.clock.counted_ns - began_ns
        assert counted_ns <= passed_ns + passed_ns // rules.SLEW


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 200)), max_size=8),
    st.integers(0, 300),
    st.integers(0, 60),
)
def test_the_bound_of_the_lock_is_that_of_each_stamp(
    script: list[tuple[int, int]], lock: int, rest: int
) -> None:
    """Against a second clock that nobody sets forward."""
    counted, honest, stamps, jumps = 1000, 1000, [(1000, 1000)], []
    for passes, jump in script:
        for _ in range(passes):
            counted, honest = counted + 1, honest + 1
            stamps.append((counted, honest))
        counted += jump
        jumps.append(Jump(counted, jump, counted + RIPENING_NS))
        stamps.append((counted, honest))
    counted, honest = counted + rest, honest + rest
    ages = Ages(counted, tuple(jumps))
    bound = ages.locked_after_ns(lock)
    for stamp, honest_stamp in stamps:
        assert (stamp > bound) == (honest - honest_stamp < lock), (stamp, bound)
        ends = ages.lock_ends_ns(stamp, lock)
        assert (ends > counted) == (stamp > bound)


def test_the_tolerance_is_that_of_the_decision() -> None:
    assert TOLERANCE_NS == 10 * S
