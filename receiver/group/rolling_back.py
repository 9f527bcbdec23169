# SPDX-License-Identifier: Apache-2.0
"""A rollback, from the order to its end.

    plan    what it would change, were it done now; nothing is changed
    run     1  nothing comes in any more (`closing`, under the intake's lock)
            2  all that came is applied; the exact state before is the point `before`
            3  a batch marks the rollback: durable, the stream is closed for ever
            4  blocks change back, part by part, each part a batch (receiver.rollback, apply)
            5  its own point is made, and streams may come again

What fails before 3 changes nothing. From 3 on the state says that a rollback is under way, so
`GroupReplica.apply_next` goes on with it after any crash, and takes step 5 as well.

Concurrency: the apply thread; no session feeds the group meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from receiver.group.parts import GroupParts
from receiver.history.log import as_mishap
from receiver.points.values import Point, RollbackDone, RollbackPlan
from receiver.rollback import rollback as rolling
from replicator.base.errors import OwnedError

Progress = Callable[[int, int], None]


class RollingBack:
    """See the head of this file. `step`: one step of applying; False when there is none."""

    def __init__(self, parts: GroupParts, step: Callable[[], bool], part_bytes: int) -> None:
        self._name = parts.name
        self._intake = parts.intake
        self._inbox = parts.inbox
        self._applier = parts.applier
        self._history = parts.history
        self._points = parts.points
        self._fine = parts.fine
        self._showing = parts.showing
        self._opening = parts.opening
        self._telling = parts.telling
        self._catalog = parts.catalog
        self._clock = parts.clock
        self._step = step
        self._part_bytes = part_bytes

    def plan(self, sequence: int, writes: int = 0) -> RollbackPlan:
        """What a rollback to the point would change, were it done now. Reads every block that it
        would look at."""
        self._showing.find(sequence)
        while not self._applier.is_point_applied(sequence) and self._step():
            pass
        point = self._showing.applied_point(sequence)
        rolling.check_target(self._applier.applied, point, self._name)
        overlay = self._fine.overlay(point, writes) if writes else None
        work = rolling.RollbackWork.to(self._history, sequence, overlay)
        changed = 0
        while not work.is_done:
            part = work.next_part(self._part_bytes)
            changed += self._applier.changed_bytes(part.operations)
            work.advance(part)
        after = sum(1 for other in self._points.all if other.sequence > sequence)
        return RollbackPlan(point, changed, [disk.name for disk in point.members], after)

    def run(
        self, sequence: int, progress: Progress | None = None, *, writes: int = 0
    ) -> RollbackDone:
        """Takes the replica to a point or a write, as new batches: everything before stays
        reachable, the exact state before it as the point `before`. No source may be connected: its
        stream is closed for ever. What is interrupted is gone on with by `step` after a
        restart.

        NotFoundError and OwnedError change nothing; nor does a mishap before the stream is closed.
        """
        self._showing.find(sequence)
        if self._applier.is_rolling_back:
            raise OwnedError(f"group {self._name!r} is being rolled back already")
        before = self._begin(sequence, writes)
        while True:
            self._step()
            if progress is not None:
                progress(*self._applier.rollback_progress)
            if not self._applier.is_rolling_back:
                break
        point = self._points.newest
        assert point is not None
        assert point.kind == "rollback"
        while self._step():  # nothing to apply: makes it durable, says it is consistent
            pass
        return RollbackDone(before, point)

    def _begin(self, sequence: int, writes: int) -> Point:
        """Applies all that came, then closes the stream: durable when this returns."""
        with self._intake.lock:
            self._intake.closing = True
        try:
            self._intake.sync()
            while self._step():
                pass
            target = self._showing.applied_point(sequence)
            rolling.check_target(self._applier.applied, target, self._name)
            if writes:
                self._fine.overlay(target, writes)  # that it can be had, before anything is closed
                self._fine.log.keep_ns = None
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
                    raise as_mishap(error, "the history", self._name) from error
            point = self._applier.last_point() or point  # with when it was received
            with self._intake.lock:
                self._intake.reset(state.copy(), [point])
        finally:
            # what failed may have been written all the same: nothing may come in until it is gone
            self._intake.doubtful = not self._history.log.is_sound
            self._intake.closing = False
        self._inbox.remove_closed(state.closed_ordinal)
        self._telling.index(
            lambda: self._catalog.set_generation(
                state.generation, self._clock.utc_ns(), f"rollback to #{sequence}"
            )
        )
        return point

    def end_if_done(self) -> None:
        """Behind each step: a rollback that has just ended makes its point known, and streams may
        come again."""
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
        self._telling.index(self._opening.rebuild_catalog)
