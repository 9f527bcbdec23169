# SPDX-License-Identifier: Apache-2.0
"""How fast a figure rises, over the last minute. No I/O."""

from __future__ import annotations

from collections import deque

from replicator.base.clock import NS_PER_S

APART_NS = NS_PER_S
WINDOW_NS = 60 * NS_PER_S


class Rate:
    """Of a figure that only rises; where it falls, it has begun anew. Times are monotonic."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def note(self, value: int, now_ns: int) -> None:
        seen = self._seen
        if seen and value < seen[-1][1]:
            seen.clear()
        if not seen or now_ns - seen[-1][0] >= APART_NS:
            seen.append((now_ns, value))
        while now_ns - seen[0][0] > WINDOW_NS:
            seen.popleft()

    def per_second(self) -> float | None:
        """None before there is anything to go by."""
        if len(self._seen) < 2:
            return None
        (first_ns, first), (last_ns, last) = self._seen[0], self._seen[-1]
        return (last - first) * NS_PER_S / (last_ns - first_ns)
