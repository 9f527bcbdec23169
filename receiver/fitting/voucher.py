# SPDX-License-Identifier: Apache-2.0
"""Keeps `disks/applied` in step with what is applied.

With each batch it states the one before (`begin`, beside the sync of the batch's images; `ensure`,
before the replica is touched). Where nothing is left to be applied it states the newest one
(`rest`), and then the next batch has nothing to state: one more sync a batch, at most.

What an opening found wrong is in memory until a batch has put it on record. Until that batch is
durable the statement stays as it is (`hold_back`): a crash in between must find it again.

An image that is not the file on record is `unverified`: it may be a copy from another moment. So is
one that lacks some of what was written last (fitting.compare.lately).
It stays so on record until a whole scrub has ended that was begun for it (`verified`).

Concurrency: the group's apply thread; `unverified` is replaced as a whole, any thread.
"""

from __future__ import annotations

from collections.abc import Iterable

from receiver.fitting.applied import AppliedSlots
from receiver.fitting.evidence import Applied
from receiver.history.log import HistoryLog
from receiver.history.sums import LatestSums
from receiver.replica import Replica
from receiver.sync_state import GroupState

UNVERIFIED = 0


class Voucher:
    """See the head of this file."""

    def __init__(
        self, slots: AppliedSlots, history: HistoryLog, replica: Replica, sums: LatestSums
    ) -> None:
        self._sums = sums
        self._slots = slots
        self._history = history
        self._replica = replica
        self._wanted: Applied | None = None
        self._held_back = False
        self.unverified: frozenset[str] = frozenset()

    @property
    def has_spoken(self) -> bool:
        """Whether there is a statement on the disk."""
        return self._slots.durable is not None

    def start(self, unverified: Iterable[str]) -> None:
        self._wanted, self.unverified = None, frozenset(unverified)

    def hold_back(self) -> None:
        """What the next batch puts on record comes first."""
        self._held_back = True

    def recorded(self) -> None:
        """The batch is durable."""
        self._held_back = False

    def begin(self, before: GroupState) -> None:
        """A batch comes; `before` is the group in front of it."""
        self._wanted = None
        if not self._held_back:
            self._wanted = self._statement(before)
            self._slots.begin(self._wanted)

    def settle(self) -> None:
        """What was begun has ended."""
        self._slots.settle()

    def ensure(self) -> None:
        """Durable when this returns. Raises OSError."""
        if self._wanted is not None:
            self._slots.ensure(self._wanted)

    def rest(self, state: GroupState) -> None:
        """Everything is applied, `state` is behind it. Raises OSError."""
        statement = self._statement(state)
        if statement.number and not self._held_back:
            self._slots.ensure(statement)

    def state(self, state: GroupState) -> None:
        """As `rest`, whatever was stated before: it was accepted that this is gone."""
        self._slots.ensure(self._statement(state))

    def verified(self) -> None:
        """A whole scrub has read all images back; what it found is on record."""
        self.unverified = frozenset()

    def _statement(self, state: GroupState) -> Applied:
        end = self._history.last_end
        return Applied(
            self._history.stream.stream,
            end.number,
            end.position,
            end.chain,
            state.next_point,
            state.generation,
            {
                name: UNVERIFIED if name in self.unverified else self._replica.inode(name)
                for name in state.disks
            },
            *self._sums.written,
        )
