# SPDX-License-Identifier: Apache-2.0
"""A group of the splitter in a simulated world: clients, clock, lane, and its log read back.

Nothing runs by itself: the test gives batches, moves the clock, ticks, and lets the lane go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from uuid import UUID, uuid5

import msgspec

from agent.splitter.disk import Disk
from agent.splitter.group import GroupLog, GroupSettings
from agent.splitter.reservation import Reservation
from agent.splitter.tiers import SpoolTiers, Tier
from agent.splitter.writer import Surroundings
from journal.appender import AppendError
from journal.bodies import BODIES, Body, Cut
from journal.reader import LogReader
from journal.record import Record, RecordType, first_chain
from replicator.base.errors import ReplicatorError
from replicator.base.storage import Storage
from replicator.base.units import MIB
from replicator.nbd.constants import Command, WireError
from replicator.nbd.exports import ConnectionEnd, EndKind
from replicator.nbd.request import Request
from tests.world.storage import SimStorage, Volume

MEMORY, DISK, STATE = Path("/memory"), Path("/disk"), Path("/state")
SECOND = 1_000_000_000
INSTANCES = UUID("00000000-0000-4000-8000-000000000000")


class ManualClock:
    """Stands still until it is moved. UTC may be stepped by itself."""

    def __init__(self) -> None:
        self.utc = 1_800_000_000 * SECOND
        self.monotonic = 5 * SECOND

    def utc_ns(self) -> int:
        return self.utc

    def monotonic_ns(self) -> int:
        return self.monotonic

    def move(self, nanoseconds: int) -> None:
        self.utc += nanoseconds
        self.monotonic += nanoseconds


class ManualLane:
    """Keeps what it is given until `run`. `stick()` begins a work and does not come back from it
    before `unstick()`: the file is written then, as a device that answers late would."""

    def __init__(self) -> None:
        self.works: deque[tuple[Callable[[], object], Callable[[Exception | None], None]]] = deque()
        self.ended = False

    def put(self, work: Callable[[], object], done: Callable[[Exception | None], None]) -> None:
        assert not self.ended, "work for a lane that has ended"
        self.works.append((work, done))

    def end(self) -> None:
        self.ended = True

    def run(self, limit: int | None = None) -> None:
        """Carries out what is there, as the thread and the loop would."""
        for _ in range(len(self.works) if limit is None else limit):
            work, done = self.works.popleft()
            error: Exception | None = None
            try:
                work()
            except (AppendError, OSError, ReplicatorError) as caught:
                error = caught
            done(error)


@dataclass(eq=False)
class Client:
    """A link. `answers` grows by one for each batch that is settled; `seen` is the group's state
    at that moment, since what counts is what is true before the reply goes out."""

    rig: Rig
    disk: Disk
    gone: bool = False
    answers: list[bool] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    dropped: bool = False
    sent: int = 0  # batches, for who counts them

    def settled(self, kept: bool) -> None:
        self.answers.append(kept)
        self.seen.append(self.rig.state())

    def hung_up(self) -> bool:
        return self.gone

    def drop(self) -> None:
        self.dropped = True
        self.end(EndKind.CLOSED)

    # What the far end does.

    def send(self, *requests: Request) -> None:
        self.rig.group.take(self.disk, self, requests)

    def write(self, offset: int, data: bytes) -> None:
        self.send(write(offset, data))

    def flush(self) -> None:
        self.send(flush())

    def disc(self) -> None:
        self.send(disc())
        self.end(EndKind.DISC)

    def end(
        self, kind: EndKind = EndKind.EOF, *, mid_request: bool = False, unanswered: int = 0
    ) -> None:
        self.gone = True
        end = ConnectionEnd(
            kind=kind, mid_request=mid_request, unanswered=unanswered, unsent_bytes=0
        )
        self.rig.group.ended(self.disk, self, end)


def write(offset: int, data: bytes) -> Request:
    return Request(Command.WRITE, 0, bytes(8), offset, len(data), memoryview(data))


def zero(offset: int, length: int) -> Request:
    return Request(Command.WRITE_ZEROES, 0, bytes(8), offset, length)


def trim(offset: int, length: int) -> Request:
    return Request(Command.TRIM, 0, bytes(8), offset, length)


def read(offset: int, length: int) -> Request:
    return Request(Command.READ, 0, bytes(8), offset, length)


def flush() -> Request:
    return Request(Command.FLUSH, 0, bytes(8), 0, 0)


def disc() -> Request:
    return Request(Command.DISC, 0, bytes(8), 0, 0)


def refused(offset: int, length: int) -> Request:
    """A write that the protocol has refused already."""
    request = Request(Command.WRITE, 0, bytes(8), offset, length)
    request.error = WireError.ENOSPC
    return request


class Rig:
    """One group named `g` on a storage that outlives it."""

    def __init__(
        self,
        driver: str = "external",
        *,
        storage: Storage | None = None,
        clock: ManualClock | None = None,
        memory_bytes: int = 64 * MIB,
        disk_bytes: int = 64 * MIB,
        memory_is_sticky: bool = False,
        streams: Iterator[int] | None = None,
    ) -> None:
        """`streams`: what their UUIDs are made of, where several lives share one."""
        self.sim = SimStorage(Volume(MEMORY, volatile=True), Volume(DISK), Volume(STATE))
        self.storage: Storage = storage or self.sim
        self.clock = clock or ManualClock()
        self.lanes: list[ManualLane] = []
        self.tiers = SpoolTiers(
            Tier(self.storage, MEMORY, memory_bytes, sticky=memory_is_sticky),
            Tier(self.storage, DISK, disk_bytes, sticky=True),
        )
        self.woken: list[int] = []
        self.changes = 0
        numbers = streams or count(1)
        self.around = Surroundings(
            storage=self.storage,
            clock=self.clock,
            tiers=self.tiers,
            sequence=count(1),
            make_lane=self._make_lane,
            make_uuid=lambda: uuid5(INSTANCES, f"stream {next(numbers)}"),
            wake=self.woken.append,
            changed=self._count_change,
        )
        self.group = self.make_group("g", driver)

    def make_group(self, name: str, driver: str) -> GroupLog:
        assert driver in ("libvirt", "external")
        settings = GroupSettings(
            name=name,
            driver="libvirt" if driver == "libvirt" else "external",
            checkpoint_interval_ns=SECOND,
            max_stall_ns=2 * SECOND,
        )
        reservation = Reservation(self.storage, STATE, name, self.tiers.directories(name))
        return GroupLog(settings, self.around, reservation)

    def declare(self, *names: str, size: int = 64 * MIB) -> None:
        for name in names:
            self.group.declare_disk(name, size, instance(name))

    def connect(self, name: str, sync_lsn: int | None = None) -> Client:
        """To the export of the disk's sync of now, unless another one's is given."""
        disk = self.group.roster.find(name)
        client = Client(self, disk)
        self.group.opened(disk, client, disk.sync_lsn if sync_lsn is None else sync_lsn)
        return client

    def visit(self, name: str) -> Client:
        """By the disk's plain name."""
        disk = self.group.roster.find(name)
        client = Client(self, disk)
        self.group.opened(disk, client)
        return client

    def confirm(self, name: str) -> None:
        """The agent's word that READY was read back after the FLUSH that it was told of."""
        self.group.ready(name, self.group.roster.find(name).flushed_by)

    def state(self) -> str:
        return self.group.state

    @property
    def lane(self) -> ManualLane:
        return self.lanes[-1]

    def tick(self, nanoseconds: int = SECOND) -> None:
        self.clock.move(nanoseconds)
        self.group.tick()

    # The log read back, from the files alone.

    def log(self, group: GroupLog | None = None) -> list[Record]:
        """The records of the newest stream, up to its published end."""
        stream = (group or self.group).writer.stream
        assert stream is not None
        return self.records(stream.end_lsn)

    def records(self, end_lsn: int) -> list[Record]:
        stream = self.group.writer.stream
        assert stream is not None
        reader = LogReader(self.storage, self.tiers.directories("g"), stream.name)
        records: list[Record] = []
        position = stream.first_lsn
        chain = first_chain(stream.name.stream, stream.name.ordinal)
        try:
            while position < end_lsn:
                chunk = reader.read(position, chain, end_lsn, MIB)
                records += [kept(record) for _, record in chunk.records]
                position, chain = chunk.end_lsn, chunk.chain
        finally:
            reader.close()
        return records

    def verified_end(self) -> int:
        """Where a reader comes to an end that knows nothing but the files."""
        stream = self.group.writer.stream
        assert stream is not None
        reader = LogReader(self.storage, self.tiers.directories("g"), stream.name)
        try:
            chain = first_chain(stream.name.stream, stream.name.ordinal)
            return reader.verified_end(stream.first_lsn, chain)[0]
        finally:
            reader.close()

    def types(self) -> list[str]:
        return [RecordType(record.type).name for record in self.log()]

    def cuts(self) -> list[Cut]:
        return [body for body in map(body_of, self.log()) if isinstance(body, Cut)]

    def _make_lane(self) -> ManualLane:
        self.lanes.append(ManualLane())
        return self.lanes[-1]

    def _count_change(self) -> None:
        self.changes += 1


