# SPDX-License-Identifier: Apache-2.0
"""Streams, members, cuts, marks: what a group writes into its log, in which order."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from agent.splitter.group import StateError
from agent.splitter.reservation import LSN_STEP
from agent.splitter.writer import MadeCut
from journal.bodies import Cut, DomainXml, SyncBegin
from journal.record import RecordType
from journal.spool import list_streams, remove_stream
from replicator.base.errors import NoPointError, NotFoundError, OwnedError, UsageError
from replicator.nbd.exports import EndKind
from tests.splitter.rig import (
    SECOND,
    Rig,
    body_of,
    external,
    flush,
    image,
    instance,
    libvirt,
    synced,
    trim,
    write,
    zero,
)

DATA = b"d" * 512


def test_the_first_stream_of_an_external_group_is_complete_and_zero_from_its_start() -> None:
    rig = external("a", "b")
    assert rig.state() == "ready"
    assert rig.types() == ["SYNC_BEGIN", "SYNC_END", "SYNC_BEGIN", "SYNC_END", "CUT"]
    begins = [body for body in map(body_of, rig.log()) if isinstance(body, SyncBegin)]
    assert [(begin.name, begin.from_zero) for begin in begins] == [("a", True), ("b", True)]
    assert rig.group.writer.stream is not None
    assert (rig.group.writer.stream.name.ordinal, rig.group.writer.stream.first_lsn) == (1, 0)


def test_records_are_those_of_the_requests_in_the_order_of_receipt() -> None:
    """Golden: two disks, all kinds of requests, then a cut. A change here is one of the format."""
    rig = external("a", "b")
    a, b = rig.connect("a"), rig.connect("b")
    a.send(write(0, b"1" * 512), zero(512, 1024), trim(4096, 512), flush(), write(0, b"2" * 512))
    b.send(write(1024, b"3" * 1024))
    a.send(write(512, b"4" * 512))
    rig.tick()
    seen = [
        (RecordType(r.type).name, r.disk, r.offset, r.length, r.sequence, bytes(r.payload[:1]))
        for r in rig.log()[5:]
    ]
    assert seen == [
        ("WRITE", 0, 0, 512, 6, b"1"),
        ("ZERO", 0, 512, 1024, 7, b""),
        ("ZERO", 0, 4096, 512, 8, b""),
        ("WRITE", 0, 0, 512, 9, b"2"),
        ("WRITE", 1, 1024, 1024, 10, b"3"),
        ("WRITE", 0, 512, 512, 11, b"4"),
        ("CUT", 0xFFFF, 0, 0, 12, b"\x83"),  # a map of three: defaults are left out
    ]
    assert {r.known_durable for r in rig.log()} == {0}, "the splitter syncs nothing"


def test_a_request_that_is_sent_again_is_appended_again() -> None:
    """Cookie, offset and length do not tell a repeat from another write."""
    rig = external("a")
    client = rig.connect("a")
    client.send(write(0, b"1" * 512))
    client.send(write(0, b"2" * 512))
    client.send(write(0, b"2" * 512))
    written = [r.payload[:1] for r in rig.log() if r.type == RecordType.WRITE]
    assert written == [b"1", b"2", b"2"]


def test_two_groups_number_their_records_from_one_counter() -> None:
    rig = external("a")
    other = rig.make_group("h", "external")
    other.declare_disk("x", 1 << 20, instance("x"))
    other.begin()
    rig.connect("a").write(0, DATA)
    numbers = [record.sequence for record in rig.log()]
    assert numbers == [1, 2, 3, 7]


class TestCuts:
    def test_an_interval_with_writes_ends_with_a_cut_of_all_members(self) -> None:
        rig = external("a", "b")
        rig.connect("a").write(0, DATA)
        rig.tick()
        cut = rig.cuts()[-1]
        assert [(m.disk, m.name, m.instance, m.size, m.complete) for m in cut.members] == [
            (0, "a", instance("a"), 64 << 20, True),
            (1, "b", instance("b"), 64 << 20, True),
        ]
        assert (cut.kind, cut.label) == ("crash", None)
        assert rig.group.cutter.last_cut_time_ns == rig.log()[-1].time_ns == rig.clock.utc

    def test_an_idle_group_writes_nothing_and_says_that_its_last_point_holds(self) -> None:
        rig = external("a")
        length = len(rig.log())
        writes = rig.sim.calls["pwritev"]
        for _ in range(5):
            rig.tick()
            assert rig.group.cutter.held_until_ns == rig.clock.utc
        assert len(rig.log()) == length
        assert rig.sim.calls["pwritev"] == writes

    def test_missed_intervals_are_passed_over(self) -> None:
        rig = external("a")
        rig.connect("a").write(0, DATA)
        rig.tick(10 * SECOND + 1)
        assert len(rig.cuts()) == 2
        assert rig.group.tick() > rig.clock.monotonic

    def test_times_rise_and_a_step_of_the_clock_is_noted_at_the_next_cut(self) -> None:
        rig = external("a")
        client = rig.connect("a")
        client.write(0, DATA)
        rig.tick()
        rig.clock.utc -= 86_400 * SECOND
        rig.tick()  # idle: a hold, which notices the step
        held = rig.group.cutter.held_until_ns
        client.write(0, DATA)
        rig.tick()
        first, second = (
            r.time_ns for r in rig.log() if r.type == RecordType.CUT and r.sequence > 3
        )
        assert first < held < second
        assert rig.cuts()[-1].clock_step_ns == -86_400 * SECOND
        assert rig.cuts()[-2].clock_step_ns == 0

    def test_a_cut_carries_the_clock_that_nobody_sets(self) -> None:
        rig = external("a")
        for step_ns in (0, 86_400 * SECOND, -86_400 * SECOND):
            rig.clock.utc += step_ns
            rig.connect("a").write(0, DATA)
            rig.tick()
            assert rig.cuts()[-1].monotonic_ns == rig.clock.monotonic

    def test_that_the_clock_was_set_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        rig = external("a")
        rig.clock.utc += 86_400 * SECOND
        for _ in range(3):
            rig.connect("a").write(0, DATA)
            rig.tick()
        (record,) = (each for each in caplog.records if "clock was set" in each.message)
        assert (record.group, record.seconds) == ("g", 86_400.0)  # type: ignore[attr-defined]

    @pytest.mark.parametrize("is_told", [False, True])
    def test_a_splitter_that_is_started_anew_goes_on_behind_the_stamps_before(
        self, *, is_told: bool
    ) -> None:
        """Though the clock was set back while nobody ran: by what its own spool says, or, where
        that is freed, by what the agent knows of the receiver."""
        rig = external("a")
        rig.connect("a").write(0, DATA)
        rig.tick()
        last_ns = rig.log()[-1].time_ns
        if is_told:
            for directory in rig.tiers.directories("g"):
                for stream in list_streams(rig.storage, [directory]):
                    remove_stream(rig.storage, [directory], stream)
        rig.clock.utc -= 86_400 * SECOND
        again = external("a", rig=Rig("external", storage=rig.storage, clock=rig.clock))
        if is_told:
            again.group.cutter.behind(last_ns)
        again.group.resync()
        client = again.connect("a")
        client.write(0, DATA)
        client.flush()
        for _ in range(3):
            client.write(0, DATA)
            again.tick()
        stamps = [r.time_ns for r in again.log() if r.type == RecordType.CUT]
        assert last_ns < stamps[0]
        for earlier_ns, later_ns in pairwise(stamps):
            assert later_ns - earlier_ns == SECOND // 2, "at half the pace, never all at once"

    def test_no_cut_while_a_member_is_not_complete(self) -> None:
        rig = Rig("libvirt")
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a", "b")
        synced(rig, "a")
        rig.tick()
        assert rig.state() == "syncing"
        assert not rig.cuts()
        with pytest.raises(NoPointError):
            rig.group.mark(None, "crash", lambda _: None)
        synced(rig, "b")
        assert rig.state() == "ready"
        assert len(rig.cuts()) == 1, "the first point does not wait for the interval"


class TestMembers:
    def test_a_disk_added_to_a_ready_group_is_no_member_before_its_sync_end(self) -> None:
        rig, (a,) = libvirt("a")
        rig.declare("late")
        a.write(0, DATA)
        rig.tick()
        rig.group.sync_begin("late", "added")
        late = rig.connect("late")
        late.write(0, DATA)
        a.write(0, DATA)
        rig.tick()
        assert [[m.name for m in cut.members] for cut in rig.cuts()] == [["a"], ["a"], ["a"]]
        late.flush()
        rig.confirm("late")
        rig.tick()
        assert [(m.name, m.complete) for m in rig.cuts()[-1].members] == [
            ("a", True),
            ("late", True),
        ]

    def test_a_disk_declared_while_the_group_was_never_ready_is_one_from_the_start(self) -> None:
        rig = Rig("libvirt")
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a")
        rig.declare("b")
        synced(rig, "a")
        assert rig.state() == "syncing"

    def test_a_new_instance_takes_the_place_of_the_one_before_and_a_number_of_its_own(self) -> None:
        rig, (a,) = libvirt("a")
        with pytest.raises(OwnedError):
            rig.group.declare_disk("a", 1 << 20, instance("another"))
        rig.group.close_stream("moved")
        a.end(EndKind.EOF)
        rig.group.open_stream(0, "again")
        before = rig.group.roster.find("a")
        rig.group.sync_begin("a", "of the old one")
        disk = rig.group.declare_disk("a", 1 << 20, instance("another"))
        assert disk.index != before.index
        assert rig.types() == ["SYNC_BEGIN", "DETACH"]
        synced(rig, "a")
        assert [m.instance for m in rig.cuts()[-1].members] == [instance("another")]

    def test_the_same_declaration_again_changes_nothing(self) -> None:
        rig, _ = libvirt("a")
        disk = rig.group.roster.find("a")
        assert rig.group.declare_disk("a", disk.size, disk.instance) is disk
        assert rig.state() == "ready"

    @pytest.mark.parametrize(
        ("name", "size", "identity"),
        [
            ("a", 0, instance("a")),
            ("a", 513, instance("a")),
            ("a", 1 << 63, instance("a")),
            ("a", 512, "no-uuid"),
            ("../a", 512, instance("a")),
            ("", 512, instance("a")),
        ],
    )
    def test_what_cannot_be_a_disk_is_refused(self, name: str, size: int, identity: str) -> None:
        with pytest.raises(UsageError):
            Rig("libvirt").group.declare_disk(name, size, identity)


class TestStreams:
    def test_nothing_comes_before_the_first_sync_begin(self) -> None:
        rig = Rig("libvirt")
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a")
        early = rig.connect("a")
        early.write(0, DATA)
        assert early.answers == [False]
        with pytest.raises(StateError):
            rig.group.append_domain_xml("vm", "<domain/>")
        rig.tick()
        rig.group.sync_begin("a", "why")
        rig.group.append_domain_xml("vm", "<domain/>")
        assert rig.types() == ["SYNC_BEGIN", "DOMAIN_XML"]
        assert body_of(rig.log()[1]) == DomainXml(domain="vm", xml="<domain/>")

    def test_sync_begin_said_twice_in_a_row_is_recorded_once(self) -> None:
        rig = Rig("libvirt")
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a")
        rig.group.sync_begin("a", "why")
        rig.group.sync_begin("a", "an agent that was started anew")
        assert rig.types() == ["SYNC_BEGIN"]
        rig.connect("a").write(0, DATA)
        rig.group.sync_begin("a", "again")
        assert rig.types() == ["SYNC_BEGIN", "WRITE", "SYNC_BEGIN"]

    def test_a_new_stream_has_a_higher_ordinal_than_all_known_and_asked_for(self) -> None:
        rig = Rig("libvirt")
        rig.group.open_stream(0, "first")
        assert rig.group.writer.stream is not None
        first = rig.group.writer.stream
        rig.group.open_stream(41, "the receiver knows more")
        second = rig.group.writer.stream
        assert (first.name.ordinal, second.name.ordinal) == (1, 42)
        assert (first.first_lsn, second.first_lsn) == (0, LSN_STEP)
        assert first.abandoned

    def test_opening_anew_ends_the_one_before_with_a_last_cut(self) -> None:
        rig, (a,) = libvirt("a")
        a.write(0, DATA)
        before = rig.group.writer.stream
        assert before is not None
        end = before.end_lsn
        rig.group.open_stream(0, "again")
        assert before.end_lsn > end
        a.write(512, DATA)
        assert a.answers[-1] is False, "its disk is in no sync of the new stream"

    def test_a_restarted_splitter_never_goes_on_with_a_stream(self) -> None:
        rig = external("a")
        rig.connect("a").write(0, DATA)
        first = rig.group.writer.stream
        assert first is not None
        again = Rig("external", storage=rig.storage, clock=rig.clock)
        external("a", rig=again)
        assert again.state() == "lost"
        client = again.connect("a")
        client.write(0, DATA)
        assert client.answers == [False]
        again.group.resync()
        second = again.group.writer.stream
        assert second is not None
        assert second.name.ordinal > first.name.ordinal
        assert second.first_lsn >= first.end_lsn
        assert second.name.stream != first.name.stream or second.name != first.name

    def test_a_stream_of_one_life_is_not_a_stream_of_another_even_with_its_spool_lost(self) -> None:
        """The host lost power: tmpfs is empty, the state file is not."""
        rig = external("a")
        rig.connect("a").write(0, DATA)
        end = rig.group.writer.stream.end_lsn  # type: ignore[union-attr]
        rig.sim.power_cut(Random(1))
        again = external("a", rig=Rig("external", storage=rig.sim, clock=rig.clock))
        assert again.state() == "lost"
        again.group.resync()
        assert again.group.writer.stream is not None
        assert again.group.writer.stream.first_lsn >= max(end, LSN_STEP)
        assert again.group.writer.stream.name.ordinal == 2


class TestResync:
    def lost(self, *disks: str) -> Rig:
        rig = external(*disks)
        rig.group.lose("for the test")
        return rig

    def test_what_comes_until_the_flush_is_the_sync(self) -> None:
        rig = self.lost("a", "b")
        rig.group.resync()
        assert rig.state() == "syncing"
        begins = [body for body in map(body_of, rig.log()) if isinstance(body, SyncBegin)]
        assert [begin.from_zero for begin in begins] == [False, False]
        a, b = rig.connect("a"), rig.connect("b")
        a.send(write(0, DATA), flush(), write(512, DATA))
        rig.tick()
        assert not rig.cuts(), "the other disk is not complete"
        b.send(write(0, DATA), flush())
        assert rig.types()[2:] == ["WRITE", "SYNC_END", "WRITE", "WRITE", "SYNC_END", "CUT"]

    def test_it_takes_an_empty_stream_that_was_opened_for_it(self) -> None:
        rig = external("a")
        rig.group.open_stream(7, "the receiver has closed the one before")
        stream = rig.group.writer.stream
        assert stream is not None
        assert (rig.state(), stream.name.ordinal, stream.empty) == ("lost", 8, True)
        client = rig.connect("a")
        client.write(0, DATA)
        assert client.answers == [False]
        rig.group.resync(above_ordinal=7)
        assert rig.group.writer.stream is stream
        rig.group.resync(above_ordinal=8)
        assert rig.group.writer.stream is not stream

    def test_a_sync_that_breaks_is_lost_again(self) -> None:
        rig = self.lost("a")
        rig.group.resync()
        client = rig.connect("a")
        client.write(0, DATA)
        client.end(EndKind.EOF, mid_request=True)
        assert rig.state() == "lost"

    def test_libvirt_groups_are_not_resynced_here(self) -> None:
        with pytest.raises(UsageError):
            Rig("libvirt").group.resync()


class TestMarks:
    def test_a_mark_makes_a_labelled_point_also_of_an_idle_group(self) -> None:
        rig = external("a")
        rig.tick()
        made: list[MadeCut | None] = []
        rig.group.mark("before upgrade", "application", made.append)
        cut = rig.cuts()[-1]
        assert (cut.kind, cut.label) == ("application", "before upgrade")
        stream = rig.group.writer.stream
        assert stream is not None
        assert made == [MadeCut(stream.end_lsn, rig.log()[-1].time_ns)]

    def test_a_mark_says_how_long_it_is_to_be_kept(self) -> None:
        rig = external("a")
        rig.group.mark("x", "crash", lambda _: None, expire_ns=30 * SECOND)
        assert rig.cuts()[-1].expire_ns == 30 * SECOND

    def test_a_mark_that_comes_too_late_cuts_nothing(self) -> None:
        """What it would say of the guest may not be true any more."""
        rig = external("a")
        before, now_ns = len(rig.cuts()), rig.clock.monotonic
        with pytest.raises(NoPointError, match="too late"):
            rig.group.mark(None, "application", lambda _: None, not_after_ns=now_ns)
        assert len(rig.cuts()) == before
        rig.group.mark(None, "application", lambda _: None, not_after_ns=now_ns + 1)
        assert len(rig.cuts()) == before + 1

    def test_a_lost_group_makes_none_and_says_why(self) -> None:
        rig = external("a")
        rig.group.lose("the spool is full")
        with pytest.raises(NoPointError) as caught:
            rig.group.mark(None, "crash", lambda _: None)
        assert "the spool is full" in caught.value.hint

    @pytest.mark.parametrize("label", ["", "latest", "#3", " x", "x" * 200])
    def test_a_label_that_means_something_else_is_refused(self, label: str) -> None:
        with pytest.raises(UsageError):
            external("a").group.mark(label, "crash", lambda _: None)


def test_orders_about_unknown_disks_or_without_a_stream_say_so() -> None:
    rig = Rig("libvirt")
    with pytest.raises(NotFoundError):
        rig.group.sync_begin("a", "why")
    rig.declare("a")
    with pytest.raises(StateError):
        rig.group.sync_begin("a", "why")
    with pytest.raises(StateError):
        rig.confirm("a")


def test_a_stopped_splitter_leaves_a_last_point_and_answers_nothing_behind_it() -> None:
    rig = external("a")
    client = rig.connect("a")
    client.write(0, DATA)
    rig.group.shut_down()
    assert rig.types()[-1] == "CUT"
    assert rig.state() == "closed"
    client.write(512, DATA)
    assert client.answers == [True, False]


def test_the_content_of_the_log_is_what_was_written() -> None:
    rig = external("a")
    client = rig.connect("a")
    client.send(write(0, b"1" * 2048), zero(512, 512), trim(1024, 512), write(1536, b"2" * 512))
    content = image(rig.log(), 0, 2048)
    assert content == b"1" * 512 + bytes(1024) + b"2" * 512
    assert isinstance(body_of(rig.log()[-1]), Cut | None)
