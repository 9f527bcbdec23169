# SPDX-License-Identifier: Apache-2.0
"""Ships one group's log: from the spool to messages for the receiver, and back from its answers.

A sync class without sockets or clocks. Around it: `publish` tells what the splitter has appended,
`welcome` starts a session with what the receiver holds, `receive` takes each message of it,
`produce` gives the next messages to send, `disconnected` ends it. A session is

    welcome → [ OPEN → opened → FRAME*, HOLD* → end of that stream ]*

over the legs of a plan (agent.shipping.resume), the rest of an old stream first. Within a session a
later stream is opened when the one before has been shipped to its end and the splitter has left it.

Invariants
* Frames leave in log order, each beginning where the one before ended; after a disconnect the
  next session begins at what the receiver then says is durable, never at our own memory of it.
* The spool is freed by whole segments, and only below the LSN that the receiver acknowledged as
  durable; an older stream goes when the receiver has opened a later one.
* In flight (sent, not durable) are at most `window_bytes` and one frame.
* In a sync, what waits for a digest holds back the whole log behind it: order is never changed.

Failure: nothing here is durable but the generation (agent.memory). Damage in the live stream's
spool, or a receiver that cannot go on with it, shows as `renew`.

Concurrency: one caller at a time. `produce`, `welcome` read files and compress: run them in a
thread. Raises OSError of the storage; raises ReplicatorError for a receiver that breaks the rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from agent.memory import AgentMemory, GroupMemory
from agent.shipping.progress import Counters, Progress, Renew
from agent.shipping.reduction import Draft, Syncs, reduce
from agent.shipping.resume import Fenced, Leg, Paused, Plan, go_on, plan
from agent.shipping.stretch import Stretch
from agent.shipping.survey import Live, survey
from journal.reader import Chunk
from journal.record import RecordType
from journal.spool import StreamName, free_below, list_streams, remove_stream
from replicator.base.errors import DamageError, NotFoundError, UsageError
from replicator.base.storage import Storage
from replicator.base.units import KIB, MIB
from replicator.control.splitter import SplitterGroupStatus
from replicator.wire.frames import Frame, FrameBuilder
from replicator.wire.limits import FRAME_TARGET_BYTES
from replicator.wire.messages import (
    Ack,
    Digests,
    DigestsDone,
    DigestsWanted,
    Hold,
    Message,
    Open,
    Opened,
    Point,
    SyncKey,
    Welcome,
)

WINDOW_BYTES = 32 * MIB
"""In flight at most: a quarter of a second at 1 Gbit/s, and what a restart of the link repeats."""

# Freeing looks at directories; so not for each ACK.
FREE_STEP_BYTES = 256 * KIB


class Shipper:
    """See the head of this file."""

    def __init__(
        self,
        storage: Storage,
        directories: Sequence[Path],
        group: str,
        memory: AgentMemory,
        *,
        window_bytes: int = WINDOW_BYTES,
        frame_bytes: int = FRAME_TARGET_BYTES,
    ) -> None:
        self._storage = storage
        self._directories = directories
        self._group = group
        self._memory = memory
        self._known: GroupMemory | None = None
        self._window_bytes = window_bytes
        self._frame_bytes = frame_bytes
        self._builder = FrameBuilder()
        self._status: SplitterGroupStatus | None = None
        self._syncs = Syncs()
        self.counters = Counters()
        self._legs: deque[Leg] = deque()
        self._at: Stretch | None = None
        self._ordinal = 0  # the highest that the receiver has opened or closed
        self._in_flight: deque[tuple[int, int]] = deque()
        self._in_flight_bytes = 0
        self._connected = False
        self._durable_lsn: int | None = None
        self._applied_lsn: int | None = None
        self._points = 0
        self._newest_point: Point | None = None
        self._hold: Hold | None = None
        self._held_until_ns = 0
        self._waits_for: tuple[int, int] | None = None
        self._looked_for: tuple[object, ...] = ()
        self.renew: Renew | None = None
        """The live stream, if it cannot be shipped to this receiver."""

    # -- what is known

    @property
    def _remembered(self) -> GroupMemory:
        """Read when it is needed: a file that cannot be read is this group's trouble, not that of
        the agent's start. Raises DamageError, OSError."""
        if self._known is None:
            self._known = self._memory.group(self._group)
        return self._known

    @property
    def generation_seen(self) -> int:
        return self._remembered.generation_seen

    @property
    def above_ordinal(self) -> int:
        """A new stream must have a higher ordinal than this."""
        return self._ordinal

    @property
    def above_time_ns(self) -> int:
        """The stamps of a new stream must lie behind this: the receiver holds a point of then."""
        return self._held_until_ns

    @property
    def dead_end(self) -> tuple[int, int] | None:
        """(ordinal, end) of the stream under way, if it is dead and its end has been found."""
        at = self._at
        if at is None or at.end_lsn is None or not at.is_over:
            return None
        return at.name.ordinal, at.end_lsn

    @property
    def progress(self) -> Progress:
        return Progress(
            self._connected,
            self._durable_lsn,
            self._applied_lsn,
            self._points,
            self._newest_point,
            self._held_until_ns,
            self._in_flight_bytes,
            self._waits_for,
        )

    def synced_bytes(self, disk: int) -> int | None:
        """How many bytes of the disk's sync have passed; None outside a sync."""
        sync = self._syncs.filters.get(disk)
        return None if sync is None else sync.passed_bytes

    # -- what happens

    def publish(self, status: SplitterGroupStatus | None) -> None:
        """The splitter's newest word; None while there is none: then the log ends where it
        stops verifying."""
        self._status = status

    def accept_generation(self) -> None:
        """The operator's word that this source may feed the receiver as it is now. Before the
        first receiver was met there is nothing to accept: that one is taken as it is."""
        seen = self._remembered.generation_seen
        if self._remembered.generation_accepted is not None:
            self._remember(GroupMemory(seen, seen))

    def welcome(self, welcome: Welcome) -> Plan | Fenced | Paused:
        """Begins a session. Nothing is produced unless a Plan comes back."""
        self.disconnected()
        remembered = self._remembered
        if remembered.generation_accepted is None:  # the first receiver this group meets
            remembered = GroupMemory(
                max(welcome.generation, remembered.generation_seen), welcome.generation
            )
        live = self._live()
        decided = plan(
            welcome,
            survey(self._storage, self._directories, live, welcome),
            generation_seen=remembered.generation_seen,
            generation_accepted=remembered.generation_accepted or 0,
        )
        if not isinstance(decided, Fenced):
            seen = max(welcome.generation, remembered.generation_seen)
            self._remember(GroupMemory(seen, remembered.generation_accepted))
        self._take_over(welcome)
        if isinstance(decided, Plan):
            self._connected = True
            self._legs = deque(decided.legs)
            self._renew(live, decided.renew)
        return decided

    def disconnected(self) -> None:
        """The session is over. What was in flight is forgotten: the receiver will say."""
        self._end_stretch()
        self._legs.clear()
        self._connected = False
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._hold = None
        self._waits_for = None
        self._looked_for = ()
        self.renew = None

    def receive(self, message: Message) -> None:
        """A message of the session after WELCOME. Raises UsageError for what breaks the rules."""
        if isinstance(message, Ack):
            self._acknowledge(message)
        elif isinstance(message, Opened):
            self._opened(message)
        elif isinstance(message, SyncKey):
            self._take_key(message)
        elif isinstance(message, Digests):
            self._take_digests(message)
        elif isinstance(message, DigestsDone):
            sync = self._syncs.filters.get(message.disk)
            if sync is not None and sync.sync_lsn == message.sync_lsn:
                sync.done()

    def produce(self, max_bytes: int = MIB, *, patient: bool = True) -> list[Message]:
        """The next messages to send, about `max_bytes` of log; empty when there is nothing to say
        now. Not `patient`: a sync ships what it would else wait for."""
        if not self._connected:
            return []
        self._free()
        out: list[Message] = []
        log_bytes = 0
        while log_bytes < max_bytes:
            if self._at is None and not self._open_next(out):
                break
            if self._at is None or not self._at.opened:
                break
            if self._in_flight_bytes >= self._window_bytes:
                break
            shipped = self._ship(self._at, out, patient=patient)
            log_bytes += shipped
            if not shipped and not self._leave_dead_stream():
                break
        self._say_hold(out)
        self._say_wanted(out)
        return out

    # -- sessions and legs

    def _live(self) -> Live | None:
        status = self._status
        if status is None or status.stream is None:
            return None
        return Live(StreamName(status.ordinal, UUID(status.stream)), status.end_lsn)

    def _take_over(self, welcome: Welcome) -> None:
        self._ordinal = max(welcome.ordinal, welcome.closed_ordinal)
        self._durable_lsn = welcome.durable_lsn
        self._applied_lsn = welcome.applied_lsn
        self._points = welcome.points
        self._newest_point = welcome.newest_point
        if welcome.newest_point is not None:
            until_ns = max(welcome.newest_point.until_ns, welcome.newest_point.time_ns)
            self._held_until_ns = until_ns
        else:
            self._held_until_ns = 0

    def _renew(self, live: Live | None, reason: str) -> None:
        """The first reason stays for as long as the stream lives. `live` is the stream that the
        reason was found for: the splitter may have told of another one meanwhile."""
        if not reason or live is None:
            self.renew = None
        elif self.renew is None or self.renew.stream != str(live.name.stream):
            self.renew = Renew(str(live.name.stream), reason)

    def _open_next(self, out: list[Message]) -> bool:
        """Says OPEN for the next leg, if there is one; frames wait for its OPENED."""
        if not self._legs:
            self._look_for_legs()
        if not self._legs:
            return False
        leg = self._legs.popleft()
        self._at = Stretch(self._storage, self._directories, leg)
        self._ordinal = leg.name.ordinal
        out.append(Open(str(leg.name.stream), leg.name.ordinal, leg.start_lsn, leg.chain))
        return True

    def _look_for_legs(self) -> None:
        """Asks again what may follow, when something has changed since the last time."""
        live = self._live()
        seen = (tuple(list_streams(self._storage, self._directories)), live)
        if seen == self._looked_for:
            return
        nothing = Welcome("r", 0, None, self._ordinal, 0, 0, 0, self._ordinal, 0)
        following = go_on(self._ordinal, survey(self._storage, self._directories, live, nothing))
        self._legs = deque(following.legs)
        self._renew(live, following.renew)
        if not self._legs:
            self._looked_for = seen

    def _opened(self, message: Opened) -> None:
        at = self._at
        if at is None or at.opened or message.durable_lsn != at.lsn:
            raise UsageError("the receiver opened something else than what was asked")
        at.opened = True
        self._in_flight.clear()  # what is still in flight belongs to the stream before
        self._in_flight_bytes = 0
        self._durable_lsn = message.durable_lsn
        self._syncs.resume(message.syncing, message.durable_lsn)
        for name in list_streams(self._storage, self._directories):
            if name.ordinal < at.name.ordinal:
                remove_stream(self._storage, self._directories, name)

    def _is_dead(self, at: Stretch) -> bool:
        """Its splitter is gone, or has gone on. One above the splitter's last word is not: it was
        opened a moment ago, and its status is on the way."""
        live = self._live()
        return live is None or live.name.ordinal > at.name.ordinal

    def _leave_dead_stream(self) -> bool:
        """True if the stream under way is over and the next may be opened."""
        at = self._at
        if at is None or self._live() is None or not self._is_dead(at):
            return False  # without a splitter nobody begins a next one
        if not at.is_over:
            return False
        self._end_stretch()
        return True

    def _end_stretch(self) -> None:
        if self._at is not None:
            self._at.close()
            self._at = None
        self._syncs.resume((), 0)

    # -- frames

    def _ship(self, at: Stretch, out: list[Message], *, patient: bool) -> int:
        """Bytes of log that went out as frames."""
        self._waits_for = None
        chunk = self._read(at)
        if chunk is None or not chunk.records:
            return 0
        if not self._syncs.filters and not any(
            record.type == RecordType.SYNC_BEGIN for _, record in chunk.records
        ):
            drafts = [
                Draft(chunk.data, at.lsn, chunk.end_lsn, at.chain, chunk.chain, reduced=False)
            ]
            end_lsn, chain = chunk.end_lsn, chunk.chain
        else:
            reduction = reduce(chunk, at.lsn, at.chain, self._syncs, patient=patient)
            drafts, end_lsn, chain = reduction.drafts, reduction.end_lsn, reduction.chain
            self._waits_for = reduction.waits_for
        for draft in drafts:
            out.append(self._frame(draft))
        shipped = end_lsn - at.lsn
        at.lsn, at.chain = end_lsn, chain
        return shipped

    def _read(self, at: Stretch) -> Chunk | None:
        """The next chunk of the stream under way; None at its end, or where it cannot be read."""
        live = self._live()  # once: the next status may come while this runs
        if live is not None and live.name.ordinal < at.name.ordinal:
            return None
        if live is not None and live.name == at.name:
            try:
                return at.read_live(live.end_lsn, self._frame_bytes)
            except (DamageError, NotFoundError) as error:
                self._renew(live, error.message)
                return None
        return at.read_dead(self._frame_bytes)

    def _frame(self, draft: Draft) -> Frame:
        frame = self._builder.build(
            draft.raw,
            start_lsn=draft.start_lsn,
            end_lsn=draft.end_lsn,
            chain_start=draft.chain_start,
            chain_end=draft.chain_end,
            reduced=draft.reduced,
        )
        self._in_flight.append((draft.end_lsn, frame.size))
        self._in_flight_bytes += frame.size
        before = self.counters
        self.counters = Counters(
            before.log_bytes + draft.end_lsn - draft.start_lsn,
            before.raw_bytes + len(draft.raw),
            before.wire_bytes + frame.size,
            before.frames + 1,
        )
        return frame

    def _say_hold(self, out: list[Message]) -> None:
        at, status = self._at, self._status
        if at is None or not at.opened or status is None:
            return
        if status.stream != str(at.name.stream):
            return
        hold = Hold(status.end_lsn, status.held_until_ns)
        is_news = self._hold is None or hold.until_ns > self._hold.until_ns
        if at.lsn == status.end_lsn and hold.until_ns > status.last_cut_time_ns and is_news:
            self._hold = hold
            out.append(hold)

    # -- what the receiver says

    def _acknowledge(self, ack: Ack) -> None:
        at = self._at
        if ack.points:
            self._newest_point = ack.points[-1]
            self._held_until_ns = max(self._held_until_ns, self._newest_point.time_ns)
        # A hold counts when the receiver says so: that it was sent proves nothing.
        self._held_until_ns = max(self._held_until_ns, ack.until_ns)
        self._points = ack.points_total
        if at is None or not at.opened:
            return  # its LSNs are of a stream that we have left
        if ack.durable_lsn > at.lsn:
            raise UsageError(f"the receiver acknowledged LSN {ack.durable_lsn}, {at.lsn} was sent")
        self._durable_lsn = max(self._durable_lsn or 0, ack.durable_lsn)
        self._applied_lsn = ack.applied_lsn
        while self._in_flight and self._in_flight[0][0] <= ack.durable_lsn:
            self._in_flight_bytes -= self._in_flight.popleft()[1]

    def _take_key(self, message: SyncKey) -> None:
        sync = self._syncs.filters.get(message.disk)
        if sync is not None and sync.sync_lsn == message.sync_lsn and self._at is not None:
            sync.set_key(message.key)
            self._at.wanted.setdefault((message.disk, message.sync_lsn), 0)

    def _take_digests(self, message: Digests) -> None:
        sync = self._syncs.filters.get(message.disk)
        if sync is None or sync.sync_lsn != message.sync_lsn:
            return  # of a sync that has ended meanwhile
        if message.digests:
            sync.offer_digests(message.first_block, message.lsn, message.digests)
        if message.zero_blocks:
            first = message.first_block + len(message.digests) // 16
            sync.offer_zeroes(first, message.lsn, message.zero_blocks)

    def _say_wanted(self, out: list[Message]) -> None:
        at = self._at
        if at is None:
            return
        for disk, sync in self._syncs.filters.items():
            key = (disk, sync.sync_lsn)
            if key in at.wanted and at.wanted[key] < sync.wanted_end:
                at.wanted[key] = sync.wanted_end
                out.append(DigestsWanted(disk, sync.sync_lsn, sync.wanted_end))

    # -- the spool

    def _free(self) -> None:
        at = self._at
        if at is None or not at.opened or self._durable_lsn is None:
            return
        if self._durable_lsn - at.freed_lsn >= FREE_STEP_BYTES:
            free_below(self._storage, self._directories, at.name, self._durable_lsn)
            at.freed_lsn = self._durable_lsn

    def _remember(self, memory: GroupMemory) -> None:
        if memory != self._remembered:
            self._memory.remember(self._group, memory)
            self._known = memory
