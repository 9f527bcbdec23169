# SPDX-License-Identifier: Apache-2.0
"""What the agents' clocks say of the receiver's. No I/O.

An agent tells its two clocks every few seconds (replicator.wire.messages.Ping). Its wall clock
moves with its monotonic one; a difference between two tellings is a *step*. A session's witness is
*steady* when it has been told for STEADY_NS without one. The receiver's wall clock W is vouched for
when there is at least one steady witness, and every steady one is within AGREEMENT_NS of W. What
has not been connected for so long says nothing, neither for W nor against it; nor does a session
that tells no clocks (an agent of an earlier version).

An agent that lies can vouch only for what W says already: it cannot move W.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from replicator.base.clock import NS_PER_S
from replicator.wire.protocol import PeerClocks

STEADY_NS = 600 * NS_PER_S
AGREEMENT_NS = 600 * NS_PER_S
STEP_NS = 10 * NS_PER_S
SILENT_NS = 30 * NS_PER_S
"""What was told longer ago than this says nothing any more."""


@dataclass(slots=True)
class ClockWitness:
    """One session's. `hear` whatever was told last, as often as one likes."""

    agent: str
    _first: PeerClocks | None = None
    _last: PeerClocks | None = None

    def hear(self, told: PeerClocks | None) -> None:
        if told is None or told == self._last:
            return
        if self._first is None or abs(_offset(told) - _offset(self._first)) > STEP_NS:
            self._first = told
        self._last = told

    def is_steady(self, monotonic_ns: int) -> bool:
        """`monotonic_ns` is ours."""
        if self._first is None or self._last is None:
            return False
        is_fresh = monotonic_ns - self._last.heard_ns <= SILENT_NS
        return is_fresh and self._last.heard_ns - self._first.heard_ns >= STEADY_NS

    def off_ns(self, wall_ns: int, monotonic_ns: int) -> int:
        """How far our wall clock is from the agent's. Only if it is steady."""
        assert self._last is not None
        theirs_ns = self._last.wall_ns + monotonic_ns - self._last.heard_ns
        return abs(wall_ns - theirs_ns)


def _offset(told: PeerClocks) -> int:
    return told.wall_ns - told.monotonic_ns


def vouch_for(witnesses: Iterable[ClockWitness], wall_ns: int, monotonic_ns: int) -> list[str]:
    """The agents that do, where all who can tell agree; empty: W is not vouched for."""
    steady = [each for each in witnesses if each.is_steady(monotonic_ns)]
    if any(each.off_ns(wall_ns, monotonic_ns) > AGREEMENT_NS for each in steady):
        return []
    return sorted({each.agent for each in steady})
