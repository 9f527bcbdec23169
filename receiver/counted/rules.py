# SPDX-License-Identifier: Apache-2.0
"""The counted clock: how it runs, starts, and when it believes that it is wrong. No I/O.

    B   CLOCK_BOOTTIME: counts what passes, also while the machine sleeps; from 0 with each boot
    W   the wall clock: may be anything, and steps
    C   the counted clock: what points are stamped with, and age by. It never goes back
    gap what W was ahead of C at a start on another boot, and nobody has vouched for

Deletion goes by C, so it need not be paused while W is wrong: a jump of W does not move it.

Running     C += dB. While W is within TOLERANCE of C + gap, C is also drawn to W − gap, by at most
            a thousandth of what passed.
W behind C  further than that: C runs *slow*, at nine tenths, until W is there. Nothing stops.
W ahead     further than that: *stepped*. C goes on by B alone. Back within TOLERANCE: good again.
Same boot   at a start: C += B − what B was when C was kept (nine tenths of it where it was kept as
            running slow). W is not asked. That may be more than this life counted, whose C was
            drawn back since, or ran slow and could not be kept: so nothing is stamped lower than
            what a start would count now (`resumed_ns`). A B that is lower than that (a machine that
            was put back to an earlier state) counts as another boot.
Other boot  at a start: how long the machine was off, nobody knows who has only W to ask. C stands
            where it was kept, gap = W − C; above TOLERANCE: *unconfirmed*.
No clock kept  C = the newest stamp of a point that is not ahead of W, else W; gap as above. With
            nothing there at all: C = W.

With W ahead, time is accepted when the agents' clocks agree with it (receiver.counted.witness), or
when a person orders it. Then C := W. What the agents accept is kept as a jump
(receiver.counted.ages): deletion believes it ten minutes of a good clock later, the lock never.
What a person accepts is believed at once by both, and clears all jumps.

The price: without an agent, points live longer by the time that the machine was off. A source whose
clock lies does nothing while W is right, and nothing to the lock in any case.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from receiver.counted.ages import RIPENING_NS, Ages, Jump, Lag
from replicator.base.clock import NS_PER_S

TOLERANCE_NS = 10 * NS_PER_S
SLEW = 1000
JUMPS_MAX = 32
"""Jumps, and lags. Of more the oldest are put together, by which points count as younger."""

ClockState = Literal["good", "stepped", "unconfirmed"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the machine says at one moment. `boot` is the same for all of one boot."""

    boot: str
    boottime_ns: int
    wall_ns: int


@dataclass(frozen=True, slots=True)
class Counted:
    """C, and what has to be known to go on from it. `since_ns`: since when it is not good, by C; 0
    while it is. What is stamped from then on is moved if a jump is accepted."""

    boot: str
    boottime_ns: int
    counted_ns: int
    gap_ns: int = 0
    since_ns: int = 0
    jumps: tuple[Jump, ...] = ()
    lags: tuple[Lag, ...] = ()
    is_slow: bool = False
    state: ClockState = "good"

    def ages(self, wall_ns: int) -> Ages:
        return Ages(self.counted_ns, self.jumps, self.lags, ahead_ns(self, wall_ns))


def ahead_ns(counted: Counted, wall_ns: int) -> int:
    """How far W is ahead of C, where that is more than what is slewed away; else 0."""
    ahead = wall_ns - counted.counted_ns
    return ahead if ahead > TOLERANCE_NS else 0


# -- starting


def begun(reading: Reading, newest_stamp_ns: int | None) -> Counted:
    """No clock was kept. `newest_stamp_ns` is that of the newest point not ahead of W."""
    if newest_stamp_ns is None:
        return Counted(reading.boot, reading.boottime_ns, reading.wall_ns)
    return _on_another_boot(Counted(reading.boot, reading.boottime_ns, newest_stamp_ns), reading)


def resumed(kept: Counted, reading: Reading) -> Counted:
    """From what was kept, at a start."""
    if not _is_same_boot(kept, reading.boot, reading.boottime_ns):
        return _on_another_boot(kept, reading)
    now_ns = resumed_ns(kept, reading.boot, reading.boottime_ns)
    moved = replace(kept, boottime_ns=reading.boottime_ns, counted_ns=now_ns)
    return _judged(moved, reading.wall_ns)


def resumed_ns(kept: Counted, boot: str, boottime_ns: int) -> int:
    """C of a life that begins at that moment, from what was kept."""
    if not _is_same_boot(kept, boot, boottime_ns):
        return kept.counted_ns
    passed_ns = boottime_ns - kept.boottime_ns
    return kept.counted_ns + (_slow(passed_ns) if kept.is_slow else passed_ns)


