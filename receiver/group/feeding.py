# SPDX-License-Identifier: Apache-2.0
"""What a session asks of a group: frames taken in, streams opened, digests for a sync.

Frames go through the intake lane, and are durable when `take_in` returns; digests are read in the
apply lane, between two batches.

Failure: what is neither the agent's fault nor a full disk stops the group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from receiver.group.group import GroupReplica
from receiver.group.health import Health
from receiver.group.lanes import Lanes
from receiver.group.witness import Witness
from receiver.points.source_clock import Pair
from receiver.points.values import Point, SyncNotice
from receiver.tasks.lane import P, T
from replicator import __version__
from replicator.base.clock import Clock
from replicator.base.errors import DamageError, NoSpaceError, ReplicatorError
from replicator.base.trouble import words_of
from replicator.wire import messages as wire
from replicator.wire.frames import Frame
from replicator.wire.limits import DIGEST_BLOCK_BYTES
from replicator.wire.protocol import PeerClocks

RESENT_POINTS = 64
"""Points told again when a stream is resumed: their ACK may have been lost with the connection."""


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became durable with a group of frames, in the wire's words."""

    points: list[wire.Point]
    syncs: list[SyncNotice]


@dataclass(frozen=True, slots=True)
class StreamTaken:
    """The answer to an OPEN, and what follows from it."""

    message: wire.Opened
    points: list[wire.Point]
    syncs: list[SyncNotice]


class Feeding:
    """See the head of this file. `receiver`: the name that agents are told."""

    def __init__(
        self,
        replica: GroupReplica,
        health: Health,
        lanes: Lanes,
        witness: Witness,
        *,
        clock: Clock,
        receiver: str,
    ) -> None:
        self._replica = replica
        self._health = health
        self._lanes = lanes
        self._witness = witness
        self._clock = clock
        self._receiver = receiver

    def welcome(self) -> wire.Welcome:
        facts = self._replica.known.welcome()
        newest = self._replica.points.newest
        return wire.Welcome(
            receiver=self._receiver,
            generation=facts.generation,
            stream=None if facts.stream is None else str(facts.stream),
            ordinal=facts.ordinal,
            durable_lsn=facts.durable_lsn,
            chain=facts.chain,
            applied_lsn=facts.applied_lsn,
            closed_ordinal=facts.closed_ordinal,
            next_point=facts.next_point,
            points=self._replica.points.count,
            newest_point=None if newest is None else on_wire(newest),
            version=__version__,
        )

    def heard(self, clocks: PeerClocks) -> None:
        """What the agent's clocks showed."""
        stream = None if clocks.stream is None else UUID(clocks.stream)
        since_ns = self._clock.monotonic_ns() - clocks.heard_ns
        heard_ns = self._replica.known.ages().counted_ns - since_ns
        self._replica.intake.source_clock.heard(
            Pair(clocks.wall_ns, clocks.monotonic_ns, heard_ns, stream)
        )

    # Taking in: the intake lane.

    async def take_in(self, frames: Sequence[Frame]) -> TakenIn:
        """Appends the frames and makes them durable. Raises what the agent is to be told; then
        those before the bad one are durable all the same."""
        try:
            taken = await self._in_intake(self._take_in, frames)
        except NoSpaceError as error:
            self._witness.no_room(error)
            raise
        finally:
            self._lanes.wake()
        self._witness.took_in()
        if taken.points:
            self._witness.proven()
        return taken

    async def open_stream(self, message: wire.Open) -> StreamTaken:
        opened = await self._in_intake(
            self._replica.intake.open_stream,
            UUID(message.stream),
            message.ordinal,
            message.start_lsn,
            message.chain,
        )
        self._lanes.wake()
        self._lanes.changed.told()
        syncing = [wire.SyncingDisk(s.disk, s.name, s.size_bytes, s.sync_lsn) for s in opened.syncs]
        again = opened.points or told_again(self._replica.points.all, message)
        return StreamTaken(
            wire.Opened(opened.durable_lsn, syncing, len(again)),
            [on_wire(point) for point in again],
            opened.syncs,
        )

    async def hold(self, lsn: int, until_ns: int) -> bool:
        """Whether the newest point holds until then."""
        holds = await self._in_intake(self._replica.intake.hold, lsn, until_ns)
        if holds:
            self._witness.proven()
        return holds

    async def quiet(self) -> None:
        """Returns when no step of a session is under way in the intake lane."""
        await self._lanes.intake.quiet()

    async def _in_intake(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A supervision: what is neither the agent's fault nor a full disk stops the group."""
        self._health.check_alive()
        try:
            return await self._lanes.intake.run(step, *args, **kwargs)
        except ReplicatorError:
            raise
        except Exception as error:
            if isinstance(trouble := words_of(error), NoSpaceError):
                raise trouble from error
            raise self._health.stop.because(error, "intake") from error

    def _take_in(self, frames: Sequence[Frame]) -> TakenIn:
        """In the intake lane."""
        self._lanes.room.check()
        accepted: list[Frame] = []
        taken = TakenIn([], [])
        try:
            for frame in frames:
                self._replica.intake.accept(frame)
                accepted.append(frame)
        except DamageError:
            self._lanes.figures.found_damage("wire")
            raise
        finally:
            if accepted:
                taken = self._make_durable(accepted)
        return taken

    def _make_durable(self, accepted: Sequence[Frame]) -> TakenIn:
        began = time.monotonic()
        durable = self._replica.intake.sync()
        figures = self._lanes.figures
        figures.inbox_syncs.add(time.monotonic() - began)
        figures.points_made += len(durable.points)
        figures.received_frames += len(accepted)
        figures.received_bytes += sum(frame.size for frame in accepted)
        figures.received_raw_bytes += sum(frame.header.raw_bytes for frame in accepted)
        return TakenIn(
            [on_wire(point) for point in durable.points],
            durable.syncs,
        )

    # Digests: the apply lane.

    async def until_applied(self, lsn: int) -> None:
        """See DigestSource. `lsn` is one of the stream that is open now."""
        ordinal = self._replica.known.welcome().ordinal
        while not self._replica.known.is_applied(ordinal, lsn):
            self._health.check_alive()
            await self._lanes.changed.wait()

    async def digests(
        self, sync: SyncNotice, first_block: int, count: int, key: bytes
    ) -> list[wire.Digests] | None:
        """See DigestSource."""
        chunk = await self._lanes.apply.run(
            self._replica.showing.digests, sync.disk, sync.sync_lsn, first_block, count, key
        )
        if chunk is None:
            return None
        self._lanes.figures.digest_bytes += count * DIGEST_BLOCK_BYTES
        return [
            wire.Digests(
                sync.disk, sync.sync_lsn, run.first_block, chunk.lsn, run.digests, run.zero_blocks
            )
            for run in chunk.runs
        ]


def told_again(points: Sequence[Point], message: wire.Open) -> list[Point]:
    """Those of the stream that is resumed whose ACK may have been lost."""
    of_stream = [point for point in points if point.ordinal == message.ordinal and point.lsn]
    if message.points_after is None:
        return of_stream[-RESENT_POINTS:]
    return [point for point in of_stream if point.lsn > message.points_after]


def on_wire(point: Point) -> wire.Point:
    return wire.Point(
        point.sequence,
        point.time_ns,
        point.kind,
        point.lsn,
        point.label,
        point.until_ns,
        point.ordinal,
    )
