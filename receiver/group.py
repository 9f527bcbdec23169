# SPDX-License-Identifier: Apache-2.0
"""GroupReplica: everything the receiver does for one group, without a socket or a thread.

    GROUP/inbox      frames as they came                       receiver.inbox
    GROUP/history    batches: before-images, points, state     receiver.history, the authority
    GROUP/disks      the replica                               receiver.replica

Two callers, which may run at once: the intake thread (open_stream, accept, sync_inbox, hold) and
the apply thread (recover, apply_next, digests, view, rollback, retain). What both know is the
inbox's list of frames and the list of points, each with its own short lock. Everything marked "any
thread" reads values that are replaced as a whole.

A rollback is the one thing that touches both sides: it is refused a stream from its first step to
its last (`_closing`, under the intake's lock), so when it runs nothing is coming in.

Failures. A mishap of the outside leaves the group where it was before the step; the same call may
be made again. After a crash `recover` goes on from what is durable, in this order: history (and the
check of its tail against the replica), inbox, cross-check of both, numbering of what is not
applied. Nothing is reported before it is synced.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from journal.spool import StreamName
from receiver import rollback as rolling
from receiver.apply import Applier
from receiver.apply_batch import BATCH_BYTES, units_of
from receiver.catalog import GroupCatalog, SegmentFact
from receiver.digests import digest_runs
from receiver.front import Front, News
from receiver.history.log import HistoryLog, no_space
from receiver.inbox import Inbox, StreamInbox
from receiver.point_view import PointView
from receiver.points import PointList
from receiver.replica import Replica
from receiver.retention import Pins, Retention
from receiver.sync_state import GroupState
from receiver.values import (
    Condition,
    DigestChunk,
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
from replicator.base.clock import Clock
from replicator.base.errors import (
    DamageError,
    FencedError,
    NoSpaceError,
    NotFoundError,
    OwnedError,
    UnreachableError,
    UsageError,
)
from replicator.base.storage import Storage
from replicator.base.units import MIB
from replicator.wire.frames import Frame, FrameOpener

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that do not change what is promised."""

    history_segment_bytes: int = 64 * MIB
    inbox_segment_bytes: int = 16 * MIB
    batch_bytes: int = BATCH_BYTES
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
        notify: Callable[[GroupEvent], None] = ignore_event,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self.name = name
        self._storage = storage
        self._clock = clock
        self._catalog = catalog
        self._notify = notify
        self._limits = limits
        self._points = PointList()
        self._history = HistoryLog(
            storage, directory / "history", name, clock.utc_ns, limits.history_segment_bytes
        )
        self._replica = Replica(storage, directory / "disks")
        self._inbox = Inbox(
            storage,
            directory / "inbox",
            name,
            clock.utc_ns,
            segment_bytes=limits.inbox_segment_bytes,
            cache_bytes=limits.cache_bytes,
        )
        self._applier = Applier(
            self._history,
            self._replica,
            self._inbox,
            self._points,
            clock.utc_ns,
            limits.batch_bytes,
        )
        self._retention = Retention(
            storage, self._history, self._points, clock.utc_ns, lambda: self._inbox.used_bytes
        )
        self._front = Front(GroupState())
        self._opener = FrameOpener()
        self._intake_lock = threading.RLock()
        self._closing = False
        self._doubtful = False
        self._pins: Counter[int] = Counter()
        self._pins_lock = threading.Lock()
        self.pause_reason = ""

    # -- opening

    def recover(self) -> None:
        """Takes up what the last life left. Raises DamageError with file and offset, VersionError,
        OSError."""
        self._replica.prepare()
        before, state, tail = self._history.open()
        self._applier.check_replica(before, tail)
        if tail is not None:
            self._history.accept_tail()
            self._tell("history.cut", where=tail.where, why=tail.label)
        self._inbox.open()
        for report in self._inbox.cut_reports:
            self._tell("inbox.cut", what=report)
        self._applier.start(before, state)
        self._match_inbox(state)
        self._points.reset(self._history.points())
        self._number_again(state)
        self._index(self._restore_holds)
        self._index(self._rebuild_catalog)

    def _match_inbox(self, state: GroupState) -> None:
        """The inbox must hold everything that is not applied. What it holds beyond need, because a
        crash came before it was removed, goes."""
        self._inbox.remove_closed(max(state.closed_ordinal, 0))
        unapplied = self._history.unapplied
        redo = unapplied is not None and unapplied.kind == "log"
        oldest = unapplied.ordinal if redo and unapplied is not None else state.ordinal
        self._inbox.remove_closed(oldest - 1)
        stream = self._inbox.find(state.ordinal)
        if stream is None:
            if redo:
                raise DamageError(
                    f"group {self.name!r}: the inbox of stream {state.ordinal} is gone, and a batch"
                    " that was begun from it is not applied",
                    hint="restore the inbox from a copy, or set the group aside",
                )
            return
        needed = unapplied.start_lsn if redo and unapplied is not None else state.lsn
        if stream.received_lsn < state.lsn or (
            stream.frames and stream.frames[0].start_lsn > needed
        ):
            first = stream.frames[0].start_lsn if stream.frames else stream.received_lsn
            raise DamageError(
                f"group {self.name!r}: the inbox holds LSN {first} to {stream.received_lsn} of"
                f" stream {state.ordinal}, the replica needs it from {needed} on and was at"
                f" {state.lsn}: what was acknowledged is missing",
                hint="restore the inbox from a copy; or remove it, and let the source sync anew",
            )

    def _number_again(self, state: GroupState) -> None:
        """The front: from the state behind the history over all that is in the inbox. Gives each
        point the number that it was announced with."""
        front = Front(state.copy())
        while True:
            ordinal, lsn = front.state.ordinal, front.state.lsn
            frames = self._inbox.frames_from(ordinal, lsn)
            if not frames:
                following = self._inbox.stream_after(ordinal)
                if following is None:
                    break
                name, start_lsn = following
                front.state.begin_stream(name.stream, name.ordinal, start_lsn)
                continue
            for frame in frames:
                opened = self._inbox.read(ordinal, frame)
                for unit in units_of(opened, front.state.lsn):
                    front.walk(unit.records, unit.end_lsn)
        news = front.settle()
        self._points.add(news.points)
        for sequence, until_ns in news.held.items():
            self._points.hold(sequence, until_ns)
        self._front = front

    def _restore_holds(self) -> None:
        newest = self._points.newest
        if newest is not None:
            self._points.hold(newest.sequence, self._catalog.held(newest.sequence))

    def _rebuild_catalog(self) -> None:
        self._catalog.rebuild(self._points.all, self._segment_facts(), self.generation)

    # -- what is known, any thread

    def facts(self) -> WelcomeFacts:
        """For a source that says hello."""
        state = self._front.state
        stream = self._open_stream()
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

    def _open_stream(self) -> StreamInbox | None:
        """The stream that may be resumed."""
        stream = self._inbox.newest
        if stream is None or self._closing or self._applier.is_rolling_back:
            return None
        return stream if stream.name.ordinal > self._front.state.closed_ordinal else None

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
    def point_count(self) -> int:
        return len(self._points.all)

    @property
    def newest_point(self) -> Point | None:
        """The newest durable one: `latest`."""
        return self._points.newest

    @property
    def newest_applied_point(self) -> Point | None:
        return self._points.newest_up_to(self._applier.applied_point)

    def is_applied(self, ordinal: int, lsn: int) -> bool:
        applied = self._applier.applied
        return (applied.ordinal, applied.lsn) >= (ordinal, lsn)

    def is_point_applied(self, sequence: int) -> bool:
        return self._applier.is_point_applied(sequence)

    def is_label_taken(self, label: str) -> bool:
        return label in self._front.state.labels or label in self._points.labels

    def disk_sizes(self) -> dict[str, int]:
        return {name: disk.size_bytes for name, disk in list(self._front.state.disks.items())}

    @property
    def generation(self) -> int:
        return self._front.state.generation

    @property
    def condition(self) -> Condition:
        state = self._front.state
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
    def inbox_bytes(self) -> int:
        return self._inbox.used_bytes

    @property
    def batches(self) -> int:
        """Applied since this process started."""
        return self._applier.applied_batches

    # -- intake thread

    def open_stream(self, stream: UUID, ordinal: int, start_lsn: int, chain: int) -> StreamOpened:
        """Frames of that stream will follow. Either the one that may be resumed, at exactly its
        durable end; or one with an ordinal above every other: that *ends* the one before, for
        ever. Raises FencedError, UsageError, OwnedError while a rollback is under way."""
        with self._intake_lock:
            self._check_open()
            current = self._open_stream()
            name = StreamName(ordinal, stream)
            if current is not None and current.name == name:
                self._check_resume(current, start_lsn, chain)
                self._forget_unsynced(current)
                return StreamOpened(start_lsn, self._front.syncs(), [])
            state = self._front.state
            if ordinal <= max(state.ordinal, state.closed_ordinal):
                raise FencedError(
                    f"stream {ordinal} of group {self.name!r} is closed for ever: stream"
                    f" {max(state.ordinal, state.closed_ordinal)} came after it",
                    hint="begin a new stream, with a sync",
                )
            durable = self.sync_inbox()
            self._inbox.begin_stream(name, start_lsn, chain)
            self._front.begin_stream(stream, ordinal, start_lsn)
            return StreamOpened(start_lsn, [], durable.points)

    def _check_resume(self, stream: StreamInbox, start_lsn: int, chain: int) -> None:
        if start_lsn != stream.durable_lsn:
            raise UsageError(
                f"stream {stream.name.ordinal} is durable up to LSN {stream.durable_lsn}, it cannot"
                f" be resumed at {start_lsn}"
            )
        if chain != stream.durable_chain:
            raise FencedError(
                f"stream {stream.name.ordinal} has another content below LSN {start_lsn} here than"
                " at the source: they are not the same stream",
                hint="begin a new stream, with a sync",
            )

    def _forget_unsynced(self, stream: StreamInbox) -> None:
        """What a session left that ended before it was acknowledged comes again."""
        if stream.received_lsn > stream.durable_lsn:
            try:
                self._inbox.drop_unsynced()
            except OSError as error:
                raise _mishap(error, "the inbox", self.name) from error
            finally:
                self._after_loss(stream)

    def accept(self, frame: Frame) -> None:
        """The next frame. Not durable yet. Raises DamageError for a bad one, UsageError for one
        that does not continue or may not come, FencedError, NoSpaceError; then nothing of it
        was kept."""
        with self._intake_lock:
            self._check_open()
            stream = self._open_stream()
            if stream is None or stream.name.ordinal != self._front.state.ordinal:
                raise FencedError(
                    f"no stream of group {self.name!r} is open", hint="say hello again"
                )
            header = frame.header
            if header.start_lsn != stream.received_lsn or header.chain_start != stream.chain:
                raise UsageError(
                    f"a frame from LSN {header.start_lsn} does not continue stream"
                    f" {stream.name.ordinal}, which is at LSN {stream.received_lsn}"
                )
            opened = self._opener.open(frame)
            judged = self._front.judge(opened)
            try:
                self._inbox.append(frame, opened)
            except OSError as error:
                self._after_loss(stream)
                raise _mishap(error, "the inbox", self.name) from error
            self._front.take(judged)

    def sync_inbox(self) -> Durable:
        """Everything accepted is durable. NoSpaceError, OSError: what was not durable before is
        gone, and the source has to send it again."""
        with self._intake_lock:
            stream = self._inbox.newest
            try:
                self._inbox.sync()
            except OSError as error:
                self._after_loss(stream)
                raise _mishap(error, "the inbox", self.name) from error
            news = self._front.settle()
            self._publish(news)
            durable_lsn = stream.durable_lsn if stream is not None else 0
            return Durable(durable_lsn, news.points, news.syncs)

    def _after_loss(self, stream: StreamInbox | None) -> None:
        """The inbox may have been cut back to its durable end."""
        if stream is not None and stream.received_lsn < self._front.state.lsn:
            self._front.rewind()

    def _publish(self, news: News) -> None:
        held = dict(news.held)
        for asked, point in news.relabelled:
            self._tell("label.changed", asked=asked, label=point.label, point=point.sequence)
        for sequence, until_ns in held.items():
            self._points.hold(sequence, until_ns)
        if news.points:
            self._points.add(
                [
                    replace(point, until_ns=max(point.until_ns, held.get(point.sequence, 0)))
                    for point in news.points
                ]
            )
        points = news.points
        if points:
            self._index(lambda: self._catalog.add_points(points))

    def hold(self, lsn: int, until_ns: int) -> bool:
        """The source says: nothing was written between the log's end `lsn` and then, so the newest
        point holds. False where that is not what we have."""
        with self._intake_lock:
            state = self._front.state
            stream = self._open_stream()
            if stream is None or stream.durable_lsn != lsn or state.lsn != lsn:
                return False
            if not state.point_holds or not self._points.hold(state.last_point, until_ns):
                return False
            self._index(lambda: self._catalog.hold(state.last_point, until_ns))
            return True

    def _check_open(self) -> None:
        if self._closing or self._doubtful or self._applier.is_rolling_back:
            raise OwnedError(
                f"group {self.name!r} is being rolled back", hint="try again when that is done"
            )

    # -- apply thread

    def apply_next(self) -> bool:
        """One step: a batch, what a crash left of one, or a part of a rollback. False: there is
        nothing to do for now. Raises NoSpaceError (nothing is lost; call again), DamageError,
        OSError."""
        try:
            if self._doubtful:
                self._history.mend()
                self._doubtful = False
            moved = self._applier.step()
        except OSError as error:
            mishap = _mishap(error, "history and replica", self.name)
            self.pause_reason = mishap.message if isinstance(mishap, NoSpaceError) else str(error)
            raise mishap from error
        self.pause_reason = ""
        if moved:
            self._after_step()
        return moved

    def _after_step(self) -> None:
        """A rollback that has just ended: its point is known, and streams may come again."""
        state = self._applier.applied
        if state.next_point <= self._front.state.next_point or state.rollback is not None:
            return
        point = self._applier.last_point()
        with self._intake_lock:
            self._front.reset(state.copy())
            if point is not None and self._points.find(point.sequence) is None:
                self._points.add([point])
        self._inbox.remove_closed(state.closed_ordinal)
        self._tell("rollback.done", point=state.last_point)
        self._index(self._rebuild_catalog)

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

    def view(self, sequence: int) -> PointView:
        """The disks as of a point. It stays good, and its point stays, until it is closed."""
        point = self._applied_point(sequence)
        batch = self._history.batch_of_point(sequence)
        assert batch is not None
        with self._pins_lock:
            self._pins[sequence] += 1
        domains = {name: self._history.texts[digest] for name, digest in point.domains.items()}
        return PointView(
            self._history,
            self._replica,
            point,
            batch.number,
            domains,
            lambda: self._release(sequence),
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

    def _applied_point(self, sequence: int) -> Point:
        point = self._find(sequence)
        if not self._applier.is_point_applied(sequence):
            raise UnreachableError(
                f"point {point} of group {self.name!r} is durable, but not applied yet"
                + (f": {self.pause_reason}" if self.pause_reason else ""),
                hint="try again in a moment",
            )
        return point

    def plan_rollback(self, sequence: int) -> RollbackPlan:
        """What a rollback to the point would change, were it done now. Reads every block that it
        would look at."""
        self._find(sequence)
        while not self._applier.is_point_applied(sequence) and self.apply_next():
            pass
        point = self._applied_point(sequence)
        work = rolling.RollbackWork.to(self._history, sequence)
        changed = 0
        while not work.is_done:
            part = work.next_part(self._limits.batch_bytes)
            changed += self._applier.changed_bytes(part.operations)
            work.advance(part)
        after = sum(1 for other in self._points.all if other.sequence > sequence)
        return RollbackPlan(point, changed, [disk.name for disk in point.members], after)

    def rollback(self, sequence: int, progress: Progress | None = None) -> RollbackDone:
        """Takes the replica to a point, as new batches: everything before stays reachable, the
        exact state before it as the point `before`. No source may be connected: its stream is
        closed for ever. What is interrupted is gone on with by `apply_next` after a restart.

        NotFoundError and OwnedError change nothing; nor does a mishap before the stream is closed.
        """
        self._find(sequence)
        if self._applier.is_rolling_back:
            raise OwnedError(f"group {self.name!r} is being rolled back already")
        before = self._begin_rollback(sequence)
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

    def _begin_rollback(self, sequence: int) -> Point:
        """Applies all that came, then closes the stream: durable when this returns."""
        with self._intake_lock:
            self._closing = True
        try:
            self.sync_inbox()
            while self.apply_next():
                pass
            target = self._applied_point(sequence)
            state = self._applier.applied.copy()
            state.closed_ordinal = max(state.closed_ordinal, self._front.state.ordinal)
            point = rolling.begin(state, target, self._clock.utc_ns())
            self._tell("rollback.begun", target=sequence, before=point.sequence)
            try:
                self._applier.mark(state, point)
            except OSError as error:
                if self._applier.newest_state.rollback is None:
                    raise _mishap(error, "the history", self.name) from error
            with self._intake_lock:
                self._front.reset(state.copy())
                self._points.add([point])
        finally:
            # what failed may have been written all the same: nothing may come in until it is gone
            self._doubtful = not self._history.is_sound
            self._closing = False
        self._inbox.remove_closed(state.closed_ordinal)
        self._index(
            lambda: self._catalog.set_generation(
                state.generation, self._clock.utc_ns(), f"rollback to #{sequence}"
            )
        )
        return point

    def retain(self, max_bytes: int) -> Retained:
        """Gives up points, oldest first, until history and inbox fit. Points with a label, the
        newest one, those that the last rollback made, and what an open view shows stay."""
        used = self._retention.used_bytes
        if used <= max_bytes or self._applier.is_rolling_back:
            return Retained([], used)  # a rollback needs what is there until it is done
        try:
            retained = self._retention.retain(
                max_bytes,
                self._applier.newest_state,
                self._applier.applied_point,
                self._current_pins(),
            )
        except OSError as error:
            raise _mishap(error, "the history", self.name) from error
        if retained.dropped:
            first, last = retained.dropped[0], retained.dropped[-1]
            self._tell(
                "points.dropped",
                count=len(retained.dropped),
                oldest=first.sequence,
                newest=last.sequence,
                used_bytes=retained.used_bytes,
            )
            sequences = [point.sequence for point in retained.dropped]
            self._index(lambda: self._catalog.drop_points(sequences))
            self._index(lambda: self._catalog.set_segments(self._segment_facts()))
        if retained.over_budget:
            self._tell(
                "retention.over_budget", used_bytes=retained.used_bytes, why=retained.over_budget
            )
        return retained

    def _current_pins(self) -> Pins:
        with self._pins_lock:
            held = frozenset(self._pins)
        rollbacks = [
            point.sequence
            for point in self._points.all
            if point.kind in ("before-rollback", "rollback")
        ]
        return Pins(held, frozenset(rollbacks[-2:]))

    def close(self) -> None:
        """Both threads are done. Nothing is synced that was not."""
        self._inbox.close()
        self._history.close()
        self._replica.close()

    # -- telling others

    def _segment_facts(self) -> list[SegmentFact]:
        return [
            SegmentFact(each.first, each.end, each.size_bytes, each.digest)
            for each in self._history.segments
        ]

    def _tell(self, event: str, **fields: object) -> None:
        self._notify(GroupEvent(event, self.name, fields))

    def _index(self, write: Callable[[], object]) -> None:
        """The catalog is an index: a failure of it is told, and stops nothing."""
        try:
            write()
        except sqlite3.Error as error:
            self._tell("catalog.failed", error=str(error))


def _mishap(error: OSError, what: str, group: str) -> OSError | NoSpaceError:
    if not no_space(error):
        return error
    return NoSpaceError(
        f"the disk under {what} of group {group!r} is full",
        hint="free some space there, or lower [history] max_bytes; nothing is lost meanwhile",
    )
