# SPDX-License-Identifier: Apache-2.0
"""The core as a state machine: any order of events, any crash, every point compared."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.receiver import actions
from tests.receiver.history_of_seed import FINE_NS, live
from tests.receiver.world import World

Data = st.DataObject
NAMES = sorted(actions.ACTIONS)
ONCE_WRONG = (236, 258, 374)
"""Longer lives that showed a fault: 236, retention while a batch was begun and not applied; 258 and
374, stamps of a clock that was drawn back, or ran slow and could not be kept, before a restart."""
TELLING = (136, 137)
"""Longer lives in which a rule that is gone is missed (tests/mutants/applying.py): 136, a rollback
goes on after a crash; 137, waiting zeroes outlive a restart."""


class GroupMachine(RuleBasedStateMachine):
    """See tests.receiver.actions for what may happen, tests.receiver.world for what must hold."""

    world: World

    def _draw(self, data: Data) -> actions.Draw:
        return lambda below: data.draw(st.integers(0, below - 1))

    @initialize(seed=st.integers(0, 1 << 16), data=st.data())
    def begin(self, seed: int, data: Data) -> None:
        self.world = World(seed=seed, fine_ns=FINE_NS[seed % 3])
        actions.start(self.world, self._draw(data))

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def perform(self, name: str, data: Data) -> None:
        actions.perform(self.world, name, self._draw(data))

    @rule(name=st.sampled_from(("guest_writes", "cut", "ship", "acknowledge")), data=st.data())
    def replicate(self, name: str, data: Data) -> None:
        actions.perform(self.world, name, self._draw(data))

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def die(self, name: str, data: Data) -> None:
        actions.crash_in(self.world, name, self._draw(data))

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def fail(self, name: str, data: Data) -> None:
        actions.fail_in(self.world, name, self._draw(data))

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def all_points_hold(self) -> None:
        self.world.check()


TestGroup = GroupMachine.TestCase
TestGroup.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("block", range(4))
def test_random_lives(block: int) -> None:
    for seed in range(block * 75, (block + 1) * 75):
        try:
            live(seed)
        except Exception as error:
            raise AssertionError(f"live({seed}): {error}") from error


@pytest.mark.parametrize("seed", TELLING)
def test_lives_that_tell_of_a_rule(seed: int) -> None:
    live(seed, steps=60)


@pytest.mark.parametrize("block", range(2))
def test_random_lives_of_disks_that_are_resized(block: int) -> None:
    for seed in range(block * 75, (block + 1) * 75):
        try:
            live(seed, resizes=True)
        except Exception as error:
            raise AssertionError(f"live({seed}, resizes=True): {error}") from error


@pytest.mark.parametrize("seed", ONCE_WRONG)
def test_lives_that_were_wrong_once(seed: int) -> None:
    live(seed, steps=60)
