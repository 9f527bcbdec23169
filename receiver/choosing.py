# SPDX-License-Identifier: Apache-2.0
"""What a person's text for a point means to a group, and what the answer says of it.

pointspec finds the point; which write a time within a second means takes a look at the frames that
are kept. Where none can be had for it the checkpoint before is meant, and the answer says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import tzinfo

from receiver import pointspec
from receiver.describe import point_of
from receiver.moments import zone_of
from receiver.values import Point as CorePoint
from receiver.worker import GroupWorker
from replicator.base.clock import NS_PER_S, Clock, rfc3339
from replicator.base.errors import NoPointError, UsageError
from replicator.control.types import Choice


@dataclass(frozen=True, slots=True)
class Choosing:
    """`writes` behind the point are meant as well."""

    choice: Choice
    point: CorePoint
    writes: int


class Chooser:
    """See the head of this file. `zone` is that of who typed the text, as it was sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def choose(self, worker: GroupWorker, text: str, zone: str | None) -> Choosing:
        """Raises UsageError, NotFoundError, NoPointError, DamageError."""
        chosen = self._find(text, zone, worker.points())
        writes, write_ns, notice = chosen.writes, None, ""
        distance_ns = chosen.distance_ns
        if chosen.fine_ns is not None:
            writes, write_ns, notice = await _last_write(worker, chosen.point, chosen.fine_ns)
            if write_ns is not None:
                distance_ns = max(chosen.fine_ns - write_ns, 0)
        elif writes:
            write_ns = (await worker.write_at(chosen.point, writes)).time_ns
        choice = Choice(
            asked=text,
            point=point_of(chosen.point),
            distance_seconds=None if distance_ns is None else distance_ns / NS_PER_S,
            writes=writes,
            write_time=None if write_ns is None else rfc3339(write_ns),
            local=chosen.local,
            notice=notice,
        )
        return Choosing(choice, chosen.point, writes)

    def point(self, worker: GroupWorker, text: str) -> CorePoint:
        """A whole point, no write."""
        chosen = self._find(text, None, worker.points())
        if chosen.writes:
            raise UsageError(f"{text!r} is a single write", hint="name a point, like '#12'")
        return chosen.point

    def moment(self, text: str, zone: str | None, points: list[CorePoint]) -> int:
        """A time, or that of the point which the text names."""
        known = None if zone is None else zone_of(zone)
        spec = pointspec.parse(text, self._clock.utc_ns(), known)
        if spec.time_ns is not None:
            return spec.time_ns
        return pointspec.resolve(spec, points).point.time_ns

    async def moment_of(self, worker: GroupWorker, text: str, zone: str | None) -> int:
        """As `moment`, or the time of a single write."""
        known = None if zone is None else zone_of(zone)
        spec = pointspec.parse(text, self._clock.utc_ns(), known)
        if not spec.writes:
            return self.moment(text, zone, worker.points())
        chosen = pointspec.resolve(spec, worker.points())
        return (await worker.write_at(chosen.point, chosen.writes)).time_ns

    def _find(self, text: str, zone: str | None, points: list[CorePoint]) -> pointspec.Chosen:
        known: tzinfo | None = None if zone is None else zone_of(zone)
        return pointspec.find(text, self._clock.utc_ns(), known, points)


async def _last_write(
    worker: GroupWorker, point: CorePoint, until_ns: int
) -> tuple[int, int | None, str]:
    """(writes behind the point, when the last one was, what should be known of it)."""
    try:
        last, why = await worker.last_write(point, until_ns)
    except NoPointError as error:
        return 0, None, f"the checkpoint before is meant: {error.message}"
    if last is None:
        return 0, None, why and f"the checkpoint before is meant: of writes behind it, {why}"
    return last.number, last.time_ns, why and f"later writes cannot be had: {why}"
