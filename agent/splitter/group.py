# SPDX-License-Identifier: Apache-2.0
"""A consistency group: its disks, its stream, its cuts. The splitter without sockets and threads.

    closed ──open_stream──► syncing ──all members complete──► ready ──FLUSH, DISC──► suspended
       ▲                       │                                │                       │
       │                       └─ close_stream, a failure, a bad end: from each of these ──► lost
       └──────────── close_stream of a source that stopped (ending.py) ─────────────────┘

From `lost`, `open_stream` leads to `syncing` again. An external group's very first stream begins
complete; after that the group is lost until `resync`.

Rules, each with a test that fails without it
* Guest first: in every state each batch is settled. Only in an open stream is it recorded.
* A loss is complete before the first reply that it lets through: state, reason, and the stream
  closed for ever. What was received before it in the same batch is appended; nothing after it.
* A stream begins with a sync-begin. A disk's writes are recorded from its sync-begin on and at no
  other time; a libvirt disk's only as long as they come over a connection to the export of that
  sync (agent.splitter.disk).
* What voids a sync drops the connections of its disk, and so does its sync-begin: nobody who was
  connected before has anything to do with it. QEMU's job ends by that where it does not reconnect;
  where it does, it comes back to the export of a sync that is over.
* Cuts are made only while every member is complete and no member's mirror has hung up, looked up
  in the same step. Members: the disks declared before the stream was ready for the first time, and
  each later one from its sync-end on.
* "The last cut holds until T" is said only under the conditions of a cut, with nothing recorded
  since the last one and nothing queued.
* Suspended: no cut, no hold; a write to a complete disk means that the source went on: lost.
* The log is written in the order of receipt. What the agent wants in it, it asks for here.

TRIM is recorded as zeroes. Its content is undefined by the protocol, so this is one right answer,
and the one that keeps replicas sparse and equal wherever they are made. READ is refused: what a
write-only export would have to read back is on the source, not here.

Time comes in by the clock, timers are the caller's: `tick` does what is due and says when to call
it next; `wake` (see Surroundings) asks for an earlier one.

Concurrency: one thread, the event loop's. Appends that may stick come back through the lane.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Final

from agent.splitter.continuity import (
    MEANINGS,
    DiskState,
    Driver,
    Effect,
    Signal,
    signal_of_end,
)
from agent.splitter.disk import Disk, Link, Standing
from agent.splitter.ending import Ending
from agent.splitter.reservation import NewStream, Reservation
from agent.splitter.roster import Roster, detach_body, sync_begin_body, sync_end_body
from agent.splitter.stream import StreamFailedError, StreamLog
from agent.splitter.trouble import named
from agent.splitter.writer import GroupWriter, MadeCut, Surroundings
from journal.bodies import CutKind, DomainXml, encode_body
from journal.record import NO_DISK, RecordType
from replicator.base.errors import (
    NoPointError,
    ReplicatorError,
    UsageError,
)
from replicator.base.names import check_name
from replicator.base.pointtext import check_label
from replicator.base.units import format_duration
from replicator.control.splitter import GroupState, StreamEnd
from replicator.nbd.constants import Command
from replicator.nbd.exports import ConnectionEnd
from replicator.nbd.request import Request

_log = logging.getLogger(__name__)

# Plain numbers: these are compared for each request.
_WRITE: Final = int(Command.WRITE)
_MODIFYING: Final = frozenset((_WRITE, int(Command.WRITE_ZEROES), int(Command.TRIM)))
_WRITE_RECORD: Final = int(RecordType.WRITE)
_ZERO_RECORD: Final = int(RecordType.ZERO)


class StateError(ReplicatorError):
    """The group is in no state to do this now. The message says in which it is."""


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What the config says. `max_stall_ns` bounds how long an append may hold a batch."""

    name: str
    driver: Driver
    checkpoint_interval_ns: int
    max_stall_ns: int


