# SPDX-License-Identifier: Apache-2.0
"""The counted clock as a receiver has it: what it keeps, when, and what a restart makes of it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from receiver.counted.ages import Ages
from receiver.counted.keeper import SAVE_NS, CountedClock
from receiver.counted.machine import SystemMachine, boot_identity, runtime_dir_of
from receiver.counted.witness import ClockWitness
from replicator.base.clock import NS_PER_S
from replicator.wire.protocol import PeerClocks
from tests.receiver.machine import FakeMachine
from tests.world.faults import Failure
from tests.world.storage import SimStorage

S = NS_PER_S
HOUR, DAY, WEEK = 3600 * S, 86_400 * S, 7 * 86_400 * S
PATH = Path("/data/clock.json")


class Site:
    """A disk, a machine, and the clock of the receiver that runs there now."""

    def __init__(self) -> None:
        self.storage = SimStorage()
        self.storage.make_directory(PATH.parent)
        self.machine = FakeMachine()
        self.clock = CountedClock(self.storage, PATH, self.machine)
        self.clock.begin(lambda _: None)

    def restart(self) -> None:
        self.clock = CountedClock(self.storage, PATH, self.machine)

    def tend(self, *, agents: int = 0) -> None:
        self.clock.tend([self.witness() for _ in range(agents)], self.monotonic_ns, count_none)

    @property
    def monotonic_ns(self) -> int:
        return self.machine.monotonic_ns()

    def witness(self) -> ClockWitness:
        """An agent whose clock is right, and that is connected for ten minutes."""
        witness = ClockWitness("kvm1")
        for ago_ns in (600 * S, 300 * S, 0):
            told_ns = self.monotonic_ns - ago_ns
            witness.hear(PeerClocks(self.machine.true_ns - ago_ns, told_ns, told_ns))
        return witness

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.machine.pass_by(S)
            self.tend()

    @property
    def kept(self) -> dict[str, object]:
        file = self.storage.open(PATH)
        content: dict[str, object] = json.loads(file.pread(1 << 16, 0))
        file.close()
        return content

    @property
    def off_ns(self) -> int:
        return self.clock.ages().counted_ns - self.machine.true_ns


def count_none(_before: Ages, _after: Ages) -> int:
    return 0


# -- what is kept, and when


def test_what_is_kept() -> None:
    site = Site()
    site.machine.pause(DAY)
    site.run(3)
    site.tend(agents=1)
    kept = site.kept
    assert kept["version"] == 1
    assert kept["boot"] == "boot 1"
    assert kept["counted_ns"] == site.machine.wall_ns
    assert len(kept["jumps"]) == len(kept["lags"]) == 1  # type: ignore[arg-type]


def test_it_is_kept_a_minute_after_something_was_stamped_and_never_when_nothing_is() -> None:
    site = Site()
    began = site.kept
    site.run(300)
    assert site.kept == began
    site.clock.stamp_ns()
    site.tend()
    first = site.kept
    assert first != began, "the last time is long ago"
    site.clock.stamp_ns()
    site.run(59)
    assert site.kept == first
    site.run(1)
    assert site.kept != first
    second = site.kept
    site.run(300)
    assert site.kept == second


def test_before_anything_is_stamped_slow_it_is_kept_that_it_is() -> None:
    """Else a crash in that minute would count the whole of what passed."""
    site = Site()
    site.machine.step_ns = -HOUR
    site.run(10)
    stamp = site.clock.stamp_ns()
    assert site.kept["slow"] is True
    site.machine.pass_by(20 * S)
    site.restart()
    assert site.clock.stamp_ns() == stamp + 18 * S


@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("behind_s", [9, 3600])
def test_no_restart_makes_a_stamp_older_than_it_is(behind_s: int, is_kept: bool) -> None:
    """The clock was drawn back since it was kept, or runs slow and cannot be kept."""
    site = Site()
    site.run(1)
    site.machine.step_ns = -behind_s * S
    site.run(300)
    if not is_kept:
        site.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.EIO, True, PATH.parent))
    stamps = [site.clock.stamp_ns()]
    site.run(20)
    stamps.append(site.clock.stamp_ns())
    site.storage.heal()
    if is_kept:
        site.clock.save()
        stamps.append(site.clock.stamp_ns())
    assert stamps == sorted(stamps)
    site.restart()
    assert site.clock.ages().counted_ns - stamps[0] <= 20 * S
    assert site.clock.ages().counted_ns <= stamps[1]


@pytest.mark.parametrize("step_ns", [0, WEEK, -WEEK])
def test_a_restart_in_the_same_boot_goes_on_in_each_state(step_ns: int) -> None:
    site = Site()
    site.machine.step_ns = step_ns
    site.run(20)
    before = site.clock.facts()
    site.clock.save()
    site.restart()
    after = site.clock.facts()
    assert (after.state, after.counted_ns) == (before.state, before.counted_ns)
    assert after.state == ("good" if not step_ns else "stepped")


def test_a_boot_in_each_state_is_confirmed_by_agents() -> None:
    for step_ns in (0, WEEK, -WEEK):
        site = Site()
        site.machine.step_ns = step_ns
        site.run(20)
        site.clock.save()
        site.machine.step_ns = 0
        site.machine.reboot(HOUR)
        site.restart()
        assert site.clock.facts().state == "unconfirmed"
        site.tend()
        assert site.off_ns < -HOUR / 2
        site.tend(agents=2)
        assert site.clock.facts().state == "good"
        assert site.off_ns == 0


def test_a_boot_with_a_wrong_clock_is_confirmed_by_nobody() -> None:
    site = Site()
    site.machine.reboot(HOUR)
    site.machine.step_ns = WEEK
    site.restart()
    site.tend(agents=3)
    assert site.clock.facts().state == "unconfirmed"
    assert site.off_ns == -HOUR


def test_without_a_kept_clock_it_begins_at_the_newest_stamp_below_the_wall_clock() -> None:
    site = Site()
    site.storage.unlink(PATH)
    site.restart()
    stamps = [
        site.machine.wall_ns - HOUR,
        site.machine.wall_ns - 2 * HOUR,
        site.machine.wall_ns + S,
    ]
    site.clock.begin(lambda below: max(each for each in stamps if each <= below))
    assert site.off_ns == -HOUR
    assert site.clock.facts().state == "unconfirmed"
    assert site.kept["counted_ns"] == stamps[0]


def test_a_start_that_fails_before_the_points_were_looked_at_keeps_no_clock() -> None:
    """It would be the wall clock, believed by the next start."""
    site = Site()
    site.storage.unlink(PATH)
    site.machine.step_ns = WEEK
    site.restart()
    site.clock.stamp_ns()
    site.clock.save()
    assert not site.storage.exists(PATH)


def test_the_clocks_of_this_machine_run() -> None:
    machine = SystemMachine("this boot")
    first, second = machine.read(), machine.read()
    assert first.boot == second.boot == "this boot"
    assert 0 <= second.boottime_ns - first.boottime_ns < 60 * S


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"version": 2}', b'{"version": 1, "boot": 7}', b"[]"]
)
def test_a_file_that_cannot_be_read_is_as_good_as_none_and_said(content: bytes) -> None:
    site = Site()
    site.storage.unlink(PATH)
    file = site.storage.create(PATH)
    file.pwritev([content], 0)
    file.close()
    with capture_logs() as logs:
        site.restart()
    assert [line["event"] for line in logs] == ["clock.unreadable"]
    site.clock.begin(lambda _: None)
    assert site.kept["version"] == 1


def test_a_disk_that_takes_no_clock_is_told_of_once() -> None:
    site = Site()
    site.storage.plan(Failure(frozenset(["create"]), 1, errno.ENOSPC, forever=True))
    with capture_logs() as logs:
        for _ in range(3):
            site.clock.stamp_ns()
            site.run(SAVE_NS // S)
    assert [line["event"] for line in logs] == ["clock.not_kept"]
    site.storage.heal()
    site.run(SAVE_NS // S)
    assert site.kept["counted_ns"] == site.clock.ages().counted_ns


# -- what is said


def test_a_step_is_said_when_it_comes_and_when_it_is_over() -> None:
    site = Site()
    with capture_logs() as logs:
        site.machine.step_ns = WEEK
        site.run(12)
        facts = site.clock.facts()
        site.machine.step_ns = 0
        site.run(12)
    assert [line["event"] for line in logs] == ["clock.stepped", "clock.good"]
    assert (facts.state, facts.behind_ns) == ("stepped", WEEK)
    assert "7 d" in facts.why
    assert "replicator clock accept" in facts.why
    assert site.clock.facts().why == ""
    assert site.off_ns == 0


def test_what_agents_accept_is_said_with_the_points_that_it_costs() -> None:
    site = Site()
    site.machine.pause(DAY)
    site.run(1)
    told: list[tuple[int, int]] = []

    def ageing_out(before: Ages, after: Ages) -> int:
        told.append((before.now_ns, after.now_ns))
        return 31

    with capture_logs() as logs:
        site.clock.tend([site.witness()], site.monotonic_ns, ageing_out)
    assert [(line["event"], line["points"], line["by_agents"]) for line in logs] == [
        ("clock.accepted", 31, "kvm1")
    ]
    ((before, after),) = told
    assert after - before == DAY
    assert "locks do not go by" in site.clock.facts().why


def test_what_a_person_accepts_is_shown_first_and_moves_the_lock_as_well() -> None:
    site = Site()
    site.machine.pause(DAY)
    site.run(1)
    site.tend(agents=1)
    site.machine.pause(HOUR)
    site.run(1)
    plan = site.clock.accept(dry_run=True)
    assert (plan.by_ns, plan.lock_by_ns) == (HOUR, DAY + HOUR)
    assert site.off_ns == -HOUR
    done = site.clock.accept(dry_run=False)
    assert (done.by_ns, done.lock_by_ns) == (HOUR, DAY + HOUR)
    assert site.clock.ages().jumps == ()
    again = site.clock.accept(dry_run=False)
    assert (again.by_ns, again.lock_by_ns) == (0, 0)
    site.restart()
    assert site.off_ns == 0


# -- which boot it is


def test_the_kernel_says_which_boot_it_is(tmp_path: Path) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("a2e4bd6e-19a4-4b1c-8bb7-4f5a08f3a4e9\n")
    assert boot_identity(tmp_path, boot_id) == "a2e4bd6e-19a4-4b1c-8bb7-4f5a08f3a4e9"
    assert not (tmp_path / "boot").exists()


def test_where_the_unit_hides_that_a_marker_does(tmp_path: Path) -> None:
    hidden = tmp_path / "not there"
    first = boot_identity(tmp_path, hidden)
    assert boot_identity(tmp_path, hidden) == first
    (tmp_path / "boot").unlink()
    assert boot_identity(tmp_path, hidden) != first, "a boot empties the RuntimeDirectory"


def test_a_torn_marker_is_made_anew_and_none_at_all_is_another_boot(tmp_path: Path) -> None:
    (tmp_path / "boot").write_text("a2e4")
    hidden = tmp_path / "not there"
    first = boot_identity(tmp_path, hidden)
    assert boot_identity(tmp_path, hidden) == first
    nowhere = tmp_path / "no such folder"
    assert boot_identity(nowhere, hidden) != boot_identity(nowhere, hidden)


def test_the_marker_lies_in_the_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    assert runtime_dir_of(Path("/run/replicator/receiver.sock")) == Path("/run/replicator")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/dr:/run/other")
    assert runtime_dir_of(Path("/elsewhere/receiver.sock")) == Path("/run/dr")
