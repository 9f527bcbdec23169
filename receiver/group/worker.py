# SPDX-License-Identifier: Apache-2.0
"""A group at work: its core in two lanes, and what the event loop may ask of it.

    intake lane   accept, fdatasync, open a stream, hold          the inbox
    apply lane    batches, retention, digests, views, rollback    history and replica

The lanes run side by side: a slow replica does not hold up acknowledgements, and a burst from the
link does not hold up a view. Each is one thread, so the inbox has one writer and the replica has
one writer, whatever the daemon does around them: what changes `replica` is called by `feeding`,
`ordered`, `applying` and the scrub, in their lanes, and by nobody else. What the loop asks without
a lane (`replica.known`, points) never blocks.

What becomes of the trouble of a group stands in receiver.tasks.stop. One that has been recovered
and was stopped later goes on serving its points that are whole.

Failure: a kill at any moment leaves what the core's recovery is made for.
"""

from __future__ import annotations

import asyncio

from receiver.data_dir.reserve import UNRESERVED, Room
from receiver.group.applying import Applying
from receiver.group.feeding import Feeding
from receiver.group.group import GroupReplica
from receiver.group.health import Health
from receiver.group.image_watch import ImageWatch
from receiver.group.lanes import Lanes
from receiver.group.ordered import Ordered
from receiver.group.seat import Seat
from receiver.group.witness import Witness
from receiver.points.figures import GroupFigures
from receiver.points.policy import HistoryPolicy
from receiver.scrub.scrubbing import Scrubbing
from receiver.tasks.change import Change
from receiver.tasks.lane import Aside, Lane
from receiver.tasks.pump import ApplyPump
from receiver.tasks.stop import Stop
from replicator.base.clock import Clock, SystemClock
from replicator.base.errors import DamageError, UsageError
from replicator.base.trouble import anew
from replicator.config.receiver import ScrubSection
from replicator.control.service import Report


class GroupWorker:
    """See the head of this file. `recover`, then `start`; `close` at the end. `replica` is for
    reading what any thread may read, and of use only if the group is recovered."""

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
        self.replica = replica
        self.policy = policy
        clock = clock or SystemClock()
        self.seat = Seat(replica.name)
        self.witness = Witness(clock)
        self.aside = Aside(f"{self.name}.aside")
        self._lanes = lanes = Lanes(
            intake=Lane(f"{self.name}.intake"),
            apply=Lane(f"{self.name}.apply"),
            room=room,
            figures=GroupFigures(),
            changed=Change(),
            wake=self.wake,
        )
        self.figures, self.changed = lanes.figures, lanes.changed
        stop = Stop(self.name, self._moved)
        self.health = Health(replica, stop, lambda: self._pump.paused)
        self.applying = Applying(replica, lanes, lambda: self.policy, lambda: self._pump.paused)
        self._pump = ApplyPump(self.name, lanes.apply, self.applying.step, self._moved, stop)
        self._image_watch = ImageWatch(lanes.apply, self.applying.check_images, stop)
        self.scrubbing = Scrubbing(
            self.name,
            replica.scrub,
            lanes.apply,
            scrub or ScrubSection(),
            self.figures,
            self.changed.wait,
            clock.utc_ns,
            self.aside,
            stop,
        )
        self.feeding = Feeding(
            replica, self.health, lanes, self.witness, clock=clock, receiver=receiver
        )
        self.ordered = Ordered(replica, self.health, lanes, self.aside, lambda: self.policy)
        self._one_accept = asyncio.Lock()

    # Life.

    async def recover(self) -> None:
        """Reads back what the last life left. What keeps it from that stops the group."""
        try:
            await self._lanes.apply.run(self.replica.recover)
        except Exception as error:  # noqa: BLE001 - a supervision
            if isinstance(error, DamageError):
                self.figures.found_damage("recovery")
            self.health.stop.because(error, "recovery")
        else:
            self.health.is_recovered = True
        self.changed.told()

    async def accept(self, report: Report) -> str:
        """Goes on without what the opening has stopped for; what that was. Raises UsageError where
        it did not stop for that, or somebody has accepted it meanwhile."""
        async with self._one_accept:  # it opens everything anew, which nobody may be using by then
            return await self._accept(report)

    async def _accept(self, report: Report) -> str:
        if self.health.is_recovered or self.health.stopped is None:
            raise UsageError(f"group {self.name!r} has not stopped at its opening")
        gone = self.health.stopped.message
        await self.ordered.accept_loss(report)
        self.health.is_recovered = True
        self.health.stop.lift()
        self.start()
        self.changed.told()
        return gone

    def start(self) -> None:
        """Fine if it was closed meanwhile: a recovery may take longer than that."""
        if (
            self.health.is_recovered
            and self.health.stop.reason is None
            and not self.health.is_closing
        ):
            self._pump.start()
            self._image_watch.start()
            self.scrubbing.start()

    def begin_closing(self) -> None:
        """Orders that can be given up are given up at their next step."""
        self.health.is_closing = True

    async def close(self) -> None:
        """Waits for the steps under way. No session and no view is left by now."""
        self.begin_closing()
        await self.scrubbing.close()
        await self._image_watch.close()
        await self._pump.close()
        await self._lanes.intake.close()
        await self._lanes.apply.close()
        await self.aside.close()
        try:
            await asyncio.to_thread(self.replica.close)
        except Exception as error:  # noqa: BLE001 - a supervision: the other groups are closed too
            self.health.stop.because(error, "close")

    def wake(self) -> None:
        """There may be something to do: frames came, or time was found to have passed."""
        self._pump.wake()

    def _moved(self) -> None:
        self.changed.told()
        sitter = self.seat.sitter
        if self.health.stopped is not None and sitter is not None:
            sitter.close(anew(self.health.stopped))
