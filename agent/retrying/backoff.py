# SPDX-License-Identifier: Apache-2.0
"""Something that is tried again after it failed: when, and what is said meanwhile. No I/O.

Every retry at the source's side goes by this rule, or by agent.retrying.pace where many agents
would come back together:

* Each failure in a row waits twice as long as the one before, up to a bound. So a fault that stays
  costs less and less, and one that was over at once costs nearly nothing.
* The reason of the last failure stands until a success, also while the next try runs: a try that
  is under way proves nothing. It is what a status shows.
* What a success is, the caller says. That something began is none; often it is that it held.
* A person's order may try at once (`hurry`). If that fails too, the next wait is the longer one.

Times are seconds of one clock that never goes back, the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """`failures` in a row, and the `reason` of the last one; 0 and empty after a success."""

    first_seconds: float
    most_seconds: float
    failures: int = 0
    reason: str = ""
    _next_at: float | None = field(default=None, repr=False)

    def failed(self, reason: str, now: float) -> float:
        """The seconds from `now` to the next try."""
        # Bounded before it is used: 2.0 ** 1100 is an error.
        wait = min(self.first_seconds * 2.0 ** min(self.failures, 64), self.most_seconds)
        self.failures += 1
        self.reason = reason
        self._next_at = now + wait
        return wait

    def succeeded(self) -> None:
        self.failures, self.reason, self._next_at = 0, "", None

    def hurry(self) -> None:
        self._next_at = None

    def left(self, now: float) -> float:
        """The seconds until the next try; 0 if it may begin now."""
        return 0.0 if self._next_at is None else max(0.0, self._next_at - now)

    def said(self, what: str, now: float) -> str:
        """For a status: what is waited for, or tried again, and why. Empty if nothing failed."""
        if not self.failures:
            return ""
        left = self.left(now)
        when = (
            f"{what} again in {left:.0f} s" if left else f"{what} again (try {self.failures + 1})"
        )
        return f"{when}; the last time it failed: {self.reason}"
