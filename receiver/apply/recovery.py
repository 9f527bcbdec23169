# SPDX-License-Identifier: Apache-2.0
"""Whether an incomplete batch at the history's end may be believed to have touched nothing."""

from __future__ import annotations

from receiver.blocks.replica import Replica
from receiver.history.opening import Tail
from receiver.history.state import GroupState
from replicator.base.errors import DamageError


def check_tail(replica: Replica, state: GroupState, tail: Tail | None) -> None:
    """Each whole before-image of the incomplete batch must still be what the replica holds: else
    it had been complete, the replica was overwritten, and the history is damaged. Raises
    DamageError."""
    by_slot = {disk.slot: disk for disk in state.disks.values()}
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
