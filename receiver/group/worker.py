# SPDX-License-Identifier: Apache-2.0
"""A group at work: its core in two lanes, and what the event loop may ask of it.

    intake lane   accept, fdatasync, open a stream, hold          the inbox
    apply lane    batches, retention, digests, views, rollback    history and replica

The lanes run side by side: a slow replica does not hold up acknowledgements, and a burst from the
link does not hold up a view. Each is one thread, so the inbox has one writer and the replica has
one writer, whatever the daemon does around them: `GroupReplica` is reachable through this object
alone. What the loop asks without a lane (facts, points) never blocks.

What becomes of the trouble of a group stands in receiver.tasks.stop. One that has been recovered
and was stopped later goes on serving its points that are whole.

Failure: a kill at any moment leaves what the core's recovery is made for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID

import structlog

from receiver.data_dir.reserve import UNRESERVED, Room
from receiver.group.group import GroupReplica
from receiver.group.image_watch import ImageWatch
from receiver.group.seat import Seat
from receiver.group.witness import Witness
from receiver.history.images import BLOCK_BYTES
from receiver.points.figures import GroupFigures
from receiver.points.policy import HistoryPolicy
from receiver.points.source_clock import Pair
from receiver.points.values import (
    Dropped,
    Point,
    RollbackDone,
    RollbackPlan,
    SyncNotice,
    WelcomeFacts,
)
from receiver.restore.restore import Restored, RestoreOrder, restore_view
from receiver.retention.dropping import DropOrder
from receiver.retention.rewrite_rate import RewriteRate
from receiver.scrub.scrubbing import Scrubbing
from receiver.tasks.change import Change
from receiver.tasks.lane import Aside, Lane, P, T
from receiver.tasks.pacing import Pacing
from receiver.tasks.pump import ApplyPump
from receiver.tasks.stop import Stop
from receiver.views.fine_view import GroupView
from receiver.writes.history import PointWrite
from receiver.writes.walk import FineWrite
from replicator import __version__
from replicator.base.clock import Clock, SystemClock
from replicator.base.errors import (
    DamageError,
    NoSpaceError,
    ReplicatorError,
    UnreachableError,
    UsageError,
)
from replicator.base.trouble import anew, is_bug, words_of
from replicator.base.units import format_size
from replicator.config.receiver import ScrubSection
from replicator.control.service import Report
from replicator.control.types import Progress
from replicator.wire import messages as wire
from replicator.wire.frames import Frame
from replicator.wire.limits import DIGEST_BLOCK_BYTES
from replicator.wire.protocol import PeerClocks

IDLE_SECONDS = 60.0
"""A group that has nothing to apply takes a step so often all the same: its points grow older."""
TIDY_SECONDS = 2.0
"""For how long at a stretch room is made while nothing may be applied for want of it."""
RESENT_POINTS = 64
"""Points told again when a stream is resumed: their ACK may have been lost with the connection."""

_log = structlog.get_logger(__name__)


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


class GroupWorker:
    """See the head of this file. `recover`, then `start`; `close` at the end."""

    def __init__(
        self,
        replica: GroupReplica,
        *,
        receiver: str,
        policy: HistoryPolicy,
        scrub: ScrubSection | None = None,
        clock: Clock | None = None,
        room: Room = UNRESERVED,
    ) -> None:
        self.name = replica.name
        self._room = room
        self.seat = Seat(replica.name)
        self.figures = GroupFigures()
        self.changed = Change()
        self.source_clock = replica.intake.source_clock
        self.clock = clock or SystemClock()
        self.witness = Witness(self.clock)
        self._replica = replica
        self._receiver = receiver
        self.policy = policy
        self._intake = Lane(f"{self.name}.intake")
        self._apply = Lane(f"{self.name}.apply")
        self.aside = Aside(f"{self.name}.aside")
        self.stop = Stop(self.name, self._moved)
        self._upkeep = Pacing()
        self._rewrites = RewriteRate()
        self._pump = ApplyPump(self.name, self._apply, self._apply_one, self._moved, self.stop)
        self.scrubbing = Scrubbing(
            self.name,
            replica.scrub,
            self._apply,
            scrub or ScrubSection(),
            self.figures,
            self.changed.wait,
            self.clock.utc_ns,
            self.aside,
            self.stop,
        )
        self._image_watch = ImageWatch(self._apply, self._check_images, self.stop)
        self._one_accept = asyncio.Lock()
        self._closing = False
        self.is_recovered = False

    # Life.

    async def recover(self) -> None:
        """Reads back what the last life left. What keeps it from that stops the group."""
        try:
            await self._apply.run(self._replica.recover)
        except Exception as error:  # noqa: BLE001 - a supervision
            if isinstance(error, DamageError):
                self.figures.found_damage("recovery")
            self.stop.because(error, "recovery")
        else:
            self.is_recovered = True
        self.changed.told()

    async def accept(self, report: Report) -> str:
        """Goes on without what the opening has stopped for; what that was. Raises UsageError where
        it did not stop for that, or somebody has accepted it meanwhile."""
        async with self._one_accept:  # it opens everything anew, which nobody may be using by then
            return await self._accept(report)

    async def _accept(self, report: Report) -> str:
        if self.is_recovered or self.stopped is None:
            raise UsageError(f"group {self.name!r} has not stopped at its opening")
        gone = self.stopped.message
        progress = _progress(report, f"comparing {self.name} with what is on record")
        with _mishaps():
            await self._apply.run(self._replica.accept_loss, progress)
        self.is_recovered = True
        self.stop.lift()
        self.start()
        self.changed.told()
        return gone

    def start(self) -> None:
        """Fine if it was closed meanwhile: a recovery may take longer than that."""
        if self.is_recovered and self.stop.reason is None and not self._closing:
            self._pump.start()
            self._image_watch.start()
            self.scrubbing.start()

    def begin_closing(self) -> None:
        """Orders that can be given up are given up at their next step."""
        self._closing = True

    async def close(self) -> None:
        """Waits for the steps under way. No session and no view is left by now."""
        self.begin_closing()
        await self.scrubbing.close()
        await self._image_watch.close()
        await self._pump.close()
        await self._intake.close()
        await self._apply.close()
        await self.aside.close()
        try:
            await asyncio.to_thread(self._replica.close)
        except Exception as error:  # noqa: BLE001 - a supervision: the other groups are closed too
            self.stop.because(error, "close")

    # What the loop may ask at any time.

    @property
    def stopped(self) -> ReplicatorError | None:
        """See Stop."""
        return self.stop.reason

    @property
    def paused(self) -> ReplicatorError | None:
        """Why nothing is applied for now."""
        return self._pump.paused

    @property
    def replica(self) -> GroupReplica:
        """For reading what any thread may read. Only of use if `is_recovered`."""
        return self._replica

    def facts(self) -> WelcomeFacts:
        return self._replica.known.welcome()

    def points(self) -> list[Point]:
        """Oldest first; those that are durable and not yet applied are among them."""
        self.check_recovered()
        return self._replica.points.all

    @property
    def trouble(self) -> ReplicatorError | None:
        """Why nothing is applied: for good, for now, or not yet."""
        if self.stopped is None and not self.is_recovered:
            return self._recovering()
        return self.stopped or self.paused

    def _recovering(self) -> ReplicatorError:
        return UnreachableError(
            f"group {self.name!r} is being recovered: what the last life left is read back",
            hint="it takes agents and orders when that has ended; if it never does, look at its"
            " disk",
        )

    def check_recovered(self) -> None:
        """Raises what kept the group from being recovered."""
        if not self.is_recovered:
            self.stop.check()
            raise self._recovering()

    def check_alive(self) -> None:
        """Raises what has stopped the group."""
        self.stop.check()

    def check_feedable(self) -> None:
        """Raises what keeps an agent from feeding the group now."""
        if self.stopped is not None:  # whatever stopped it, the agent is told the state
            raise DamageError(self.stopped.message, hint=self.stopped.hint)
        self.check_recovered()
        if self._replica.known.condition == "rolling-back":
            raise UnreachableError(
                f"a rollback of group {self.name!r} that was interrupted is being finished",
                hint="it takes agents again when that has ended",
            )
        if self._replica.opening.is_mending:
            raise UnreachableError(
                f"group {self.name!r} is being mended after its opening",
                hint="it takes agents again when that has ended",
            )

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

    def disk_sizes(self) -> dict[str, int]:
        return self._replica.known.disk_sizes()

    def earlier_sizes(self) -> dict[str, list[int]]:
        return self._replica.known.earlier_sizes

    def is_label_taken(self, label: str) -> bool:
        return self._replica.known.is_label_taken(label)

    def heard(self, clocks: PeerClocks) -> None:
        """What the agent's clocks showed."""
        stream = None if clocks.stream is None else UUID(clocks.stream)
        since_ns = self.clock.monotonic_ns() - clocks.heard_ns
        heard_ns = self._replica.known.ages().counted_ns - since_ns
        self.source_clock.heard(Pair(clocks.wall_ns, clocks.monotonic_ns, heard_ns, stream))

    # Taking in: the intake lane.

    async def take_in(self, frames: Sequence[Frame]) -> TakenIn:
        """Appends the frames and makes them durable. Raises what the agent is to be told; then
        those before the bad one are durable all the same."""
        try:
            taken = await self._in_intake(self._take_in, frames)
        except NoSpaceError as error:
            self.witness.no_room(error)
            raise
        finally:
            self._pump.wake()
        self.witness.took_in()
        if taken.points:
            self.witness.proven()
        return taken

    async def open_stream(self, message: wire.Open) -> StreamTaken:
        opened = await self._in_intake(
            self._replica.intake.open_stream,
            UUID(message.stream),
            message.ordinal,
            message.start_lsn,
            message.chain,
        )
        self._pump.wake()
        self.changed.told()
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
            self.witness.proven()
        return holds

    async def quiet(self) -> None:
        """Returns when no step of a session is under way in the intake lane."""
        await self._intake.quiet()

    async def _in_intake(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A supervision: what is neither the agent's fault nor a full disk stops the group."""
        self.check_alive()
        try:
            return await self._intake.run(step, *args, **kwargs)
        except ReplicatorError:
            raise
        except Exception as error:
            if isinstance(trouble := words_of(error), NoSpaceError):
                raise trouble from error
            raise self.stop.because(error, "intake") from error

    def _take_in(self, frames: Sequence[Frame]) -> TakenIn:
        """In the intake lane."""
        self._room.check()
        accepted: list[Frame] = []
        taken = TakenIn([], [])
        try:
            for frame in frames:
                self._replica.intake.accept(frame)
                accepted.append(frame)
        except DamageError:
            self.figures.found_damage("wire")
            raise
        finally:
            if accepted:
                taken = self._make_durable(accepted)
        return taken

    def _make_durable(self, accepted: Sequence[Frame]) -> TakenIn:
        began = time.monotonic()
        durable = self._replica.intake.sync()
        figures = self.figures
        figures.inbox_syncs.add(time.monotonic() - began)
        figures.points_made += len(durable.points)
        figures.received_frames += len(accepted)
        figures.received_bytes += sum(frame.size for frame in accepted)
        figures.received_raw_bytes += sum(frame.header.raw_bytes for frame in accepted)
        return TakenIn(
            [on_wire(point) for point in durable.points],
            durable.syncs,
        )

    # Applying: the apply lane.

    async def until_applied(self, lsn: int) -> None:
        """See DigestSource. `lsn` is one of the stream that is open now."""
        ordinal = self._replica.known.welcome().ordinal
        while not self._replica.known.is_applied(ordinal, lsn):
            self.check_alive()
            await self.changed.wait()

    async def digests(
        self, sync: SyncNotice, first_block: int, count: int, key: bytes
    ) -> list[wire.Digests] | None:
        """See DigestSource."""
        chunk = await self._apply.run(
            self._replica.showing.digests, sync.disk, sync.sync_lsn, first_block, count, key
        )
        if chunk is None:
            return None
        self.figures.digest_bytes += count * DIGEST_BLOCK_BYTES
        return [
            wire.Digests(
                sync.disk, sync.sync_lsn, run.first_block, chunk.lsn, run.digests, run.zero_blocks
            )
            for run in chunk.runs
        ]

    async def open_view(
        self, point: Point, report: Report, writes: int = 0, *, unverified: bool = False
    ) -> GroupView:
        """As of the point, or behind that many of the writes behind it. Waits until the point is
        applied. `unverified`: also while its images are not believed. Whoever gets it closes it."""
        self.check_recovered()
        while not self._replica.applier.is_point_applied(point.sequence):
            self.check_alive()
            report(Progress(done=0, total=0, what=f"waiting until {point} is applied"))
            await self.changed.wait()
        opening = asyncio.ensure_future(self._open_view(point, writes, unverified=unverified))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    @property
    def rewrite_rate(self) -> float:
        """Bytes of the replica that are overwritten in a second, each with its before-image."""
        return self._rewrites.bytes_per_second

    async def last_write(self, point: Point, until_ns: int) -> tuple[FineWrite | None, str]:
        """See FineHistory."""
        self.check_recovered()
        with _mishaps():
            return await self._apply.run(self._replica.fine.last_write, point, until_ns)

    async def write_at(self, point: Point, number: int) -> FineWrite:
        """See FineHistory."""
        self.check_recovered()
        with _mishaps():
            return await self._apply.run(self._replica.fine.write, point, number)

    async def writes_around(self, moment_ns: int, window_ns: int, limit: int) -> list[PointWrite]:
        """See FineHistory."""
        self.check_recovered()
        with _mishaps():
            return await self._apply.run(self._replica.fine.around, moment_ns, window_ns, limit)

    async def _open_view(self, point: Point, writes: int, *, unverified: bool) -> GroupView:
        opening: Callable[..., GroupView] = partial(self._replica.showing.view, point.sequence)
        if writes:
            opening = partial(self._replica.showing.fine_view, point.sequence, writes)
        opening = partial(opening, unverified=unverified)
        return await self._apply.run(self._room.with_room, opening, "a view")

    async def plan_rollback(self, point: Point, writes: int = 0) -> RollbackPlan:
        self.check_recovered()
        with _mishaps():
            return await self._apply.run(self._replica.rolling_back.plan, point.sequence, writes)

    async def rollback(self, point: Point, report: Report, writes: int = 0) -> RollbackDone:
        """The caller keeps the seat empty. What a shutdown or a crash interrupts is gone on with
        at the next start; what a full disk interrupts, by the pump."""
        self.check_alive()
        progress = _progress(report, f"rolling {self.name} back to {point}", BLOCK_BYTES)
        try:
            with _mishaps():
                order = partial(
                    self._replica.rolling_back.run, point.sequence, progress, writes=writes
                )
                return await self._changing(order, "rollback")
        finally:
            self._pump.wake()
            self.changed.told()

    async def drop(self, order: DropOrder, *, dry_run: bool) -> Dropped:
        """Gives up points that a person named, and what room can be given back at once."""
        self.check_alive()
        dropping = partial(
            self._replica.keeping.drop, self.policy, order, dry_run=dry_run, room=self._room
        )
        try:
            with _mishaps():
                gone = await self._changing(dropping, "drop")
        finally:
            self._pump.wake()
        if not dry_run:
            self.figures.points_dropped += len(gone.points)
        return gone

    def wake(self) -> None:
        """There may be something to do: time was found to have passed."""
        self._pump.wake()

    async def unlock(self, reason: str) -> int:
        """The lock that was in force."""
        self.check_alive()
        with _mishaps():
            order = partial(self._replica.keeping.unlock, self.policy, reason)
            return await self._changing(partial(self._room.with_room, order, "unlock"), "unlock")

    async def _changing(self, order: Callable[[], T], what: str) -> T:
        """In the apply lane. A supervision: a fault of the program may have left it half done."""
        try:
            return await self._apply.run(order)
        except Exception as error:
            if is_bug(error):
                raise self.stop.because(error, what) from error
            raise

    async def restore(
        self, point: Point, directory: Path, report: Report, order: RestoreOrder
    ) -> Restored:
        """Outside of the lanes, from a view: replication goes on meanwhile."""
        view = await self.open_view(point, report, order.writes, unverified=order.unverified)
        told = _progress(report, f"restoring {point} of {self.name}")

        def progress(done: int, total: int) -> None:
            if self._closing:
                raise UnreachableError(
                    "the receiver is shutting down", hint="go on with it later, by restore --resume"
                )
            told(done, total)

        try:
            with _mishaps():
                return await self.aside.run(restore_view, view, directory, progress, order)
        finally:
            await self.aside.run(view.close)

    def _apply_one(self) -> float:
        """In the apply lane: what the past must give up, and one batch if there is room for its
        before-images. In how many seconds the next is due."""
        try:
            self._make_room()
            self._check_images()
            self._check_disk()
            before = self._replica.applier.applied.lsn
            rewritten, began = self._replica.applier.rewritten_bytes, time.monotonic()
            if not self._replica.apply_next():
                return self._tidy() or IDLE_SECONDS
            self._rewrites.note(
                self._replica.applier.rewritten_bytes - rewritten, time.monotonic() - began
            )
            self.figures.batches += 1
            self.figures.unverified_bytes = self._replica.known.unverified_bytes
            self.figures.applied_log_bytes += max(self._replica.applier.applied.lsn - before, 0)
            self._tidy()
        except DamageError:
            self.figures.found_damage("apply")
            raise
        return 0.0

    def _check_images(self) -> None:
        """In the apply lane. A file that was cut short would be filled up by the next write to it,
        as if nothing had been lost."""
        self._replica.check_images()

    def _check_disk(self) -> None:
        """Raises NoSpaceError while the disk has only what was kept back for making room: then
        that is gone on with."""
        if not self._room.is_given or not self._replica.known.unapplied_bytes:
            return
        until = time.monotonic() + TIDY_SECONDS
        while time.monotonic() < until and self._replica.tidy():
            pass
        self._room.check()

    def _tidy(self) -> float:
        """A step of upkeep, if it is time for one. In how many seconds the next is due; 0 where
        there is nothing to do."""
        began = time.monotonic()
        if self._upkeep.wait_seconds(began):
            return self._upkeep.wait_seconds(began)
        if not self._replica.tidy():
            return 0.0
        ended = time.monotonic()
        self._upkeep.took(began, ended)
        return self._upkeep.wait_seconds(ended)

    def _make_room(self) -> None:
        """Raises NoSpaceError where there is none within the budget: then the inbox goes on, and
        this is tried again."""
        if self.paused is not None and self._replica.known.kept_bytes > self.policy.max_bytes:
            self._room.ready("the budget")  # else points would go, and free nothing
        retained = self._room.with_room(lambda: self._replica.retain(self.policy), "ageing")
        self.figures.points_dropped += len(retained.dropped)
        if retained.must_wait and self._replica.known.unapplied_bytes:
            raise NoSpaceError(
                f"the history of group {self.name!r} takes {format_size(retained.used_bytes)} with"
                f" its inbox, more than max_bytes, and {retained.over_budget}",
                hint="raise [history] max_bytes and run: replicator reload; apply goes on by"
                " itself, and nothing is lost meanwhile",
            )

    def _moved(self) -> None:
        self.changed.told()
        sitter = self.seat.sitter
        if self.stop.reason is not None and sitter is not None:
            sitter.close(anew(self.stop.reason))


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


def _progress(report: Report, what: str, unit: int = 1) -> Callable[[int, int], None]:
    """In bytes; it is told units of that many."""
    return lambda done, total: report(Progress(done=done * unit, total=total * unit, what=what))


def _close_unwanted(opening: asyncio.Future[GroupView]) -> None:
    """Who asked for the view has gone away."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


@contextmanager
def _mishaps() -> Iterator[None]:
    """For who ordered it: a failing disk, in words."""
    try:
        yield
    except OSError as error:
        raise words_of(error) from error
