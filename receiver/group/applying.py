# SPDX-License-Identifier: Apache-2.0
"""One step of the apply lane: room is made, a batch is applied, the past is tidied.

    1  what the past must give up (`keep`, the budget)      no room: the inbox goes on, later again
    2  the images are what the history says                 else the group stops
    3  the disk has more than what was kept back for us     else only room is made
    4  one batch, or a step of upkeep if it is time for one

Concurrency: the apply lane; what is counted, any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from receiver.group.group import GroupReplica
from receiver.group.lanes import Lanes
from receiver.points.policy import HistoryPolicy
from receiver.retention.rewrite_rate import RewriteRate
from receiver.tasks.pacing import Pacing
from replicator.base.errors import DamageError, NoSpaceError, ReplicatorError
from replicator.base.units import format_size

IDLE_SECONDS = 60.0
"""A group that has nothing to apply takes a step so often all the same: its points grow older."""
TIDY_SECONDS = 2.0
"""For how long at a stretch room is made while nothing may be applied for want of it."""


class Applying:
    """See the head of this file. `policy`: the one in force. `paused`: why the last step did not
    come to its end."""

    def __init__(
        self,
        replica: GroupReplica,
        lanes: Lanes,
        policy: Callable[[], HistoryPolicy],
        paused: Callable[[], ReplicatorError | None],
    ) -> None:
        self._name = replica.name
        self._replica = replica
        self._lanes = lanes
        self._policy = policy
        self._paused = paused
        self._upkeep = Pacing()
        self._rewrites = RewriteRate()

    @property
    def rewrite_rate(self) -> float:
        """Bytes of the replica that are overwritten in a second, each with its before-image."""
        return self._rewrites.bytes_per_second

    def step(self) -> float:
        """In how many seconds the next is due. Raises what keeps it from that."""
        try:
            self._make_room()
            self.check_images()
            self._check_disk()
            before = self._replica.applier.applied.lsn
            rewritten, began = self._replica.applier.rewritten_bytes, time.monotonic()
            if not self._replica.apply_next():
                return self._tidy() or IDLE_SECONDS
            self._rewrites.note(
                self._replica.applier.rewritten_bytes - rewritten, time.monotonic() - began
            )
            self._lanes.figures.batches += 1
            self._lanes.figures.unverified_bytes = self._replica.known.unverified_bytes
            self._lanes.figures.applied_log_bytes += max(
                self._replica.applier.applied.lsn - before, 0
            )
            self._tidy()
        except DamageError:
            self._lanes.figures.found_damage("apply")
            raise
        return 0.0

    def check_images(self) -> None:
        """A file that was cut short would be filled up by the next write to it,
        as if nothing had been lost."""
        self._replica.check_images()

    def _check_disk(self) -> None:
        """Raises NoSpaceError while the disk has only what was kept back for making room: then
        that is gone on with."""
        if not self._lanes.room.is_given or not self._replica.known.unapplied_bytes:
            return
        until = time.monotonic() + TIDY_SECONDS
        while time.monotonic() < until and self._replica.tidy():
            pass
        self._lanes.room.check()

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
        if self._paused() is not None and self._replica.known.kept_bytes > self._policy().max_bytes:
            self._lanes.room.ready("the budget")  # else points would go, and free nothing
        retained = self._lanes.room.with_room(
            lambda: self._replica.retain(self._policy()), "ageing"
        )
        self._lanes.figures.points_dropped += len(retained.dropped)
        if retained.must_wait and self._replica.known.unapplied_bytes:
            raise NoSpaceError(
                f"the history of group {self._name!r} takes {format_size(retained.used_bytes)} with"
                f" its inbox, more than max_bytes, and {retained.over_budget}",
                hint="raise [history] max_bytes and run: replicator reload; apply goes on by"
                " itself, and nothing is lost meanwhile",
            )
