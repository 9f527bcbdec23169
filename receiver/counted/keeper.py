# SPDX-License-Identifier: Apache-2.0
"""The counted clock of a receiver, and `DATA_DIR/clock.json`, in which it is kept.

    {"version": 1, "boot": …, "boottime_ns": B, "counted_ns": C, "gap_ns": …, "since_ns": …,
     "slow": false, "jumps": [[at_ns, by_ns, ripe_ns], …], "lags": [[since_ns, by_ns, at_ns], …]}

It is written with other durable news: within SAVE_NS of something that was stamped, before anything
is stamped slow, when a jump was accepted, and when the receiver ends; never while nothing happens.
So after a power cut C goes on from a moment before its last stamps, which receiver.retention.stamps
mends, and after a boot in a long quiet time from long ago: then points live longer. A file that
cannot be read is as good as none, and said.

Where there is no file the groups' points must be read first: until `begin` the clock shows W,
and nothing that is given up goes by that.

Failures. A disk that takes no clock.json is said once, and tried again: what is lost by it is the
time since the last one, if the machine boots before it goes well again.

Concurrency: any thread; what is kept is written by one at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from receiver.counted import rules
from receiver.counted.ages import Ages, Jump, Lag
from receiver.counted.machine import Machine
from receiver.counted.rules import ClockState, Counted, Reading
from receiver.counted.witness import ClockWitness, vouch_for
from replicator.base.clock import NS_PER_S, rfc3339
from replicator.base.mishaps import reason
from replicator.base.storage import Storage, read_whole, write_durably
from replicator.base.units import format_duration

SAVE_NS = 60 * NS_PER_S
FILE_BYTES_MAX = 64 << 10

_log = structlog.get_logger(__name__)


class _ClockFile(msgspec.Struct, frozen=True):
    version: Literal[1]
    boot: str
    boottime_ns: int
    counted_ns: int
    gap_ns: int = 0
    since_ns: int = 0
    slow: bool = False
    jumps: list[tuple[int, int, int]] = []
    lags: list[tuple[int, int, int]] = []


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """The clock as it is now. `behind_ns` is W − C, negative where W is behind. `why` is empty
    while it is good and the lock goes by it as well."""

    state: ClockState
    wall_ns: int
    counted_ns: int
    behind_ns: int
    why: str


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a person's accepting does or did: C set forward by `by_ns`, the lock's clock by
    `lock_by_ns`."""

    before: Ages
    after: Ages

    @property
    def by_ns(self) -> int:
        return self.after.counted_ns - self.before.counted_ns

    @property
    def lock_by_ns(self) -> int:
        return self.by_ns + self.before.lock_behind_ns


class CountedClock:
    """See the head of this file, and receiver.counted.rules. `begin` once, before anything is given
    up."""

    def __init__(self, storage: Storage, path: Path, machine: Machine) -> None:
        self._storage = storage
        self._path = path
        self._machine = machine
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._has_news = False
        self._cannot_save = ""
        kept = _read(storage, path)
        self._kept = kept
        self._stamped_ns = 0
        reading = machine.read()
        self._is_begun = kept is not None
        self._counted = rules.begun(reading, None) if kept is None else rules.resumed(kept, reading)
        self._saved_ns = self._counted.boottime_ns
        if kept is not None:
            _tell(self._counted, reading.wall_ns, "good")

    def begin(self, newest_stamp_ns: Callable[[int], int | None]) -> None:
        """Where no clock was kept: from the newest of all points' stamps that is not above the
        given one."""
        if self._is_begun:
            return
        with self._lock:
            reading = self._machine.read()
            self._counted = rules.begun(reading, newest_stamp_ns(reading.wall_ns))
            self._is_begun = True
        _tell(self._counted, reading.wall_ns, "good")
        self.save()

    # -- what the groups ask

    def stamp_ns(self) -> int:
        with self._lock:
            self._run()
            self._has_news = True
            is_unsaid = self._counted.is_slow and not self._is_kept_slow
        if is_unsaid:  # else the next life would count more than this one
            self.save()
        with self._lock:
            now, kept = self._counted, self._kept
            next_ns = 0 if kept is None else rules.resumed_ns(kept, now.boot, now.boottime_ns)
            self._stamped_ns = max(self._stamped_ns, now.counted_ns, next_ns)
            return self._stamped_ns

    @property
    def _is_kept_slow(self) -> bool:
        return self._kept is not None and self._kept.is_slow

    def ages(self) -> Ages:
        with self._lock:
            reading = self._run()
            return self._counted.ages(reading.wall_ns)

    def facts(self) -> ClockFacts:
        with self._lock:
            reading = self._run()
            counted = self._counted
        return ClockFacts(
            counted.state,
            reading.wall_ns,
            counted.counted_ns,
            reading.wall_ns - counted.counted_ns,
            _why(counted, reading.wall_ns),
        )

    def _run(self) -> Reading:
        """Under the lock."""
        reading = self._machine.read()
        before = self._counted.state
        self._counted = rules.run(self._counted, reading)
        if self._counted.state != before:
            _tell(self._counted, reading.wall_ns, before)
        return reading

    # -- what goes on by itself

    def tend(
        self,
        witnesses: Iterable[ClockWitness],
        monotonic_ns: int,
        ageing_out: Callable[[Ages, Ages], int],
    ) -> None:
        """To be called every few seconds. `ageing_out` counts the points that the rules keep at the
        first of two times and not at the second."""
        with self._lock:
            reading = self._run()
            before = self._counted
            agents: Sequence[str] = []
            if rules.ahead_ns(before, reading.wall_ns):
                agents = vouch_for(witnesses, reading.wall_ns, monotonic_ns)
            if agents:
                self._counted = rules.accepted_by_agents(before, reading.wall_ns)
            after = self._counted
        if agents:
            _log.warning(
                "clock.accepted",
                by_agents=", ".join(agents),
                forward=format_duration(after.counted_ns - before.counted_ns),
                points=ageing_out(before.ages(reading.wall_ns), _ripe(after)),
                effect="points that are too old by it go in 10 min; the lock does not go by it"
                " until `replicator clock accept`",
            )
        if agents or self._is_save_due(after):
            self.save()

    def accept(self, *, dry_run: bool) -> Acceptance:
        """By a person's order, which is audited."""
        with self._lock:
            reading = self._run()
            before = self._counted
            after = rules.accepted_by_order(before, reading.wall_ns)
            if not dry_run:
                self._counted = after
        if not dry_run:
            _log.warning(
                "clock.accepted",
                forward=format_duration(after.counted_ns - before.counted_ns),
                lock_forward=format_duration(_lock_moved_ns(before, after)),
            )
            self.save()
        return Acceptance(before.ages(reading.wall_ns), after.ages(reading.wall_ns))

    # -- keeping it

    def _is_save_due(self, counted: Counted) -> bool:
        return self._has_news and counted.boottime_ns - self._saved_ns >= SAVE_NS

    def save(self) -> None:
        """Now. A disk that does not take it is told of, once. What has not begun is not kept: it
        shows W, and nobody has looked at the points yet."""
        if not self._is_begun:
            return
        with self._saving:
            with self._lock:
                self._run()
                counted, self._has_news = self._counted, False
                self._saved_ns = counted.boottime_ns
            try:
                write_durably(self._storage, self._path, _packed(counted))
            except OSError as error:
                self._has_news = True
                if not self._cannot_save:
                    _log.error("clock.not_kept", file=str(self._path), error=reason(error))
                self._cannot_save = reason(error)
            else:
                self._cannot_save, self._kept = "", counted


