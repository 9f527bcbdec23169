# SPDX-License-Identifier: Apache-2.0
"""What monitoring makes of a state: 0 good, 1 look at it today, 2 now. No I/O.

    damaged, paused, lost       2
    rolled-back, attaching      1
    disconnected, behind        1, and 2 once the newest point is older than it may be
    syncing                     1, and 2 where no point was ever made and an hour has gone
    idle                        0 where its end was watched, else 1
    protected                   0, and 2 where the newest point is older than was asked for

A group that never had a point is older than anything may be.
"""

from __future__ import annotations

from dataclasses import dataclass

from replicator.states.words import RPO_ALARM_SECONDS, State

GOOD, SOON, NOW = 0, 1, 2
UNPROTECTED_SECONDS = 3600.0

_ALWAYS = {
    State.DAMAGED.word: NOW,
    State.PAUSED.word: NOW,
    State.ROLLED_BACK.word: SOON,
    State.LOST.word: NOW,
    State.ATTACHING.word: SOON,
}
_BY_AGE = {
    State.DISCONNECTED.word: SOON,
    State.BEHIND.word: SOON,
    State.PROTECTED.word: GOOD,
}


@dataclass(frozen=True, slots=True)
class Standing:
    """What a status says of a group. `rpo_seconds` is None where there is no point;
    `unprotected_seconds`: for how long there has been none, None where there is one."""

    word: str
    rpo_seconds: float | None
    unprotected_seconds: float | None = None
    end_watched: bool = False


def exit_code(group: Standing, rpo_seconds: float = RPO_ALARM_SECONDS) -> int:
    """Of one group; the highest of all is that of the command."""
    if group.word in _ALWAYS:
        return _ALWAYS[group.word]
    if group.word in _BY_AGE:
        is_too_old = group.rpo_seconds is None or group.rpo_seconds > rpo_seconds
        return NOW if is_too_old else _BY_AGE[group.word]
    if group.word == State.SYNCING.word:
        return NOW if (group.unprotected_seconds or 0.0) >= UNPROTECTED_SECONDS else SOON
    if group.word == State.IDLE.word and group.end_watched:
        return GOOD
    return SOON
