# SPDX-License-Identifier: Apache-2.0
"""Machines whose clocks are in a test's hand: the seam below the counted clock is (boot, B, W)."""

from __future__ import annotations

from pathlib import Path

from receiver.counted.keeper import CountedClock
from receiver.counted.rules import Reading
from replicator.base.clock import Clock, SystemClock
from replicator.base.storage import SystemStorage
from tests.receiver.source import START_NS


class FakeMachine:
    """`true_ns` is the time that nobody sees. `step_ns` is what the wall clock is wrong by."""

    def __init__(self) -> None:
        self.true_ns = START_NS
        self.step_ns = 0
        self._boots = 1
        self._boottime_ns = 7_000_000_000

    def pass_by(self, by_ns: int) -> None:
        self.true_ns += by_ns
        self._boottime_ns += by_ns

    def pause(self, by_ns: int) -> None:
        """A virtual machine that stands still: its boottime does, too."""
        self.true_ns += by_ns

    def reboot(self, off_ns: int = 0) -> None:
        self.true_ns += off_ns
        self._boottime_ns = 0
        self._boots += 1

    @property
    def wall_ns(self) -> int:
        return self.true_ns + self.step_ns

    def read(self) -> Reading:
        return Reading(f"boot {self._boots}", self._boottime_ns, self.wall_ns)

    # As a Clock.

    def utc_ns(self) -> int:
        return self.wall_ns

    def monotonic_ns(self) -> int:
        return self._boottime_ns


class MachineOf:
    """A machine that never boots, on a test's own clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def read(self) -> Reading:
        return Reading("the only boot", self._clock.monotonic_ns(), self._clock.utc_ns())


def real_clock(folder: Path) -> CountedClock:
    """By the clocks of this machine."""
    return CountedClock(SystemStorage(), folder / "clock.json", MachineOf(SystemClock()))
