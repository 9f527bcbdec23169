# SPDX-License-Identifier: Apache-2.0
"""What becomes of what a scrub finds: it is counted, told, and put on record in the group's state.

Concurrency: apply thread; `state` is read by others.
"""

from __future__ import annotations

from collections.abc import Iterable

from receiver.apply.applier import Applier
from receiver.damage import damage as rules
from receiver.history.bodies import DamagedBlocks
from receiver.history.log import HistoryLog
from receiver.points.telling import Telling
from receiver.scrub.state import Bad, ScrubState

BAD_MAX = 1000
"""Findings that are listed; of more it is only said that there are some."""


class Findings:
    """See the head of this file."""

    def __init__(self, history: HistoryLog, applier: Applier, telling: Telling) -> None:
        self._history = history
        self._applier = applier
        self._telling = telling
        self.state = ScrubState()

    @property
    def damage(self) -> rules.Damage:
        """What is on record."""
        return self._applier.applied.damage

    def put_on_record(self, damage: rules.Damage) -> None:
        """Durable when this returns. Raises OSError."""
        if damage != self.damage:
            self._applier.state_damage(damage)

    def add(self, bad: Bad) -> None:
        self._telling.event(
            "scrub.healed" if bad.healed else "scrub.bad",
            where=bad.where,
            file=bad.file,
            offset=bad.offset,
            length=bad.length,
            points=len(bad.points),
        )
        self.state.errors += 1
        self.state.left += not bad.healed
        if len(self.state.bad) < BAD_MAX:
            self.state.bad.append(bad)

    def points_of(self, blocks: Iterable[DamagedBlocks]) -> list[int]:
        """The sequences of the points that need any of these."""
        dropped = self._history.batch_list.dropped
        found = rules.damaged_points(tuple(blocks), self._history.batch_list.all)
        return [sequence for sequence in found if sequence not in dropped]
