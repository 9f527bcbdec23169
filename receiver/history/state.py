# SPDX-License-Identifier: Apache-2.0
"""What a group's log means, record by record: disks, syncs, points, numbers. No I/O.

One state machine, used twice. At the *front* it runs over records as they are accepted and made
durable, and so numbers the points; in *apply* it runs over the same records when the replica takes
them in, and comes to the same numbers, for it is told nothing but the records. After a restart
the front begins from the applied state and walks the inbox again: the numbers that were announced
come out once more.

Invariants
* A point is made only of a cut whose members are all complete, by the cut's word *and* by ours.
* Times rise by what is printed of them, sequences rise, labels are unique within the group.
* Zeroes of a disk in a sync wait (`pending`); a write or a same clears them in its range; they
  become content at the sync's end. A new sync, or a new stream, begins without any.
* A record of a disk that the stream has not declared, or beyond its size, is refused.
* An image never changes its size. A disk that comes back under its name with another one is a new
  instance: a slot and an image of its own, synced from nothing. The one before keeps both, as it
  was when it was detached, for as long as a point shows it
  (receiver.retention.budget.earlier_images); no stream attaches it again, and it is no disk of the
  group any more (`present`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from uuid import UUID

from journal.bodies import Cut, Detach, DomainXml, SyncBegin, SyncEnd, decode_body
from journal.record import Record, RecordType
from receiver.history.bodies import DamagedBlocks, DiskBody, GroupBody, Mend, RollbackIntent
from receiver.history.extents import ExtentSet
from receiver.points.values import Point, PointDisk, SyncNotice
from replicator.base.errors import DamageError, UsageError
from replicator.base.names import LABEL_BYTES_MAX, check_label_form

_WRITE, _ZERO, _SAME = int(RecordType.WRITE), int(RecordType.ZERO), int(RecordType.SAME)
CONTENT_TYPES = frozenset((_WRITE, _ZERO, _SAME))
NO_STREAM = UUID(int=0)
INSTANCE_MARK = "@"
"""In the name of a later instance's image, before its slot. No disk's own name has it."""


@dataclass(slots=True)
class Disk:
    """A disk of the group, or one that was. `name` is its image's, and never means another one;
    `called` what the source calls it, empty where that is the same: see `source_name`. `index` is
    the stream's name for it, None while it has none."""

    slot: int
    name: str
    instance: str
    size_bytes: int
    index: int | None
    syncing: bool = False
    complete: bool = False
    from_zero: bool = False
    sync_lsn: int = 0
    pending: ExtentSet = field(default_factory=ExtentSet)
    is_made_here: bool = False
    called: str = ""

    @property
    def source_name(self) -> str:
        return self.called or self.name

    def as_member(self) -> PointDisk:
        image_name = self.name if self.called else ""
        return PointDisk(self.slot, self.source_name, self.instance, self.size_bytes, image_name)

    def body(self, *, cleared: bytes = b"", added: bytes = b"") -> DiskBody:
        return DiskBody(
            self.slot,
            self.name,
            self.instance,
            self.size_bytes,
            self.index,
            self.syncing,
            self.complete,
            self.from_zero,
            self.sync_lsn,
            cleared,
            added,
            self.is_made_here,
            self.called,
        )


@dataclass(frozen=True, slots=True)
class Resized:
    """A disk has come back with another size."""

    name: str
    before_bytes: int
    size_bytes: int


@dataclass(slots=True)
class Outcome:
    """What a record did besides changing the state."""

    point: Point | None = None
    held_point: int = 0
    held_until_ns: int = 0
    sync: SyncNotice | None = None
    relabelled: str = ""
    resized: Resized | None = None
    text: tuple[str, str] | None = None


def is_label(text: str) -> bool:
    try:
        check_label_form(text)
    except UsageError:
        return False
    return True


def _numbered(label: str, number: int) -> str:
    """Another label like it, no longer than one may be."""
    end = f"~{number}"
    room = LABEL_BYTES_MAX - len(end)
    return label.encode()[:room].decode(errors="ignore").rstrip() + end


