# SPDX-License-Identifier: Apache-2.0
"""The states of a group: the words, their order, and how two ends come to one word. No I/O.

A state is what both ends can prove, and nothing green outlives its proof. Each end has a column
of the same table (source.py, replica.py): it looks at what it can prove by itself, from the top,
and the first state that fits is its *own* verdict. It tells the other end its own verdict, and
shows people whichever of the two stands higher in the table. So both print the same word, and
neither can talk the other into something better than what that one sees for itself. What was told
is never told back, or two ends would hold each other in a state that neither sees.

    damaged       what is there cannot be trusted, or cannot be read: nothing is applied; or what
                  is applied stands on damage, so that no newer point can be served
    paused        the receiver takes nothing, or applies nothing, until there is room again
    rolled-back   the replica was taken back: the source may not go on until `resync`
    lost          continuity broke: no new point until a sync
    disconnected  no session for AWAY_SECONDS
    syncing       a disk is not complete
    attaching     complete, and no point of this stream is known yet; or its replica is being
                  verified
    idle          the source ended in order, and its last point is there; or nothing came yet
    behind        captured, and the other end has not proven for too long that it has it
    protected     captured, confirmed, and all of it lately

`shut-off` is the first of the two meanings of idle. It is a row of its own here, and on the wire;
people read `idle`, with the reason beside it.

A blip turns no state: a session that is away for less than AWAY_SECONDS leaves the rows below
`disconnected` to their proofs, which are never good for longer than Promise.proof_seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

AWAY_SECONDS = 10.0
"""Without a session, or a proof, for so long: that turns a state."""
TOLD_SECONDS = 2.0
"""Each end tells the other its own verdict at least this often, and at once when it changes."""
RPO_ALARM_SECONDS = 60.0

assert TOLD_SECONDS * 3 < AWAY_SECONDS, "two lost words are a blip"


class State(Enum):
    """In the order of the table: the first that fits counts."""

    DAMAGED = "damaged"
    PAUSED = "paused"
    ROLLED_BACK = "rolled-back"
    LOST = "lost"
    DISCONNECTED = "disconnected"
    SYNCING = "syncing"
    ATTACHING = "attaching"
    SHUT_OFF = "shut-off"
    BEHIND = "behind"
    PROTECTED = "protected"
    IDLE = "idle"

    @property
    def word(self) -> str:
        """What people and metrics read."""
        return "idle" if self is State.SHUT_OFF else self.value


ORDER = tuple(State)
WORDS = tuple(dict.fromkeys(state.word for state in ORDER))


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something is not as it should be, and what a person does about it."""

    reason: str
    remedy: str = ""


NO_TROUBLE = Trouble("")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A state with its reason and its remedy. `is_watched`: that an end which was in order was
    seen by who speaks, from its first sign on."""

    state: State
    reason: str = ""
    remedy: str = ""
    is_watched: bool = True


@dataclass(frozen=True, slots=True)
class Promise:
    """What the config of the source says of this group."""

    interval_seconds: float = 1.0
    rpo_alarm_seconds: float = RPO_ALARM_SECONDS

    @property
    def alarm_seconds(self) -> float:
        """A point is as old as the interval when the next one comes: that alarms nobody."""
        return max(self.rpo_alarm_seconds, 3 * self.interval_seconds)

    @property
    def proof_seconds(self) -> float:
        """A proof that is older than this proves nothing."""
        return max(AWAY_SECONDS, 3 * self.interval_seconds)


USUAL = Promise()


def higher(own: Verdict, told: Verdict | None) -> Verdict:
    """Which of the two counts; for one state said twice, with what either knows about it."""
    if told is None:
        return own
    if told.state is own.state:
        return replace(
            own,
            reason=own.reason or told.reason,
            remedy=own.remedy or told.remedy,
            is_watched=own.is_watched and told.is_watched,
        )
    return min(own, told, key=lambda one: ORDER.index(one.state))


def state_named(name: str) -> State | None:
    """By its name on the wire; None for one that this version does not know."""
    try:
        return State(name)
    except ValueError:
        return None
