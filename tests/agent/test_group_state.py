# SPDX-License-Identifier: Apache-2.0
"""What is read of the splitter's status, and how a group stands by it as time goes on."""

from __future__ import annotations

import math

import msgspec
import pytest

from agent.group.rate import Rate
from agent.group.standing import Seen, Standing
from agent.group.state import capture_of, is_of_stream
from agent.shipping.progress import Progress
from replicator.control.splitter import GroupState, SplitterDiskStatus, SplitterGroupStatus
from replicator.states.source import Capture
from replicator.states.words import NO_TROUBLE, Promise, State, Verdict
from replicator.wire.messages import Ping, Point, Said
from tests.agent.source import NO_LATENCY
from tests.base.test_clock import SteppedClock

S = 1_000_000_000
WALL = 1_700_000_000 * S
DISK = SplitterDiskStatus(name="d", index=0, instance="i", size=512, connected=0, state="idle")
GROUP = SplitterGroupStatus(
    name="g",
    state="ready",
    reason="",
    stream="s",
    ordinal=1,
    first_lsn=1000,
    end_lsn=2000,
    last_cut_time_ns=0,
    held_until_ns=0,
    disks=[DISK],
    memory_bytes=0,
    disk_bytes=0,
    latency=NO_LATENCY,
    requests=0,
    bytes=0,
)


def status(state: GroupState, **changes: object) -> SplitterGroupStatus:
    return msgspec.structs.replace(GROUP, state=state, **changes)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (None, False),
        (999, False),  # of an earlier stream
        (1000, False),
        (1001, True),
        (2000, True),
        (2001, False),  # of another host
    ],
)
def test_a_point_counts_if_its_cut_is_in_the_stream(point: int | None, expected: bool) -> None:
    made = None if point is None else Point(1, 5, "crash", point)
    assert is_of_stream(made, GROUP) is expected
    assert not is_of_stream(made, None)


def test_what_the_splitter_says() -> None:
    syncing = msgspec.structs.replace(DISK, state="syncing")
    assert capture_of(None) is Capture.UNHEARD
    assert capture_of(status("closed")) is Capture.ENDED
    assert capture_of(status("closed", stream=None)) is Capture.NOTHING
    assert capture_of(status("lost")) is Capture.LOST
    assert capture_of(status("syncing")) is Capture.OPENED
    assert capture_of(status("syncing", disks=[syncing])) is Capture.SYNCING
    assert capture_of(status("ready")) is Capture.COMPLETE
    assert capture_of(status("suspended")) is Capture.SUSPENDED


class Life:
    """A standing, a clock, and what its parts say."""

    def __init__(self) -> None:
        self.clock = SteppedClock(WALL)
        self.standing = Standing(Promise(), self.clock, room_bytes=1000)
        self.progress = Progress(False, None, None, 0, None, 0, 0, None)
        self.connected = False
        self.read_back = 0.0
        self.door: Verdict | None = None

    def seconds(self, count: float) -> None:
        self.clock.run(int(count * S))

    def cut(self, *, held: bool = True) -> None:
        """The splitter cuts now; `held`: the receiver says at once that it has it."""
        stamp = self.clock.utc_ns()
        self.standing.heard_splitter(status("ready", last_cut_time_ns=stamp))
        if held:
            point = Point(1, stamp, "crash", 1500)
            self.progress = Progress(True, 1500, 1500, 1, point, stamp, 0, None)
            self.connected = True
        self.standing.note_progress(self.progress, is_connected=self.connected)

    def seen(self) -> Seen:
        return Seen(
            progress=self.progress,
            is_connected=self.connected,
            link=NO_TROUBLE,
            refused=None,
            door=self.door,
            trouble=NO_TROUBLE,
            is_down=False,
            left_out=False,
            read_back_seconds=self.read_back,
            recovery="",
        )

    def state(self) -> State:
        return self.standing.stand(self.seen()).state

    def leave(self) -> None:
        self.connected = False
        self.standing.note_progress(self.progress, is_connected=False)


def test_protection_ends_with_its_proofs() -> None:
    life = Life()
    life.cut()
    assert life.state() is State.PROTECTED
    life.seconds(9.9)
    assert life.state() is State.PROTECTED
    life.seconds(0.1)
    assert life.state() is State.BEHIND
    life.cut()
    assert life.state() is State.PROTECTED
    life.standing.heard_splitter(None)
    life.seconds(30)
    assert life.state() is State.LOST


