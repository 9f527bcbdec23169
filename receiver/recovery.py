# SPDX-License-Identifier: Apache-2.0
"""Whether inbox and history belong together, after a crash or a hand that moved files."""

from __future__ import annotations

from receiver.history.batches import Batch
from receiver.inbox import Inbox
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
