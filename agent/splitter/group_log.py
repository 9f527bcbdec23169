# SPDX-License-Identifier: Apache-2.0
"""The log of one group: its streams, its members, every write in the order of receipt.

States
    closed     no stream; writes are answered and not recorded. Nothing was ever promised, or the
               stream was ended in order
    lost       as closed, but continuity broke: `reason` says how. A sync has to close the gap
    syncing    a stream is open; at least one member is not complete; no cuts
    ready      all members are complete: cuts, and "the last one holds until now" while idle
    suspended  a mirror may have ended: as ready, but without cuts, until the agent has looked

Invariants
* Only the splitter appends, and only here. Records of all disks go into one log in the order in
  which their requests were received, and no request is answered before its record is appended,
  unless the stream was closed first.
* A stream that was closed is never appended to again. A new one has a higher ordinal, begins where
  no LSN has ever been, and its first records are sync-begins.
* Members are the disks declared while the stream had never been ready; one declared later becomes
  a member with its sync-end. Each cut lists the members, and none is made unless all are complete.
* The guest comes first: no failure here is an error for the guest. The state is set and the stream
  closed before the first reply without a record.

Concurrency: the loop's thread. Appends run on an AppendLane, which keeps their order; what is
appended is published (`end_lsn`) when the lane says that it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

from agent.splitter.append_lane import AppendLane
from agent.splitter.continuity import Driver
from agent.splitter.latency import LatencyHistogram
from agent.splitter.numbering import HostSequence, Numbering
from agent.splitter.tiers import Tier, Tiers
from journal.appender import AppendError, LogWriter
from journal.bodies import Cut, CutKind, DomainXml, Member, SyncBegin, SyncEnd, encode_body
from journal.record import HEADER_BYTES, NO_DISK, RecordType, encode_header, first_chain
from journal.segment import SegmentKind
from journal.spool import list_segments, list_streams
from replicator.base.clock import Clock, PointClock
from replicator.base.errors import NoPointError, NoSpaceError, NotFoundError, UsageError
from replicator.base.storage import Buffer, Storage
from replicator.control.splitter import (
    DiskState,
    GroupState,
    SplitterDiskStatus,
    SplitterGroupStatus,
)
from replicator.nbd.constants import Command
from replicator.nbd.transmission import Request

_WRITE = int(Command.WRITE)
_RECORD_WRITE = int(RecordType.WRITE)
_RECORD_ZERO = int(RecordType.ZERO)
# The writer never rotates by itself: this file decides, together with the tier.
_NEVER_FULL = 1 << 62


@dataclass(slots=True)
class LogDisk:
    """A disk of the group. `member` of the cuts; `state` as the agent is told."""

    index: int
    name: str
    size: int
    instance: UUID
    state: DiskState = "idle"
    member: bool = True
    connected: int = 0


class GroupLog:
    """See the head of this file. `lane` makes the lane of a new stream; `changed` is called when
    the status has changed."""

    def __init__(
        self,
        name: str,
        driver: Driver,
        *,
        storage: Storage,
        clock: Clock,
        state_dir: Path,
        tiers: Tiers,
        sequence: HostSequence,
        lane: Callable[[], AppendLane],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.driver: Driver = driver
        self.state: GroupState = "closed"
        self.reason = ""
        self.disks: dict[str, LogDisk] = {}
        self.latency = LatencyHistogram()
        self.requests = 0
        self.bytes = 0
        self.end_lsn = 0
        self._storage = storage
        self._clock = clock
        self._tiers = tiers
        self._sequence = sequence
        self._make_lane = lane
        self._changed = changed
        directories = tiers.directories(name)
        streams = list_streams(storage, directories)
        known = [
            (stream, segments[-1].first_lsn)
            for stream in streams
            if (segments := list_segments(storage, directories, stream))
        ]
        self._numbering = Numbering(storage, state_dir / "splitter" / f"{name}.json", known)
        self._point_clock = PointClock(clock)
        self._stream: UUID | None = None
        self._ordinal = 0
        self._first_lsn = 0
        self._writer: LogWriter | None = None
        self._lane: AppendLane | None = None
        self._tier: Tier | None = None
        self._directory = Path()
        self._segment_lsn = 0  # where the segment of now begins; -1 when none is open
        self._next_lsn = 0
        self._next_chain = 0
        self._cut_lsn = 0  # the end of the last cut
        self._last_cut_time_ns = 0
        self._held_until_ns = 0
        self._was_ready = False
        self._spool_bytes = (0, 0)

    # -- streams ----------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether what comes is recorded."""
        return self._writer is not None

    @property
    def used_before(self) -> bool:
        """Whether this group has ever had a stream here."""
        return self._numbering.used

    def open_stream(self, *, above_ordinal: int = 0) -> None:
        """Begins a new stream with the disks that are declared, none of them complete."""
        if self.live:
            self.close("a new stream was asked for")
        self._ordinal, self._first_lsn = self._numbering.open_stream(above_ordinal)
        self._stream = uuid4()
        self._next_lsn = self.end_lsn = self._cut_lsn = self._first_lsn
        self._next_chain = first_chain(self._stream, self._ordinal)
        self._segment_lsn = -1
        self._lane = self._make_lane()
        self._writer = LogWriter(
            self._storage,
            lambda _bytes: self._directory,
            kind=SegmentKind.LOG,
            group=self.name,
            stream=self._stream,
            ordinal=self._ordinal,
            first_lsn=self._first_lsn,
            chain=self._next_chain,
            segment_bytes=_NEVER_FULL,
            now_ns=self._clock.utc_ns,
            synced=False,
        )
        self._was_ready = False
        self._last_cut_time_ns = self._held_until_ns = 0
        for disk in self.disks.values():
            disk.state, disk.member = "idle", True
        self._set("syncing", "")

    def close(self, reason: str, *, final_cut: bool = False) -> None:
        """Ends the stream in order. With `final_cut` the end is a cut: only where the group was
        suspended, which means that every member said goodbye; otherwise it is a loss."""
        if final_cut and self.state == "suspended":
            self._append_cut("crash", None)
            if self.live:
                self._end_stream("closed", reason)
        else:
            self.lose(reason)

    def lose(self, reason: str) -> None:
        """Continuity is broken. Idempotent: the first reason stays."""
        if self.live or self.state == "closed":
            self._end_stream("lost", reason)

    def suspend(self, reason: str) -> None:
        if self.state == "ready":
            self._set("suspended", reason)

    def _end_stream(self, state: GroupState, reason: str) -> None:
        writer, lane = self._writer, self._lane
        self._writer = self._lane = None
        self._tiers.release(self.name)
        for disk in self.disks.values():
            disk.state = "idle"
        self._set(state, reason)
        if writer is not None and lane is not None:
            lane.close(writer.close)

    def _set(self, state: GroupState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._changed()

    # -- disks and syncs --------------------------------------------------------------------------

    def declare(self, name: str, size: int, instance: UUID) -> LogDisk:
        """Makes a disk known, or changes its size or instance while it is idle."""
        disk = self.disks.get(name)
        if disk is None:
            disk = LogDisk(len(self.disks), name, size, instance, member=not self._was_ready)
            self.disks[name] = disk
        elif (disk.size, disk.instance) != (size, instance):
            if disk.state != "idle" or disk.connected:
                raise UsageError(f"disk {name!r} of group {self.name!r} is in use as another one")
            disk.size, disk.instance = size, instance
        self._changed()
        return disk

    def disk(self, name: str) -> LogDisk:
        if name not in self.disks:
            raise NotFoundError(f"group {self.name!r} has no disk {name!r}")
        return self.disks[name]

    def sync_begin(self, disk: LogDisk, reason: str, *, from_zero: bool = False) -> None:
        """The disk is incomplete from here on."""
        self._require_live()
        body = SyncBegin(disk.name, str(disk.instance), disk.size, from_zero, reason)
        self._append_body(RecordType.SYNC_BEGIN, disk.index, encode_body(body))
        if self.live:
            disk.state = "syncing"
            self._set("syncing", reason)

    def sync_end(self, disk: LogDisk) -> None:
        """The disk is complete from here on; the group is ready when all members are."""
        body = SyncEnd(disk.name, str(disk.instance))
        self._append_body(RecordType.SYNC_END, disk.index, encode_body(body))
        if not self.live:
            return
        disk.state, disk.member = "complete", True
        if all(other.state == "complete" for other in self.disks.values() if other.member):
            self._was_ready = True
            self._set("ready", "")
            self._append_cut("crash", None)
        self._changed()

    def append_domain_xml(self, domain: str, xml: str) -> None:
        self._require_live()
        self._append_body(RecordType.DOMAIN_XML, NO_DISK, encode_body(DomainXml(domain, xml)))

    # -- writes -----------------------------------------------------------------------------------

    def append_writes(self, disk: LogDisk, requests: Sequence[Request]) -> None:
        """Records writes, write-zeroes and trims in their order, in one append. A trim is a zero:
        NBD leaves its content open, and the replica must not keep what the source gave up."""
        if not self.live:
            return
        now_ns = self._clock.utc_ns()
        index, chain, known = disk.index, self._next_chain, self._first_lsn
        sequence = self._sequence.next
        buffers: list[Buffer] = []
        total = 0
        for request in requests:
            payload = request.payload
            if request.command == _WRITE:
                header, chain = encode_header(
                    _RECORD_WRITE, index, request.offset, request.length, sequence, now_ns,
                    payload, known, chain,
                )  # fmt: skip
                buffers.append(header)
                buffers.append(payload)
                total += HEADER_BYTES + request.length
            else:
                header, chain = encode_header(
                    _RECORD_ZERO, index, request.offset, request.length, sequence, now_ns,
                    b"", known, chain,
                )  # fmt: skip
                buffers.append(header)
                total += HEADER_BYTES
            sequence += 1
        self._sequence.next = sequence
        self.requests += len(requests)
        self.bytes += total
        self._append(buffers, total, chain)

    @property
    def idle(self) -> bool:
        """Whether everything that was given to append is appended, or given up."""
        return self._lane is None or self._lane.idle

    def after_appends(self, done: Callable[[], None]) -> None:
        """Calls `done` when everything given so far is appended, or its stream is closed."""
        if self._lane is None or self._lane.idle:
            done()
        else:
            self._lane.run(_nothing, lambda _error: done(), may_stick=True)

    # -- cuts -------------------------------------------------------------------------------------

    def tick(self, *, may_cut: bool) -> None:
        """Once per checkpoint interval: a cut if anything came since the last, else the word that
        the last one holds until now. `may_cut` is false while a member's socket has hung up."""
        if self.state != "ready" or not may_cut:
            return
        if self._next_lsn > self._cut_lsn:
            self._append_cut("crash", None)
        elif self.idle:
            self._held_until_ns = max(self._held_until_ns, self._point_clock.stamp()[0])
        self._changed()

    def mark(self, label: str | None, kind: CutKind) -> tuple[int, int]:
        """A cut now, also of an idle group: (LSN behind it, its time). It is in the log when
        `after_appends` says so. Raises NoPointError where no point can be made."""
        if self.state != "ready":
            raise NoPointError(
                f"group {self.name!r} is {self.state}: no point can be made now",
                hint=self.reason or "wait until the sync has ended",
            )
        self._append_cut(kind, label)
        if not self.live:
            raise NoPointError(f"group {self.name!r} lost continuity: {self.reason}")
        return self._cut_lsn, self._last_cut_time_ns

    def _append_cut(self, kind: CutKind, label: str | None) -> None:
        time_ns, step_ns = self._point_clock.stamp()
        members = [
            Member(disk.index, disk.name, str(disk.instance), disk.size, disk.state == "complete")
            for disk in self.disks.values()
            if disk.member
        ]
        body = Cut(kind, members, label, step_ns)
        self._append_body(RecordType.CUT, NO_DISK, encode_body(body), time_ns=time_ns)
        self._cut_lsn = self._next_lsn
        self._last_cut_time_ns = self._held_until_ns = time_ns

    # -- appending --------------------------------------------------------------------------------

    def _require_live(self) -> None:
        if not self.live:
            raise UsageError(f"group {self.name!r} has no open stream", hint="open one first")

    def _append_body(
        self, kind: RecordType, disk: int, body: bytes, *, time_ns: int | None = None
    ) -> None:
        header, chain = encode_header(
            kind,
            disk,
            0,
            0,
            self._sequence.take(),
            self._clock.utc_ns() if time_ns is None else time_ns,
            body,
            self._first_lsn,
            self._next_chain,
        )
        self._append([header, body], len(header) + len(body), chain)

    def _append(self, buffers: list[Buffer], total: int, chain: int) -> None:
        writer, lane = self._writer, self._lane
        if writer is None or lane is None:
            return
        end_lsn = self._next_lsn + total
        try:
            self._numbering.reserve(end_lsn)
            rotate = self._choose_segment(total)
        except (NoSpaceError, OSError) as error:
            self.lose(str(error))
            return
        assert self._tier is not None
        self._next_lsn, self._next_chain = end_lsn, chain
        lane.run(
            partial(self._write, writer, self._tier, buffers, total, chain, rotate=rotate),
            partial(self._appended, self._stream, end_lsn),
            may_stick=self._tier.may_stick,
        )

    def _choose_segment(self, total: int) -> bool:
        """Whether the next append opens a segment; chooses its tier then."""
        used = self._next_lsn - self._segment_lsn
        full = used > 0 and used + total > self._tiers.segment_bytes
        if self._segment_lsn >= 0 and not full:
            return False
        self._tier = self._tiers.place(self.name, total)
        self._segment_lsn = self._next_lsn
        return True

    def _write(
        self,
        writer: LogWriter,
        tier: Tier,
        buffers: list[Buffer],
        total: int,
        chain: int,
        *,
        rotate: bool,
    ) -> None:
        """Runs on the lane. A tmpfs that is fuller than its budget says sends us to the disk."""
        if rotate:
            writer.rotate()
            self._directory = tier.directory / self.name
        try:
            writer.append(buffers, total, chain)
        except AppendError as error:
            if error.broken or tier.may_stick:
                raise
            writer.rotate()
            self._directory = self._tiers.disk.directory / self.name
            writer.append(buffers, total, chain)

    def _appended(self, stream: UUID | None, end_lsn: int, error: AppendError | None) -> None:
        if stream != self._stream or not self.live:
            return
        if error is not None:
            self.lose(f"the spool could not be written: {error}")
            return
        self.end_lsn = end_lsn
        self._changed()

    # -- status -----------------------------------------------------------------------------------

    def measure_spool(self) -> None:
        """Counts what the group's streams take now, for the status. Reads directories."""
        used = self._tiers.used
        self._spool_bytes = (
            used(self._tiers.memory, self.name),
            used(self._tiers.disk, self.name),
        )

    def status(self) -> SplitterGroupStatus:
        return SplitterGroupStatus(
            name=self.name,
            state=self.state,
            reason=self.reason,
            stream=str(self._stream) if self._stream is not None else None,
            ordinal=self._ordinal,
            first_lsn=self._first_lsn,
            end_lsn=self.end_lsn,
            last_cut_time_ns=self._last_cut_time_ns,
            held_until_ns=self._held_until_ns,
            disks=[
                SplitterDiskStatus(
                    name=disk.name,
                    index=disk.index,
                    instance=str(disk.instance),
                    size=disk.size,
                    connected=disk.connected,
                    state=disk.state,
                )
                for disk in self.disks.values()
            ],
            memory_bytes=self._spool_bytes[0],
            disk_bytes=self._spool_bytes[1],
            latency=self.latency.status(),
            requests=self.requests,
            bytes=self.bytes,
        )


def _nothing() -> None:
    """The work of a barrier."""
