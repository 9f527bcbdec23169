# SPDX-License-Identifier: Apache-2.0
"""A source, a link that loses nothing, a receiver on a simulated disk, and what must be true.

The world does what an agent does after each crash: it asks how far the receiver is and sends the
rest again. It knows which points were announced, what each must hold, and what was acknowledged.
`check` compares everything there is: every point, byte for byte, through its view.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from journal.bodies import SyncBegin, SyncEnd
from journal.record import RecordType
from receiver.counted.ages import moved_ns
from receiver.counted.keeper import CountedClock
from receiver.counted.rules import SLEW, Reading
from receiver.group.group import GroupReplica
from receiver.group.parts import Limits
from receiver.history.images import block_key
from receiver.history.state import GroupState
from receiver.history.sums.sums import SumWindow
from receiver.points.policy import HistoryPolicy
from receiver.points.values import GroupEvent, Point
from receiver.views.point_view import PointView
from replicator.base.errors import DamageError, FencedError, NoPointError, OwnedError
from replicator.base.mishaps import is_full
from tests.doubles.memory_catalog import MemoryCatalog
from tests.receiver.content_extents import check_extents
from tests.receiver.machine import FakeMachine
from tests.receiver.plain import Contents, PlainReplica
from tests.receiver.source import START_NS, Logged, Source
from tests.world.storage import SimStorage, Stopped

GROUP_DIRECTORY = Path("/data/groups/g")
CLOCK_FILE = Path("/data/clock.json")
DISKS = [("a", 9 * 4096 + 512), ("b", 6 * 4096)]
SMALL = Limits(
    history_segment_bytes=12_000,
    inbox_segment_bytes=6_000,
    batch_bytes=5 * 4096,
    step_blocks=3,
    sum_rows=12,
    cache_bytes=8_000,
)
FINDINGS = ("replica.rotten", "replica.healed", "replica.read_again")
MISSING_WRITES = re.compile("are not kept|no more have come in that stream")
BARRIERS = (RecordType.SYNC_BEGIN, RecordType.SYNC_END, RecordType.SAME, RecordType.DETACH)
LOOKS_NS = 10_000_000
"""More than what the clock moves by being looked at in one call."""
Factory = Callable[..., GroupReplica]
Forget = Callable[[Iterable[int]], None]
Drop = Callable[[list[int], GroupState], None]


class WorldClock(FakeMachine):
    """Time that moves a little whenever somebody looks."""

    @property
    def now_ns(self) -> int:
        return self.true_ns

    @now_ns.setter
    def now_ns(self, now_ns: int) -> None:
        self.pass_by(now_ns - self.true_ns)

    def read(self) -> Reading:
        self.pass_by(1_000)
        return super().read()

    def utc_ns(self) -> int:
        return self.read().wall_ns


class World:
    """See the head of this file. `rng` decides only what a power cut leaves."""

    def __init__(
        self,
        *,
        seed: int = 0,
        limits: Limits = SMALL,
        factory: Factory = GroupReplica,
        disks: list[tuple[str, int]] | None = None,
        storage: SimStorage | None = None,
        fine_ns: int = 0,
    ) -> None:
        self.rng = Random(seed)
        self.storage = storage or SimStorage()
        self.clock = WorldClock()
        self.limits = limits
        self.factory = factory
        self.events: list[GroupEvent] = []
        self.catalog = MemoryCatalog()
        self.plain = PlainReplica()
        self.sources: list[Source] = []
        self.disks = disks or DISKS
        self.guest: dict[str, bytearray] = {name: bytearray(size) for name, size in self.disks}
        self.expected: dict[int, Contents] = {}
        self.announced: dict[int, Point] = {}
        self.labels: dict[str, int] = {}
        self.may_be_gone: set[int] = set()
        self.acknowledged = (0, 0)
        self.pieces: dict[tuple[int, int], tuple[int, bytes]] = {}
        self.rolling_to: Contents | None = None
        self.dead_ordinal = 0
        self.closed_ordinal = 0
        self.views: list[tuple[int, PointView, Contents]] = []
        self.whole_cuts: set[tuple[int, int]] = set()
        self.before_rolling: Contents = {}
        self.came: dict[int, int] = {}
        self.applied: dict[int, int] = {}
        """True times: since when a point is known, and at the latest when it was applied."""
        self.lock_ns = 0
        self.unsaid: dict[int, tuple[Point, Contents]] = {}
        self._cannot_say = False
        self.fine_ns = fine_ns
        self.has_rotted = False
        self.has_exact_holes = False
        """What is zero is a hole: nobody but the receiver has written to its disks, and no batch
        was done again, for that writes zeroes as content before it makes holes of them."""
        self.rotten: dict[tuple[str, int], bytes] = {}
        """What rotted, and was not touched by a batch since: only a scrub knows of it."""
        self._dead_before = 0
        self.storage.make_directory(GROUP_DIRECTORY)
        self.group = self._new_group()
        self._recover()

    def _recover(self) -> None:
        self.group.recover()
        self.counted.begin(self.group.known.newest_stamp_ns)

    def _new_group(self) -> GroupReplica:
        self.counted = CountedClock(self.storage, CLOCK_FILE, self.clock)
        group = self.factory(
            self.storage,
            self.clock,
            GROUP_DIRECTORY,
            "g",
            self.catalog,
            age_clock=self.counted,
            notify=self.events.append,
            limits=self.limits,
            fine_ns=self.fine_ns,
        )
        history: Any = group.history
        history.drop_points = self._drop_watched(history.drop_points)
        batches: Any = history.batch_list
        batches.forget = self._forget_unsaid(batches.forget)
        return group

    # -- the source

    @property
    def source(self) -> Source:
        return self.sources[-1]

    def log(self, record: Logged) -> Logged:
        """A record that the source has just written: what a replica does with it."""
        body: object = None
        if record.kind in (RecordType.SYNC_BEGIN, RecordType.SYNC_END):
            kind = SyncBegin if record.kind == RecordType.SYNC_BEGIN else SyncEnd
            body = msgspec.msgpack.decode(record.payload, type=kind)
        self.plain.take(self.source, record, body)
        return record

    def begin_stream(self, *, from_zero: bool) -> None:
        """A new stream of the source. Not from zero: a whole sync of what the guest's disks hold,
        up to its end."""
        before = self.sources[-1] if self.sources else None
        first_lsn = before.end_lsn + 1000 if before is not None else 0
        time_ns = before.time_ns if before is not None else START_NS
        ordinal = before.ordinal + 1 if before is not None else 1
        self.sources.append(
            Source(self.disks, ordinal=ordinal, first_lsn=first_lsn, time_ns=time_ns)
        )
        self.plain.end_stream()
        self.plain.remember(ordinal, first_lsn)
        for name, _ in self.disks:
            self.log(self.source.sync_begin(name, from_zero=from_zero))
            if from_zero:
                self.guest[name] = bytearray(len(self.guest[name]))
                self.log(self.source.sync_end(name))

    def sync_range(self, name: str, offset: int, length: int) -> None:
        """The background copy reaches a range. It ships a `same` where the replica holds that
        already (an agent knows it from digests), a zero for zeroes, else the content."""
        span = slice(offset, offset + length)
        content = bytes(self.guest[name][span])
        disk = self.plain.disks[name]
        if bytes(disk.content[span]) == content and not self.has_rotted:
            self.log(self.source.same(name, offset, length))
        elif not any(content):
            self.log(self.source.zero(name, offset, length))
        else:
            self.log(self.source.write(name, offset, content))

    def sync_all(self, name: str) -> None:
        """Copies what is left, and ends the sync."""
        size = len(self.guest[name])
        for offset in range(0, size, 4096):
            self.sync_range(name, offset, min(4096, size - offset))
        self.log(self.source.sync_end(name))
        assert bytes(self.plain.disks[name].content) == bytes(self.guest[name])

    def resize(self, name: str, size: int, *, in_stream: bool) -> None:
        """The guest's disk gets another size, and a sync has begun: of that disk alone, within the
        stream, or of all in a new one."""
        self.guest[name] = self.guest[name][:size].ljust(size, b"\x5a")
        self.disks = [(each, size if each == name else known) for each, known in self.disks]
        if in_stream:
            self.log(self.source.resize(name, size))
            self.log(self.source.sync_begin(name, from_zero=False))
        else:
            self.begin_stream(from_zero=False)

    def is_before_resize(self, sequence: int) -> bool:
        """Whether the replica has other images now than the point shows."""
        present = {disk.slot for disk in self.group.applier.applied.present}
        return any(disk.slot not in present for disk in self.announced[sequence].members)

    def write(self, name: str, offset: int, content: bytes) -> None:
        content = content[: len(self.guest[name]) - offset]
        self.guest[name][offset : offset + len(content)] = content
        self.log(self.source.write(name, offset, content))

    def zero(self, name: str, offset: int, length: int) -> None:
        length = min(length, len(self.guest[name]) - offset)
        self.guest[name][offset : offset + length] = bytes(length)
        self.log(self.source.zero(name, offset, length))

    def cut(self, label: str | None = None, *, kind: str = "crash", expire_ns: int = 0) -> None:
        record = self.log(self.source.cut(label, kind=kind, expire_ns=expire_ns))
        if all(self.source.complete.values()):
            self.whole_cuts.add((self.source.ordinal, record.end_lsn))

    @property
    def is_source_dead(self) -> bool:
        """A rollback was ordered because of that; only a new stream helps."""
        return self.source.ordinal <= self.dead_ordinal

    @property
    def is_syncing(self) -> bool:
        return any(disk.syncing for disk in self.plain.disks.values())

    # -- the link

    def connect(self) -> None:
        """What a hello and the plan of a resume come to: the rest of an older stream, then the
        newer ones."""
        facts = self.group.known.welcome()
        for source in self.sources:
            if source.ordinal <= self.dead_ordinal:
                continue
            if facts.stream == source.stream:
                self.group.intake.open_stream(
                    source.stream,
                    source.ordinal,
                    facts.durable_lsn,
                    source.chain_at(facts.durable_lsn),
                )
            elif source.ordinal > max(facts.ordinal, facts.closed_ordinal):
                self._finish_older(source)
                opened = self.group.intake.open_stream(
                    source.stream, source.ordinal, source.first_lsn, source.first_chain
                )
                self._announce(opened.points)

    def _is_open(self, source: Source) -> bool:
        return self.group.known.welcome().stream == source.stream

    def _finish_older(self, newer: Source) -> None:
        """The verified rest of the stream before goes first."""
        for source in self.sources:
            if self.dead_ordinal < source.ordinal < newer.ordinal and self._is_open(source):
                self._send(source, len(source.records))

    def ship(self, count: int, *, frame_records: int = 3) -> None:
        """Sends up to `count` records of the newest stream, in frames."""
        if not self._is_open(self.source):
            self.connect()
        if self._is_open(self.source):
            self._send(self.source, count, frame_records)

    def _send(self, source: Source, count: int, frame_records: int = 3) -> None:
        stream = self.group._parts.inbox.newest
        assert stream is not None
        records = source.from_lsn(stream.received_lsn)[:count]
        for at in range(0, len(records), frame_records):
            self.group.intake.accept(source.frame(records[at : at + frame_records]))

    def acknowledge(self) -> None:
        """Makes what was sent durable, and remembers what was promised by that."""
        durable = self.group.intake.sync()
        facts = self.group.known.welcome()
        stream = self.group._parts.inbox.find(facts.ordinal)
        if facts.stream is not None and stream is not None and stream.frames:
            self.acknowledged = max(self.acknowledged, (facts.ordinal, durable.durable_lsn))
        self._announce(durable.points)

    def _announce(self, points: list[Point]) -> None:
        for point in points:
            self.came[point.sequence] = self.clock.now_ns
            assert point.sequence not in self.announced, point
            assert (point.ordinal, point.lsn) in self.whole_cuts, f"{point} is of no whole cut"
            self.announced[point.sequence] = point
            self.expected[point.sequence] = self.plain.at[point.ordinal, point.lsn]
            if point.label is not None:
                self.labels[point.label] = point.sequence

    # -- the receiver

    def apply(self, steps: int = 1) -> None:
        for _ in range(steps):
            if not self._apply_next():
                return

    def apply_all(self) -> None:
        while self._apply_next():
            pass

    def _apply_next(self) -> bool:
        applier = self.group.applier
        before, now_ns, is_redo = applier.applied_point, self.clock.now_ns, applier.has_pending
        moved = self.group.apply_next()
        if not is_redo:  # the stamp of such a batch is as old as it is
            for sequence in range(before + 1, applier.applied_point + 1):
                self.applied[sequence] = now_ns
        return moved

    def ship_all(self) -> None:
        self.ship(len(self.source.records))
        self.acknowledge()

    def settle(self) -> None:
        self.ship_all()
        self.apply_all()

    def writes_behind(self, sequence: int) -> list[Contents]:
        """What the disks held behind each write from the point's cut on, as far as it was received
        in that stream and no sync lies between."""
        point = self.announced[sequence]
        later = [each.lsn for each in self.announced.values() if each.ordinal == point.ordinal]
        end = min((lsn for lsn in later if lsn > point.lsn), default=1 << 63)
        contents: list[Contents] = []
        source = next((each for each in self.sources if each.ordinal == point.ordinal), None)
        for record in source.from_lsn(point.lsn) if source is not None and point.lsn else ():
            if record.kind in BARRIERS or record.lsn >= end:
                break
            if record.kind in (RecordType.WRITE, RecordType.ZERO):
                contents.append(self.plain.behind[point.ordinal, record.end_lsn])
        return contents

    def rollback(self, sequence: int, writes: int = 0) -> None:
        """The source is gone; its stream ends here."""
        self.acknowledge()
        self.before_rolling = self._received_contents()
        self.rolling_to = self.expected[sequence]
        self._dead_before = self.dead_ordinal
        if writes:
            members = {disk.name for disk in self.announced[sequence].members}
            behind = self.writes_behind(sequence)[writes - 1]
            self.rolling_to = {name: behind[name] for name in members}
        self.dead_ordinal = self.source.ordinal
        done = self.group.rolling_back.run(sequence, writes=writes)
        self._rolled(done.before, done.point)

    def not_rolled_back(self) -> None:
        """It was refused: the source lives."""
        self.rolling_to = None
        self.dead_ordinal = self._dead_before

    def check_writes(self, sequence: int) -> int:
        """Each single write behind the point, as far as its frames are there; how many."""
        for number, expected in enumerate(self.writes_behind(sequence), 1):
            try:
                view = self.group.showing.fine_view(sequence, number)
            except NoPointError as error:
                if not MISSING_WRITES.search(error.message):
                    raise
                return number - 1
            for name, size in view.disks:
                assert view.read(name, 0, size) == expected[name], f"#{sequence}+{number}w"
                check_extents(partial(view.extents, name), expected[name])
            view.close()
        count = len(self.writes_behind(sequence))
        with pytest.raises(NoPointError):
            self.group.showing.fine_view(sequence, count + 1)
        return count

    def _received_contents(self) -> Contents:
        state = self.group.intake.front.state
        return self.plain.at[state.ordinal, state.lsn]

    def _rolled(self, before: Point, point: Point) -> None:
        assert self.rolling_to is not None
        assert before.kind == "before-rollback"
        assert point.kind == "rollback"
        self.announced[before.sequence] = before
        self.announced[point.sequence] = point
        self.came[before.sequence] = self.came[point.sequence] = self.clock.now_ns
        self.expected[before.sequence] = self.before_rolling
        self.expected[point.sequence] = self.rolling_to
        self._replica_is({**self.before_rolling, **self.rolling_to})
        self.closed_ordinal = self.group.intake.front.state.ordinal
        self.rolling_to = None

    def _replica_is(self, contents: Contents) -> None:
        """From here on, whatever the source had in mind. Its stream is closed for ever."""
        self.plain.end_stream()
        self.plain.put(contents)
        state = self.group.intake.front.state
        self.plain.remember(state.ordinal, state.lsn)

    def retain(self, max_bytes: int) -> None:
        self.age(HistoryPolicy(max_bytes), 0)

    def age(self, policy: HistoryPolicy, by_ns: int) -> None:
        """Time passes, and the past is kept as the policy says."""
        self.clock.now_ns += by_ns
        spared_ns = policy.min_window_ns
        if policy.rules:
            spared_ns = min(spared_ns, policy.rules[0].span_ns)
        spared_ns = max(spared_ns, self.lock_ns, policy.min_lock_ns)
        may_go = {
            point.sequence for point in self.group.points.all[:-1] if self._may_go(point, spared_ns)
        }
        self.may_be_gone |= may_go
        policy = replace(policy, fine_ns=self.fine_ns)
        dropped = [point.sequence for point in self.group.retain(policy).dropped]
        assert set(dropped) <= may_go
        for sequence in dropped:
            self.forget(sequence)
        self.may_be_gone.clear()
        assert self.group.keeping.lock_ns >= self.lock_ns
        self.lock_ns = self.group.keeping.lock_ns

    def _may_go(self, point: Point, spared_ns: int) -> bool:
        """By its true age, whatever any clock shows: the counted one is drawn to the wall clock by
        a thousandth at most."""
        if not self.group.applier.is_point_applied(point.sequence):
            return False
        age_ns = self._true_age_ns(point)
        if age_ns < spared_ns:
            return False
        if point.label is None:
            return True
        return bool(point.expire_ns) and point.expire_ns <= age_ns

    def _true_age_ns(self, point: Point) -> int:
        came_ns = self.applied.get(point.sequence, self.came[point.sequence])
        age_ns = self.clock.now_ns + LOOKS_NS - came_ns
        return age_ns + age_ns // SLEW

    def open_view(self, sequence: int) -> None:
        """Stays open through whatever comes, until it is closed or the receiver dies."""
        self.views.append(
            (sequence, self.group.showing.view(sequence), dict(self.expected[sequence]))
        )

    def close_view(self, at: int) -> None:
        _, view, _ = self.views.pop(at)
        view.close()

    def give_up(self, sequences: list[int]) -> None:
        """Points go, and what they needed stays until it is tidied up."""
        self.may_be_gone |= set(sequences)
        group = self.group
        group.history.drop_points(sequences, group.applier.newest_state)
        for point in group.points.drop(sequences):
            self.forget(point.sequence)
        self.may_be_gone.clear()

    def tidy(self, steps: int) -> None:
        for _ in range(steps):
            if not self.group.tidy():
                return

    def _drop_watched(self, drop: Drop) -> Drop:
        """`drop`, and noted where the disk was too full to say it."""

        def watched(sequences: list[int], state: GroupState) -> None:
            self._cannot_say = False
            try:
                drop(sequences, state)
            except OSError as error:
                self._cannot_say = is_full(error)
                raise

        return watched

    def _forget_unsaid(self, forget: Forget) -> Forget:
        """`forget`, and what it forgets noted, where there was no other way."""

        def noted(sequences: Iterable[int]) -> None:
            gone = list(sequences)
            for sequence in gone if self._cannot_say else ():
                known = self.announced[sequence], self.expected[sequence]
                self.unsaid[sequence] = known
            forget(gone)

        return noted

    def forget(self, sequence: int) -> None:
        self.announced.pop(sequence, None)
        self.expected.pop(sequence, None)

    # -- crashes

    def crash(self, *, power: bool, recover_stop: int = 0, off_ns: int | None = None) -> None:
        """The receiver dies; a new one takes up what is there, and may die once more meanwhile.
        `off_ns`: its machine boots, after so long."""
        self._die(power=power)
        if off_ns is not None:
            self.clock.reboot(off_ns)
        if recover_stop:
            self.storage.stop_at(recover_stop)
            try:
                self.group = self._new_group()
                self.group.recover()
            except Stopped:
                self._die(power=bool(self.rng.getrandbits(1)))
            else:
                self.storage.heal()
                self._die(power=bool(self.rng.getrandbits(1)))
        self.group = self._new_group()
        self._recover()
        self._take_stock()

    def _die(self, *, power: bool) -> None:
        self.has_exact_holes = False
        self.views.clear()
        if power:
            self.storage.power_cut(self.rng)
        else:
            self.storage.kill()

    def _take_stock(self) -> None:
        """What survived must hold what was promised, and may hold more."""
        assert self.group.keeping.lock_ns >= self.lock_ns, "the lock is gone"
        facts = self.group.known.welcome()
        if facts.stream is not None:
            held = (facts.ordinal, facts.durable_lsn)
            assert held >= self.acknowledged, "acknowledged frames are lost"
        known = {point.sequence: point for point in self.group.points.all}
        for sequence in [each for each in self.announced if each not in known]:
            assert sequence in self.may_be_gone, f"point #{sequence} is lost"
            self.forget(sequence)
        self.may_be_gone.clear()
        for point in known.values():
            if point.sequence not in self.announced:
                self._found(point)
        self._finish_rollback()

    def _found(self, point: Point) -> None:
        """A point that was not announced before the crash; or one that was given up on a disk too
        full to say so, and is still there: it is decided about again."""
        if point.sequence in self.unsaid:
            self.announced[point.sequence], self.expected[point.sequence] = self.unsaid.pop(
                point.sequence
            )
            return
        assert point.sequence > max(self.announced, default=0)
        self.came[point.sequence] = self.clock.now_ns
        if point.kind in ("crash", "application"):
            self._announce([point])
        elif point.kind == "before-rollback":
            assert self.rolling_to is not None
            self.announced[point.sequence] = point
            self.expected[point.sequence] = self.before_rolling
        else:
            assert self.rolling_to is not None
            self.announced[point.sequence] = point
            self.expected[point.sequence] = self.rolling_to
            self._replica_is({**self.before_rolling, **self.rolling_to})
            self.closed_ordinal = self.group.intake.front.state.ordinal
            self.rolling_to = None

    def _finish_rollback(self) -> None:
        """One that was begun durably is gone on with; one that was not, never happened."""
        if self.rolling_to is None:
            return
        if self.group.known.condition != "rolling-back":
            self.rolling_to = None
            self._replica_is(self.before_rolling)
            return
        assert self.group.known.welcome().stream is None

    def finish_rollback(self) -> None:
        """Lets a resumed rollback run to its end."""
        while self.group.known.condition == "rolling-back":
            self.group.apply_next()
        if self.rolling_to is not None:
            point = self.group.points.newest
            assert point is not None
            self._found(point)

    def after_mishap(self) -> None:
        """A call failed, and the process lives: what was not durable is asked for again."""
        self.has_exact_holes = False
        self.group.apply_next()  # whatever was left in doubt is settled with the next step
        points = [point.sequence for point in self.group.points.all]
        for sequence in [each for each in self.announced if each not in points]:
            assert sequence in self.may_be_gone, f"point #{sequence} is lost"
            self.forget(sequence)
        self.may_be_gone.clear()
        for point in self.group.points.all:
            if point.sequence not in self.announced:
                self._found(point)
        self._finish_rollback()
        self.finish_rollback()

    # -- rot

    def rot(self, rng: Random) -> None:
        """A byte of the replica that no batch is in the middle of changing."""
        self.apply_all()
        self.has_rotted = True
        name, size = self.disks[rng.randrange(len(self.disks))]
        block = rng.randrange(size // 4096)
        disk = self.group.applier.applied.disk_called(name)
        name = name if disk is None else disk.name
        path = GROUP_DIRECTORY / "disks" / f"{name}.raw"
        if self.storage.exists(path) and disk is not None and block < disk.size_bytes // 4096:
            self.storage.flip(path, block * 4096 + rng.randrange(4096), 1 + rng.randrange(255))
            self.rotten[name, block] = self.raw(name)[block * 4096 : (block + 1) * 4096]

    def _without_rot(self, name: str, content: bytes) -> bytes:
        """With zeroes for what has rotted, and is known to nobody."""
        left = bytearray(content)
        for rotten, block in self.rotten:
            if rotten == name:
                left[block * 4096 : (block + 1) * 4096] = bytes(4096)
        return bytes(left)

    # -- what must be true

    def check(self) -> None:
        """Every point that is applied, byte for byte; numbers, times, labels; the raw replica."""
        self.rotten = {
            (name, block): content
            for (name, block), content in self.rotten.items()
            if self.raw(name)[block * 4096 : (block + 1) * 4096] == content
        }
        points = self.group.points.all
        assert [point.sequence for point in points] == sorted(self.announced)
        times = [point.time_ns for point in points]
        assert times == sorted(times)
        labels = [point.label for point in points if point.label is not None]
        assert len(labels) == len(set(labels))
        for point in points:
            known = self.announced[point.sequence]
            assert (point.time_ns, point.kind, point.label, point.lsn) == (
                known.time_ns,
                known.kind,
                known.label,
                known.lsn,
            )
            if self.group.applier.is_point_applied(point.sequence):
                assert point.received_ns > 0
                self.check_age(point)
                self.check_point(point)
        for sequence, view, contents in self.views:
            self.check_view(sequence, view, contents)
        if not self.has_rotted:
            self.check_state_file()
            assert not [event for event in self.events if event.name in FINDINGS], "nothing rotted"
            self.check_sums()
        self.check_closed()

    def check_age(self, point: Point) -> None:
        """By the clock that deletion goes by no point is older than it is."""
        ages = self.counted.ages()
        counted_ns = ages.now_ns - moved_ns(point.received_ns, self.group.keeping._new_lags(ages))
        assert counted_ns <= self._true_age_ns(point), point

    def check_sums(self) -> None:
        """Of every block of the replica; one that no batch changed is zero."""
        if self.group.history.batch_list.unapplied is not None:
            return
        for disk in self.group.applier.applied.disks.values():
            content = self.raw(disk.name)
            blocks = [content[at : at + 4096] for at in range(0, len(content), 4096)]
            first = block_key(disk.slot, 0)
            window = self.group._parts.sums.window(first, first + len(blocks))
            self.check_found(first, window)
            assert window.is_whole or any(event.name == "sums.given_up" for event in self.events)
            for block, at in zip(blocks, range(len(blocks)), strict=True):
                if window.changed[at]:
                    assert int(window.sums[at]) == xxh3_64_intdigest(block), (disk.name, at)
                elif window.is_whole:
                    assert not any(block), (disk.name, at)

    def check_found(self, first: int, window: SumWindow) -> None:
        """A batch that looks up the sum of what it overwrites is told the same."""
        while self.group._parts.sums.gather():
            pass
        found = self.group._parts.sums.find(np.arange(first, window.end, dtype=np.uint64))
        assert found.is_changed.tolist() == window.changed.tolist()
        assert found.sums.tolist() == window.sums.tolist()

    def check_closed(self) -> None:
        """A stream that a rollback closed is neither offered nor taken up again."""
        for source in self.sources:
            if source.ordinal > self.closed_ordinal:
                continue
            assert self.group.known.welcome().stream != source.stream
            with pytest.raises((FencedError, OwnedError)):
                self.group.intake.open_stream(
                    source.stream,
                    source.ordinal,
                    source.end_lsn,
                    source.chain_at(source.end_lsn),
                )

    def check_point(self, point: Point) -> None:
        try:
            view = self.group.showing.view(point.sequence)
        except DamageError:
            if self.has_rotted and point.sequence in self.group.known.damaged_points():
                return
            raise
        try:
            assert {name for name, _ in view.disks} <= set(self.expected[point.sequence])
            self.check_view(point.sequence, view, self.expected[point.sequence])
        finally:
            view.close()

    def check_views_of_points(self) -> None:
        """What is applied can be looked at, whatever else is the matter."""
        for point in self.group.points.all:
            if point.sequence in self.expected and self.group.applier.is_point_applied(
                point.sequence
            ):
                self.check_point(point)

    def check_view(self, sequence: int, view: PointView, contents: Contents) -> None:
        for name, size in view.disks:
            read, expected = view.read(name, 0, size), contents[name]
            if self.rotten:
                read, expected = self._without_rot(name, read), self._without_rot(name, expected)
            assert read == expected, (sequence, name)
            if not self.has_rotted:
                check_extents(partial(view.extents, name), expected, is_exact=self.has_exact_holes)

    def check_state_file(self) -> None:
        path = GROUP_DIRECTORY / "disks" / "state.json"
        if not self.storage.exists(path):
            return
        state = json.loads(self._read(path))
        if not state["consistent"]:
            return
        expected = self.expected.get(state["point"]["sequence"])
        if expected is None:
            return  # given up meanwhile
        for name in state["disks"]:
            image = state["images"][name].removesuffix(".raw")
            assert self.raw(image) == expected[name], f"{name} is not at {state['point']}"

    def raw(self, name: str) -> bytes:
        return self._read(GROUP_DIRECTORY / "disks" / f"{name}.raw")

    def _read(self, path: Path) -> bytes:
        file = self.storage.open(path)
        try:
            return file.pread(file.size(), 0)
        finally:
            file.close()
