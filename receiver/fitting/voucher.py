# SPDX-License-Identifier: Apache-2.0
"""Keeps `disks/applied` in step with what is applied.

With each batch it states the one before (`begin`, beside the sync of the batch's images; `ensure`,
before the replica is touched). Where nothing is left to be applied it states the newest one
(`rest`), and then the next batch has nothing to state: one more sync a batch, at most.

Before the history lets go of batches, everything that is applied is stated (`keep_up`): behind the
statement an opening compares the replica with what the history tells, and where that tells no
longer, all of the replica would be in doubt. So it is stated also where a batch is begun and not
applied, in this life or in one before (`resume`).

It also says whether a batch behind that one may have touched an image: where nothing is left to be
applied none has (`is_resting`), and no image was written since by anybody else, if its times are
still the same. Before the next batch touches one, that is taken back, with how much of the log it
takes: an opening that finds neither its place in the history nor all of that log cannot tell what
the images hold. What is none of the log leaves no such trace, so it is durable in the history
before that is taken back.

What an opening found wrong is in memory until a batch has put it on record. Until that batch is
durable the statement stays as it is (`hold_back`): a crash in between must find it again.

An image that is not the file on record is `unverified`: it may be a copy from another moment. So is
one that lacks some of what was written last (receiver.opening.compare.lately).
It stays so on record until a scrub that was begun for it has read all of it back (`verified`).
What that means for who wants to look at its points: receiver.damage.doubt.

Concurrency: the group's apply thread; `unverified` is replaced as a whole, any thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from receiver.blocks.replica import Replica
from receiver.fitting.applied import AppliedSlots
from receiver.fitting.looking import is_as_written
from receiver.history.batch_list import BatchEnd
from receiver.history.log import HistoryLog
from receiver.history.state import GroupState
from receiver.history.sums.sums import LatestSums
from receiver.points.evidence import Applied

UNVERIFIED = 0
Upto = tuple[int, int]
"""How far a batch takes the log: (ordinal, LSN)."""
NOT_OF_THE_LOG = (0, 0)


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
        """What was found wrong is on record, or was nothing."""
        self._held_back = False

    def resume(self, before: GroupState, upto: Upto) -> None:
        """An opening has found a batch that is begun and not applied, and nothing wrong; `before`
        is the group in front of it. Raises DamageError."""
        batches, durable = self._history.batch_list.all, self._slots.durable
        unapplied = self._history.batch_list.unapplied
        if unapplied is None:
            return
        if durable is not None and durable.is_resting:  # it is done again, or was never begun
            is_next = unapplied.number > durable.number
            self._wanted = replace(durable, is_resting=not is_next, begun=upto, times={})
        if self._held_back or len(batches) < 2:
            return
        last = batches[-2]
        is_older = durable is not None and durable.number < last.number
        if is_older and is_as_written(last, self._history):
            end = BatchEnd(last.number, last.end, self._history.reader.chain_behind(last))
            self._wanted = self._statement(before, end, begun=upto)

    def begin(self, before: GroupState, upto: Upto | None) -> None:
        """A batch comes; `before` is the group in front of it, `upto` is how far it takes the log;
        None: it touches no image."""
        self._wanted = None
        if not self._held_back:
            self._wanted = self._statement(before, begun=upto)
            if upto != NOT_OF_THE_LOG:
                self._slots.begin(self._wanted)

    def begun(self, before: GroupState, upto: Upto | None) -> None:
        """The batch is durable, and not yet among those that the history tells of."""
        if self._held_back:
            self._held_back = False
            self._wanted = self._statement(before, begun=upto)

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

    def keep_up(self, applied: GroupState, *, is_pending: bool) -> None:
        """Batches are about to be let go of, or sums of them have just come to the disk. Raises
        OSError: then they stay."""
        if not is_pending:
            self.rest(applied)
        elif self._wanted is not None:
            base, own = self._sums.written
            self._wanted = replace(self._wanted, sums_upto=base, own_sums_upto=own)
            self._slots.ensure(self._wanted)

    def state(self, state: GroupState) -> None:
        """As `rest`, whatever was stated before: it was accepted that this is gone."""
        self._slots.ensure(self._statement(state))

    def verified(self, disks: Collection[str]) -> None:
        """A scrub has read these images back; what it found is on record."""
        self.unverified = self.unverified - frozenset(disks)

    def _statement(
        self, state: GroupState, end: BatchEnd | None = None, *, begun: Upto | None = None
    ) -> Applied:
        """`end`: of the last batch that is applied, where it isn't the newest one; `begun`: the one
        behind it may touch images from now on."""
        end = end or self._history.batch_list.last_end
        return Applied(
            self._history.segment_set.stream.stream,
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
            is_resting=begun is None,
            begun=begun or NOT_OF_THE_LOG,
            times={} if begun else self._times(state),
        )

    def _times(self, state: GroupState) -> dict[str, tuple[int, int]]:
        there = (name for name in state.disks if self._replica.size_of(name) is not None)
        return {name: self._replica.times(name) for name in there}
