# SPDX-License-Identifier: Apache-2.0
"""Failing open: whatever the spool does, the guest is answered, and nothing false is left."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from replicator.base.units import KIB, MIB
from replicator.nbd.exports import EndKind
from tests.splitter.rig import (
    DISK,
    MEMORY,
    SECOND,
    Client,
    Rig,
    external,
    libvirt,
    write,
)
from tests.world.storage import Failure

BLOCK = b"b" * (64 * KIB)


def failing(
    call: str, *, under: Path, number: int = errno.EIO, written: int | None = None
) -> Failure:
    return Failure(frozenset({call}), 1, number, under=under, written=written)


def on_disk() -> tuple[Rig, Client]:
    """A group whose appends go through the lane: the memory tier is not memory."""
    rig = external("a", rig=Rig("external", memory_is_sticky=True))
    rig.lane.run()
    assert rig.types()[-1] == "CUT"
    return rig, rig.connect("a")


class TestInLine:
    def test_an_append_that_fails_is_taken_back_and_ends_continuity(self) -> None:
        rig = external("a")
        client = rig.connect("a")
        client.write(0, BLOCK)
        end = rig.verified_end()
        rig.sim.plan(failing("pwritev", under=MEMORY))
        client.write(0, BLOCK)
        assert client.answers == [True, False]
        assert client.seen[-1] == "lost", "lost before the reply, not after it"
        assert rig.verified_end() == end

    def test_a_short_append_is_taken_back(self) -> None:
        rig = external("a")
        client = rig.connect("a")
        end = rig.verified_end()
        rig.sim.plan(failing("pwritev", under=MEMORY, number=errno.EIO, written=100))
        client.write(0, BLOCK)
        assert rig.verified_end() == end
        assert rig.group.writer.stream is not None
        assert rig.group.writer.stream.end_lsn <= end

    def test_nothing_is_appended_behind_a_torn_record(self) -> None:
        """The truncate fails as well: the segment is abandoned with the torn record in it."""
        rig = external("a")
        client = rig.connect("a")
        end = rig.verified_end()
        rig.sim.plan(
            failing("pwritev", under=MEMORY, written=100), failing("truncate", under=MEMORY)
        )
        client.write(0, BLOCK)
        client.write(0, BLOCK)
        assert client.answers == [False, False]
        assert rig.state() == "lost"
        assert rig.verified_end() == end

    def test_no_cut_and_no_hold_behind_a_loss(self) -> None:
        rig = external("a")
        client = rig.connect("a")
        rig.sim.plan(failing("pwritev", under=MEMORY))
        client.write(0, BLOCK)
        held = rig.group.cutter.held_until_ns
        records = len(rig.log())
        for _ in range(3):
            rig.tick()
        assert rig.group.cutter.held_until_ns == held
        assert len(rig.log()) == records

    def test_a_cut_that_cannot_be_appended_is_a_loss_too(self) -> None:
        rig = external("a")
        rig.connect("a").write(0, BLOCK)
        rig.sim.plan(failing("pwritev", under=MEMORY))
        rig.tick()
        assert rig.state() == "lost"


class TestTiers:
    def test_memory_used_up_goes_on_on_disk_and_comes_back(self) -> None:
        rig = external("a", rig=Rig("external", memory_bytes=MIB, disk_bytes=4 * MIB))
        client = rig.connect("a")
        inline = 0
        while len(client.answers) == inline:
            client.write(inline * 512, BLOCK)
            inline += 1
        inline -= 1
        rig.lane.run()
        tiers = [path.parts[1] for path in segments(rig)]
        assert tiers == ["memory"] * (len(tiers) - 1) + ["disk"]
        for path in segments(rig)[:-1]:
            rig.sim.unlink(path)
        for _ in range(4):  # what a segment on disk holds
            client.write(0, BLOCK)
            rig.lane.run()
        assert segments(rig)[-1].parts[1] == "memory"
        client.write(0, BLOCK)
        assert not rig.lane.works, "in line again"
        assert set(client.answers) == {True}

    def test_each_batch_is_settled_when_it_is_in_the_log_and_not_before(self) -> None:
        rig, client = on_disk()
        client.write(0, BLOCK)
        assert client.answers == []
        end = rig.group.writer.stream.end_lsn  # type: ignore[union-attr]
        rig.lane.run()
        assert client.answers == [True]
        assert rig.group.writer.stream.end_lsn > end  # type: ignore[union-attr]

    def test_a_full_spool_is_declared_at_once(self) -> None:
        rig = external("a", rig=Rig("external", memory_bytes=MIB, disk_bytes=MIB))
        client = rig.connect("a")
        written = 0
        while rig.state() == "ready":
            client.write(0, BLOCK)
            rig.lane.run()
            written += 1
            assert written < 100
        assert "full" in rig.group.reason
        assert client.seen[-1] == "lost"
        assert len(client.answers) == written, "every write is answered"
        assert written * len(BLOCK) > 1.5 * MIB, "both tiers were used"
        used = sum(rig.sim.allocated_bytes(path) for path in segments(rig))
        assert used <= 2 * MIB, "and no more than they may hold"

    def test_freeing_makes_room_again(self) -> None:
        rig = external("a", rig=Rig("external", memory_bytes=MIB, disk_bytes=0))
        client = rig.connect("a")
        for _ in range(60):
            client.write(0, BLOCK)
            for path in segments(rig)[:-1]:  # the agent has shipped what came before
                rig.sim.unlink(path)
        assert rig.state() == "ready"
        assert set(client.answers) == {True}

    def test_a_tmpfs_with_less_room_than_the_limit_says_sends_the_batch_to_disk(self) -> None:
        rig = external("a")
        client = rig.connect("a")
        client.write(0, BLOCK)
        rig.sim.plan(failing("pwritev", under=MEMORY, number=errno.ENOSPC, written=1000))
        client.write(512, BLOCK)
        assert client.answers == [True], "the second is on its way to the disk"
        rig.lane.run()
        assert client.answers == [True, True]
        assert [str(path)[:5] for path in segments(rig)] == ["/memo", "/disk"]
        assert rig.state() == "ready"
        assert [r.offset for r in rig.log() if r.length] == [0, 512]

    @pytest.mark.parametrize("call", ["create", "make_directory"])
    def test_a_segment_that_cannot_be_made_is_a_loss(self, call: str) -> None:
        rig = external("a", rig=Rig("external", memory_bytes=MIB))
        client = rig.connect("a")
        rig.sim.plan(failing(call, under=DISK))
        for _ in range(20):
            client.write(0, BLOCK)
            rig.lane.run()
        assert rig.state() == "lost"
        assert len(client.answers) == 20

    def test_no_first_lsn_lies_in_both_tiers(self) -> None:
        """A fresh segment in memory whose first batch does not fit leaves no file behind."""
        rig = Rig("external")
        rig.declare("a")
        rig.sim.plan(failing("pwritev", under=MEMORY, number=errno.ENOSPC))
        rig.group.begin()
        rig.lane.run()
        assert rig.state() == "ready"
        names = [path.name for path in segments(rig)]
        assert len(names) == len(set(names)) == 1


def segments(rig: Rig) -> list[Path]:
    """In LSN order, whichever tier they lie in."""
    stream = rig.group.writer.stream
    assert stream is not None
    found = [
        directory / stream.name.directory / name
        for directory in rig.tiers.directories("g")
        for name in rig.storage.names(directory / stream.name.directory)
    ]
    return sorted(found, key=lambda path: path.name)


class TestStuck:
    """An append to a device that does not come back."""

    def test_at_the_deadline_the_group_is_lost_and_then_everybody_is_answered(self) -> None:
        rig, client = on_disk()
        other = rig.connect("a")
        client.write(0, BLOCK)
        other.write(512, BLOCK)
        rig.tick(2 * SECOND - 1)
        assert rig.state() == "ready"
        assert client.answers == other.answers == []
        rig.tick(1)
        assert rig.state() == "lost"
        assert "stuck" in rig.group.reason
        assert (client.answers, other.answers) == ([False], [False])
        assert client.seen == other.seen == ["lost"]

    def test_the_caller_is_told_when_to_look(self) -> None:
        rig, client = on_disk()
        client.write(0, BLOCK)
        assert rig.woken[-1] == rig.clock.monotonic + 2 * SECOND
        rig.clock.move(SECOND)
        assert rig.group.tick() == rig.clock.monotonic + SECOND

    def test_the_whole_queue_goes_and_never_one_batch_in_front_of_a_cut(self) -> None:
        rig, client = on_disk()
        rig.tick(0)
        client.write(0, BLOCK)
        rig.tick(SECOND)  # a cut, queued behind it
        rig.tick(SECOND)
        assert rig.state() == "lost"
        end = rig.verified_end()
        rig.lane.run()  # the device comes back to life
        assert rig.verified_end() == end, "neither the write nor the cut is appended any more"
        assert rig.group.writer.stream.end_lsn == end  # type: ignore[union-attr]

    def test_an_append_that_comes_back_late_has_nothing_behind_it(self) -> None:
        rig, client = on_disk()
        other = rig.connect("a")
        client.write(0, BLOCK)
        other.write(512, BLOCK)
        stuck, _ = rig.lane.works.popleft()
        rig.tick(2 * SECOND)
        assert rig.state() == "lost"
        published = rig.group.writer.stream.end_lsn  # type: ignore[union-attr]
        rig.group.writer.stream.abandoned = False  # type: ignore[union-attr]
        stuck()  # it was inside the kernel when the stream was abandoned
        rig.group.writer.stream.abandoned = True  # type: ignore[union-attr]
        rig.lane.run()
        offsets = [r.offset for r in rig.records(rig.verified_end()) if r.length]
        assert offsets == [0], "what was received next, and nothing behind it"
        assert rig.group.writer.stream.end_lsn == published  # type: ignore[union-attr]

    def test_the_file_is_closed_by_the_lane_alone(self) -> None:
        """Closing under a stuck append would hand its descriptor number to another file."""
        rig, client = on_disk()
        client.write(0, BLOCK)
        rig.tick(2 * SECOND)
        assert len(rig.lane.works) == 2, "the append, and the closing behind it"
        assert rig.lane.ended
        rig.lane.run()

    def test_a_new_stream_has_a_lane_of_its_own(self) -> None:
        rig, client = on_disk()
        client.write(0, BLOCK)
        rig.tick(2 * SECOND)
        stuck = rig.lane
        rig.group.resync()
        assert rig.lane is not stuck
        rig.lane.run()
        client.write(0, BLOCK)
        rig.lane.run()
        assert client.answers == [False, True]

    def test_an_append_that_fails_halts_what_is_queued_behind_it(self) -> None:
        rig, client = on_disk()
        other = rig.connect("a")
        client.write(0, BLOCK)
        other.write(512, BLOCK)
        end = rig.verified_end()
        rig.sim.plan(failing("pwritev", under=MEMORY))
        work, done = rig.lane.works.popleft()
        caught = None
        try:
            work()
        except Exception as error:  # noqa: BLE001
            caught = error
        second, _ = rig.lane.works[0]
        appends = rig.sim.calls["pwritev"]
        second()  # the thread is faster than the loop
        assert rig.sim.calls["pwritev"] == appends
        assert rig.verified_end() == end
        done(caught)
        assert rig.state() == "lost"
        assert (client.answers, other.answers) == ([False], [False])

    def test_a_loss_for_another_reason_settles_the_queue_too(self) -> None:
        rig, client = on_disk()
        other = rig.connect("a")
        client.write(0, BLOCK)
        other.end(EndKind.EOF, mid_request=True)
        assert rig.state() == "lost"
        assert client.answers == [False]

    def test_a_mark_that_is_lost_on_the_way_says_so(self) -> None:
        rig, client = on_disk()
        made: list[object] = []
        client.write(0, BLOCK)
        rig.group.mark("x", "crash", made.append)
        assert made == []
        rig.tick(2 * SECOND)
        assert made == [None]
        assert rig.group.cutter.last_cut_time_ns < rig.clock.utc - SECOND

    def test_a_queued_cut_counts_when_it_is_in_the_log(self) -> None:
        rig, client = on_disk()
        before = rig.group.cutter.last_cut_time_ns
        client.write(0, BLOCK)
        rig.tick(SECOND)
        assert rig.group.cutter.last_cut_time_ns == before
        rig.lane.run()
        assert rig.group.cutter.last_cut_time_ns == rig.clock.utc

    def test_nothing_is_said_to_hold_while_a_cut_is_on_its_way(self) -> None:
        rig, client = on_disk()
        rig.tick(SECOND // 2)
        client.write(0, BLOCK)
        rig.tick(SECOND // 2)  # the cut, queued behind the write
        held = rig.group.cutter.held_until_ns
        rig.tick(SECOND)
        assert rig.group.cutter.held_until_ns == held
        rig.lane.run()
        rig.tick(SECOND)
        assert rig.group.cutter.held_until_ns == rig.clock.utc


def test_the_lsn_reservation_is_extended_long_before_it_is_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("agent.splitter.reservation", "agent.splitter.writer"):
        monkeypatch.setattr(f"{module}.LSN_STEP", MIB)
    monkeypatch.setattr("agent.splitter.writer.EXTEND_BELOW", MIB // 2)
    rig = external("a")
    client = rig.connect("a")
    for _ in range(40):
        client.write(0, BLOCK)
        rig.lane.run()
        stream = rig.group.writer.stream
        assert stream is not None
        assert stream.next_lsn < rig.group.reservation.limit_lsn
    assert rig.state() == "ready"


def test_a_stream_never_passes_what_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.splitter.reservation.LSN_STEP", MIB)
    rig = external("a")
    client = rig.connect("a")
    for _ in range(40):  # the lane never comes back, so nothing is extended
        client.write(0, BLOCK)
    stream = rig.group.writer.stream
    assert stream is not None
    assert rig.state() == "lost"
    assert stream.end_lsn <= MIB
    assert rig.verified_end() <= MIB


def test_one_append_for_a_batch_whatever_is_in_it() -> None:
    rig, (a,) = libvirt("a")
    before = rig.sim.calls["pwritev"]
    a.send(*(write(512 * n, b"w" * 512) for n in range(400)))
    assert rig.sim.calls["pwritev"] == before + 1
