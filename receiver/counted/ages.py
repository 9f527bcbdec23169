# SPDX-License-Identifier: Apache-2.0
"""How old a moment is: for deletion, and for the lock. No I/O.

Moments are stamps of the counted clock C, and an age is C less the stamp. Where C was set forward,
because a jump of the wall clock was accepted (receiver.counted.rules), three things follow:

* What was stamped since the wall clock jumped, or the machine booted, was stamped too low: it is
  not older for that. A *lag* says which stamps these are, and by how much they are moved.
* Deletion does not believe a *jump* that only the agents' clocks confirm before it is *ripe*, ten
  minutes of a good clock later: till then it goes by C less the jump, so that whoever reads of it
  in the log still has time.
* The lock never does: of an age by the lock's clock, all jumps behind the stamp are taken away.
  They are believed when a person accepts the clock with a reason, which is audited: no jump is
  left.

So the lock's clock is never ahead of C. `locked_after_ns` turns it around: one bound for all
stamps, as deletion has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from replicator.base.clock import NS_PER_S

RIPENING_NS = 600 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Lag:
    """Stamps from `since_ns` on are too low by `by_ns`; C was set to `at_ns` then. What lies
    between where it was before and that can only be of a life whose clock was not kept: it is moved
    as far as it may."""

    since_ns: int
    by_ns: int
    at_ns: int

    def moved_ns(self, stamp_ns: int) -> int:
        if self.since_ns <= stamp_ns < self.at_ns:
            return min(stamp_ns + self.by_ns, self.at_ns)
        return stamp_ns


@dataclass(frozen=True, slots=True)
class Jump:
    """Between what was stamped before it and (moved) `at_ns` nothing but the agents' clocks says
    that `by_ns` have passed. Deletion believes it from `ripe_ns` on."""

    at_ns: int
    by_ns: int
    ripe_ns: int


@dataclass(frozen=True, slots=True)
class Ages:
    """The clock as it is now. `behind_ns` is how far the wall clock is ahead of C beyond what is
    slewed away; 0: it is not. `jumps` are those that the lock does not believe, oldest first."""

    counted_ns: int
    jumps: tuple[Jump, ...] = ()
    lags: tuple[Lag, ...] = ()
    behind_ns: int = 0

    @property
    def now_ns(self) -> int:
        """What deletion goes by."""
        unripe = sum(each.by_ns for each in self.jumps if self.counted_ns < each.ripe_ns)
        return self.counted_ns - unripe

    def locked_after_ns(self, lock_ns: int) -> int:
        """What ends after that moment is locked."""
        rest_ns, end_ns = lock_ns, self.counted_ns
        for jump in reversed(self.jumps):
            if end_ns - rest_ns >= jump.at_ns:
                break
            rest_ns -= max(end_ns - jump.at_ns, 0)
            end_ns = jump.at_ns - jump.by_ns
        return end_ns - rest_ns

    def lock_ends_ns(self, moment_ns: int, lock_ns: int) -> int:
        """Until when what ends at that moment is locked, by C."""
        not_believed = sum(each.by_ns for each in self.jumps if each.at_ns > moment_ns)
        return moment_ns + lock_ns + not_believed

    @property
    def lock_behind_ns(self) -> int:
        """How far the lock's clock is behind C."""
        return sum(each.by_ns for each in self.jumps)

    @property
    def hint(self) -> str:
        """What would let points be older, where only a person can say so; empty: nothing."""
        if not self.behind_ns and not self.jumps:
            return ""
        return (
            "the receiver's clock has jumped, and points do not age by that until it is accepted:"
            " if the machine's time is right, `replicator clock accept`"
        )


class AgeClock(Protocol):
    """What a group asks the counted clock. Any thread."""

    def stamp_ns(self) -> int:
        """C, for something that becomes durable; never lower than what it gave before."""
        ...

    def ages(self) -> Ages: ...


def moved_ns(stamp_ns: int, lags: tuple[Lag, ...]) -> int:
    """The stamp as it counts. `lags` are all there were, oldest first."""
    for lag in lags:
        stamp_ns = lag.moved_ns(stamp_ns)
    return stamp_ns
