# SPDX-License-Identifier: Apache-2.0
"""Whose clocks vouch for the receiver's, and whose do not."""

from __future__ import annotations

from receiver.counted.witness import ClockWitness, vouch_for
from replicator.base.clock import NS_PER_S
from replicator.wire.protocol import PeerClocks

S = NS_PER_S
WALL = 1_800_000_000 * S
"""What the receiver's wall clock shows when its monotonic one shows 0."""


def told(
    agent: str, seconds: int, *, begun: int = 0, off_ns: int = 0, step: tuple[int, int] = (0, 0)
) -> ClockWitness:
    """An agent that has told its clocks every 5 s, whose wall clock stepped by step[1] ns at
    step[0]."""
    witness = ClockWitness(agent)
    for second in range(begun, begun + seconds + 1, 5):
        stepped = step[1] if step[1] and second >= step[0] else 0
        clocks = PeerClocks(WALL + second * S + off_ns + stepped, 77 + second * S, second * S)
        witness.hear(clocks)
        witness.hear(clocks)
    return witness


def vouched(*witnesses: ClockWitness, at: int = 600, off_ns: int = 0) -> list[str]:
    return vouch_for(witnesses, WALL + at * S + off_ns, at * S)


def test_an_agent_that_is_connected_for_ten_minutes_vouches_for_what_its_clock_shows() -> None:
    assert vouched(told("kvm1", 600)) == ["kvm1"]
    assert vouched(told("kvm1", 595), at=595) == []
    assert vouched(told("kvm1", 600, off_ns=-599 * S)) == ["kvm1"]
    assert vouched(told("kvm1", 600, off_ns=601 * S)) == []


def test_nobody_vouches_where_nobody_can() -> None:
    assert vouched() == []
    assert vouched(ClockWitness("kvm1")) == [], "an agent that tells no clocks"


def test_all_who_can_tell_must_agree() -> None:
    right, wrong = told("kvm1", 600), told("kvm2", 600, off_ns=3600 * S)
    assert vouched(right, wrong) == []
    assert vouched(right, told("kvm2", 600)) == ["kvm1", "kvm2"]
    assert vouched(right, told("kvm2", 300, begun=300, off_ns=3600 * S)) == ["kvm1"], "too new"


def test_a_step_begins_the_ten_minutes_anew() -> None:
    assert vouched(told("kvm1", 900, off_ns=-3600 * S, step=(400, 3600 * S)), at=900) == []
    assert vouched(told("kvm1", 1000, off_ns=-3600 * S, step=(400, 3600 * S)), at=1000) == ["kvm1"]


def test_what_was_told_long_ago_says_nothing() -> None:
    assert vouched(told("kvm1", 600), at=625) == ["kvm1"]
    assert vouched(told("kvm1", 600), at=640) == []


def test_an_agent_cannot_vouch_for_what_the_receivers_clock_does_not_say() -> None:
    """It has no vote on what the time is: only on whether the machine's own is right."""
    assert vouched(told("kvm1", 600, off_ns=7 * 86_400 * S)) == []