def external(*disks: str, rig: Rig | None = None) -> Rig:
    """An external group at its very first start."""
    rig = rig or Rig("external")
    rig.declare(*(disks or ("a",)))
    rig.group.begin()
    return rig


def libvirt(*disks: str) -> tuple[Rig, list[Client]]:
    """A libvirt group that is ready: each disk has had its sync on its own connection."""
    rig = Rig("libvirt")
    rig.group.begin()
    rig.group.open_stream(0, "first protection")
    rig.declare(*disks)
    clients = [synced(rig, disk) for disk in disks]
    assert rig.state() == "ready"
    return rig, clients


def synced(rig: Rig, disk: str) -> Client:
    rig.group.sync_begin(disk, "test")
    client = rig.connect(disk)
    client.write(0, b"s" * 512)
    client.flush()
    rig.confirm(disk)
    return client


def instance(disk: str) -> str:
    return str(uuid5(INSTANCES, disk))


def body_of(record: Record) -> Body | None:
    kind = BODIES.get(record.type)
    return msgspec.msgpack.decode(record.payload, type=kind) if kind is not None else None


def image(records: Iterable[Record], disk: int, size: int) -> bytes:
    """What the disk holds after these records."""
    content = bytearray(size)
    for record in records:
        if record.disk == disk and record.type == RecordType.WRITE:
            content[record.offset : record.offset + record.length] = record.payload
        elif record.disk == disk and record.type == RecordType.ZERO:
            content[record.offset : record.offset + record.length] = bytes(record.length)
    return bytes(content)


def kept(record: Record) -> Record:
    """With a payload of its own, since the chunk's buffer goes."""
    return msgspec.structs.replace(record, payload=bytes(record.payload))
