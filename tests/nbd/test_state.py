# SPDX-License-Identifier: Apache-2.0
"""The table of states: complete where a peer decides, final where it says so."""

from __future__ import annotations

from replicator.nbd.state import HANDSHAKE_STATES, SILENT_STATES, TRANSITIONS, Event, State


def test_every_state_takes_an_eof() -> None:
    assert set(TRANSITIONS) == set(State)
    assert all(Event.EOF in moves for moves in TRANSITIONS.values())


def test_a_violation_is_possible_wherever_bytes_are_read_and_nowhere_else() -> None:
    listening = {state for state, moves in TRANSITIONS.items() if Event.VIOLATION in moves}
    assert listening == set(State) - SILENT_STATES


def test_every_state_can_be_reached_and_the_last_ones_are_not_left() -> None:
    reached = {State.GREETED}
    for _ in State:
        reached |= {to for state in reached for to in TRANSITIONS[state].values()}
    assert reached == set(State)
    for final in (State.FAILED, State.ENDED):
        assert set(TRANSITIONS[final].values()) == {final}
    assert not HANDSHAKE_STATES & SILENT_STATES
