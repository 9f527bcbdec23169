# SPDX-License-Identifier: Apache-2.0
"""Splitter, agent and receiver in one process, on simulated disks and a clock that the test moves.

The real cores, joined by hand: clients write into the splitter's GroupLog, the agent's Shipper
reads its spool and makes frames, the receiver's GroupReplica takes them in, applies and rolls
back. Nothing runs by itself, so a test decides what happens in which order, who dies, and when.

The oracle is plain: the disks as byte arrays, changed when a write is answered, and a copy of them
for each cut. `check` compares every recovery point with it, byte for byte.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import UUID

from agent.memory import AgentMemory
from agent.shipping.resume import Paused, Plan
from agent.shipping.shipper import Shipper
from agent.splitter.status import group_status
from receiver.counted.keeper import CountedClock
from receiver.group.group import GroupReplica
from receiver.group.parts import Limits
from receiver.points.pointspec import find
from receiver.points.source_clock import Pair
from receiver.points.values import Point
from replicator.base.clock import rfc3339
from replicator.base.units import KIB, MIB
from replicator.control.splitter import SplitterGroupStatus
from replicator.wire.frames import Frame
from replicator.wire.messages import Ack, DigestsWanted, Hold, Message, Open, Opened, Welcome
from replicator.wire.messages import Point as WirePoint
from tests.doubles.memory_catalog import MemoryCatalog
from tests.receiver.machine import MachineOf
from tests.splitter.rig import DISK, MEMORY, STATE, Client, ManualClock, Rig, trim, write, zero
from tests.world.storage import SimStorage, Volume

DISK_BYTES = {"a": 48 * KIB, "b": 10 * KIB + 512}  # b ends in the middle of a block
DR = Path("/dr")
SMALL = Limits(
    history_segment_bytes=64 * KIB,
    inbox_segment_bytes=32 * KIB,
    batch_bytes=24 * KIB,
    cache_bytes=1 * MIB,
)

Images = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class TrueClock:
    """The DR site's: nobody sets it."""

    source: ManualClock

    def utc_ns(self) -> int:
        return 1_800_000_000 * 10**9 + self.source.monotonic

    def monotonic_ns(self) -> int:
        return 17 + self.source.monotonic


