# SPDX-License-Identifier: Apache-2.0
"""How a group stands, as its source's side can tell: what was seen, and when.

Gathers the facts of the agent's column (replicator.states.source) as they come, each with the
monotonic moment of its coming, and gives the verdicts: `own`, which the receiver is told, and
`stand`, which people are shown. It decides nothing itself, and asks nobody.

Concurrency: the event loop's thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.group.rate import Rate
from agent.group.state import capture_of, is_of_stream
from agent.shipping.progress import Progress
from replicator.base.clock import NS_PER_S, Clock
from replicator.base.units import format_duration, format_resize, format_size
from replicator.control.splitter import SplitterGroupStatus
from replicator.states import source
from replicator.states.ages import StampAges
from replicator.states.source import Capture, SourceFacts
from replicator.states.words import Promise, Trouble, Verdict, state_named
from replicator.wire.messages import Ping, Said


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the parts of a group say at the moment that they are asked. `link`: why there is no
    session; `refused`, `door`, and the driver's facts: see SourceFacts."""

    progress: Progress
    is_connected: bool
    link: Trouble
    refused: Verdict | None
    door: Verdict | None
    trouble: Trouble
    is_down: bool
    left_out: bool
    read_back_seconds: float
    recovery: str


class Standing:
    """See the head of this file. One for each group. `room_bytes`: what the spool may take."""

    def __init__(self, promise: Promise, clock: Clock, *, room_bytes: int) -> None:
        self._promise = promise
        self._clock = clock
        self.room_bytes = room_bytes
        self._status: SplitterGroupStatus | None = None
        self._began_ns = self._left_ns = clock.monotonic_ns()
        self._ages = StampAges()
        self._newest_stamp: tuple[int, int] = (0, 0)
        self._was_connected = False
        self._held_ns = 0
        self._acked_ns: int | None = None
        self._told: tuple[Verdict, int] | None = None
        self._had_stream = False
        self._has_had_point = False
        self._log_rate = Rate()
        self._sync_rate = Rate()
        self._synced_bytes = 0
        self._sizes: dict[str, int] = {}
        """Of disks when they were complete last, by name."""

    # -- what is seen

    def heard_splitter(self, status: SplitterGroupStatus | None) -> None:
        """Its newest word; None while it cannot be heard."""
        self._status = status
        if status is None:
            return
        self._had_stream = self._had_stream or status.stream is not None
        for disk in status.disks:
            if disk.state == "complete":
                self._sizes[disk.name] = disk.size
        now_ns = self._clock.monotonic_ns()
        stamp_ns = max(status.last_cut_time_ns, status.held_until_ns)
        if stamp_ns > self._newest_stamp[0]:
            self._newest_stamp = (stamp_ns, now_ns)
            self._ages.note(stamp_ns, now_ns)
        self._log_rate.note(status.memory_bytes + status.disk_bytes, now_ns)

    def heard_receiver(self, ping: Ping) -> None:
        """What it says of its own side."""
        state = None if ping.said is None else state_named(ping.said.state)
        if ping.said is None or state is None:
            return
        told = Verdict(state, ping.said.reason, ping.said.remedy, ping.said.is_watched)
        self._told = (told, self._clock.monotonic_ns())

    def note_progress(self, progress: Progress, *, is_connected: bool) -> None:
        """What the receiver is known to hold, and whether there is a session."""
        now_ns = self._clock.monotonic_ns()
        if self._was_connected and not is_connected:
            self._left_ns = now_ns
        self._was_connected = is_connected
        self._has_had_point = self._has_had_point or progress.newest_point is not None
        if is_connected and progress.held_until_ns != self._held_ns:
            self._held_ns = progress.held_until_ns
            self._acked_ns = now_ns

    def note_synced(self, synced_bytes: int) -> None:
        """Of all disks that are in a sync."""
        self._synced_bytes = synced_bytes
        self._sync_rate.note(synced_bytes, self._clock.monotonic_ns())

    # -- what is told from it

    def own(self, seen: Seen) -> Verdict:
        return source.own(self._facts(seen))

    def stand(self, seen: Seen) -> Verdict:
        if seen.door is not None:  # what was confirmed before says nothing any more
            self._acked_ns = None
        return source.stand(self._facts(seen))

    def said(self, seen: Seen) -> Said:
        """Our own verdict, as the receiver is told it."""
        own, (stamp_ns, moment_ns) = self.own(seen), self._newest_stamp
        age_ns = self._clock.monotonic_ns() - moment_ns if stamp_ns else 0
        return Said(
            own.state.value,
            own.reason[:2000],
            own.remedy[:2000],
            own.is_watched,
            stamp_ns,
            age_ns,
            round(self._promise.interval_seconds * NS_PER_S),
            round(self._promise.rpo_alarm_seconds * NS_PER_S),
        )

    def lag_seconds(self, progress: Progress) -> float | None:
        """Age of the newest moment that the receiver is known to hold. None: of none."""
        if not progress.held_until_ns:
            return None
        now_ns = self._clock.monotonic_ns()
        age = self._ages.age_seconds(progress.held_until_ns, now_ns)
        if age is not None:
            return age
        # No splitter in this life: its stamps came from this machine's clock, read once.
        self._ages.note(self._clock.utc_ns(), now_ns)
        return self._ages.age_seconds(progress.held_until_ns, now_ns)

    def unprotected_seconds(self) -> float | None:
        """For how long there has been no point, as this process knows; None where there is one."""
        return None if self._has_had_point else self._since(self._began_ns)

    def _since(self, moment_ns: int) -> float:
        return (self._clock.monotonic_ns() - moment_ns) / NS_PER_S

    def _facts(self, seen: Seen) -> SourceFacts:
        status, progress = self._status, seen.progress
        capture = capture_of(status)
        is_ours = is_of_stream(progress.newest_point, status)
        end_lsn = 0 if status is None else status.end_lsn
        point = progress.newest_point
        number = "" if point is None else f"#{point.sequence} is its end"
        return SourceFacts(
            capture=capture,
            why="" if status is None else status.reason,
            trouble=seen.trouble,
            is_down=seen.is_down,
            left_out=seen.left_out,
            refused=seen.refused,
            door=seen.door,
            told=self._fresh_word(),
            away_seconds=0.0 if seen.is_connected else self._since(self._left_ns),
            awake_seconds=self._since(self._began_ns),
            link=seen.link,
            room=self._room() if capture in _CAPTURING else "",
            work=self._work() if capture is Capture.SYNCING else "",
            recovery=seen.recovery,
            had_stream=self._had_stream,
            has_points=self._has_had_point,
            has_point_of_stream=is_ours,
            has_last_point=is_ours and (progress.durable_lsn or 0) >= end_lsn,
            end_text=number,
            is_watched=status is None or status.ended != "unwatched",
            acked_seconds=None if self._acked_ns is None else self._since(self._acked_ns),
            read_back_seconds=seen.read_back_seconds,
            lag_seconds=self.lag_seconds(progress),
            promise=self._promise,
        )

    def _fresh_word(self) -> Verdict | None:
        if self._told is None or self._since(self._told[1]) >= self._promise.proof_seconds:
            return None
        return self._told[0]

    def _room(self) -> str:
        """For how long the spool takes what the receiver does not."""
        assert self._status is not None
        used = self._status.memory_bytes + self._status.disk_bytes
        left, rate = max(self.room_bytes - used, 0), self._log_rate.per_second()
        if not rate:
            return f"capture goes on, the spool has room for {format_size(left)}"
        lasts = format_duration(round(left / rate) * NS_PER_S)
        return f"capture goes on, the spool has room for about {lasts}"

    def _work(self) -> str:
        """How far the sync is, and when it will have ended."""
        assert self._status is not None
        disks = [disk for disk in self._status.disks if disk.state in ("syncing", "flushed")]
        total = sum(disk.size for disk in disks)
        done = min(self._synced_bytes, total)
        resized = [
            f"{disk.name} was resized {format_resize(self._sizes[disk.name], disk.size)}; "
            for disk in disks
            if self._sizes.get(disk.name, disk.size) != disk.size
        ]
        text = f"{''.join(resized)}{format_size(done)} of {format_size(total)} have passed"
        rate = self._sync_rate.per_second()
        if not rate:
            return f"{text}, nothing lately" if rate == 0.0 else text
        left = format_duration(round((total - done) / rate) * NS_PER_S)
        return f"{text}, {format_size(round(rate))} a second, about {left} to go"


_CAPTURING = (Capture.COMPLETE, Capture.SUSPENDED, Capture.SYNCING)
