# SPDX-License-Identifier: Apache-2.0
"""What the receiver has witnessed of a group's source, and when. No I/O.

Gathers what comes in, each with the monotonic moment of its coming: sessions, proofs of life (a
cut, a HOLD, the agent's word that it captures), the agent's word itself, refusals. The receiver's
column of the table of states (replicator.states.replica) is told from it; it decides nothing.

The agent's word also brings the source's stamps as they are fresh, so that the age of a point is
told without comparing two walls (replicator.states.ages).

Concurrency: the event loop's thread.
"""

from __future__ import annotations

from replicator.base.clock import NS_PER_S, Clock
from replicator.base.errors import ReplicatorError
from replicator.states.ages import StampAges
from replicator.states.words import Promise, State, Trouble, Verdict, state_named
from replicator.wire.messages import Ping, Said

REFUSAL_SECONDS = 60.0
"""An agent that was refused for want of room tries again within half a minute. Until then, and
some more, its last try says how things are."""

_CAPTURED = (State.PROTECTED, State.SHUT_OFF)


class Witness:
    """See the head of this file. One for each group."""

    def __init__(self, clock: Clock) -> None:
        self.promise = Promise()
        self.told: Verdict | None = None
        """The agent's own verdict, as it said it last."""
        self.was_here = False
        self.last_word = Trouble("")
        """How the last session ended, or why there was none."""
        self._clock = clock
        self._ages = StampAges()
        self._sessions = 0
        self._left_ns = clock.monotonic_ns()
        self._began_ns = self._left_ns
        self._proof_ns: int | None = None
        self._no_room: tuple[Trouble, int] | None = None

    # -- what happens

    def session_began(self) -> None:
        self._sessions += 1
        self.was_here = True
        self.last_word = Trouble("")

    def session_ended(self, error: ReplicatorError | None) -> None:
        self._sessions -= 1
        self._left_ns = self._clock.monotonic_ns()
        if error is not None:
            self.last_word = Trouble(error.message, error.hint)

    def refused(self, error: ReplicatorError) -> None:
        """An agent that named this group was not let in."""
        if not self._sessions:
            self.last_word = Trouble(f"an agent was refused: {error.message}", error.hint)

    def proven(self) -> None:
        """A cut, or a HOLD, has come."""
        self._proof_ns = self._clock.monotonic_ns()

    def said(self, ping: Ping) -> None:
        """The agent's word. One that this version does not know says nothing."""
        said = ping.said
        state = None if said is None else state_named(said.state)
        if said is None or state is None:
            return
        self.told = Verdict(state, said.reason, said.remedy, said.is_watched)
        if state in _CAPTURED:
            self.proven()
        if said.stamp_ns:
            self._ages.note(said.stamp_ns, self._clock.monotonic_ns() - said.age_ns)
        self.promise = _promise(said)

    def no_room(self, error: ReplicatorError) -> None:
        """What came could not be taken in."""
        trouble = Trouble(f"nothing is taken in: {error.message}", error.hint)
        self._no_room = (trouble, self._clock.monotonic_ns())

    def took_in(self) -> None:
        self._no_room = None

    # -- what is known

    @property
    def away_seconds(self) -> float:
        """Without a session; 0 while there is one."""
        return 0.0 if self._sessions else self._since(self._left_ns)

    @property
    def awake_seconds(self) -> float:
        return self._since(self._began_ns)

    @property
    def proof_seconds(self) -> float | None:
        """Since the last proof of life; None: none in this life of the receiver."""
        return None if self._proof_ns is None else self._since(self._proof_ns)

    @property
    def refusing(self) -> Trouble | None:
        """Why nothing is taken in, as the last try has shown."""
        if self._no_room is None or self._since(self._no_room[1]) >= REFUSAL_SECONDS:
            return None
        return self._no_room[0]

    def age_seconds(self, stamp_ns: int) -> float | None:
        """Of a stamp of the source; None before an agent has said what its clock shows."""
        return self._ages.age_seconds(stamp_ns, self._clock.monotonic_ns())

    def _since(self, moment_ns: int) -> float:
        return (self._clock.monotonic_ns() - moment_ns) / NS_PER_S


def _promise(said: Said) -> Promise:
    default = Promise()
    return Promise(
        said.interval_ns / NS_PER_S if said.interval_ns else default.interval_seconds,
        said.alarm_ns / NS_PER_S if said.alarm_ns else default.rpo_alarm_seconds,
    )
