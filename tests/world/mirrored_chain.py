# SPDX-License-Identifier: Apache-2.0
"""The chain (chain.py) with a machine as its source, whose disks are mirrored by the libvirt plan.

Guests are paused, filesystems fill up, jobs fail and come back, and the splitter's cuts go all the
way to points at the DR site. The oracle is the same: the source's disks at each cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import pytest

from receiver.points.values import Point
from replicator.base.errors import UsageError
from tests.drivers.mirrored import Protected
from tests.splitter.rig import Rig
from tests.world.chain import Chain

DISKS = ("a", "b")


class Source(Protected):
    """`note` is called after everything that happens, while the disks are as they were then."""

    chain: MirroredChain | None = None

    def check(self) -> None:
        super().check()
        if self.chain is not None:
            self.chain.note()


@dataclass
class MirroredChain(Chain):
    """Its writes are the machine's, which goes on from splitter to splitter."""

    flushes: int = 2
    reconnects: bool = False
    streams: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.mirrored: Source | None = None
        super().__post_init__()

    @property
    def it(self) -> Source:
        assert self.mirrored is not None
        return self.mirrored

    def _start_splitter(self) -> None:
        self.rig = Rig("libvirt", storage=self.source, clock=self.clock, streams=self.streams)
        self.rig.sim = self.source
        if self.mirrored is None:
            self.mirrored = Source(
                *DISKS,
                flushes=self.flushes,
                reconnects=self.reconnects,
                rig=self.rig,
                above=lambda: self.shipper.above_ordinal,
            )
            self.mirrored.chain = self
            self.disks = self.mirrored.machine.source
        else:
            self.mirrored.splitter_is_replaced(self.rig)

    def note(self) -> None:
        self._note_cut()

    def kill_agent(self) -> None:
        super().kill_agent()
        self.it.agent_is_killed()

    def resync(self) -> None:
        """A person's order; the driver does the rest."""
        self.shipper.accept_generation()
        if self.rig.state() not in ("closed", "lost"):
            self.rig.group.close_stream("a resync was ordered")
        self.it.check()

    def rollback(self, point: Point) -> None:
        """Refused behind a resize, and nothing is closed by that."""
        self.apply()
        present = {disk.slot for disk in self.replica.applier.applied.present}
        if all(member.slot in present for member in point.members):
            super().rollback(point)
            return
        before = self.replica.known.welcome()
        with pytest.raises(UsageError, match="no rollback across that"):
            self.replica.rolling_back.run(point.sequence)
        assert self.replica.known.welcome() == before

    def agent_sees_to_what_cannot_be_shipped(self) -> None:
        """The live stream is given up if the receiver cannot go on with it."""
        renew = self.shipper.renew
        if renew is not None and renew.stream == self.rig.group.stream_id:
            self.rig.group.close_stream(renew.reason)
