# SPDX-License-Identifier: Apache-2.0
"""When something happened at a source, by the receiver's own clock. No I/O.

The source's wall clock may step, so what it stamps is a name and no measure. Its monotonic clock
does not: an agent says every few seconds what both show in one moment (PING), and the receiver
notes what its own clock, the counted one, showed when that came in. From then on the source's
monotonic time is known in the receiver's: `heard - monotonic` is the difference of the two, and the
time that the message was under way. That is never negative, so of the pairs of the last while the
smallest is nearest to the truth; one that waited behind a megabyte of frames does no harm.

A monotonic clock means something within one boot of one machine. A pair names the stream that is
captured there now, and what is said here is said of that stream's stamps alone: those of a stream
that an earlier boot captured are never measured by this boot's clock. Where no pair tells (the
receiver was started anew, and applies what it had), a point goes by the one before it in its
stream.

Concurrency: the event loop's thread writes; anybody may ask.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from uuid import UUID

from receiver.points.values import Point
from replicator.base.clock import NS_PER_S

PAIRS_MAX = 120
"""Ten minutes of them: long enough for one that came through at once, too short for two quartzes
to drift apart by more than some milliseconds."""
STREAMS_MAX = 8


@dataclass(frozen=True, slots=True)
class Pair:
    """What an agent's clocks showed in one moment; `heard_ns`: ours, when it said so. `stream`:
    captured on its machine, in this boot."""

    wall_ns: int
    monotonic_ns: int
    heard_ns: int
    stream: UUID | None = None


class SourceClock:
    """That of the machine which feeds a group."""

    def __init__(self) -> None:
        self.pairs: deque[Pair] = deque(maxlen=PAIRS_MAX)
        """Those of the session under way, oldest first."""
        self._apart_ns: dict[UUID, int] = {}

    def begin_session(self) -> None:
        """Another process speaks, perhaps of another machine."""
        self.pairs.clear()

    def heard(self, pair: Pair) -> None:
        self.pairs.append(pair)
        if pair.stream is None:
            return
        apart_ns = min(each.heard_ns - each.monotonic_ns for each in self.pairs)
        known = {name: apart for name, apart in self._apart_ns.items() if name != pair.stream}
        newest = list(known.items())[-(STREAMS_MAX - 1) :]
        self._apart_ns = {**dict(newest), pair.stream: apart_ns}

    @property
    def offset_seconds(self) -> float | None:
        """How far the source's wall clock is ahead of ours; None where nobody has said. The
        message was some time under way, so of the pairs of the last while the largest counts."""
        if not self.pairs:
            return None
        return max(pair.wall_ns - pair.heard_ns for pair in self.pairs) / NS_PER_S

    def when(self, stream: UUID, monotonic_ns: int) -> int | None:
        """Our time at which that stream's source stamped so; None where nobody can say."""
        apart_ns = self._apart_ns.get(stream)
        return None if apart_ns is None or not monotonic_ns else max(monotonic_ns + apart_ns, 0)

    def dated(self, stream: UUID, point: Point, before: Point | None) -> Point:
        """The point with when it was made, as far as anybody knows. `before`: the one before it."""
        if point.made_ns or not point.monotonic_ns:
            return point
        made_ns = self.when(stream, point.monotonic_ns)
        if made_ns is None and before is not None and before.ordinal == point.ordinal:
            since_ns = point.monotonic_ns - before.monotonic_ns
            made_ns = before.made_ns + since_ns if before.made_ns and before.monotonic_ns else None
        return point if made_ns is None else replace(point, made_ns=max(made_ns, 0))
