# SPDX-License-Identifier: Apache-2.0
"""How long a window the budget holds, at the rate at which the history grows now. No I/O.

What counts is what is written to the history, not its size: the size stands still where as much
is given up as comes in. The position in the history's log tells that, for it only rises. A sample
is taken now and then; the rate is that of the last hour or of the last day, whichever is higher:
a quiet night must not promise what the morning does not keep.

Compaction makes older parts smaller than they were written, so a budget holds at least as long as
this says. Nothing is said before MEASURED_MIN_NS of a life, nor while nothing is written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from replicator.base.clock import NS_PER_S

HOUR_NS = 3600 * NS_PER_S
DAY_NS = 24 * HOUR_NS
MEASURED_MIN_NS = 60 * NS_PER_S
SAMPLE_NS = 60 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Sample:
    """`written_bytes` have been written in all until then; only differences mean anything."""

    at_ns: int
    written_bytes: int


def rate_per_s(samples: Sequence[Sample], span_ns: int) -> float | None:
    """Bytes per second over the last `span_ns` of the samples (oldest first), or over what there
    is of it. None if that is too short to tell."""
    if not samples:
        return None
    last = samples[-1]
    first = next(each for each in samples if last.at_ns - each.at_ns <= span_ns)
    measured_ns = last.at_ns - first.at_ns
    if measured_ns < min(MEASURED_MIN_NS, span_ns):
        return None
    return (last.written_bytes - first.written_bytes) * NS_PER_S / measured_ns


def forecast_seconds(samples: Sequence[Sample], capacity_bytes: int) -> float | None:
    """For how long the budget holds what is written. None while that is not known."""
    rates = [rate_per_s(samples, HOUR_NS), rate_per_s(samples, DAY_NS)]
    highest = max((rate for rate in rates if rate is not None), default=0.0)
    return capacity_bytes / highest if highest > 0 else None


class Growth:
    """The samples of the last day. One writer; `samples` is replaced, so any thread may read."""

    def __init__(self) -> None:
        self.samples: tuple[Sample, ...] = ()

    def note(self, now_ns: int, written_bytes: int) -> None:
        """At most one sample each SAMPLE_NS stays. A clock that went back begins anew."""
        kept = deque(self.samples)
        if kept and now_ns < kept[-1].at_ns:
            kept.clear()
        if kept and now_ns - kept[-1].at_ns < SAMPLE_NS:
            return
        kept.append(Sample(now_ns, written_bytes))
        while now_ns - kept[0].at_ns > DAY_NS:
            kept.popleft()
        self.samples = tuple(kept)
