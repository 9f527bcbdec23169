# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next attempt: doubling, bounded, jittered. No I/O.

The jitter is full from half to whole: a hundred agents that lost one receiver together do not come
back together.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(slots=True)
class Pace:
    """`next_seconds` grows from attempt to attempt; `fresh` begins again."""

    first_seconds: float
    most_seconds: float
    _wait_seconds: float = field(default=0.0, repr=False)

    def fresh(self) -> Pace:
        return Pace(self.first_seconds, self.most_seconds)

    def succeeded(self) -> None:
        self._wait_seconds = 0.0

    def next_seconds(self) -> float:
        doubled = self._wait_seconds * 2
        self._wait_seconds = min(max(doubled, self.first_seconds), self.most_seconds)
        return self._wait_seconds * random.uniform(0.5, 1.0)
