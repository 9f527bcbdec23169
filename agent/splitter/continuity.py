# SPDX-License-Identifier: Apache-2.0
"""What an event on a disk's connection does to its group: one table. No I/O.

Continuity means that the log holds every write of every member disk, in order. It is not enough
that our sockets are open: a mirror job can end while its socket stays open and silent, and guest
writes then complete unseen. So in a group whose disks are complete, each sign that a mirror may
have ended takes effect on the *whole* group, in the step in which it is seen and before any reply
of that step leaves; a cut after it could hold B's write without A's earlier one.

libvirt, disk complete
    an error reply of ours    QEMU ends the job on it, and writes on unmirrored: LOSE.
    EOF without DISC          QEMU died or was killed; its source may be ahead of us: LOSE.
    FLUSH                     the job is ending, or the VM was stopped (`virsh   } SUSPEND: no cuts
                              suspend` flushes every node): the same to us.      } until the agent,
    DISC                      a node or a whole VM was closed in good order.     } which can ask
                              libvirt, says what it was (ending.py).
libvirt, disk in a sync
    The first FLUSH may be QEMU's "consistent now" (see sync_end for what else is needed). Anything
    else ends the job, so the sync is void, and nothing but this disk is concerned: it is not
    complete, so no point rests on it. A second FLUSH voids it, however soon it comes: either it is
    the job's end, or the one before was a pause's, which flushes every node (QEMU 7.2: twice) and
    leaves the copy running. READY is shown only after the FLUSH that belongs to it, so no pause's
    FLUSH is ever alone when READY is read back.
external
    Every write counts as the guest's and clients come and go: DISC, EOF, FLUSH and refused
    requests mean nothing, but that FLUSH ends a sync. A connection that ends with a request half
    read or unanswered leaves open what the client believes: LOSE.

A *visitor*, a connection that never wrote nor flushed (nbdinfo, say), is no mirror. What it does
has no effect, unless it ends in the middle of what may be its first write.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, Literal

from replicator.nbd.exports import ConnectionEnd, EndKind

Driver = Literal["libvirt", "external"]


class DiskState(Enum):
    """Where a disk stands in its stream. The values are the control protocol's words."""

    IDLE = "idle"  # no sync has begun; nothing of it is recorded
    SYNCING = "syncing"  # between sync-begin and FLUSH
    FLUSHED = "flushed"  # FLUSH seen; READY and continuations are awaited
    COMPLETE = "complete"  # its sync-end is in the log


class Signal(Enum):
    """What can be seen of a connection besides its writes."""

    ERROR_REPLY = auto()
    FLUSH = auto()
    DISC = auto()
    EOF = auto()  # ended without goodbye, by either side, with nothing under way
    BROKEN = auto()  # ended with something under way, or against the protocol


MEANINGS: Final = {
    Signal.ERROR_REPLY: "a request had to be refused",
    Signal.FLUSH: "its mirror has flushed: its job is ending, or the VM was stopped",
    Signal.DISC: "its mirror has disconnected",
    Signal.EOF: "its connection ended without a goodbye",
    Signal.BROKEN: "its connection broke with a request under way",
}


class Effect(Enum):
    NOTHING = auto()
    FLUSHED = auto()  # the disk's sync may end, once READY is confirmed
    SYNCED = auto()  # the disk's sync ends here
    VOID = auto()  # the disk's sync has failed; the disk is idle again
    SUSPEND = auto()  # the group makes no cut until the agent says what happened
    LOSE = auto()  # the group's continuity is lost


_EVERY = tuple(Signal)

TABLE: Final[dict[tuple[Driver, DiskState, Signal], Effect]] = {
    **{("libvirt", DiskState.IDLE, signal): Effect.NOTHING for signal in _EVERY},
    **{("libvirt", DiskState.SYNCING, signal): Effect.VOID for signal in _EVERY},
    ("libvirt", DiskState.SYNCING, Signal.FLUSH): Effect.FLUSHED,
    **{("libvirt", DiskState.FLUSHED, signal): Effect.VOID for signal in _EVERY},
    ("libvirt", DiskState.COMPLETE, Signal.ERROR_REPLY): Effect.LOSE,
    ("libvirt", DiskState.COMPLETE, Signal.FLUSH): Effect.SUSPEND,
    ("libvirt", DiskState.COMPLETE, Signal.DISC): Effect.SUSPEND,
    ("libvirt", DiskState.COMPLETE, Signal.EOF): Effect.LOSE,
    ("libvirt", DiskState.COMPLETE, Signal.BROKEN): Effect.LOSE,
    **{("external", state, signal): Effect.NOTHING for state in DiskState for signal in _EVERY},
    ("external", DiskState.SYNCING, Signal.FLUSH): Effect.SYNCED,
    ("external", DiskState.SYNCING, Signal.BROKEN): Effect.LOSE,
    ("external", DiskState.COMPLETE, Signal.BROKEN): Effect.LOSE,
}


def effect_of(driver: Driver, state: DiskState, signal: Signal) -> Effect:
    return TABLE[driver, state, signal]


def signal_of_end(end: ConnectionEnd, *, wrote: bool) -> Signal | None:
    """What the end of a connection says; None if it was a visitor's and says nothing."""
    under_way = end.mid_request or end.unanswered > 0
    if not wrote and (not under_way or end.kind is EndKind.ERROR):
        return None
    if under_way or end.unsent_bytes or end.kind is EndKind.ERROR:
        return Signal.BROKEN
    return Signal.DISC if end.kind is EndKind.DISC else Signal.EOF