@dataclass
class Chain:
    """The whole chain, and what must be true of it."""

    clock: ManualClock = field(default_factory=ManualClock)
    cut_at: dict[tuple[int, int], int] = field(default_factory=dict)
    up: deque[Message] = field(default_factory=deque)
    down: deque[Message] = field(default_factory=deque)
    disks: dict[str, bytearray] = field(
        default_factory=lambda: {name: bytearray(size) for name, size in DISK_BYTES.items()}
    )
    at_cut: dict[tuple[int, int], Images] = field(default_factory=dict)
    at_point: dict[int, Images] = field(default_factory=dict)
    connected: bool = False
    writes: int = 0

    def __post_init__(self) -> None:
        self.dr_clock = TrueClock(self.clock)
        self.source = SimStorage(Volume(MEMORY, volatile=True), Volume(DISK), Volume(STATE))
        self.dr = SimStorage(Volume(DR))
        self._start_splitter()
        self._start_agent()
        self._start_receiver()

    # -- the three, and their deaths ---------------------------------------------------------------

    def _start_splitter(self) -> None:
        self.rig = Rig(storage=self.source, clock=self.clock)
        self.rig.sim = self.source
        for name, size in DISK_BYTES.items():
            self.rig.declare(name, size=size)
        self.rig.group.begin()
        self.clients: dict[str, Client] = {name: self.rig.connect(name) for name in DISK_BYTES}
        self._note_cut()

    def _start_agent(self) -> None:
        directories = [MEMORY / "g", DISK / "g"]
        memory = AgentMemory(self.source, STATE / "agent")
        self.shipper = Shipper(
            self.source, directories, "g", memory, window_bytes=64 * KIB, frame_bytes=8 * KIB
        )

    def _start_receiver(self) -> None:
        self.replica = GroupReplica(
            self.dr,
            self.dr_clock,
            DR / "g",
            "g",
            MemoryCatalog(),
            age_clock=CountedClock(self.dr, DR / "clock.json", MachineOf(self.dr_clock)),
            limits=SMALL,
        )
        self.replica.recover()

    def kill_splitter(self) -> None:
        """Its spool stays: tmpfs survives the process. Its clients' connections do not."""
        self.source.kill()
        self._start_splitter()
        self._start_agent()  # its handles are dead as well
        self.disconnect()

    def kill_agent(self) -> None:
        self.disconnect()
        self._start_agent()

    def kill_receiver(self, power: Random | None) -> None:
        self.disconnect()
        if power is None:
            self.dr.kill()
        else:
            self.dr.power_cut(power)
        self._start_receiver()

    # -- the source --------------------------------------------------------------------------------

    def status(self) -> SplitterGroupStatus:
        return group_status(self.rig.group, self.rig.tiers, self.rig.clock.monotonic_ns())

    def write(self, name: str, offset: int, data: bytes) -> None:
        self.clients[name].send(write(offset, data))
        self._changed(name, offset, data)

    def zero(self, name: str, offset: int, length: int, *, by_trim: bool) -> None:
        self.clients[name].send((trim if by_trim else zero)(offset, length))
        self._changed(name, offset, bytes(length))

    def _changed(self, name: str, offset: int, data: bytes) -> None:
        self.disks[name][offset : offset + len(data)] = data
        self.writes += 1
        self._note_cut()

    def tick(self, nanoseconds: int = 1_000_000_000) -> None:
        self.rig.tick(nanoseconds)
        self._note_cut()

    def mark(self, label: str) -> None:
        self.rig.group.mark(label, "crash", lambda _made: None)
        self._note_cut()

    def resync(self) -> None:
        """A person's order, and a client that sends everything again, then flushes."""
        self.shipper.accept_generation()
        if self.rig.state() != "lost":
            self.rig.group.close_stream("a resync was ordered")
        self.rig.group.cutter.behind(self.shipper.above_time_ns)
        self.rig.group.resync(self.shipper.above_ordinal)
        for name, content in self.disks.items():
            self.clients[name].send(write(0, bytes(content)))
            self.clients[name].flush()
        self._note_cut()

    def images(self) -> Images:
        return {name: bytes(content) for name, content in self.disks.items()}

    def _note_cut(self) -> None:
        """A cut at the end of the log is one of the disks as they are now."""
        stream = self.rig.group.writer.stream
        if stream is not None and self.rig.state() == "ready":
            self.cut_at.setdefault((stream.name.ordinal, stream.end_lsn), self.dr_clock.utc_ns())
            self.at_cut[stream.name.ordinal, stream.end_lsn] = self.images()

    # -- the way -----------------------------------------------------------------------------------

    def connect(self) -> bool:
        self.disconnect()
        self.replica.intake.sync()
        self.shipper.publish(self.status())
        self.connected = isinstance(self.shipper.welcome(self._welcome()), Plan)
        self.tell_clocks()
        return self.connected

    def tell_clocks(self) -> None:
        """What a PING says."""
        stream = self.rig.group.writer.stream
        pair = Pair(
            self.clock.utc_ns(),
            self.clock.monotonic_ns(),
            self.dr_clock.utc_ns(),
            None if stream is None else stream.name.stream,
        )
        self.replica.intake.source_clock.heard(pair)

    @property
    def is_paused(self) -> bool:
        self.disconnect()
        self.shipper.publish(self.status())
        decided = self.shipper.welcome(self._welcome())
        self.shipper.disconnected()
        return isinstance(decided, Paused)

    def disconnect(self) -> None:
        self.up.clear()
        self.down.clear()
        self.shipper.disconnected()
        self.connected = False

    def ship(self, messages: int = 1 << 30) -> None:
        """Lets at most so many messages arrive, in both directions together."""
        if not self.connected and not self.connect():
            return
        moved = True
        while moved and messages > 0:
            moved = False
            self.shipper.publish(self.status())
            self.up.extend(self.shipper.produce(16 * KIB, patient=False))
            while self.up and messages > 0:
                self.down.extend(self._obey(self.up.popleft()))
                messages, moved = messages - 1, True
            while self.down and messages > 0:
                self.shipper.receive(self.down.popleft())
                messages, moved = messages - 1, True

    def _obey(self, message: Message) -> list[Message]:
        replica = self.replica
        if isinstance(message, Open):
            opened = replica.intake.open_stream(
                UUID(message.stream), message.ordinal, message.start_lsn, message.chain
            )
            return [Opened(opened.durable_lsn, []), self._ack(opened.points)]
        if isinstance(message, Frame):
            replica.intake.accept(message)
            return [self._ack(replica.intake.sync().points)]
        if isinstance(message, Hold):
            replica.intake.hold(message.lsn, message.until_ns)
        else:
            assert isinstance(message, DigestsWanted), message
        return []

    def _ack(self, points: list[Point]) -> Ack:
        told = [_on_wire(point) for point in points]
        count = self.replica.points.count
        return Ack(
            self.replica.known.welcome().durable_lsn, self.replica.applier.applied.lsn, told, count
        )

    def _welcome(self) -> Welcome:
        facts, newest = self.replica.known.welcome(), self.replica.points.newest
        return Welcome(
            receiver="dr",
            generation=facts.generation,
            stream=None if facts.stream is None else str(facts.stream),
            ordinal=facts.ordinal,
            durable_lsn=facts.durable_lsn,
            chain=facts.chain,
            applied_lsn=facts.applied_lsn,
            closed_ordinal=facts.closed_ordinal,
            next_point=facts.next_point,
            points=self.replica.points.count,
            newest_point=None if newest is None else _on_wire(newest),
        )

    # -- the DR site -------------------------------------------------------------------------------

    def apply(self, batches: int = 1 << 30) -> None:
        while batches > 0 and self.replica.apply_next():
            batches -= 1

    def replica_images(self) -> Images:
        found = {}
        for disk in self.replica.applier.applied.present:
            file = self.dr.open(DR / "g" / "disks" / f"{disk.name}.raw")
            found[disk.source_name] = file.pread(disk.size_bytes, 0)
            file.close()
        return found

    def rollback(self, point: Point) -> None:
        self.disconnect()
        self.apply()
        before, target = self.replica_images(), self.expected(point)
        done = self.replica.rolling_back.run(point.sequence)
        assert self.replica_images() == target, f"rolled back to {point}"
        self.at_point[done.before.sequence] = before
        self.at_point[done.point.sequence] = target

    def expected(self, point: Point) -> Images:
        if point.sequence in self.at_point:
            return self.at_point[point.sequence]
        return self.at_cut[point.ordinal, point.lsn]

    def view_images(self, point: Point) -> Images:
        view = self.replica.showing.view(point.sequence)
        try:
            return {name: view.read(name, 0, size) for name, size in view.disks}
        finally:
            view.close()

    def check(self) -> None:
        """Every applied point, byte for byte; numbers and times rise, and name their points; when
        they were made is known or not said, whatever the source's clock did."""
        points = self.replica.points.all
        numbers = [point.sequence for point in points]
        assert numbers == sorted(set(numbers))
        times = [point.time_ns for point in points]
        assert times == sorted(times), "point times went back"
        assert len({rfc3339(time_ns) for time_ns in times}) == len(times)
        now_ns = self.dr_clock.utc_ns()
        for point in points:
            for text in (rfc3339(point.time_ns), rfc3339(point.until_ns)):
                assert find(text, now_ns, None, points).point == point
            if point.made_ns and point.lsn:
                assert point.made_ns == self.cut_at[point.ordinal, point.lsn]
        if points and points[-1].made_ns:
            assert find("now", now_ns, None, points).point == points[-1]
        for point in points:
            if self.replica.applier.is_point_applied(point.sequence):
                assert self.view_images(point) == self.expected(point), f"point {point}"


def _on_wire(point: Point) -> WirePoint:
    return WirePoint(
        point.sequence, point.time_ns, point.kind, point.lsn, point.label, point.until_ns
    )
