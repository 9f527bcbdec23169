# SPDX-License-Identifier: Apache-2.0
"""What the receiver witnesses of a source, and for how long it counts."""

from __future__ import annotations

from receiver.group.witness import Witness
from replicator.base.errors import NoSpaceError, OwnedError, UnreachableError
from replicator.states.words import NO_TROUBLE, State, Trouble
from replicator.wire.messages import Ping, Said
from tests.base.test_clock import SteppedClock

S = 1_000_000_000
WALL = 1_700_000_000 * S


def seconds(clock: SteppedClock, count: float) -> None:
    clock.run(int(count * S))


def told(witness: Witness) -> State | None:
    return None if witness.told is None else witness.told.state


def test_sessions_and_their_absence() -> None:
    clock = SteppedClock(WALL)
    witness = Witness(clock)
    seconds(clock, 4)
    assert (witness.was_here, witness.away_seconds) == (False, 4)
    witness.refused(OwnedError("not you", hint="go"))
    assert "not you" in witness.last_word.reason
    witness.session_began()
    seconds(clock, 4)
    assert (witness.was_here, witness.away_seconds, witness.last_word) == (True, 0, NO_TROUBLE)
    witness.session_began()  # the same agent, back before its old connection is gone
    witness.session_ended(None)
    assert witness.away_seconds == 0
    witness.refused(OwnedError("an intruder"))
    assert not witness.last_word.reason, "who is not let in beside a session is no news of it"
    witness.session_ended(UnreachableError("it closed the connection"))
    seconds(clock, 11)
    assert witness.away_seconds == 11
    assert witness.last_word == Trouble("it closed the connection")


def test_proofs_grow_old() -> None:
    clock = SteppedClock(WALL)
    witness = Witness(clock)
    assert str(witness.proof_seconds) == "None"
    witness.proven()
    seconds(clock, 7)
    assert witness.proof_seconds == 7
    witness.said(Ping(said=Said("syncing")))
    assert witness.proof_seconds == 7, "a sync is no capture"
    witness.said(Ping(said=Said("protected")))
    assert witness.proof_seconds == 0


def test_the_agents_word_counts_until_it_says_another() -> None:
    witness = Witness(SteppedClock(WALL))
    witness.said(Ping(said=Said("lost", "the splitter is gone", interval_ns=20 * S)))
    assert told(witness) is State.LOST
    assert witness.promise.proof_seconds == 60
    witness.said(Ping())
    witness.said(Ping(said=Said("from-tomorrow")))
    assert told(witness) is State.LOST
    witness.session_ended(None)
    witness.session_began()
    witness.proven()  # the rest of the stream that broke
    assert told(witness) is State.LOST
    witness.said(Ping(said=Said("syncing")))
    assert told(witness) is State.SYNCING


def test_what_could_not_be_taken_in_counts_until_something_is() -> None:
    clock = SteppedClock(WALL)
    witness = Witness(clock)
    witness.no_room(NoSpaceError("the disk is full", hint="make room"))
    seconds(clock, 59)
    assert "the disk is full" in str(witness.refusing)
    witness.took_in()
    assert str(witness.refusing) == "None"
    witness.no_room(NoSpaceError("again"))
    seconds(clock, 60)
    assert str(witness.refusing) == "None"


def test_the_age_of_a_point_is_told_by_the_agents_word_not_by_a_wall() -> None:
    clock = SteppedClock(WALL)
    witness = Witness(clock)
    theirs = WALL + 86_400 * S  # the source's clock is a day ahead
    assert witness.age_seconds(theirs) is None
    witness.said(Ping(said=Said("protected", stamp_ns=theirs, age_ns=2 * S)))
    assert witness.age_seconds(theirs) == 2
    seconds(clock, 3)
    clock.step(-7 * 86_400 * S)
    assert witness.age_seconds(theirs) == 5
    assert witness.age_seconds(theirs - 10 * S) == 15
    assert witness.age_seconds(theirs + 100 * S) == 0
