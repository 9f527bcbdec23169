# SPDX-License-Identifier: Apache-2.0
"""How marks went, and how long guests were frozen: counts for the metrics. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

FROZEN_BOUNDS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class QuiesceFigures:
    """`counts` has one more entry than the bounds: the rest. `outcomes`: application, crash (with
    quiesce = "try"), failed."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(FROZEN_BOUNDS_SECONDS) + 1))
    sum_seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)

    def note_frozen(self, seconds: float) -> None:
        self.counts[bisect_left(FROZEN_BOUNDS_SECONDS, seconds)] += 1
        self.sum_seconds += seconds
