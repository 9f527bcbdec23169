# SPDX-License-Identifier: Apache-2.0
"""What a person's text for a point means to a group, and what the answer says of it.

pointspec finds the point; which write a time within a second means takes a look at the frames that
are kept. Where none can be had for it the checkpoint before is meant, and the answer says why.
"""

from __future__ import annotations

from dataclasses import dataclass

from receiver.damage import doubt
from receiver.group.worker import GroupWorker
from receiver.orders.describe import point_of
from receiver.points import pointspec
from receiver.points.values import Point as CorePoint
from replicator.base.clock import NS_PER_S, Clock, rfc3339_exact
from replicator.base.errors import NoPointError, UsageError
from replicator.base.moments import Moment
from replicator.base.pointtext import parse
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
        chosen = self._find(text, zone, worker)
        writes, write_ns, notice = chosen.writes, None, ""
        distance_ns = chosen.distance_ns
        if chosen.fine_ns is not None:
            writes, write_ns, notice = await _last_write(worker, chosen.point, chosen.fine_ns)
            if write_ns is not None:
                distance_ns = max(chosen.fine_ns - write_ns, 0)
            elif not distance_ns:
                notice = ""  # the point stands for exactly that time
        elif writes:
            write_ns = (await worker.ordered.write_at(chosen.point, writes)).time_ns
        disks = doubt.of_point(worker.replica.opening.unverified, chosen.point)
        notices = (notice, chosen.notice, doubt.warning(disks))
        choice = Choice(
            asked=text,
            point=point_of(chosen.point, unverified=bool(disks)),
            distance_seconds=None if distance_ns is None else distance_ns / NS_PER_S,
            writes=writes,
            write_time=None if write_ns is None else rfc3339_exact(write_ns),
            local=chosen.local,
            notice="; ".join(filter(None, notices)),
        )
        return Choosing(choice, chosen.point, writes)

    def point(self, worker: GroupWorker, text: str, zone: str | None) -> CorePoint:
        """A whole point, no write."""
        chosen = self._find(text, zone, worker)
        if chosen.writes:
            raise UsageError(f"{text!r} is a single write", hint="name a point, like '#12'")
        return chosen.point

    def time(self, text: str, zone: str | None) -> Moment:
        """What stands for a time and nothing else."""
        moment = parse(text, self._clock.utc_ns(), zone).moment
        if moment is None:
            raise UsageError(f"{text[:80]!r} is no time", hint="say it as '10m ago', or RFC 3339")
        return moment

    async def moment(self, worker: GroupWorker, text: str, zone: str | None) -> Moment:
        """A time, or that of the point or of the single write which the text names."""
        spec = pointspec.read(text, self._clock.utc_ns(), zone, worker.replica.known.ages())
        if spec.moment is not None:
            return spec.moment
        chosen = pointspec.resolve(spec, worker.ordered.points())
        time_ns = chosen.point.time_ns
        if chosen.writes:
            time_ns = (await worker.ordered.write_at(chosen.point, chosen.writes)).time_ns
        return Moment(time_ns, time_ns)

    def _find(self, text: str, zone: str | None, worker: GroupWorker) -> pointspec.Chosen:
        points, ages = worker.ordered.points(), worker.replica.known.ages()
        return pointspec.find(text, self._clock.utc_ns(), zone, points, ages)


async def _last_write(
    worker: GroupWorker, point: CorePoint, until_ns: int
) -> tuple[int, int | None, str]:
    """(writes behind the point, when the last one was, what should be known of it)."""
    try:
        last, why = await worker.ordered.last_write(point, until_ns)
    except NoPointError as error:
        return 0, None, f"the checkpoint before is meant: {error.message}"
    if last is None:
        return 0, None, why and f"the checkpoint before is meant: of writes behind it, {why}"
    return last.number, last.time_ns, why and f"later writes cannot be had: {why}"
