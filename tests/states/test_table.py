# SPDX-License-Identifier: Apache-2.0
"""The table of states: its order, each row at each end, and that nothing green outlives a proof."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from replicator.states import replica, source
from replicator.states.check import Standing, exit_code
from replicator.states.replica import ReplicaFacts
from replicator.states.source import Capture, SourceFacts
from replicator.states.words import (
    ORDER,
    WORDS,
    Promise,
    State,
    Trouble,
    Verdict,
    higher,
    state_named,
)

WHY = Trouble("why", "do this")
GOOD_SOURCE = SourceFacts(
    capture=Capture.COMPLETE,
    awake_seconds=100.0,
    has_points=True,
    has_point_of_stream=True,
    has_last_point=True,
    acked_seconds=1.0,
    lag_seconds=1.0,
)
GOOD_REPLICA = ReplicaFacts(
    has_stream=True,
    has_points=True,
    has_point_of_stream=True,
    proof_seconds=1.0,
    lag_seconds=1.0,
)


def told(state: State) -> Verdict:
    return Verdict(state, "told", "told to")


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        (State.PROTECTED, {}),
        (State.ROLLED_BACK, {"refused": Verdict(State.ROLLED_BACK, "why", "do")}),
        (State.PAUSED, {"refused": Verdict(State.PAUSED, "set back", "do")}),
        (State.LOST, {"capture": Capture.LOST}),
        (State.LOST, {"capture": Capture.LOST, "has_points": False}),
        (State.LOST, {"capture": Capture.UNHEARD}),
        (State.LOST, {"capture": Capture.NOTHING}),
        (State.LOST, {"capture": Capture.LOST, "away_seconds": 1000.0}),
        (State.ATTACHING, {"capture": Capture.UNHEARD, "awake_seconds": 3.0}),
        (State.LOST, {"capture": Capture.UNHEARD, "had_stream": True, "awake_seconds": 3.0}),
        (State.IDLE, {"capture": Capture.UNHEARD, "has_points": False}),
        (State.IDLE, {"capture": Capture.NOTHING, "has_points": False}),
        (State.DISCONNECTED, {"away_seconds": 10.0}),
        (State.PROTECTED, {"away_seconds": 9.9}),
        (State.DISCONNECTED, {"away_seconds": 10.0, "capture": Capture.SYNCING}),
        (State.SYNCING, {"capture": Capture.SYNCING}),
        (State.ATTACHING, {"capture": Capture.OPENED}),
        (State.ATTACHING, {"has_point_of_stream": False}),
        (State.ATTACHING, {"capture": Capture.ENDED, "has_last_point": False}),
        (State.SHUT_OFF, {"capture": Capture.ENDED}),
        (State.SHUT_OFF, {"capture": Capture.ENDED, "acked_seconds": 10_000.0}),
        (State.SHUT_OFF, {"capture": Capture.NOTHING, "is_down": True}),
        (State.LOST, {"capture": Capture.ENDED, "left_out": True}),
        (State.BEHIND, {"acked_seconds": 10.0}),
        (State.BEHIND, {"acked_seconds": None}),
        (State.BEHIND, {"lag_seconds": 60.1}),
        (State.BEHIND, {"lag_seconds": None}),
        (State.BEHIND, {"read_back_seconds": 10.1}),
        (State.PROTECTED, {"read_back_seconds": 10.0}),
        (State.ATTACHING, {"read_back_seconds": float("inf"), "awake_seconds": 1.0}),
        (State.PROTECTED, {"capture": Capture.SUSPENDED}),
        (State.BEHIND, {"capture": Capture.SUSPENDED, "acked_seconds": 10.0}),
    ],
)
def test_what_the_agent_can_prove(state: State, changes: dict[str, object]) -> None:
    assert source.own(replace(GOOD_SOURCE, **changes)).state is state  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        (State.PROTECTED, {}),
        (State.DAMAGED, {"stopped": WHY, "paused": WHY, "rolled_back": WHY}),
        (State.DAMAGED, {"spoiled": WHY, "away_seconds": 10.0}),
        (State.DAMAGED, {"spoiled": WHY, "proof_seconds": None}),
        (State.SYNCING, {"spoiled": WHY, "syncing": "a sync"}),
        (State.LOST, {"spoiled": WHY, "has_stream": False}),
        (State.ROLLED_BACK, {"spoiled": WHY, "rolled_back": WHY, "has_stream": False}),
        (State.PAUSED, {"paused": WHY, "rolled_back": WHY}),
        (State.ROLLED_BACK, {"rolled_back": WHY, "has_stream": False}),
        (State.LOST, {"has_stream": False}),
        (State.DISCONNECTED, {"away_seconds": 10.0}),
        (State.DISCONNECTED, {"away_seconds": 10.0, "was_here": False, "has_points": False}),
        (State.PROTECTED, {"away_seconds": 9.0}),
        (State.ATTACHING, {"away_seconds": 9.0, "was_here": False}),
        (State.SYNCING, {"syncing": "a sync"}),
        (State.ATTACHING, {"has_point_of_stream": False}),
        (State.ATTACHING, {"proof_seconds": None}),
        (State.ATTACHING, {"verifying": "it is being verified"}),
        (State.ATTACHING, {"verifying": "it is being verified", "proof_seconds": 10.0}),
        (State.SYNCING, {"verifying": "it is being verified", "syncing": "a sync"}),
        (State.ATTACHING, {"told": told(State.SHUT_OFF), "backlog": "1 MiB"}),
        (State.BEHIND, {"proof_seconds": 10.0}),
        (State.BEHIND, {"lag_seconds": 61.0}),
        (State.BEHIND, {"lag_seconds": None}),
        (State.IDLE, {"has_stream": False, "has_points": False}),
    ],
)
def test_what_the_receiver_can_prove(state: State, changes: dict[str, object]) -> None:
    assert replica.own(replace(GOOD_REPLICA, **changes)).state is state  # type: ignore[arg-type]


SOURCES = [
    replace(
        GOOD_SOURCE,
        capture=capture,
        away_seconds=away,
        has_points=points,
        has_point_of_stream=points and ours,
        acked_seconds=acked,
        read_back_seconds=read_back,
        lag_seconds=lag,
        is_down=down,
    )
    for capture, away, points, ours, acked, read_back, lag, down in product(
        Capture, (0.0, 50.0), (False, True), (False, True), (None, 1.0, 50.0), (0.0, 50.0),
        (None, 1.0, 500.0), (False, True),
    )
]  # fmt: skip
REPLICAS = [
    replace(
        GOOD_REPLICA,
        stopped=stopped,
        paused=paused,
        spoiled=spoiled,
        away_seconds=away,
        was_here=here,
        has_stream=stream,
        has_points=points,
        has_point_of_stream=stream and points,
        syncing=syncing,
        proof_seconds=proof,
        lag_seconds=lag,
    )
    for stopped, paused, spoiled, away, here, stream, points, syncing, proof, lag in product(
        (None, WHY), (None, WHY), (None, WHY), (0.0, 50.0), (False, True), (False, True),
        (False, True), ("", "a sync"), (None, 1.0, 50.0), (None, 1.0, 500.0),
    )
]  # fmt: skip


def test_protected_needs_every_proof_at_the_agent() -> None:
    for facts in SOURCES:
        if source.stand(facts).state is State.PROTECTED:
            assert facts.capture in (Capture.COMPLETE, Capture.SUSPENDED)
            assert facts.has_point_of_stream
            assert facts.away_seconds < 10
            assert facts.acked_seconds is not None
            assert facts.acked_seconds < 10
            assert facts.read_back_seconds <= 10 or facts.capture is Capture.SUSPENDED
            assert facts.lag_seconds is not None
            assert facts.lag_seconds <= 60


def test_protected_needs_every_proof_at_the_receiver() -> None:
    for facts in REPLICAS:
        if replica.stand(facts).state is State.PROTECTED:
            assert facts.stopped is facts.paused is facts.spoiled is None
            assert facts.away_seconds < 10
            assert facts.has_stream
            assert facts.has_point_of_stream
            assert not facts.syncing
            assert facts.proof_seconds is not None
            assert facts.proof_seconds < 10


def test_both_ends_of_a_session_print_the_same_word() -> None:
    """Whatever either sees: each tells its own verdict, and shows the higher of the two."""
    here = [facts for facts in SOURCES if not facts.away_seconds]
    there = [facts for facts in REPLICAS if not facts.away_seconds and facts.was_here]
    seen_here = {source.own(facts).state: facts for facts in here}
    seen_there = {replica.own(facts).state: facts for facts in there}
    for near, far in product(seen_here.values(), seen_there.values()):
        at_agent = source.stand(replace(near, told=replica.own(far)))
        at_receiver = replica.stand(replace(far, told=source.own(near)))
        assert at_agent.state.word == at_receiver.state.word


def test_what_was_told_is_not_told_back() -> None:
    for state in State:
        assert source.own(replace(GOOD_SOURCE, told=told(state))) == source.own(GOOD_SOURCE)
        if state is not State.SHUT_OFF:
            assert replica.own(replace(GOOD_REPLICA, told=told(state))).state is State.PROTECTED


def test_only_a_loss_outlives_the_session_in_which_it_was_told() -> None:
    for state in State:
        gone = replace(GOOD_REPLICA, away_seconds=10.0, told=told(state))
        wanted = State.LOST if state is State.LOST else State.DISCONNECTED
        assert replica.stand(gone).state is wanted
        here = replace(GOOD_SOURCE, away_seconds=10.0, told=told(state))
        assert source.stand(here).state is State.DISCONNECTED


def test_a_refusal_at_the_door_says_what_the_receiver_is() -> None:
    door = Verdict(State.DAMAGED, "vda.raw: offset 7", "look")
    assert source.stand(replace(GOOD_SOURCE, door=door, away_seconds=100.0)) == door


def test_everything_that_is_not_good_has_a_reason_and_a_remedy() -> None:
    why = {"why": "why", "trouble": WHY, "link": WHY, "work": "work", "recovery": "resync"}
    for facts in SOURCES:
        verdict = source.stand(replace(facts, **why))  # type: ignore[arg-type]
        if verdict.state is not State.PROTECTED:
            assert verdict.reason, facts
            assert verdict.remedy or verdict.state is State.SHUT_OFF, facts
    for other in REPLICAS:
        verdict = replica.stand(other)
        if verdict.state is not State.PROTECTED:
            assert verdict.reason, other
            assert verdict.remedy, other


def test_one_state_said_twice_keeps_what_either_knows() -> None:
    mine, other = Verdict(State.LOST, "", "mine"), Verdict(State.LOST, "theirs", "", False)
    assert higher(mine, other) == Verdict(State.LOST, "theirs", "mine", False)


def test_the_words() -> None:
    assert [state.word for state in ORDER].count("idle") == 2
    assert len(WORDS) == len(set(WORDS)) == 10
    assert state_named("shut-off") is State.SHUT_OFF
    assert state_named("from-tomorrow") is None


def test_a_proof_lives_three_intervals_and_an_alarm_is_no_shorter() -> None:
    assert Promise().proof_seconds == 10.0
    assert Promise(60.0).proof_seconds == 180.0
    assert Promise(60.0).alarm_seconds == 180.0
    assert Promise(1.0, 5.0).alarm_seconds == 5.0
    assert Promise(0.1).alarm_seconds == 60.0


@pytest.mark.parametrize(
    ("word", "rpo", "code"),
    [
        ("damaged", 1.0, 2),
        ("paused", 1.0, 2),
        ("lost", 1.0, 2),
        ("rolled-back", 900.0, 1),
        ("attaching", 900.0, 1),
        ("disconnected", 59.0, 1),
        ("disconnected", 61.0, 2),
        ("disconnected", None, 2),
        ("behind", 60.0, 1),
        ("behind", 61.0, 2),
        ("protected", 60.0, 0),
        ("protected", 61.0, 2),
        ("syncing", None, 1),
        ("idle", None, 1),
        ("a word from tomorrow", 1.0, 1),
    ],
)
def test_what_monitoring_makes_of_it(word: str, rpo: float | None, code: int) -> None:
    assert exit_code(Standing(word, rpo)) == code


def test_an_hour_without_any_point_is_urgent_and_an_end_that_was_watched_is_good() -> None:
    assert exit_code(Standing("syncing", None, 3599.0)) == 1
    assert exit_code(Standing("syncing", None, 3600.0)) == 2
    assert exit_code(Standing("idle", 9e9, end_watched=True)) == 0
    assert exit_code(Standing("protected", 7.0), rpo_seconds=5.0) == 2
    assert {exit_code(Standing(word, None)) for word in WORDS} == {1, 2}
