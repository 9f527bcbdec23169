# SPDX-License-Identifier: Apache-2.0
"""GroupReplica: everything the receiver does for one group, without a socket or a thread.

    GROUP/inbox      frames as they came                       receiver.intake.inbox
    GROUP/history    batches: before-images, points, state     receiver.history, the authority
    GROUP/disks      the replica                               receiver.blocks.replica

Two callers, which may run at once: the intake thread (`intake`) and the apply thread (recover,
apply_next, retain, tidy; `showing`, `rolling_back`, `keeping`). What both know is the inbox's list
of frames and the list of points, each with its own short lock. `known` is for any thread: it reads
values that are replaced as a whole.

A rollback is the one thing that touches both sides: it is refused a stream from its first step to
its last (`closing`, under the intake's lock), so when it runs nothing is coming in.

Failures. A mishap of the outside leaves the group where it was before the step; the same call may
be made again. After a crash `recover` goes on from what is durable, in this order: history (and the
check of its tail against the replica), inbox, cross-check of both, numbering of what is not
applied. Nothing is reported before it is synced.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from receiver.catalog import GroupCatalog
from receiver.counted.ages import AgeClock
from receiver.group.image_watch import changed_under_us
from receiver.group.known import Known
from receiver.group.parts import Limits, assemble
from receiver.group.rolling_back import RollingBack
from receiver.history.log import as_mishap
from receiver.points.evidence import Reached
from receiver.points.policy import HistoryPolicy
from receiver.points.values import (
    GroupEvent,
    Retained,
    ignore_event,
)
from receiver.tasks.beside import Beside, InTurn
from replicator.base.clock import Clock
from replicator.base.errors import (
    NoSpaceError,
)
from replicator.base.mishaps import mishap
from replicator.base.storage import Storage

Progress = Callable[[int, int], None]


class GroupReplica:
    """See the head of this file. `recover` comes first, `close` last.

    Its parts are for their callers to hold: `intake` for the intake thread; `showing`,
    `rolling_back`, `keeping`, `fine`, `scrub` for the apply thread; `known` and `points` for any.
    """

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
        self._parts = parts = assemble(
            storage,
            clock,
            directory,
            name,
            catalog,
            age_clock=age_clock,
            notify=notify,
            limits=limits,
            fine_ns=fine_ns,
            reached=reached,
            beside=beside or InTurn(),
        )
        self.name = name
        self.points = parts.points
        self.history = parts.history
        self.applier = parts.applier
        self.intake = parts.intake
        self.fine = parts.fine
        self.scrub = parts.scrub
        self.opening = parts.opening
        self.keeping = parts.keeping
        self.showing = parts.showing
        self.known = Known(parts)
        self.rolling_back = RollingBack(parts, self.apply_next, limits.batch_bytes)

    # -- apply thread

    def recover(self) -> None:
        """Takes up what the last life left. May be called again where it failed. Raises DamageError
        with file and offset, VersionError, OSError."""
        self.opening.run()
        self._opened()

    def accept_loss(self, progress: Progress) -> None:
        """See Opening."""
        self.opening.accept(progress)
        self._opened()

    def _opened(self) -> None:
        self._parts.earlier_images.look()
        self.keeping.see_stamps()

    def check_images(self) -> None:
        """Whether each image is there with its size. Raises DamageError, OSError."""
        replica = self._parts.replica
        for disk in self.applier.applied.disks.values():
            found = replica.size_of(disk.name)
            if found != disk.size_bytes:
                raise changed_under_us(replica.path(disk.name), found, disk.size_bytes)

    def apply_next(self) -> bool:
        """One step: a batch, what a crash left of one, or a part of a rollback. False: there is
        nothing to do for now. Raises NoSpaceError (nothing is lost; call again), DamageError,
        OSError."""
        try:
            if self.intake.doubtful:
                self.history.log.make_sound()
                self.intake.doubtful = False
            moved = self.applier.step() or self.opening.settle()
        except OSError as error:
            found = as_mishap(error, "history and replica", self.name)
            said = found if isinstance(found, NoSpaceError) else mishap(error)
            self.showing.pause_reason = said.message
            if isinstance(found, NoSpaceError):
                with suppress(OSError):  # the disk has been told of already
                    self.fine.give_way()
            raise found from error
        self.showing.pause_reason = ""
        if moved:
            self.rolling_back.end_if_done()
        return moved

    def retain(self, policy: HistoryPolicy) -> Retained:
        """See Keeping."""
        if not self.applier.is_rolling_back:  # it may need the frames until it is done
            others_bytes = self.history.segment_set.used_bytes + self._parts.inbox.used_bytes
            self.fine.make_room(policy, others_bytes)
        return self.keeping.keep(policy)

    def tidy(self) -> bool:
        """A step of freeing what no point needs any more, some tens of milliseconds. False if
        there is nothing to do. Raises OSError."""
        parts = self._parts
        if self.applier.is_rolling_back:
            return False  # it needs what is there until it is done
        indexed = self.history.segment_set.index.step() or self.history.summaries.step()
        sorted_out = parts.sums.tidy()
        reclaimed = parts.reclaim.step(self.showing.pins())
        return parts.earlier_images.step() or reclaimed or indexed or sorted_out

    def close(self) -> None:
        """Both threads are done. Nothing is synced that was not."""
        self._parts.closing.close()