def _is_same_boot(kept: Counted, boot: str, boottime_ns: int) -> bool:
    return kept.boot == boot and boottime_ns >= kept.boottime_ns


def _slow(passed_ns: int) -> int:
    return passed_ns * 9 // 10


def _on_another_boot(kept: Counted, reading: Reading) -> Counted:
    gap_ns = max(reading.wall_ns - kept.counted_ns, 0)
    return _judged(
        replace(
            kept,
            boot=reading.boot,
            boottime_ns=reading.boottime_ns,
            gap_ns=gap_ns if gap_ns > TOLERANCE_NS else 0,
        ),
        reading.wall_ns,
    )


# -- running


def run(counted: Counted, reading: Reading) -> Counted:
    """What has passed since it was asked last."""
    passed_ns = max(reading.boottime_ns - counted.boottime_ns, 0)
    straight_ns = counted.counted_ns + passed_ns
    is_slow = reading.wall_ns - straight_ns < -TOLERANCE_NS
    if is_slow:
        slow_ns = counted.counted_ns + _slow(passed_ns)
        now_ns = max(slow_ns, min(reading.wall_ns, straight_ns))
    else:
        off_ns = reading.wall_ns - straight_ns - counted.gap_ns
        most_ns = passed_ns // SLEW if abs(off_ns) <= TOLERANCE_NS else 0
        now_ns = straight_ns + max(-most_ns, min(off_ns, most_ns))
    moved_ns = now_ns - counted.counted_ns
    moved = replace(counted, boottime_ns=reading.boottime_ns, counted_ns=now_ns, is_slow=is_slow)
    judged = _judged(moved, reading.wall_ns)
    return judged if judged.state == "good" else _ripening_later(judged, moved_ns)


def _judged(counted: Counted, wall_ns: int) -> Counted:
    """With its state, as W has it."""
    if abs(wall_ns - counted.counted_ns) <= TOLERANCE_NS:
        return replace(counted, gap_ns=0, since_ns=0, state="good")
    off_ns = wall_ns - counted.counted_ns - counted.gap_ns
    state: ClockState = "stepped" if abs(off_ns) > TOLERANCE_NS else "unconfirmed"
    since_ns = counted.since_ns or counted.counted_ns
    return replace(counted, since_ns=since_ns, state=state)


def _ripening_later(counted: Counted, by_ns: int) -> Counted:
    """A jump becomes ripe in the time of a good clock alone: one that turns out wrong stays what it
    is, and nothing is given up for it."""
    before_ns = counted.counted_ns - by_ns
    jumps = tuple(
        replace(each, ripe_ns=each.ripe_ns + by_ns) if each.ripe_ns > before_ns else each
        for each in counted.jumps
    )
    return replace(counted, jumps=jumps)


# -- accepting


def accepted_by_agents(counted: Counted, wall_ns: int) -> Counted:
    """C := W. W is ahead."""
    by_ns = ahead_ns(counted, wall_ns)
    assert by_ns, "nothing to accept"
    jump = Jump(_since_ns(counted) + by_ns, by_ns, wall_ns + RIPENING_NS)
    return _set_forward(counted, by_ns, _fewer_jumps((*counted.jumps, jump)))


def accepted_by_order(counted: Counted, wall_ns: int) -> Counted:
    """C := W where that is ahead; and the lock believes every jump there was."""
    by_ns = ahead_ns(counted, wall_ns)
    if not by_ns:
        return replace(counted, jumps=())
    return _set_forward(counted, by_ns, ())


def _since_ns(counted: Counted) -> int:
    return counted.since_ns or counted.counted_ns


def _set_forward(counted: Counted, by_ns: int, jumps: tuple[Jump, ...]) -> Counted:
    now_ns = counted.counted_ns + by_ns
    lag = Lag(_since_ns(counted), by_ns, now_ns)
    lags = _fewer_lags((*counted.lags, lag))
    return replace(
        counted, counted_ns=now_ns, gap_ns=0, since_ns=0, jumps=jumps, lags=lags, state="good"
    )


def _fewer_jumps(jumps: tuple[Jump, ...]) -> tuple[Jump, ...]:
    """The two oldest as one, at the later place: what was stamped between them counts as
    younger."""
    if len(jumps) <= JUMPS_MAX:
        return jumps
    first, second, *rest = jumps
    both = Jump(second.at_ns, first.by_ns + second.by_ns, max(first.ripe_ns, second.ripe_ns))
    return (both, *rest)


def _fewer_lags(lags: tuple[Lag, ...]) -> tuple[Lag, ...]:
    """As jumps: of what was stamped in both, and between them, all is moved as far."""
    if len(lags) <= JUMPS_MAX:
        return lags
    first, second, *rest = lags
    both = Lag(first.since_ns, first.by_ns + second.by_ns, second.at_ns)
    return (both, *rest)
