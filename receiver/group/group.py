# SPDX-License-Identifier: Apache-2.0
"""GroupReplica: everything the receiver does for one group, without a socket or a thread.

    GROUP/inbox      frames as they came                       receiver.intake.inbox
    GROUP/history    batches: before-images, points, state     receiver.history, the authority
    GROUP/disks      the replica                               receiver.blocks.replica

Two callers, which may run at once: the intake thread (open_stream, accept, sync_inbox, hold) and
the apply thread (recover, apply_next, digests, view, rollback, retain). What both know is the
inbox's list of frames and the list of points, each with its own short lock. Everything marked "any
thread" reads values that are replaced as a whole.

A rollback is the one thing that touches both sides: it is refused a stream from its first step to
its last (`closing`, under the intake's lock), so when it runs nothing is coming in.

Failures. A mishap of the outside leaves the group where it was before the step; the same call may
be made again. After a crash `recover` goes on from what is durable, in this order: history (and the
check of its tail against the replica), inbox, cross-check of both, numbering of what is not
applied. Nothing is reported before it is synced.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from receiver.apply.applier import Applier
from receiver.apply.batch import BATCH_BYTES
from receiver.audit.chain import OpenEnd
from receiver.blocks.digests import digest_runs
from receiver.blocks.replica import Replica
from receiver.catalog import GroupCatalog
from receiver.counted.ages import AgeClock, Ages
from receiver.damage.damage import Damage, damaged_points, refuse
from receiver.damage.doubt import Unverified, nothing
from receiver.damage.doubt import refuse as refuse_doubted
from receiver.damage.healing import Healer
from receiver.damage.old_content import OldContent
from receiver.data_dir.reserve import UNRESERVED, Room
from receiver.fitting.applied import NAME as SLOTS_NAME
from receiver.fitting.applied import AppliedSlots
from receiver.fitting.voucher import Voucher
from receiver.group.image_watch import changed_under_us
from receiver.history.batches import Segment
from receiver.history.bodies import DamagedBlocks
from receiver.history.log import HistoryLog, as_mishap
from receiver.history.merging import PART_BLOCKS
from receiver.history.state import Disk
from receiver.history.sums.base import SumBase
from receiver.history.sums.layers import ROWS_MAX, SumLayers
from receiver.history.sums.sums import LatestSums
from receiver.intake.inbox import Inbox, StreamInbox
from receiver.intake.intake import Intake
from receiver.opening.opening import Opening, Parts
from receiver.points.evidence import Reached
from receiver.points.points import PointList
from receiver.points.policy import HistoryPolicy
from receiver.points.telling import Telling
from receiver.points.values import (
    Condition,
    DigestChunk,
    Dropped,
    Durable,
    GroupEvent,
    Point,
    Retained,
    RollbackDone,
    RollbackPlan,
    StreamOpened,
    WelcomeFacts,
    ignore_event,
)
from receiver.retention.budget import Retention
from receiver.retention.dropping import DropOrder
from receiver.retention.earlier_images import EarlierImages
from receiver.retention.keeping import HistoryFacts, Keeping
from receiver.retention.reclaim import Pins, Reclaim
from receiver.rollback import rollback as rolling
from receiver.scrub.scrub import Scrub
from receiver.tasks.beside import Beside, InTurn
from receiver.views.fine_view import FineView
from receiver.views.point_view import PointView
from receiver.writes.history import FineHistory
from receiver.writes.log import FineLog, Span
from replicator.base.clock import Clock
from replicator.base.errors import (
    NoSpaceError,
    NotFoundError,
    OwnedError,
    UnreachableError,
)
from replicator.base.mishaps import mishap
from replicator.base.storage import Storage
from replicator.base.units import MIB
from replicator.wire.frames import Frame

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that do not change what is promised."""

    history_segment_bytes: int = 64 * MIB
    inbox_segment_bytes: int = 16 * MIB
    batch_bytes: int = BATCH_BYTES
    step_blocks: int = PART_BLOCKS
    """What one step of a compaction writes."""
    sum_rows: int = ROWS_MAX
    """Sums of blocks that changed last, in memory."""
    cache_bytes: int = 64 * MIB
    """Frames kept in memory between their coming and their being applied."""


