# SPDX-License-Identifier: Apache-2.0
"""What an opening has to put on record before anything comes in again.

Something is gone, and it is known what follows: the stream is closed for ever, so a sync makes
replica and source equal again; numbers and generation go on above all that were ever given. That is
a batch without content behind everything that is in the inbox. Until it is durable no agent is
taken, and nothing is forgotten that told of it: a crash in between comes to the same again.

Concurrency: the group's apply thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from receiver.apply.applier import Applier
from receiver.history.state import GroupState
from receiver.intake.inbox import Inbox
from receiver.intake.intake import Intake


@dataclass(slots=True)
class Mending:
    """What is to be done. `next_point` and `generation` are at least so high afterwards, streams up
    to `ordinal` are closed; `reasons` says why, for people. `fences`: the generation rises by a
    person's order, so the source may go on by `resync` alone, as behind a rollback."""

    ordinal: int = 0
    next_point: int = 0
    generation: int = 0
    reasons: list[str] = field(default_factory=list)
    fences: bool = False

    def put_on_record(self, applier: Applier, intake: Intake, inbox: Inbox) -> GroupState:
        """Everything that came is applied. Durable when this returns; the state behind. Raises
        OSError."""
        state = applier.applied.copy()
        newest = inbox.newest
        state.close_stream()
        state.closed_ordinal = max(
            state.closed_ordinal,
            self.ordinal,
            intake.front.state.ordinal,
            newest.name.ordinal if newest is not None else 0,
        )
        state.generation = max(state.generation, self.generation)
        state.next_point = max(state.next_point, self.next_point)
        state.point_holds = False
        state.rolled_back = state.rolled_back or self.fences
        applier.restate(state)
        intake.reset(state.copy(), [])
        inbox.remove_closed(state.closed_ordinal)
        return state
