# SPDX-License-Identifier: Apache-2.0
"""In which state a group is, as its source's side sees it. No I/O.

    idle       nothing is captured: no stream, or it was ended in order
    attaching  a stream is complete at the splitter, or being set up; whether the receiver can make
               points of it is not known yet
    syncing    a sync is under way, or has ended here and its first point is still on its way
    protected  the receiver has made a point of the stream that is being captured now
    lost       continuity broke; points made before stay, no new one until a sync
    paused     the receiver refuses this source until a person says `resync`

What is observed (`observe`) decides nearly alone, since every observation is the whole truth at
its time. The state before matters where an observation says less: while the splitter is away, and
while the receiver is. A missing key in MOVES would be an illegal move; there is none, because any
observation may follow any other: statuses are coalesced.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from replicator.control.splitter import SplitterGroupStatus


class State(Enum):
    IDLE = "idle"
    ATTACHING = "attaching"
    SYNCING = "syncing"
    PROTECTED = "protected"
    LOST = "lost"
    PAUSED = "paused"


class Seen(Enum):
    """What was observed last."""

    NO_SPLITTER = auto()
    CLOSED = auto()
    LOST = auto()
    OPENED = auto()  # a stream without a sync yet
    SYNCING = auto()
    UNCONFIRMED = auto()  # complete at the splitter, no point of it known
    CONFIRMED = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Facts:
    """`newest_point_lsn`: of the newest point that the receiver has told of, while or since its
    session knew this stream; None if there is none. `refused`: fenced or paused."""

    group: SplitterGroupStatus | None
    newest_point_lsn: int | None
    refused: bool


def observe(facts: Facts) -> Seen:
    if facts.refused:
        return Seen.REFUSED
    group = facts.group
    if group is None:
        return Seen.NO_SPLITTER
    match group.state:
        case "closed":
            return Seen.CLOSED
        case "lost":
            return Seen.LOST
        case "syncing":
            begun = any(disk.state != "idle" for disk in group.disks)
            return Seen.SYNCING if begun else Seen.OPENED
        case "ready" | "suspended":
            lsn = facts.newest_point_lsn
            ours = lsn is not None and group.first_lsn < lsn <= group.end_lsn
            return Seen.CONFIRMED if ours else Seen.UNCONFIRMED


_ALWAYS = {
    Seen.CLOSED: State.IDLE,
    Seen.LOST: State.LOST,
    Seen.OPENED: State.ATTACHING,
    Seen.SYNCING: State.SYNCING,
    Seen.CONFIRMED: State.PROTECTED,
    Seen.REFUSED: State.PAUSED,
}

MOVES: dict[tuple[State, Seen], State] = {
    **{(state, seen): after for state in State for seen, after in _ALWAYS.items()},
    # Without a splitter nothing is captured. If it comes back as the same process with the same
    # stream, its next status says so.
    (State.IDLE, Seen.NO_SPLITTER): State.IDLE,
    (State.ATTACHING, Seen.NO_SPLITTER): State.IDLE,
    (State.SYNCING, Seen.NO_SPLITTER): State.LOST,
    (State.PROTECTED, Seen.NO_SPLITTER): State.LOST,
    (State.LOST, Seen.NO_SPLITTER): State.LOST,
    (State.PAUSED, Seen.NO_SPLITTER): State.PAUSED,
    # Complete here; the receiver has still to say so. A group that was protected stays so while
    # the receiver is away: its stream is unbroken, only the RPO grows.
    (State.IDLE, Seen.UNCONFIRMED): State.ATTACHING,
    (State.ATTACHING, Seen.UNCONFIRMED): State.ATTACHING,
    (State.SYNCING, Seen.UNCONFIRMED): State.SYNCING,
    (State.PROTECTED, Seen.UNCONFIRMED): State.PROTECTED,
    (State.LOST, Seen.UNCONFIRMED): State.SYNCING,
    (State.PAUSED, Seen.UNCONFIRMED): State.ATTACHING,
}
