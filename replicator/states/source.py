# SPDX-License-Identifier: Apache-2.0
"""The agent's column: what the source's side of a group can prove. No I/O.

`own` is the agent's own verdict: RULES from the top, and the first that fits counts. `stand` is
what people are shown: that, or what the receiver says of itself, whichever stands higher. The
receiver says it in a session (`told`), or as the last word of one that it refuses (`door`).

Proofs of the rows at the end, all of them needed for `protected`:
    the splitter's status says that every disk is complete
    the source was read back as mirroring, READY_SECONDS ago at most (libvirt; an external source
    has nothing to be read back)
    the receiver has told of a point of the stream that is being captured now
    what the receiver holds went on, Promise.proof_seconds ago at most

An answer of the splitter is a proof for as long as the splitter can be heard: the link to it says
within seconds that it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

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

READY_SECONDS = 10.0


class Capture(Enum):
    """What the splitter says of the group's stream."""

    UNHEARD = auto()  # there is no splitter, or it does not know the group
    NOTHING = auto()  # no stream in this splitter's life
    OPENED = auto()  # a stream in which no sync has begun
    SYNCING = auto()
    COMPLETE = auto()
    SUSPENDED = auto()  # a sign of an end was seen; what it means is being asked
    ENDED = auto()  # in order, with a last cut
    LOST = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Everything that the agent's column looks at. Seconds are ages by a monotonic clock.

    `had_stream`: the splitter has told this agent of one. `is_down`: the source is known not to
    run, `left_out` that a part of it does. `trouble`: what keeps the driver, or the link to the
    splitter, from going on. `refused`: what this end makes of a receiver that it may not feed;
    `door`: what the receiver said when it would not be fed; `told`: what it says in a session.
    `acked_seconds`: since what the receiver holds went on; None: never. `read_back_seconds`: since
    the source was last seen mirroring; 0 where nothing can be read back. `lag_seconds`: age of the
    newest moment that the receiver holds. `work`: how far a sync is, or what it waits for.
    `room`: for how long capture can go on without a receiver.
    """

    capture: Capture
    why: str = ""
    trouble: Trouble = NO_TROUBLE
    is_down: bool = False
    left_out: bool = False
    refused: Verdict | None = None
    door: Verdict | None = None
    told: Verdict | None = None
    away_seconds: float = 0.0
    awake_seconds: float = 0.0
    link: Trouble = NO_TROUBLE
    room: str = ""
    work: str = ""
    recovery: str = ""
    had_stream: bool = False
    has_points: bool = False
    has_point_of_stream: bool = False
    has_last_point: bool = False
    end_text: str = ""
    is_watched: bool = True
    acked_seconds: float | None = None
    read_back_seconds: float = 0.0
    lag_seconds: float | None = None
    promise: Promise = USUAL


Rule = Callable[[SourceFacts], Verdict | None]


def stand(facts: SourceFacts) -> Verdict:
    """What people are shown."""
    told = facts.told if facts.away_seconds < AWAY_SECONDS else None
    return higher(higher(own(facts), told), facts.door)


def own(facts: SourceFacts) -> Verdict:
    """What the receiver is told."""
    for rule in RULES:
        verdict = rule(facts)
        if verdict is not None:
            return verdict
    return _idle(facts)


def _refused(facts: SourceFacts) -> Verdict | None:
    """Rolled back, or set back: a session may not begin, as this end sees it."""
    return facts.refused


def _lost(facts: SourceFacts) -> Verdict | None:
    """Where there was something to lose: a stream that this agent has seen, or points that the
    receiver has told of. A group that cannot begin has not lost anything."""
    had_some = facts.had_stream or facts.has_points
    is_settled = facts.had_stream or facts.awake_seconds >= AWAY_SECONDS
    gone = facts.capture is Capture.UNHEARD and had_some and is_settled
    begun_anew = facts.capture is Capture.NOTHING and had_some and not facts.is_down
    beside = facts.capture in (Capture.ENDED, Capture.NOTHING) and had_some and facts.left_out
    if not (facts.capture is Capture.LOST or gone or begun_anew or beside):
        return None
    return Verdict(State.LOST, _why_not(facts), _remedy(facts))


def _disconnected(facts: SourceFacts) -> Verdict | None:
    if facts.away_seconds < AWAY_SECONDS:
        return None
    reason = _both(facts.link.reason, facts.room, facts.trouble.reason)
    remedy = (
        facts.link.remedy or "start the receiver, or mend the way to it: the agent goes on then"
    )
    return Verdict(State.DISCONNECTED, reason, remedy)


def _syncing(facts: SourceFacts) -> Verdict | None:
    if facts.capture is not Capture.SYNCING:
        return None
    remedy = _remedy(facts) or "none needed: protection begins when the sync has ended"
    return Verdict(State.SYNCING, _both(facts.work, _what_hinders(facts)), remedy)


def _attaching(facts: SourceFacts) -> Verdict | None:
    awaited = _awaited(facts)
    if not awaited:
        return None
    remedy = _remedy(facts) or "none needed: it goes on by itself"
    return Verdict(State.ATTACHING, _both(awaited, _what_hinders(facts)), remedy)


def _awaited(facts: SourceFacts) -> str:
    is_young = facts.awake_seconds < AWAY_SECONDS
    match facts.capture:
        case Capture.OPENED:
            return "a stream is open, and its sync has not begun yet"
        case Capture.UNHEARD if is_young:
            return "the agent has just started, and waits for the splitter"
        case Capture.ENDED if facts.is_watched and not facts.has_last_point:
            return "the source has ended; its last point is on its way to the receiver"
        case Capture.COMPLETE | Capture.SUSPENDED if not facts.has_point_of_stream:
            return "every disk is complete; the first point of it is on its way to the receiver"
        case Capture.COMPLETE if facts.read_back_seconds > READY_SECONDS and is_young:
            return "the agent has just started, and asks libvirt whether the source is mirrored"
    return ""


def _shut_off(facts: SourceFacts) -> Verdict | None:
    unseen = facts.capture is Capture.NOTHING and facts.is_down and facts.has_points
    if facts.capture is not Capture.ENDED and not unseen:
        return None
    if unseen or not facts.is_watched:
        reason = _both("the end of the source was not watched", facts.why, facts.trouble.reason)
        remedy = "none needed: when the source runs again it is synced"
        return Verdict(State.SHUT_OFF, reason, remedy, is_watched=False)
    return Verdict(State.SHUT_OFF, _both(facts.end_text, facts.why))


def _behind(facts: SourceFacts) -> Verdict | None:
    if facts.capture not in (Capture.COMPLETE, Capture.SUSPENDED):
        return None
    limit, catches_up = facts.promise.proof_seconds, "none needed if it catches up; else see to it"
    if facts.capture is Capture.COMPLETE and facts.read_back_seconds > READY_SECONDS:
        since = facts.read_back_seconds
        waited = "yet" if math.isinf(since) else f"for {_seconds(since)}"
        reason = f"libvirt has not confirmed {waited} that the source is mirrored"
        remedy = facts.trouble.remedy or catches_up
        return Verdict(State.BEHIND, _both(reason, facts.trouble.reason), remedy)
    if facts.acked_seconds is None or facts.acked_seconds >= limit:
        waited = "yet" if facts.acked_seconds is None else f"for {_seconds(facts.acked_seconds)}"
        reason = f"the receiver has confirmed nothing new {waited}"
        if facts.capture is Capture.SUSPENDED:
            reason = _both(f"no point is made: {facts.why}", reason)
        return Verdict(
            State.BEHIND,
            _both(reason, facts.link.reason, facts.trouble.reason),
            facts.link.remedy or catches_up,
        )
    if facts.lag_seconds is None or facts.lag_seconds > facts.promise.alarm_seconds:
        lag = "unknown" if facts.lag_seconds is None else _seconds(facts.lag_seconds)
        return Verdict(
            State.BEHIND,
            f"what the receiver holds is {lag} old, rpo_alarm is"
            f" {_seconds(facts.promise.alarm_seconds)}: the link or the receiver is slower than"
            " the source writes",
            catches_up,
        )
    return None


def _protected(facts: SourceFacts) -> Verdict | None:
    if facts.capture in (Capture.COMPLETE, Capture.SUSPENDED):
        return Verdict(State.PROTECTED)
    return None


def _idle(facts: SourceFacts) -> Verdict:
    return Verdict(State.IDLE, _why_not(facts), _remedy(facts))


RULES: tuple[Rule, ...] = (
    _refused,
    _lost,
    _disconnected,
    _syncing,
    _attaching,
    _shut_off,
    _behind,
    _protected,
)


def _why_not(facts: SourceFacts) -> str:
    return _both(facts.why, _what_hinders(facts))


def _what_hinders(facts: SourceFacts) -> str:
    """At the source, and on the way to the receiver: also where neither alone makes the state."""
    return _both(facts.trouble.reason, facts.link.reason)


def _remedy(facts: SourceFacts) -> str:
    recovery = facts.recovery if facts.capture is Capture.LOST else ""
    return facts.trouble.remedy or facts.link.remedy or recovery


def _both(*texts: str) -> str:
    """What is known, each thing once."""
    found: list[str] = []
    for text in texts:
        if text and not any(text in other for other in found):
            found.append(text)
    return "; ".join(found)


def _seconds(seconds: float) -> str:
    return format_duration(round(seconds) * NS_PER_S)
