# SPDX-License-Identifier: Apache-2.0
"""What an event on a disk's connection means for the whole group. No I/O.

The log of a group is worth something only as long as it holds every write of every member. These
are the facts behind the table:

libvirt. QEMU's mirror can end while its socket stays open and silent, and guest writes go on
    unmirrored. After READY it sends FLUSH or DISC only when its job ends (cancelled, or the domain
    shuts down), so either of them *suspends* the group: no cut and no "holds until now" from that
    step on, before any reply leaves, while what other members still send is appended. The agent
    then finds out whether the domain is down: only then is the end of the log the end of the
    source. A bare EOF, or an error reply of ours, leaves guest writes behind that we never see:
    the group's continuity is *lost*.
    While a disk is still in its sync none of this costs anything but that sync: it starts over.

external. Whoever connects is the source, and each write that was answered is in the log. Clients
    come and go; FLUSH means nothing but the end of a sync that `resync` has begun. Only an EOF
    with a request half read or a reply unsent is a loss: then nobody can say what the client
    believes.
    A refused request (beyond the end, a READ) is the client's own mistake and has changed nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

Driver = Literal["libvirt", "external"]


class Event(Enum):
    """What happened on a connection of a disk."""

    FLUSH = "FLUSH"
    DISC = "DISC"
    EOF_CLEAN = "EOF"
    EOF_DIRTY = "EOF in the middle of a request"
    ERROR_REPLY = "an error reply"


class Effect(Enum):
    """What it means for the group."""

    NONE = "none"
    SYNC_FLUSHED = "this connection has flushed: one part of the rule for the end of a sync"
    SYNC_ENDS = "the disk's sync has ended"
    SYNC_RESTARTS = "the disk's sync starts over"
    SUSPEND = "no cuts until the agent has looked"
    LOSE = "continuity is lost"


# (driver, event, the disk is complete) → effect
EFFECTS: dict[tuple[Driver, Event, bool], Effect] = {
    ("libvirt", Event.FLUSH, False): Effect.SYNC_FLUSHED,
    ("libvirt", Event.DISC, False): Effect.SYNC_RESTARTS,
    ("libvirt", Event.EOF_CLEAN, False): Effect.SYNC_RESTARTS,
    ("libvirt", Event.EOF_DIRTY, False): Effect.SYNC_RESTARTS,
    ("libvirt", Event.ERROR_REPLY, False): Effect.SYNC_RESTARTS,
    ("libvirt", Event.FLUSH, True): Effect.SUSPEND,
    ("libvirt", Event.DISC, True): Effect.SUSPEND,
    ("libvirt", Event.EOF_CLEAN, True): Effect.LOSE,
    ("libvirt", Event.EOF_DIRTY, True): Effect.LOSE,
    ("libvirt", Event.ERROR_REPLY, True): Effect.LOSE,
    ("external", Event.FLUSH, False): Effect.SYNC_ENDS,
    ("external", Event.DISC, False): Effect.NONE,
    ("external", Event.EOF_CLEAN, False): Effect.NONE,
    ("external", Event.EOF_DIRTY, False): Effect.LOSE,
    ("external", Event.ERROR_REPLY, False): Effect.NONE,
    ("external", Event.FLUSH, True): Effect.NONE,
    ("external", Event.DISC, True): Effect.NONE,
    ("external", Event.EOF_CLEAN, True): Effect.NONE,
    ("external", Event.EOF_DIRTY, True): Effect.LOSE,
    ("external", Event.ERROR_REPLY, True): Effect.NONE,
}
assert len(EFFECTS) == 2 * len(Event) * 2, "a case is missing"


def effect_of(driver: Driver, event: Event, *, complete: bool) -> Effect:
    return EFFECTS[driver, event, complete]