def _lock_moved_ns(before: Counted, after: Counted) -> int:
    return after.counted_ns - before.counted_ns + sum(each.by_ns for each in before.jumps)


def _ripe(counted: Counted) -> Ages:
    """As deletion will have it."""
    jumps = tuple(replace(each, ripe_ns=0) for each in counted.jumps)
    return Ages(counted.counted_ns, jumps, counted.lags)


def _packed(counted: Counted) -> bytes:
    jumps = [(each.at_ns, each.by_ns, each.ripe_ns) for each in counted.jumps]
    lags = [(each.since_ns, each.by_ns, each.at_ns) for each in counted.lags]
    file = _ClockFile(
        1,
        counted.boot,
        counted.boottime_ns,
        counted.counted_ns,
        counted.gap_ns,
        counted.since_ns,
        counted.is_slow,
        jumps,
        lags,
    )
    return msgspec.json.encode(file) + b"\n"


def _read(storage: Storage, path: Path) -> Counted | None:
    if not storage.exists(path):
        return None
    try:
        file = msgspec.json.decode(read_whole(storage, path, FILE_BYTES_MAX), type=_ClockFile)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        _log.error("clock.unreadable", file=str(path), error=str(error), effect="begun anew")
        return None
    return Counted(
        file.boot,
        file.boottime_ns,
        file.counted_ns,
        file.gap_ns,
        file.since_ns,
        tuple(Jump(*each) for each in file.jumps),
        tuple(Lag(*each) for each in file.lags),
        file.slow,
    )


def _tell(counted: Counted, wall_ns: int, before: ClockState) -> None:
    if counted.state != before or counted.state != "good":
        _log.warning(
            f"clock.{counted.state}",
            wall=rfc3339(wall_ns),
            counted=rfc3339(counted.counted_ns),
            why=_why(counted, wall_ns),
        )


def _why(counted: Counted, wall_ns: int) -> str:
    """In words, with the remedy."""
    off_ns = wall_ns - counted.counted_ns
    if counted.state == "unconfirmed":
        return (
            f"only the machine's own clock says how long it was off ({format_duration(off_ns)}):"
            " agents that are connected for 10 min confirm it by theirs, or `replicator clock"
            " accept`"
        )
    if counted.state == "stepped" and off_ns > 0:
        return (
            f"the machine's clock is {format_duration(off_ns)} ahead of what has passed: points age"
            " by what passes, until agents that are connected for 10 min confirm it by theirs, or"
            " `replicator clock accept`"
        )
    if counted.state == "stepped":
        return (
            f"the machine's clock is {format_duration(-off_ns)} behind: points age at nine tenths"
            " until it is there; set it right if it is wrong"
        )
    lock_ns = sum(each.by_ns for each in counted.jumps)
    if lock_ns:
        return (
            f"locks do not go by {format_duration(lock_ns)} that agents' clocks alone confirm:"
            " `replicator clock accept --reason TEXT`, if that is right"
        )
    return ""