def text_digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class GroupState:
    """See the head of this file. `lsn` is the position in `stream` that the state belongs to."""

    stream: UUID = NO_STREAM
    ordinal: int = 0
    lsn: int = 0
    closed_ordinal: int = 0
    generation: int = 1
    next_point: int = 1
    next_slot: int = 0
    last_time_ns: int = 0
    last_point: int = 0
    last_point_lsn: int = 0
    point_holds: bool = False
    rollback: RollbackIntent | None = None
    rolled_back: bool = False
    lock_ns: int = 0
    damage: tuple[DamagedBlocks, ...] = ()
    mends: tuple[Mend, ...] = ()
    disks: dict[str, Disk] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    start_lsn: int = -1
    labels: set[str] = field(default_factory=set)
    by_index: dict[int, Disk] = field(default_factory=dict)

    def copy(self) -> GroupState:
        disks = {
            name: replace(disk, pending=disk.pending.copy()) for name, disk in self.disks.items()
        }
        return replace(
            self,
            disks=disks,
            domains=dict(self.domains),
            labels=set(self.labels),
            by_index={disk.index: disk for disk in disks.values() if disk.index is not None},
        )

    # -- streams

    def begin_stream(self, stream: UUID, ordinal: int, lsn: int) -> None:
        """All disks lose their index: the new stream declares them anew, each with a sync."""
        self.close_stream()
        self.stream, self.ordinal, self.lsn, self.start_lsn = stream, ordinal, lsn, lsn
        self.point_holds = False
        self.rolled_back = False

    def close_stream(self) -> None:
        """The stream, and every one before it, is closed for ever. Syncs under way stay undone."""
        self.closed_ordinal = max(self.closed_ordinal, self.ordinal)
        self.by_index.clear()
        for disk in self.disks.values():
            disk.index, disk.complete = None, disk.complete and not disk.syncing
            disk.syncing, disk.pending = False, ExtentSet()

    @property
    def is_at_start(self) -> bool:
        """Whether no record of the stream has been taken in."""
        return self.lsn == self.start_lsn

    @property
    def is_syncing(self) -> bool:
        return any(disk.syncing for disk in self.disks.values())

    # -- instances

    def disk_called(self, name: str) -> Disk | None:
        """The instance that the group has under the source's name: the newest."""
        mine = [disk for disk in self.disks.values() if disk.source_name == name]
        return max(mine, key=lambda disk: disk.slot, default=None)

    @property
    def present(self) -> list[Disk]:
        """The disks of the group: of each name the newest instance."""
        newest = {disk.source_name: disk.slot for disk in self._by_slot()}
        return [disk for disk in self._by_slot() if newest[disk.source_name] == disk.slot]

    @property
    def earlier(self) -> list[Disk]:
        """Instances in whose place another one came."""
        newest = {disk.source_name: disk.slot for disk in self._by_slot()}
        return [disk for disk in self._by_slot() if newest[disk.source_name] != disk.slot]

    def _by_slot(self) -> list[Disk]:
        return sorted(self.disks.values(), key=lambda disk: disk.slot)

    # -- records

    def check(self, record: Record) -> Disk:
        """The disk of a content record. Raises UsageError for one that is out of bounds."""
        disk = self.by_index.get(record.disk)
        if disk is None:
            raise UsageError(f"{record}: the stream has not declared this disk")
        if record.offset + record.length > disk.size_bytes:
            raise UsageError(f"{record}: beyond the end of disk {disk.source_name!r}")
        return disk

    def step(self, lsn: int, record: Record) -> Outcome | None:
        """Takes in a record that is no content (those go through `check`). Raises DamageError for a
        body that does not fit, UsageError for what may not come here."""
        end_lsn = lsn + record.size
        match record.type:
            case RecordType.CUT:
                return self._cut(end_lsn, record, decode_body(Cut, record, lsn))
            case RecordType.SYNC_BEGIN:
                self.point_holds = False
                return self._sync_begin(lsn, record, decode_body(SyncBegin, record, lsn))
            case RecordType.SYNC_END:
                self._sync_end(record, decode_body(SyncEnd, record, lsn))
            case RecordType.DETACH:
                self._detach(record, decode_body(Detach, record, lsn))
            case RecordType.DOMAIN_XML:
                body = decode_body(DomainXml, record, lsn)
                digest = text_digest(body.xml)
                if self.domains.get(body.domain) != digest:
                    self.domains[body.domain] = digest
                    self.point_holds = False
                return Outcome(text=(digest, body.xml))
            case RecordType.VERIFY:
                pass
            case _:
                raise UsageError(f"{record}: a receiver of this version takes in none of these")
        return None

    def _sync_begin(self, lsn: int, record: Record, body: SyncBegin) -> Outcome | None:
        disk = self.disk_called(body.name)
        other = self.by_index.get(record.disk)
        if other is not None and other.source_name != body.name:
            raise UsageError(
                f"disk index {record.disk} is {other.source_name!r}, not {body.name!r}"
            )
        resized = None
        if disk is None or disk.size_bytes != body.size:
            if disk is not None:
                resized = Resized(body.name, disk.size_bytes, body.size)
            disk = self._new_instance(disk, record, body)
        elif disk.index is not None and disk.index != record.disk:
            raise UsageError(f"disk {body.name!r} has index {disk.index}, not {record.disk}")
        disk.instance, disk.index = body.instance, record.disk
        disk.syncing, disk.complete, disk.sync_lsn = True, False, lsn
        disk.from_zero = body.from_zero
        disk.pending = ExtentSet([(0, body.size)] if body.from_zero else [])
        self.by_index[record.disk] = disk
        if body.from_zero:
            return Outcome(resized=resized)
        notice = SyncNotice(record.disk, lsn, lsn + record.size, body.name, body.size)
        return Outcome(sync=notice, resized=resized)

    def _new_instance(self, before: Disk | None, record: Record, body: SyncBegin) -> Disk:
        """`before` is what the group had under that name, if it had anything."""
        if before is not None and before.index is not None:
            raise UsageError(
                f"disk {body.name!r} has {body.size} bytes at the source, but {before.size_bytes}"
                " in this stream, which has not detached it"
            )
        name, called = body.name, ""
        if before is not None:
            name, called = f"{body.name}{INSTANCE_MARK}{self.next_slot}", body.name
        disk = Disk(self.next_slot, name, body.instance, body.size, record.disk, called=called)
        self.disks[name] = disk
        self.next_slot += 1
        return disk

    def _sync_end(self, record: Record, body: SyncEnd) -> None:
        disk = self.by_index.get(record.disk)
        if disk is None or disk.source_name != body.name or disk.instance != body.instance:
            raise UsageError(f"{record}: ends a sync of disk {body.name!r} that has not begun")
        if disk.syncing:
            disk.syncing, disk.complete, disk.pending = False, True, ExtentSet()

    def _detach(self, record: Record, body: Detach) -> None:
        disk = self.by_index.pop(record.disk, None)
        if disk is None or disk.source_name != body.name:
            raise UsageError(f"{record}: detaches disk {body.name!r}, which is not attached")
        disk.index = None
        disk.complete, disk.syncing = disk.complete and not disk.syncing, False
        disk.pending = ExtentSet()
        self.point_holds = False

    # -- points

    def _cut(self, end_lsn: int, record: Record, body: Cut) -> Outcome | None:
        if not body.members or not all(member.complete for member in body.members):
            return None
        members: list[PointDisk] = []
        for member in body.members:
            disk = self.by_index.get(member.disk)
            if disk is None or (disk.source_name, disk.instance) != (member.name, member.instance):
                raise UsageError(f"{record}: member {member.name!r} is no disk of the stream")
            if disk.syncing or not disk.complete:
                return None
            members.append(disk.as_member())
        if self.point_holds and body.label is None and body.kind == "crash":
            self.last_time_ns = max(self.last_time_ns, record.time_ns)
            self.last_point_lsn = end_lsn
            return Outcome(held_point=self.last_point, held_until_ns=record.time_ns)
        label = self._free_label(body.label)
        point = self.number_point(
            Point(
                sequence=0,
                time_ns=record.time_ns,
                until_ns=record.time_ns,
                kind=body.kind,
                label=label,
                lsn=end_lsn,
                ordinal=self.ordinal,
                clock_step_ns=body.clock_step_ns,
                members=tuple(members),
                domains=dict(self.domains),
                expire_ns=body.expire_ns,
                monotonic_ns=body.monotonic_ns,
            )
        )
        return Outcome(point=point, relabelled=body.label or "" if label != body.label else "")

    def number_point(self, draft: Point) -> Point:
        """`draft` with the next number, and a time that is printed as a later one than the last: a
        source's own, where it is (before the version that gives points whole microseconds it has
        nine digits)."""
        time_ns = max(draft.time_ns, (self.last_time_ns // 1000 + 1) * 1000)
        point = replace(draft, sequence=self.next_point, time_ns=time_ns, until_ns=time_ns)
        self.next_point += 1
        self.last_time_ns = time_ns
        self.last_point, self.last_point_lsn = point.sequence, point.lsn
        self.point_holds = True
        if point.label is not None:
            self.labels.add(point.label)
        return point

    def _free_label(self, label: str | None) -> str | None:
        """A duplicate must not arrive; one that does is kept apart rather than lost. So is one that
        would be read as something else (replicator.base.pointtext): its cut is durable, and the
        point is reached by `label:TEXT`. A text that has not the form of a label, which the source
        should have refused, is left out."""
        if label is None or not is_label(label):
            return None
        if label not in self.labels:
            return label
        number = 2
        while (other := _numbered(label, number)) in self.labels:
            number += 1
        return other

    # -- as it lies in the history

    def body(self, disks: list[DiskBody]) -> GroupBody:
        """`disks` because only the caller knows how their waiting zeroes are to be stated."""
        return GroupBody(
            self.stream.bytes,
            self.ordinal,
            self.lsn,
            self.closed_ordinal,
            self.generation,
            self.next_point,
            self.next_slot,
            self.last_time_ns,
            self.last_point,
            self.last_point_lsn,
            self.point_holds,
            disks,
            dict(self.domains),
            self.rollback,
            self.rolled_back,
            self.lock_ns,
            self.damage,
            self.mends,
        )

    def whole_body(self) -> GroupBody:
        """With all waiting zeroes, for a STATE record."""
        return self.body([disk.body(added=disk.pending.pack()) for disk in self.disks.values()])

    def follow(self, body: GroupBody, where: str) -> GroupState:
        """The state behind a batch, given the one before it. Labels are the caller's to fill in.
        Raises DamageError."""
        disks: dict[str, Disk] = {}
        try:
            for disk in body.disks:
                before = self.disks.get(disk.name)
                same_sync = before is not None and disk.syncing and before.syncing
                pending = before.pending.copy() if before is not None and same_sync else ExtentSet()
                for start, end in ExtentSet.unpack(disk.zeroes_cleared):
                    pending.remove(start, end)
                for start, end in ExtentSet.unpack(disk.zeroes_added):
                    pending.add(start, end)
                disks[disk.name] = Disk(
                    disk.slot,
                    disk.name,
                    disk.instance,
                    disk.size_bytes,
                    disk.index,
                    disk.syncing,
                    disk.complete,
                    disk.from_zero,
                    disk.sync_lsn,
                    pending,
                    disk.is_made_here,
                    disk.called,
                )
            stream = UUID(bytes=body.stream)
        except ValueError as error:
            raise DamageError(f"{where}: {error}") from error
        return GroupState(
            stream=stream,
            ordinal=body.ordinal,
            lsn=body.lsn,
            closed_ordinal=body.closed_ordinal,
            generation=body.generation,
            next_point=body.next_point,
            next_slot=body.next_slot,
            last_time_ns=body.last_time_ns,
            last_point=body.last_point,
            last_point_lsn=body.last_point_lsn,
            point_holds=body.point_holds,
            rollback=body.rollback,
            rolled_back=body.rolled_back,
            lock_ns=body.lock_ns,
            damage=body.damage,
            mends=body.mends,
            disks=disks,
            domains=dict(body.domains),
            labels=set(self.labels),
            by_index={disk.index: disk for disk in disks.values() if disk.index is not None},
        )
