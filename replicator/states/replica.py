# SPDX-License-Identifier: Apache-2.0
"""The receiver's column: what the DR site can prove of a group. No I/O.

`own` is the receiver's own verdict: RULES from the top, and the first that fits counts. `stand` is
what people are shown: that, or what the agent said of the source's side, whichever stands higher.

What the agent said counts while there is a session, and for AWAY_SECONDS after it. One word
outlives it: `lost`. A stream that broke does not heal, so that word stands until the agent says
something else. That a stream is opened says nothing: it may be the rest of the one that broke, and
the cuts in it, which come in now, are no proof that anything is captured.

A proof is a cut, a HOLD, or the agent's word that it captures: any of them says that what the
replica follows was alive at the source at that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replicator.base.clock import NS_PER_S
from replicator.base.units import format_duration
from replicator.states.words import (
    AWAY_SECONDS,
    NO_TROUBLE,
    USUAL,
    Promise,
    State,
    Trouble,
    Verdict,
    higher,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """Everything that the receiver's column looks at. Seconds are ages by a monotonic clock.

    `stopped`: nothing is applied any more. `recovering`: the group is being read back after the
    start, and nothing else is known of it. `paused`: nothing is for now, or nothing is taken in.
    `spoiled`: what of the newest state is on record as damaged. `verifying`: why the replica is not
    believed until it has been read back; empty: it is.
    `rolled_back`: what there is to say of a rollback after which no stream came. `proof_seconds`:
    since the last proof; None: none in this life. `lag_seconds`: age of the newest point's moment.
    `away_seconds`: without a session, from the start on; 0 while there is one. `was_here`: there
    was a session in this life. `backlog`: what is taken in and not applied, in words.
    """

    stopped: Trouble | None = None
    recovering: Trouble | None = None
    paused: Trouble | None = None
    rolled_back: Trouble | None = None
    spoiled: Trouble | None = None
    told: Verdict | None = None
    away_seconds: float = 0.0
    was_here: bool = True
    last_word: Trouble = NO_TROUBLE
    has_stream: bool = False
    has_points: bool = False
    has_point_of_stream: bool = False
    syncing: str = ""
    verifying: str = ""
    backlog: str = ""
    proof_seconds: float | None = None
    lag_seconds: float | None = None
    promise: Promise = USUAL


Rule = Callable[[ReplicaFacts], Verdict | None]

_KNOWN_BETTER_THERE = (State.SYNCING, State.ATTACHING, State.IDLE)


def stand(facts: ReplicaFacts) -> Verdict:
    """What people are shown."""
    told = facts.told
    if told is not None and facts.away_seconds >= AWAY_SECONDS and told.state is not State.LOST:
        told = None
    found = own(facts)
    if told is not None and told.state is found.state and found.state in _KNOWN_BETTER_THERE:
        return higher(told, found)
    return higher(found, told)


def own(facts: ReplicaFacts) -> Verdict:
    """What the agent is told."""
    for rule in RULES:
        verdict = rule(facts)
        if verdict is not None:
            return verdict
    return Verdict(
        State.IDLE,
        "nothing has come from the source yet",
        "replicator status at the agent says what the source waits for",
    )


def _damaged(facts: ReplicaFacts) -> Verdict | None:
    if facts.stopped is None:
        return None
    remedy = facts.stopped.remedy or "mend what is named, then restart the receiver"
    return Verdict(State.DAMAGED, facts.stopped.reason, remedy)


def _spoiled(facts: ReplicaFacts) -> Verdict | None:
    """Points go on, and none of them can be served: that is no protection. Once the stream has
    ended, or while it syncs, the sync is what is waited for, and mends it."""
    if not facts.has_stream or facts.syncing:
        return None
    return _of(State.DAMAGED, facts.spoiled)


def _recovering(facts: ReplicaFacts) -> Verdict | None:
    return _of(State.ATTACHING, facts.recovering)


def _paused(facts: ReplicaFacts) -> Verdict | None:
    return _of(State.PAUSED, facts.paused)


def _rolled_back(facts: ReplicaFacts) -> Verdict | None:
    return _of(State.ROLLED_BACK, facts.rolled_back)


def _of(state: State, trouble: Trouble | None) -> Verdict | None:
    return None if trouble is None else Verdict(state, trouble.reason, trouble.remedy)


def _lost(facts: ReplicaFacts) -> Verdict | None:
    if facts.has_stream or not facts.has_points:
        return None
    return Verdict(
        State.LOST,
        "its stream has ended, and no other one has come: a sync is due",
        "replicator status at the agent says what the source waits for",
    )


def _disconnected(facts: ReplicaFacts) -> Verdict | None:
    if facts.away_seconds < AWAY_SECONDS:
        return None
    since = format_duration(round(facts.away_seconds) * NS_PER_S)
    what = f"no agent for {since}" if facts.was_here else "no agent has come since the start"
    last = facts.last_word
    reason = f"{what}; {last.reason}" if last.reason else what
    remedy = last.remedy or "replicator status at the agent says why it does not come"
    return Verdict(State.DISCONNECTED, reason, remedy)


def _syncing(facts: ReplicaFacts) -> Verdict | None:
    if not facts.syncing or not facts.has_stream:
        return None
    remedy = "none needed: protection begins when the sync has ended"
    return Verdict(State.SYNCING, facts.syncing, remedy)


def _attaching(facts: ReplicaFacts) -> Verdict | None:
    awaited = _awaited(facts)
    if not awaited:
        return None
    return Verdict(State.ATTACHING, awaited, "none needed: it goes on by itself")


def _awaited(facts: ReplicaFacts) -> str:
    if not facts.was_here:
        return "the receiver has just started, and waits for the agent"
    if not facts.has_stream:
        return ""
    if facts.verifying:
        return facts.verifying
    if not facts.has_point_of_stream:
        return "a stream is open, and no point of it has come yet"
    if facts.proof_seconds is None:
        return "the agent is here, and has not said yet that the source is captured"
    ended = facts.told is not None and facts.told.state is State.SHUT_OFF
    return f"the source has ended; {facts.backlog}" if ended and facts.backlog else ""


def _behind(facts: ReplicaFacts) -> Verdict | None:
    if not facts.has_stream or facts.proof_seconds is None:
        return None
    catches_up = "none needed if it catches up; else see to it"
    if facts.proof_seconds >= facts.promise.proof_seconds:
        reason = f"the source has shown nothing for {_seconds(facts.proof_seconds)}"
        return Verdict(State.BEHIND, _with(reason, facts.backlog), catches_up)
    if facts.lag_seconds is None or facts.lag_seconds > facts.promise.alarm_seconds:
        lag = "unknown" if facts.lag_seconds is None else _seconds(facts.lag_seconds)
        alarm = _seconds(facts.promise.alarm_seconds)
        reason = f"the newest point is {lag} old, rpo_alarm is {alarm}"
        return Verdict(State.BEHIND, _with(reason, facts.backlog), catches_up)
    return None


def _protected(facts: ReplicaFacts) -> Verdict | None:
    return Verdict(State.PROTECTED) if facts.has_stream else None


RULES: tuple[Rule, ...] = (
    _damaged,
    _spoiled,
    _recovering,
    _paused,
    _rolled_back,
    _lost,
    _disconnected,
    _syncing,
    _attaching,
    _behind,
    _protected,
)


def _with(reason: str, more: str) -> str:
    return f"{reason}; {more}" if more else reason


def _seconds(seconds: float) -> str:
    return format_duration(round(seconds) * NS_PER_S)
