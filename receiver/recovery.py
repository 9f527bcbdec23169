# SPDX-License-Identifier: Apache-2.0
"""Whether inbox, history and replica belong together, after a crash or a hand that moved files."""

from __future__ import annotations

from receiver.history.batches import Batch
from receiver.history.opening import Tail
from receiver.inbox import Inbox
from receiver.replica import Replica
from receiver.sync_state import GroupState
from replicator.base.errors import DamageError


def match_inbox(group: str, inbox: Inbox, state: GroupState, unapplied: Batch | None) -> None:
    """The inbox must hold everything that is not applied. What it holds beyond need, because a
    crash came before it was removed, goes."""
    inbox.remove_closed(max(state.closed_ordinal, 0))
    redo = unapplied is not None and unapplied.kind == "log"
    oldest = unapplied.ordinal if redo and unapplied is not None else state.ordinal
    inbox.remove_closed(oldest - 1)
    stream = inbox.find(state.ordinal)
    if stream is None:
        if redo:
            raise DamageError(
                f"group {group!r}: the inbox of stream {state.ordinal} is gone, and a batch"
                " that was begun from it is not applied",
                hint="restore the inbox from a copy, or set the group aside",
            )
        return
    needed = unapplied.start_lsn if redo and unapplied is not None else state.lsn
    if stream.received_lsn < state.lsn or (stream.frames and stream.frames[0].start_lsn > needed):
        first = stream.frames[0].start_lsn if stream.frames else stream.received_lsn
        raise DamageError(
            f"group {group!r}: the inbox holds LSN {first} to {stream.received_lsn} of"
            f" stream {state.ordinal}, the replica needs it from {needed} on and was at"
            f" {state.lsn}: what was acknowledged is missing",
            hint="restore the inbox from a copy; or remove it, and let the source sync anew",
        )


def check_replica(replica: Replica, state: GroupState, tail: Tail | None) -> None:
    """The images must be there; and if the history ends in an incomplete batch, each whole
    before-image of it must still be what the replica holds: else it had been complete, the
    replica was overwritten, and the history is damaged. Raises DamageError."""
    by_slot = {disk.slot: disk for disk in state.disks.values()}
    for disk in state.disks.values():
        replica.check(disk.name, disk.size_bytes)
    for image in tail.images if tail is not None else ():
        owner = by_slot.get(image.slot)
        if owner is None:
            continue  # a disk that only this batch would have introduced
        length = min(image.length, owner.size_bytes - image.offset)
        content = image.content if image.content is not None else bytes(length)
        if replica.read(owner.name, image.offset, length) != content:
            assert tail is not None
            raise DamageError(
                f"{tail.where}: this batch looks incomplete, but"
                f" {replica.path(owner.name)} no longer holds at offset {image.offset}"
                " what the batch found there: the batch was complete once, and is damaged",
                hint="points older than it cannot be reproduced; set the group aside and let"
                " it sync anew",
            )
