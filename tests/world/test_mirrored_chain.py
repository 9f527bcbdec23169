# SPDX-License-Identifier: Apache-2.0
"""Random lives of the whole chain with mirrored disks: guests that are paused, jobs that end."""

from __future__ import annotations

import os
from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.drivers.mirrored import SECTORS
from tests.drivers.test_sync_events import EVENTS, happens
from tests.world.mirrored_chain import DISKS, MirroredChain

names = st.sampled_from(DISKS)


class MirroredMachine(RuleBasedStateMachine):
    @initialize(flushes=st.integers(1, 2), reconnects=st.booleans())
    def begin(self, flushes: int, *, reconnects: bool) -> None:
        self.chain = MirroredChain(flushes=flushes, reconnects=reconnects)

    @rule(event=st.sampled_from(sorted(EVENTS)))
    def something_happens(self, event: str) -> None:
        happens(self.chain.it, event)

    @rule(event=st.sampled_from(sorted(EVENTS)))
    def something_happens_after_the_agent_has_looked(self, event: str) -> None:
        step = self.chain.it.decides()
        happens(self.chain.it, event)
        self.chain.it.does(step)

    @rule(times=st.integers(1, 8))
    def all_goes_on(self, times: int) -> None:
        for _ in range(times):
            self.chain.it.goes_on()

    @rule(name=names, sector=st.integers(0, SECTORS - 1))
    def write(self, name: str, sector: int) -> None:
        self.chain.it.machine.guest_writes(name, sector)
        self.chain.it.check()

    @rule(messages=st.integers(1, 12), batches=st.integers(0, 3))
    def ship(self, messages: int, batches: int) -> None:
        self.chain.ship(messages)
        self.chain.agent_sees_to_what_cannot_be_shipped()
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
        self.chain.kill_splitter()

    @rule(seed=st.integers(0, 1 << 30))
    def roll_back(self, seed: int) -> None:
        self.chain.disconnect()
        self.chain.apply()
        points = self.chain.replica.points.all
        if points:
            self.chain.rollback(Random(seed).choice(points))

    @invariant()
    def every_point_is_what_it_was(self) -> None:
        if hasattr(self, "chain"):
            self.chain.check()

    def teardown(self) -> None:
        """Whatever happened, a resync and a quiet time make the replica equal to the source."""
        if not hasattr(self, "chain"):
            return
        chain = self.chain
        if chain.is_paused:
            chain.resync()
        for _ in range(3):  # what cannot be shipped is given up, and synced anew
            chain.it.until_ready()
            chain.ship()
            chain.agent_sees_to_what_cannot_be_shipped()
        chain.ship()
        chain.apply()
        chain.check()
        assert chain.replica_images() == chain.images()


LIVES = int(os.environ.get("REPLICATOR_LIVES", "300"))
TestMirrored = MirroredMachine.TestCase
TestMirrored.settings = settings(
    max_examples=LIVES // 2,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
