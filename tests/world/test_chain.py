# SPDX-License-Identifier: Apache-2.0
"""Random lives of the whole chain in one process, every recovery point compared byte for byte.

`make simulate` lives longer; the suite's own number keeps it to seconds. A failure prints the
steps that lead to it.
"""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from receiver.views.point_view import PointView
from replicator.base.errors import NoPointError
from tests.world.chain import DISK_BYTES, Chain

SECTOR = 512
DAY_NS = 86_400 * 1_000_000_000
disk_names = st.sampled_from(sorted(DISK_BYTES))


class ChainMachine(RuleBasedStateMachine):
    """What may happen to a source, a link and a receiver, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = Chain()
        self.labels = 0

    @rule(name=disk_names, seed=st.integers(0, 1 << 30))
    def write(self, name: str, seed: int) -> None:
        random = Random(seed)
        sectors = DISK_BYTES[name] // SECTOR
        length = random.choice((1, 1, 2, 8, 9, 20))
        start = random.randrange(sectors - length + 1)
        self.chain.write(name, start * SECTOR, random.randbytes(length * SECTOR))

    @rule(name=disk_names, seed=st.integers(0, 1 << 30), by_trim=st.booleans())
    def zero(self, name: str, seed: int, *, by_trim: bool) -> None:
        random = Random(seed)
        sectors = DISK_BYTES[name] // SECTOR
        length = random.randint(1, sectors)
        start = random.randrange(sectors - length + 1)
        self.chain.zero(name, start * SECTOR, length * SECTOR, by_trim=by_trim)

    @rule()
    def tick(self) -> None:
        self.chain.tick()

    @rule()
    def mark(self) -> None:
        self.labels += 1
        if self.chain.rig.state() == "ready":
            self.chain.mark(f"label {self.labels}")
        else:
            with pytest.raises(NoPointError):
                self.chain.mark(f"label {self.labels}")

    @rule(step_ns=st.sampled_from((DAY_NS, -DAY_NS, 3600 * 1_000_000_000)))
    def step_the_clock(self, step_ns: int) -> None:
        self.chain.clock.utc += step_ns

    @rule(messages=st.integers(1, 12))
    def ship(self, messages: int) -> None:
        self.chain.ship(messages)

    @rule(batches=st.integers(1, 3))
    def apply(self, batches: int) -> None:
        self.chain.apply(batches)

    @rule()
    def lose_the_link(self) -> None:
        self.chain.disconnect()

    @rule()
    def kill_the_agent(self) -> None:
        self.chain.kill_agent()

    @rule(power=st.one_of(st.none(), st.integers(0, 1 << 30)))
    def kill_the_receiver(self, power: int | None) -> None:
        self.chain.kill_receiver(None if power is None else Random(power))

    @rule()
    def kill_the_splitter(self) -> None:
        points = self.chain.replica.points.count
        self.chain.kill_splitter()
        assert self.chain.rig.state() == "lost"
        assert self.chain.replica.points.count == points

    @precondition(lambda self: self.chain.rig.state() == "lost" or self.chain.is_paused)
    @rule()
    def resync(self) -> None:
        self.chain.resync()

    @rule(seed=st.integers(0, 1 << 30))
    def roll_back(self, seed: int) -> None:
        self.chain.disconnect()
        self.chain.apply()
        points = self.chain.replica.points.all
        if points:
            self.chain.rollback(Random(seed).choice(points))

    @invariant()
    def every_point_is_what_it_was(self) -> None:
        self.chain.check()

    def teardown(self) -> None:
        """Whatever happened, a resync and a quiet time make the replica equal to the source."""
        chain = self.chain
        paused = chain.is_paused  # asked first: the agent must have heard of a rollback
        if paused or chain.rig.state() == "lost":
            chain.resync()
        chain.tick()
        chain.ship()
        chain.apply()
        chain.check()
        assert chain.replica_images() == chain.images()


LIVES = int(os.environ.get("REPLICATOR_LIVES", "300"))
TestChain = ChainMachine.TestCase
TestChain.settings = settings(
    max_examples=LIVES,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_oracle_notices_a_view_without_before_images(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain()
    for content in (b"1", b"2"):
        chain.write("a", 0, content * SECTOR)
        chain.tick()
        chain.ship()
        chain.apply()
    chain.check()
    monkeypatch.setattr(PointView, "_overlay", lambda *given: given[-1])
    with pytest.raises(AssertionError):
        chain.check()