class GroupLog:
    """See the head of this file."""

    def __init__(
        self, settings: GroupSettings, around: Surroundings, reservation: Reservation
    ) -> None:
        self.settings = settings
        self.reservation = reservation
        self.roster = Roster(settings.name)
        self.writer = GroupWriter(
            settings.name,
            checkpoint_interval_ns=settings.checkpoint_interval_ns,
            max_stall_ns=settings.max_stall_ns,
            around=around,
            reservation=reservation,
            failed=self.lose,
        )
        self.cutter = self.writer.cutter
        self.cutter.behind(reservation.last_stamp_ns)
        self.reason = ""
        self.requests = 0
        self.bytes = 0
        self._clock, self._sequence = around.clock, around.sequence
        self._wake, self._changed = around.wake, around.changed
        self._lost = False
        self._links = count(1)
        self._to_drop: list[Link] = []  # at the end of this step
        self.ending: Ending | None = None  # while suspended
        self.stream_end: StreamEnd = ""  # how the newest stream ended

    # What is known.

    @property
    def state(self) -> GroupState:
        if self._lost:
            return "lost"
        if self.writer.log is None:
            return "closed"
        if self.ending is not None:
            return "suspended"
        return "syncing" if self.roster.incomplete() else "ready"

    @property
    def draining(self) -> bool:
        """Batches are queued behind an append."""
        return self.writer.log is not None and self.writer.log.queued

    # Connections.

    def opened(self, disk: Disk, link: Link, sync_lsn: int | None = None) -> None:
        """`sync_lsn`: the sync whose export the link has asked for; None for the plain name."""
        disk.links[link] = Standing(next(self._links), sync_lsn)
        self._changed()

    def take(self, disk: Disk, link: Link, batch: Sequence[Request]) -> None:
        """Record what a batch changes, in order. Calls `link.settled` exactly once, here or later;
        until then the payloads must stay as they are, and the link brings no other batch."""
        self.requests += len(batch)
        log = self.writer.log
        if log is None or disk.state is DiskState.IDLE or not disk.owns(link):
            link.settled(False)
            return
        settled = link.settled
        if disk.rule is not None:
            settled = partial(self._settled_in_sync, disk, link)
        why = self._record(log, disk, link, batch)
        done = True
        if log.pending_bytes:
            try:
                done = self.writer.append(settled)
            except StreamFailedError as error:
                why = why or str(error)
        if why:
            self.lose(why)
        else:
            self._cut_when_ready()
        if done:
            settled(not why)
        self._drop_what_is_over()
        self._changed()

    def ended(self, disk: Disk, link: Link, end: ConnectionEnd) -> None:
        """The connection is gone."""
        standing = disk.links.get(link)
        signal = signal_of_end(end, wrote=standing is not None and standing.wrote)
        if signal is not None and self.writer.log is not None:
            why = self._see(disk, link, signal)
            if why:
                self.lose(f"{why} ({end.reason})" if end.reason else why)
        disk.links.pop(link, None)
        self._drop_what_is_over()
        self._changed()

    def _record(self, log: StreamLog, disk: Disk, link: Link, batch: Sequence[Request]) -> str:
        """Encodes what is to be recorded, up to what ends continuity; the reason of that, or ""."""
        time_ns = 0  # one for the batch, taken with its first record
        add, sequence, index = log.add, self._sequence, disk.index
        standing = disk.links[link]
        for request in batch:
            command = request.command
            if command not in _MODIFYING or request.error:
                why = self._look_at(disk, link, request)
                if why:
                    return why
                continue
            if not standing.wrote or disk.rule is not None:
                disk.wrote(link)
            if disk.state is DiskState.IDLE:
                continue
            if self.ending is not None and disk.state is DiskState.COMPLETE:
                return f"disk {disk.name} was written after a mirror of the group had ended"
            offset, length = request.offset, request.length
            time_ns = time_ns or self.cutter.passing_ns()
            if command == _WRITE:
                payload = request.payload
                add(_WRITE_RECORD, index, offset, length, next(sequence), time_ns, payload)
                self.bytes += length
            else:
                add(_ZERO_RECORD, index, offset, length, next(sequence), time_ns)
            self.cutter.uncut = True
            if disk.rule is not None:
                disk.rule.request(command, offset, length, self._clock.monotonic_ns())
        return ""

    def _look_at(self, disk: Disk, link: Link, request: Request) -> str:
        """A request that changes nothing, or was refused."""
        command = request.command
        if command == Command.FLUSH or command in _MODIFYING:
            disk.wrote(link)
        if request.error or command == Command.READ:
            return self._see(disk, link, Signal.ERROR_REPLY)
        if command == Command.FLUSH:
            return self._see(disk, link, Signal.FLUSH)
        if command == Command.DISC:
            return self._see(disk, link, Signal.DISC)
        return ""

    def _see(self, disk: Disk, link: Link, signal: Signal) -> str:
        """Carries out what a signal does, but for a loss, whose reason it returns."""
        effect = disk.effect(self.settings.driver, link, signal)
        if effect is Effect.LOSE:
            return f"disk {disk.name}: {MEANINGS[signal]}"
        if effect is Effect.FLUSHED:
            disk.flushed()
        elif effect is Effect.SYNCED:
            self._add_sync_end(disk)
        elif effect is Effect.VOID:
            self._void_sync(disk, MEANINGS[signal])
        elif effect is Effect.SUSPEND:
            self._suspend(disk, signal)
        return ""

    def _suspend(self, disk: Disk, signal: Signal) -> None:
        now_ns = self._clock.monotonic_ns()
        disk.said_disc = disk.said_disc or signal is Signal.DISC
        if self.ending is not None:
            self.ending.last_ns = now_ns
        else:
            self.ending = Ending(now_ns, now_ns, self.cutter.stamp())
            self.reason = f"disk {disk.name}: {MEANINGS[signal]}"
            self._event("suspended", reason=self.reason)

    def _settled_in_sync(self, disk: Disk, link: Link, kept: bool) -> None:
        link.settled(kept)
        if disk.rule is not None:
            disk.rule.answered(self._clock.monotonic_ns())

    def drop_connections(self) -> None:
        for disk in self.roster.disks.values():
            self._to_drop += disk.links
        self._drop_what_is_over()

    def _drop_what_is_over(self) -> None:
        """At the end of a step, since it calls `ended` for each."""
        while self._to_drop:
            self._to_drop.pop().drop()

    # Disks.

    def declare_disk(self, name: str, size: int, instance: str) -> Disk:
        """Serve a disk. The same again is fine; another instance takes the place of the one
        before, unless somebody is connected to that."""
        same = self.roster.same(name, size, instance)
        if same is not None:
            return same
        before = self.roster.disks.get(name)
        if before is not None and before.recorded:
            self.writer.add(RecordType.DETACH, before.index, detach_body(before))
            self.writer.append_own()
        disk = self.roster.declare(name, size, instance)
        self._changed()
        return disk

    def remove_disk(self, name: str) -> None:
        """It is none of the group's any more: from here on no cut lists it. An external disk's
        clients are dropped; a mirror is served until it ends, and recorded no more."""
        disk = self.roster.find(name)
        if disk.recorded and self.writer.log is not None:
            self.writer.add(RecordType.DETACH, disk.index, detach_body(disk))
            self.writer.append_own()
        self.roster.remove(name)
        if self.settings.driver == "external":
            self._to_drop += disk.links
        self._cut_when_ready()
        self._drop_what_is_over()
        self._changed()

    # Streams.

    def begin(self, why: str = "", first: NewStream | None = None) -> None:
        """Before anybody can connect. `why` it begins; empty: with the splitter. `first`: what the
        first stream of an external group that never had one is made of; else it is reserved
        here."""
        if self.settings.driver == "libvirt":
            self.reason = why or "the splitter has just started"
        elif first is not None or self.reservation.known_ordinal() == 0:
            reserved = first or self.reservation.new_stream()
            self.start_stream(reserved, why or "first start", from_zero=True)
        else:
            self._lost = True
            self.reason = f"{why or 'the splitter was started anew'}; the disks need a resync"

    def resettle(self, *, checkpoint_interval_ns: int, max_stall_ns: int) -> None:
        """The configuration says otherwise from now on."""
        self.settings = replace(
            self.settings, checkpoint_interval_ns=checkpoint_interval_ns, max_stall_ns=max_stall_ns
        )
        self.writer.max_stall_ns = max_stall_ns
        self.cutter.set_interval(checkpoint_interval_ns)

    def open_stream(self, above_ordinal: int, reason: str) -> None:
        """The service reserves in a thread and calls `start_stream`; this does both."""
        self.start_stream(self.reservation.new_stream(above_ordinal), reason)

    def start_stream(self, reserved: NewStream, reason: str, *, from_zero: bool = False) -> None:
        """End what is open and begin anew. Of an external group the stream stays empty, and the
        group lost, until `resync`, unless its disks are known to be zero."""
        self._last_cut()
        self._end_stream()
        self.stream_end = ""
        name = self.writer.begin(reserved)
        self._event("stream opened", stream=str(name.stream), ordinal=name.ordinal, reason=reason)
        self._lost = self.settings.driver == "external" and not from_zero
        self.reason = f"{reason}; the disks need a resync" if self._lost else ""
        if not self._lost:
            self._admit()
        if from_zero:
            self._begin_syncs(reason, from_zero=True)
        self._changed()

    @property
    def stream_id(self) -> str | None:
        """The UUID of the newest stream, as the status says it."""
        stream = self.writer.stream
        return None if stream is None else str(stream.name.stream)

    def resync_needs_stream(self, above_ordinal: int = 0) -> bool:
        """Whether `resync` takes a new stream: a stream that was written to is never gone on with
        after a loss, and one of too low an ordinal is closed at the receiver."""
        stream = self.writer.stream
        return (
            stream is None
            or stream.abandoned
            or not stream.empty
            or stream.name.ordinal <= above_ordinal
        )

    def resync(self, above_ordinal: int = 0, reserved: NewStream | None = None) -> None:
        """External: what comes until each disk's next FLUSH is its sync. `reserved` is what a new
        stream is made of, if one is needed (the service reserves it in a thread)."""
        if self.settings.driver != "external":
            raise UsageError(
                f"group {self.settings.name!r} is a libvirt group; its agent begins its syncs"
            )
        if self.resync_needs_stream(above_ordinal):
            reserved = reserved or self.reservation.new_stream(above_ordinal)
            self.start_stream(reserved, "resync")
        self._lost = False
        self.reason = ""
        self._admit()
        self._begin_syncs("resync", from_zero=False)
        self._changed()

    def close_stream(
        self, reason: str, *, final_cut: bool = False, unwatched: bool = False
    ) -> None:
        """End the stream, which is a loss of continuity unless the caller knows that the source has
        stopped: see ending.py for `final_cut` and `unwatched`. Where a final cut cannot be true
        the group is lost all the same, and says why."""
        if self.writer.log is None:
            return
        if not final_cut and not unwatched:
            self.lose(reason)
            return
        refusal = self._refusal_of_final_cut() if final_cut else ""
        if refusal:
            self.lose(f"{reason}; no final cut: {refusal}")
            return
        if final_cut:
            at = None if self.ending is None else self.ending.at
            self.writer.cut(self.roster.listed(), "crash", None, at=at)
            if self._lost:
                return
        self._end_stream()
        self.stream_end = "final cut" if final_cut else "unwatched"
        self.reason = reason
        self._event("stream closed", reason=reason, ended=self.stream_end)
        self._changed()

    def shut_down(self) -> None:
        """The process ends: a last cut, if one may be made, and the stream is closed. A group that
        is lost stays so."""
        self._last_cut()
        if self.writer.log is not None:
            self.reason = "the splitter was stopped"
        self._end_stream()

    def lose(self, reason: str) -> None:
        """Continuity is lost, from here on for good: a new stream and a sync are needed."""
        if self.writer.log is None:
            return
        self._lost = True
        self.reason = reason
        _log.error("continuity lost", extra={"group": self.settings.name, "reason": reason})
        self._end_stream()
        self._changed()

    def lose_by(self, error: Exception) -> None:
        """As `lose`, for whatever a supervision caught; also where no stream is open."""
        reason = named(self.settings.name, "stream", error).message
        self.lose(reason)
        if not self._lost:
            self._lost = True
            self._changed()
        self.reason = reason

    def _end_stream(self) -> None:
        """Nothing is appended any more; what is queued is settled. Fine if there is none."""
        self.ending = None
        self.roster.end_stream()
        self.writer.end()

    # Syncs.

    def sync_begin(self, name: str, reason: str, *, source_errors: int | None = None) -> None:
        """A block copy of this disk is about to start. Said twice before anything of it has come,
        it is recorded once. `source_errors`: see the control protocol."""
        disk = self.roster.find(name)
        self._check_open()
        if source_errors is not None:
            disk.source_errors = source_errors
        if disk.state is not DiskState.SYNCING or disk.carrier is not None:
            self._add_sync_begin(disk, reason, from_zero=False)
            self.writer.append_own()
            self._to_drop += disk.strangers()
            self._drop_what_is_over()
        self._changed()

    def ready(self, name: str, connection: int) -> None:
        """READY was read back after the FLUSH on this connection. StateError if that is not the
        one that carries the sync, or has not sent it."""
        disk = self.roster.find(name)
        self._check_open()
        if disk.state is DiskState.COMPLETE:
            return
        if disk.rule is None or not disk.flushed_by:
            raise self._state_error(f"disk {name} has sent no FLUSH on its connection")
        if disk.flushed_by != connection:
            raise self._state_error(
                f"disk {name} has flushed on connection {disk.flushed_by}, not on {connection}"
            )
        disk.rule.confirm_ready()
        due_ns = self._end_syncs(self._clock.monotonic_ns())
        self._drop_what_is_over()
        if due_ns is not None:
            self._wake(due_ns)

    def append_domain_xml(self, domain: str, xml: str) -> None:
        check_name("domain", domain)
        log = self._check_open()
        if log.empty:
            raise self._state_error("a stream begins with the sync of a disk")
        self.writer.add(
            RecordType.DOMAIN_XML, NO_DISK, encode_body(DomainXml(domain=domain, xml=xml))
        )
        self.writer.append_own()
        self._changed()

    def _admit(self) -> None:
        """The stream is open from here on."""
        self.writer.admit()
        self.roster.begin_stream()

    def _begin_syncs(self, reason: str, *, from_zero: bool) -> None:
        for disk in self.roster.disks.values():
            self._add_sync_begin(disk, reason, from_zero=from_zero)
            if from_zero:
                self._add_sync_end(disk)
        if self.roster.disks:
            self.writer.append_own()
        self._cut_when_ready()

    def _end_syncs(self, now_ns: int) -> int | None:
        """Ends the syncs that have ended; when the next one may."""
        pending = []
        for disk in self.roster.disks.values():
            due_ns = disk.rule.due_ns() if disk.rule is not None else None
            if due_ns is None:
                continue
            if due_ns > now_ns:
                pending.append(due_ns)
            elif disk.mirror_hung_up():
                self._void_sync(disk, MEANINGS[Signal.EOF])
            else:
                self._add_sync_end(disk)
        if self.writer.log is not None and self.writer.log.pending_bytes:
            self.writer.append_own()
            self._cut_when_ready()
            self._changed()
        return min(pending, default=None)

    def _void_sync(self, disk: Disk, sign: str) -> None:
        self._to_drop += disk.links
        disk.void_sync(sign)
        self._event("sync void", disk=disk.name, sign=sign)
        self._changed()

    def _add_sync_begin(self, disk: Disk, reason: str, *, from_zero: bool) -> None:
        assert self.writer.log is not None
        disk.begin_sync(self.settings.driver, self.writer.log.record_lsn)
        body = sync_begin_body(disk, reason, from_zero=from_zero)
        self.writer.add(RecordType.SYNC_BEGIN, disk.index, body)

    def _add_sync_end(self, disk: Disk) -> None:
        disk.end_sync()
        self.writer.add(RecordType.SYNC_END, disk.index, sync_end_body(disk))
        self._event("sync ended", disk=disk.name)

    # Cuts.

    def tick(self) -> int:
        """Does what is due; returns when to call it again at the latest (monotonic)."""
        now_ns = self._clock.monotonic_ns()
        max_stall_ns = self.settings.max_stall_ns
        oldest_ns = self.writer.oldest_ns
        if oldest_ns is not None and now_ns - oldest_ns >= max_stall_ns:
            self.lose(f"an append to the spool is stuck for {format_duration(now_ns - oldest_ns)}")
        next_ns = [self.cutter.next_due_ns]
        sync_due_ns = self._end_syncs(now_ns)
        self._drop_what_is_over()
        if self.cutter.is_due(now_ns):
            self._cut_or_hold()
            next_ns = [self.cutter.next_due_ns]
        if sync_due_ns is not None:
            next_ns.append(sync_due_ns)
        if self.writer.oldest_ns is not None:
            next_ns.append(self.writer.oldest_ns + max_stall_ns)
        return min(next_ns)

    def mark(
        self,
        label: str | None,
        kind: CutKind,
        made: Callable[[MadeCut | None], None],
        *,
        expire_ns: int = 0,
        not_after_ns: int | None = None,
    ) -> None:
        """Cut now. `made` is called when the cut is in the log, with None if that was lost on the
        way. NoPointError where no cut can be made, and behind `not_after_ns` (monotonic): what the
        cut would say of its moment may not be true any more then."""
        if label is not None:
            check_label(label)
        refusal = self._refusal_to_cut()
        if refusal:
            raise NoPointError(
                f"group {self.settings.name!r} is {self.state}: no point can be made now",
                hint=refusal,
            )
        if not_after_ns is not None and self._clock.monotonic_ns() >= not_after_ns:
            raise NoPointError(
                f"the order to cut group {self.settings.name!r} came too late",
                hint="the host is overloaded, or the splitter was held up; try again",
            )
        self.writer.cut(self.roster.listed(), kind, label, made, expire_ns=expire_ns)
        self._changed()

    def _cut_or_hold(self) -> None:
        if self._refusal_to_cut():
            return
        assert self.writer.log is not None
        if self.cutter.uncut:
            self.writer.cut(self.roster.listed(), "crash", None)
        else:
            self.cutter.hold(self.writer.log)
        self._changed()

    def _cut_when_ready(self) -> None:
        """The first point after a sync is not left to wait for the interval."""
        if self.roster.became_ready():
            self._event("ready")
            self._cut_or_hold()

    def _last_cut(self) -> None:
        """Of a stream that is about to be closed in good order, if it may be made."""
        if self.cutter.uncut and not self.draining and not self._refusal_to_cut():
            self.writer.cut(self.roster.listed(), "crash", None)

    def _refusal_to_cut(self) -> str:
        """Why no cut can be made in this step; empty if one can. Looks at the sockets."""
        if self.writer.log is None or self.ending is not None:
            return self.reason or "no stream is open"
        incomplete = self.roster.incomplete()
        if incomplete or self.settings.driver == "external":
            return incomplete
        return self.roster.hung_up()

    def _refusal_of_final_cut(self) -> str:
        if self.draining:
            return "appends are still queued"
        if self.settings.driver == "external":
            return self._refusal_to_cut()
        if self.ending is None:
            return self._refusal_to_cut() or "no mirror has said goodbye"
        goodbye = self.roster.all_said_disc()
        return self.roster.incomplete() or self.ending.refusal(all_said_goodbye=goodbye)

    # Saying it.

    def _check_open(self) -> StreamLog:
        if self.writer.log is None:
            raise self._state_error(self.reason or "no stream is open")
        return self.writer.log

    def _state_error(self, why: str) -> StateError:
        return StateError(f"group {self.settings.name!r} is {self.state}: {why}")

    def _event(self, what: str, **fields: object) -> None:
        _log.info(what, extra={"group": self.settings.name, **fields})