def test_a_blip_of_the_link_turns_nothing_and_an_absence_does() -> None:
    life = Life()
    life.cut()
    life.leave()
    life.seconds(5)
    assert life.state() is State.PROTECTED
    life.cut()
    life.leave()
    life.seconds(10)
    assert life.state() is State.DISCONNECTED


def test_a_receiver_that_says_nothing_new_is_no_proof_however_much_is_cut() -> None:
    life = Life()
    life.cut()
    for _ in range(10):
        life.seconds(1)
        life.cut(held=False)
    assert life.state() is State.BEHIND


def test_what_the_receiver_says_of_itself_is_shown_while_it_is_fresh() -> None:
    life = Life()
    life.cut()
    life.standing.heard_receiver(Ping(said=Said("paused", "no room", "make some")))
    shown = life.standing.stand(life.seen())
    assert (shown.state, shown.reason, shown.remedy) == (State.PAUSED, "no room", "make some")
    assert life.standing.own(life.seen()).state is State.PROTECTED
    life.seconds(9)
    life.cut()
    assert life.state() is State.PAUSED
    life.seconds(1)
    assert life.state() is State.PROTECTED
    life.standing.heard_receiver(Ping(said=Said("from-tomorrow")))
    assert life.state() is State.PROTECTED


def test_the_age_of_what_is_held_does_not_heed_the_wall() -> None:
    life = Life()
    assert life.standing.lag_seconds(life.progress) is None
    life.cut()
    life.seconds(3)
    life.clock.step(86_400 * S)
    assert life.standing.lag_seconds(life.progress) == 3
    life.clock.step(-3 * 86_400 * S)
    life.seconds(4)
    assert life.standing.lag_seconds(life.progress) == 7


def test_an_agent_that_comes_back_tells_the_age_by_its_splitters_next_stamp() -> None:
    before, after = Life(), Life()
    before.cut()
    after.progress = before.progress
    after.seconds(100)
    after.cut(held=False)
    after.seconds(5)
    assert after.standing.lag_seconds(after.progress) == 105


def test_what_the_receiver_is_told() -> None:
    life = Life()
    life.cut()
    life.seconds(2)
    said = life.standing.said(life.seen())
    assert (said.state, said.age_ns) == ("protected", 2 * S)
    assert said.stamp_ns == life.progress.held_until_ns
    assert (said.interval_ns, said.alarm_ns) == (S, 60 * S)


def test_a_source_that_nobody_reads_back_is_not_protected_for_long() -> None:
    life = Life()
    life.read_back = math.inf
    life.cut()
    assert life.state() is State.ATTACHING
    life.seconds(10)
    life.cut()
    assert life.state() is State.BEHIND


def test_a_rate_is_of_the_last_minute_and_begins_anew_with_its_figure() -> None:
    rate = Rate()
    assert rate.per_second() is None
    for second in range(120):
        rate.note(second * 10, second * S)
    assert rate.per_second() == 10
    rate.note(5, 120 * S)
    assert rate.per_second() is None
    rate.note(7, 124 * S)
    assert rate.per_second() == 0.5


def test_after_a_refusal_nothing_that_was_confirmed_before_counts() -> None:
    life = Life()
    life.cut()
    life.leave()
    life.door = Verdict(State.DAMAGED, "a file", "mend it")
    assert life.state() is State.DAMAGED
    life.door = None  # the receiver is down by now
    life.seconds(2)
    assert life.state() is State.BEHIND
    life.seconds(8)
    assert life.state() is State.DISCONNECTED
    life.connected = True
    life.cut()
    assert life.state() is State.PROTECTED


def test_a_disk_that_has_another_size_is_said_to_be_resized_while_it_is_synced() -> None:
    life = Life()
    complete = msgspec.structs.replace(DISK, name="vda", state="complete", size=24 << 20)
    life.standing.heard_splitter(status("ready", disks=[complete]))
    life.standing.heard_splitter(status("lost", disks=[]))
    resized = msgspec.structs.replace(complete, state="syncing", size=33 << 20)
    life.standing.heard_splitter(status("syncing", disks=[resized]))
    said = life.standing.stand(life.seen())
    assert said.state is State.SYNCING
    assert said.reason.startswith("vda was resized from 24 MiB to 33 MiB; 0 B of 33 MiB")
    again = msgspec.structs.replace(resized, state="complete")
    life.standing.heard_splitter(status("ready", disks=[again]))
    life.standing.heard_splitter(status("syncing", disks=[resized]))
    assert "resized" not in life.standing.stand(life.seen()).reason