class GroupReplica:
    """See the head of this file. `recover` comes first, `close` last."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        directory: Path,
        name: str,
        catalog: GroupCatalog,
        *,
        age_clock: AgeClock,
        notify: Callable[[GroupEvent], None] = ignore_event,
        limits: Limits | None = None,
        fine_ns: int = 0,
        reached: Callable[[], Reached] = Reached,
        beside: Beside | None = None,
    ) -> None:
        """`age_clock` is what points age by; `clock` is for what people read. `reached`: how far
        the audit has seen the group. `beside`: for syncs that go beside others; it is closed with
        the replica."""
        limits = limits or Limits()
        self.name = name
        self._telling = Telling(name, notify)
        self._storage = storage
        self._clock = clock
        self._catalog = catalog
        self._limits = limits
        self._age_clock = age_clock
        self._points = PointList(lambda: age_clock.ages().counted_ns)
        self._history = HistoryLog(
            storage, directory / "history", name, clock.utc_ns, limits.history_segment_bytes
        )
        self._sum_base = SumBase(storage, directory / "sums")
        self._newest_sums = SumLayers(
            self._sum_base,
            SumBase(storage, directory / "sums" / "newest", in_steps=True),
            rows_max=limits.sum_rows,
        )
        self._past_sums = SumLayers(
            self._sum_base,
            SumBase(storage, directory / "sums" / "past"),
            rows_max=limits.sum_rows,
            is_cached=False,
        )
        self._left_sums = SumBase(storage, directory / "sums" / "gathered")
        self._sums = LatestSums(
            self._history,
            self._sum_base,
            self._newest_sums,
            self._past_sums,
            lambda: self._telling.event("sums.given_up"),
            self._catch_up,
        )
        self._replica = Replica(storage, directory / "disks")
        fine_log = FineLog(storage, directory / "fine", age_clock, self._live_spans, fine_ns)
        self.fine = FineHistory(fine_log, self._points, self._tell_shrunk)
        self._inbox = Inbox(
            storage,
            directory / "inbox",
            name,
            clock.utc_ns,
            segment_bytes=limits.inbox_segment_bytes,
            cache_bytes=limits.cache_bytes,
            leave=fine_log.take,
        )
        self._beside = beside or InTurn()
        slots = AppliedSlots(storage, self._replica.directory / SLOTS_NAME, self._beside)
        self._slots = slots
        self._voucher = voucher = Voucher(slots, self._history, self._replica, self._sums)
        healer = Healer(
            storage,
            self._history,
            self._sums,
            self._replica,
            self._inbox,
            self._applied_disks,
        )
        self._old = OldContent(self._sums, self._replica, healer, self._telling)
        self._applier = Applier(
            self._history,
            self._replica,
            self._inbox,
            self._points,
            clock.utc_ns,
            age_clock,
            limits.batch_bytes,
            self._old,
            self.fine.overlay,
            voucher,
        )
        self._reclaim = Reclaim(
            storage,
            self._history,
            self._points,
            clock.utc_ns,
            self._telling.compaction_failed,
            self._sums,
            step_blocks=limits.step_blocks,
        )
        self.scrub = Scrub(
            storage,
            directory / "scrub.json",
            self._history,
            self._sums,
            self._replica,
            self._applier,
            healer,
            self._reclaim,
            self._current_pins,
            self._telling,
            clock.utc_ns,
            self._read_back,
            self._scrubbed,
        )
        """Its steps in the apply thread."""
        self._keeping = Keeping(
            name,
            self._applier,
            self._history,
            self._points,
            Retention(
                self._reclaim,
                self._history,
                self._points,
                lambda: self.inbox_bytes + self.fine.log.used_bytes,
            ),
            self._telling,
            catalog,
            self._current_pins,
            age_clock,
        )
        self._intake = Intake(
            name,
            self._inbox,
            self._points,
            catalog,
            self._telling,
            lambda: self._applier.is_rolling_back,
        )
        self.source_clock = self._intake.source_clock
        self.opening = Opening(
            Parts(
                storage,
                directory,
                self._history,
                self._replica,
                self._inbox,
                fine_log,
                self._sum_base,
                self._left_sums,
                self._sums,
                self._points,
                self._applier,
                self._intake,
                healer,
                self.scrub,
                self._telling,
                catalog,
            ),
            slots,
            voucher,
            reached,
        )
        """`accept` and `settle` in the apply thread."""
        self._earlier_images = EarlierImages(
            self._applier, self._history, self._replica, self._points, self._telling
        )
        self._pins: Counter[int] = Counter()
        self._pins_lock = threading.Lock()
        self.pause_reason = ""

    # -- opening

    def recover(self) -> None:
        """Takes up what the last life left. May be called again where it failed. Raises DamageError
        with file and offset, VersionError, OSError."""
        self.opening.run()
        self._earlier_images.look()
        self._keeping.see_stamps()

    def accept_loss(self, progress: Progress) -> None:
        """See Opening."""
        self.opening.accept(progress)
        self._earlier_images.look()
        self._keeping.see_stamps()

    # -- what is known, any thread

    def facts(self) -> WelcomeFacts:
        """For a source that says hello."""
        state = self._intake.front.state
        stream = self._intake.current()
        ordinal = max(state.ordinal, state.closed_ordinal)
        return WelcomeFacts(
            generation=self.generation,
            stream=None if stream is None else stream.name.stream,
            ordinal=ordinal,
            durable_lsn=0 if stream is None else stream.durable_lsn,
            chain=0 if stream is None else stream.durable_chain,
            applied_lsn=self._applied_in(stream),
            closed_ordinal=state.closed_ordinal if stream is not None else ordinal,
            next_point=state.next_point,
        )

    def _applied_in(self, stream: StreamInbox | None) -> int:
        """Where the replica is in that stream; its start while an older one is being applied."""
        applied = self._applier.applied
        if stream is None or stream.name.ordinal == applied.ordinal:
            return applied.lsn
        return stream.frames[0].start_lsn if stream.frames else stream.received_lsn

    def points(self) -> list[Point]:
        """The durable ones, applied or not, oldest first. Not to be changed."""
        return self._points.all

    @property
    def sealed(self) -> list[Segment]:
        """The sealed segments of the history, oldest first. From any thread."""
        return self._history.segments

    @property
    def point_count(self) -> int:
        return len(self._points.all)

    @property
    def open_end(self) -> OpenEnd | None:
        """How far it has come, for the audit; None where nothing is stated of that. Any thread."""
        newest = self._points.newest
        if not self._voucher.has_spoken or self.opening.is_mending:
            return None
        return OpenEnd(
            self._history.durable_end, 0 if newest is None else newest.sequence, self.generation
        )

    @property
    def newest_point(self) -> Point | None:
        """The newest durable one: `latest`."""
        return self._points.newest

    @property
    def newest_applied_point(self) -> Point | None:
        return self._points.newest_up_to(self._applier.applied_point)

    def _applied_disks(self) -> list[Disk]:
        return list(self._applier.applied.disks.values())

    def is_applied(self, ordinal: int, lsn: int) -> bool:
        applied = self._applier.applied
        return (applied.ordinal, applied.lsn) >= (ordinal, lsn)

    def is_point_applied(self, sequence: int) -> bool:
        return self._applier.is_point_applied(sequence)

    @property
    def damage(self) -> Damage:
        """What is known to be damaged. Any thread."""
        return self._applier.newest_state.damage

    def damaged_points(self) -> dict[int, list[DamagedBlocks]]:
        """What each damaged point would need and cannot have. Any thread."""
        found = damaged_points(self.damage, self._history.batches)
        return {each: found[each] for each in found if each not in self._history.dropped}

    @property
    def unverified(self) -> Unverified:
        """Disks whose images are not believed yet (receiver.damage.damage.doubt). Any thread."""
        return self.opening.unverified

    def is_label_taken(self, label: str) -> bool:
        return label in self._intake.front.state.labels or label in self._points.labels

    def disk_sizes(self) -> dict[str, int]:
        """By the source's names."""
        state = self._intake.front.state
        return {disk.source_name: disk.size_bytes for disk in state.present}

    @property
    def earlier_sizes(self) -> dict[str, list[int]]:
        """Of instances that are kept because points show them, by the source's names. Any
        thread."""
        sizes: dict[str, list[int]] = {}
        for disk in self._applier.applied.earlier:
            sizes.setdefault(disk.source_name, []).append(disk.size_bytes)
        return sizes

    @property
    def generation(self) -> int:
        return self._intake.front.state.generation

    @property
    def condition(self) -> Condition:
        state = self._intake.front.state
        if self._applier.is_rolling_back:
            return "rolling-back"
        if state.rolled_back:
            return "rolled-back"
        if not state.disks:
            return "idle"
        return "syncing" if state.is_syncing else "complete"

    @property
    def durable_lsn(self) -> int:
        return self.facts().durable_lsn

    @property
    def applied_lsn(self) -> int:
        return self._applier.applied.lsn

    @property
    def unapplied_bytes(self) -> int:
        applied = self._applier.applied
        return self._inbox.unapplied_bytes(applied.ordinal, applied.lsn)

    @property
    def history_bytes(self) -> int:
        return self._history.used_bytes

    @property
    def rewritten_bytes(self) -> int:
        """Of the replica, since this process started."""
        return self._applier.rewritten_bytes

    @property
    def unverified_bytes(self) -> int:
        """Old content that had no sum when a batch changed it, since this process started."""
        return self._old.unverified_bytes

    @property
    def compacted_bytes(self) -> int:
        """Read by compactions that ended, since this process started."""
        return self._reclaim.compacted_bytes

    @property
    def kept_bytes(self) -> int:
        """What the budget counts."""
        return self._history.used_bytes + self.inbox_bytes + self.fine.log.used_bytes

    @property
    def inbox_bytes(self) -> int:
        return self._inbox.used_bytes

    def _tell_shrunk(self, freed_bytes: int, oldest_ns: int | None) -> None:
        self._telling.event("fine_history.shrunk", freed_bytes=freed_bytes, oldest_ns=oldest_ns)

    def _live_spans(self, ordinal: int) -> list[Span]:
        return [Span(*each) for each in self._inbox.spans(ordinal)]

    @property
    def batches(self) -> int:
        """Applied since this process started."""
        return self._applier.applied_batches

    # -- intake thread

    def open_stream(self, stream: UUID, ordinal: int, start_lsn: int, chain: int) -> StreamOpened:
        """See Intake."""
        return self._intake.open_stream(stream, ordinal, start_lsn, chain)

    def accept(self, frame: Frame) -> None:
        """See Intake."""
        self._intake.accept(frame)

    def sync_inbox(self) -> Durable:
        """See Intake."""
        return self._intake.sync()

    def hold(self, lsn: int, until_ns: int) -> bool:
        """See Intake."""
        return self._intake.hold(lsn, until_ns)

    # -- apply thread

    def check_images(self) -> None:
        """Whether each image is there with its size. Raises DamageError, OSError."""
        for disk in self._applied_disks():
            found = self._replica.size_of(disk.name)
            if found != disk.size_bytes:
                raise changed_under_us(self._replica.path(disk.name), found, disk.size_bytes)

    def apply_next(self) -> bool:
        """One step: a batch, what a crash left of one, or a part of a rollback. False: there is
        nothing to do for now. Raises NoSpaceError (nothing is lost; call again), DamageError,
        OSError."""
        try:
            if self._intake.doubtful:
                self._history.mend()
                self._intake.doubtful = False
            moved = self._applier.step() or self.opening.settle()
        except OSError as error:
            found = as_mishap(error, "history and replica", self.name)
            said = found if isinstance(found, NoSpaceError) else mishap(error)
            self.pause_reason = said.message
            if isinstance(found, NoSpaceError):
                with suppress(OSError):  # the disk has been told of already
                    self.fine.give_way()
            raise found from error
        self.pause_reason = ""
        if moved:
            self._after_step()
        return moved

    def _after_step(self) -> None:
        """A rollback that has just ended: its point is known, and streams may come again."""
        state = self._applier.applied
        if state.next_point <= self._intake.front.state.next_point or state.rollback is not None:
            return
        point = self._applier.last_point()
        with self._intake.lock:
            self._intake.front.reset(state.copy())
            if point is not None and self._points.find(point.sequence) is None:
                self._points.add([point])
        self._inbox.remove_closed(state.closed_ordinal)
        self._telling.event("rollback.done", point=state.last_point)
        self._telling.index(self.opening.rebuild_catalog)

    def digests(
        self, disk: int, sync_lsn: int, first_block: int, count: int, key: bytes
    ) -> DigestChunk | None:
        """Digests of replica blocks, as they are between two batches. None if that sync (by the
        stream's index of the disk and the LSN of its sync-begin) is not the one under way."""
        state = self._applier.applied
        found = state.by_index.get(disk)
        if found is None or not found.syncing or found.sync_lsn != sync_lsn:
            return None
        file = self._replica.file(found.name)
        runs = digest_runs(file, found.size_bytes, first_block, count, key)
        return DigestChunk(state.lsn, runs)

    def fine_view(self, sequence: int, writes: int, *, unverified: bool = False) -> FineView:
        """The disks as they were behind the first so many writes behind a point."""
        base = self.view(sequence, unverified=unverified)
        try:
            return FineView(base, self.fine.overlay(base.point, writes))
        except BaseException:
            base.close()
            raise

    def view(self, sequence: int, *, unverified: bool = False) -> PointView:
        """The disks as of a point. It stays good, and its point stays, until it is closed.
        `unverified`: also of images that are not believed yet."""
        point = self._applied_point(sequence, unverified=unverified)
        doubt: Callable[[], Unverified] = nothing if unverified else lambda: self.unverified
        batch = self._history.batch_of_point(sequence)
        assert batch is not None
        with self._pins_lock:
            self._pins[sequence] += 1
        domains = {name: self._history.texts[digest] for name, digest in point.domains.items()}
        return PointView(
            self._history,
            self._replica,
            point,
            batch,
            domains,
            lambda: self._release(sequence),
            lambda: self.damage,
            doubt,
        )

    def _release(self, sequence: int) -> None:
        with self._pins_lock:
            self._pins[sequence] -= 1
            self._pins += Counter()  # drops what is at zero

    def _find(self, sequence: int) -> Point:
        point = self._points.find(sequence)
        if point is None:
            raise NotFoundError(f"group {self.name!r} has no point #{sequence}")
        return point

    def _applied_point(self, sequence: int, *, unverified: bool | None = None) -> Point:
        """`unverified`: see `view`; None where nobody may insist on it."""
        point = self._find(sequence)
        if not self._applier.is_point_applied(sequence):
            raise UnreachableError(
                f"point {point} of group {self.name!r} is durable, but not applied yet"
                + (f": {self.pause_reason}" if self.pause_reason else ""),
                hint="try again in a moment",
            )
        batch = self._history.batch_of_point(sequence) if self.damage else None
        if batch is not None:
            refuse(self.damage, point, batch.number, self.name)
        if not unverified:
            may_insist = unverified is not None
            refuse_doubted(self.unverified, point, self.name, may_insist=may_insist)
        return point

    def plan_rollback(self, sequence: int, writes: int = 0) -> RollbackPlan:
        """What a rollback to the point would change, were it done now. Reads every block that it
        would look at."""
        self._find(sequence)
        while not self._applier.is_point_applied(sequence) and self.apply_next():
            pass
        point = self._applied_point(sequence)
        rolling.check_target(self._applier.applied, point, self.name)
        overlay = self.fine.overlay(point, writes) if writes else None
        work = rolling.RollbackWork.to(self._history, sequence, overlay)
        changed = 0
        while not work.is_done:
            part = work.next_part(self._limits.batch_bytes)
            changed += self._applier.changed_bytes(part.operations)
            work.advance(part)
        after = sum(1 for other in self._points.all if other.sequence > sequence)
        return RollbackPlan(point, changed, [disk.name for disk in point.members], after)

    def rollback(
        self, sequence: int, progress: Progress | None = None, *, writes: int = 0
    ) -> RollbackDone:
        """Takes the replica to a point or a write, as new batches: everything before stays
        reachable, the exact state before it as the point `before`. No source may be connected: its
        stream is closed for ever. What is interrupted is gone on with by `apply_next` after a
        restart.

        NotFoundError and OwnedError change nothing; nor does a mishap before the stream is closed.
        """
        self._find(sequence)
        if self._applier.is_rolling_back:
            raise OwnedError(f"group {self.name!r} is being rolled back already")
        before = self._begin_rollback(sequence, writes)
        while True:
            self.apply_next()
            if progress is not None:
                progress(*self._applier.rollback_progress)
            if not self._applier.is_rolling_back:
                break
        point = self._points.newest
        assert point is not None
        assert point.kind == "rollback"
        while self.apply_next():  # nothing to apply: makes it durable, says it is consistent
            pass
        return RollbackDone(before, point)

    def _begin_rollback(self, sequence: int, writes: int) -> Point:
        """Applies all that came, then closes the stream: durable when this returns."""
        with self._intake.lock:
            self._intake.closing = True
        try:
            self.sync_inbox()
            while self.apply_next():
                pass
            target = self._applied_point(sequence)
            rolling.check_target(self._applier.applied, target, self.name)
            if writes:
                self.fine.overlay(target, writes)  # that it can be had, before anything is closed
                self.fine.log.keep_ns = None
            state = self._applier.applied.copy()
            state.closed_ordinal = max(state.closed_ordinal, self._intake.front.state.ordinal)
            newest = self._points.newest
            held_ns = 0 if newest is None else newest.until_ns
            now_ns = max(self._clock.utc_ns(), held_ns + 1)  # the last one held until then
            point = rolling.begin(state, target, now_ns, writes)
            self._telling.event("rollback.begun", target=sequence, before=point.sequence)
            try:
                self._applier.mark(state, point)
            except OSError as error:
                if self._applier.newest_state.rollback is None:
                    raise as_mishap(error, "the history", self.name) from error
            point = self._applier.last_point() or point  # with when it was received
            with self._intake.lock:
                self._intake.reset(state.copy(), [point])
        finally:
            # what failed may have been written all the same: nothing may come in until it is gone
            self._intake.doubtful = not self._history.is_sound
            self._intake.closing = False
        self._inbox.remove_closed(state.closed_ordinal)
        self._telling.index(
            lambda: self._catalog.set_generation(
                state.generation, self._clock.utc_ns(), f"rollback to #{sequence}"
            )
        )
        return point

    def retain(self, policy: HistoryPolicy) -> Retained:
        """See Keeping."""
        if not self._applier.is_rolling_back:  # it may need the frames until it is done
            others_bytes = self._history.used_bytes + self.inbox_bytes
            self.fine.make_room(policy, others_bytes)
        return self._keeping.keep(policy)

    @property
    def lock_ns(self) -> int:
        """See Keeping. Any thread."""
        return self._keeping.lock_ns

    def history_facts(self, policy: HistoryPolicy) -> HistoryFacts:
        """Any thread."""
        return self._keeping.facts(policy, self._points.all)

    def ageing_out(self, policy: HistoryPolicy, before: Ages, after: Ages) -> int:
        """See Keeping. Any thread."""
        return self._keeping.ageing_out(policy, before, after)

    def ages(self) -> Ages:
        """The clock that points are stamped with, as it is now. Any thread."""
        return self._age_clock.ages()

    @property
    def counted_ns(self) -> int:
        """What it shows. Any thread."""
        return self.ages().counted_ns

    def newest_stamp_ns(self, below_ns: int) -> int | None:
        """Of the points, the latest that is not above, and was not taken back. Any thread."""
        stamps = (each.received_ns for each in self._points.all if not each.is_restamped)
        return max((stamp for stamp in stamps if 0 < stamp <= below_ns), default=None)

    def drop(
        self, policy: HistoryPolicy, order: DropOrder, *, dry_run: bool, room: Room = UNRESERVED
    ) -> Dropped:
        """See Keeping."""
        return self._keeping.drop(policy, self._points.all, order, dry_run=dry_run, room=room)

    def unlock(self, policy: HistoryPolicy, reason: str) -> int:
        """See Keeping."""
        return self._keeping.unlock(policy, reason)

    def _read_back(self, disk: str) -> None:
        self.opening.read_back(disk)

    def _scrubbed(self) -> None:
        self.opening.scrubbed()

    def _catch_up(self) -> None:
        """Sums of the newest batches are about to go to where they can no longer be told apart from
        older ones: so what the replica holds is stated first."""
        applier = self._applier
        self._voucher.keep_up(applier.applied, is_pending=applier.has_pending)

    def tidy(self) -> bool:
        """A step of freeing what no point needs any more, some tens of milliseconds. False if
        there is nothing to do. Raises OSError."""
        if self._applier.is_rolling_back:
            return False  # it needs what is there until it is done
        indexed = self._history.index.step()
        sorted_out = self._sums.tidy()
        reclaimed = self._reclaim.step(self._current_pins())
        return self._earlier_images.step() or reclaimed or indexed or sorted_out

    def _current_pins(self) -> Pins:
        with self._pins_lock:
            held = frozenset(self._pins)
        present = {disk.slot for disk in self._applier.applied.present}
        rollbacks = [
            point.sequence
            for point in self._points.all
            if point.kind in ("before-rollback", "rollback")
            and all(member.slot in present for member in point.members)  # can be gone back to
        ]
        return Pins(held, frozenset(rollbacks[-2:]))

    def close(self) -> None:
        """Both threads are done. Nothing is synced that was not."""
        self._reclaim.close()
        self._inbox.close()
        self._history.close()
        self._sum_base.close()
        self._newest_sums.close()
        self._past_sums.close()
        self._slots.close()
        self._beside.close()
        self._replica.close()
