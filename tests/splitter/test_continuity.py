# SPDX-License-Identifier: Apache-2.0
"""What an event does to a group: the table as a whole, and each row of it on a real group."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from agent.splitter.continuity import (
    MEANINGS,
    TABLE,
    DiskState,
    Driver,
    Effect,
    Signal,
    effect_of,
    signal_of_end,
)
from agent.splitter.cutter import Stamp
from agent.splitter.ending import SPREAD_NS, Ending
from agent.splitter.exports import SplitterExports
from journal.record import RecordType
from replicator.nbd.exports import ConnectionEnd, EndKind
from tests.splitter.rig import (
    SECOND,
    Client,
    Rig,
    external,
    image,
    libvirt,
    read,
    refused,
    synced,
    write,
)
from tests.splitter.rig import flush as flush_request

DATA = b"x" * 512


def end(
    kind: EndKind, *, mid_request: bool = False, unanswered: int = 0, unsent: int = 0
) -> ConnectionEnd:
    return ConnectionEnd(
        kind=kind, mid_request=mid_request, unanswered=unanswered, unsent_bytes=unsent
    )


def test_every_case_is_in_the_table_once() -> None:
    assert set(TABLE) == set(product(get_args(Driver), DiskState, Signal))
    assert set(MEANINGS) == set(Signal)


def test_a_complete_libvirt_disk_never_goes_on_as_if_nothing_had_been() -> None:
    for signal in Signal:
        assert effect_of("libvirt", DiskState.COMPLETE, signal) in (Effect.LOSE, Effect.SUSPEND)


def test_no_group_is_lost_by_a_disk_that_no_point_rests_on() -> None:
    for state, signal in product((DiskState.IDLE, DiskState.SYNCING, DiskState.FLUSHED), Signal):
        assert effect_of("libvirt", state, signal) not in (Effect.LOSE, Effect.SUSPEND)


def test_only_a_broken_connection_loses_an_external_group() -> None:
    losing = {
        key for key, effect in TABLE.items() if key[0] == "external" and effect is Effect.LOSE
    }
    assert {signal for _, _, signal in losing} == {Signal.BROKEN}


@pytest.mark.parametrize(
    ("ended", "wrote", "signal"),
    [
        (end(EndKind.DISC), True, Signal.DISC),
        (end(EndKind.EOF), True, Signal.EOF),
        (end(EndKind.CLOSED), True, Signal.EOF),
        (end(EndKind.EOF, mid_request=True), True, Signal.BROKEN),
        (end(EndKind.EOF, mid_request=True), False, Signal.BROKEN),
        (end(EndKind.EOF, unanswered=1), True, Signal.BROKEN),
        (end(EndKind.EOF, unsent=16), True, Signal.BROKEN),
        (end(EndKind.CLOSED, unanswered=1), True, Signal.BROKEN),
        (end(EndKind.ERROR), True, Signal.BROKEN),
        (end(EndKind.DISC), False, None),
        (end(EndKind.EOF), False, None),
        (end(EndKind.ERROR, mid_request=True), False, None),  # a stranger's garbage
    ],
)
def test_the_end_of_a_connection_as_a_signal(
    ended: ConnectionEnd, wrote: bool, signal: Signal | None
) -> None:
    assert signal_of_end(ended, wrote=wrote) is signal


def error_reply(client: Client) -> None:
    client.send(refused(1 << 40, 512))


def flush(client: Client) -> None:
    client.flush()


def goodbye(client: Client) -> None:
    client.disc()


def bare_eof(client: Client) -> None:
    client.end(EndKind.EOF)


def half_read(client: Client) -> None:
    client.end(EndKind.EOF, mid_request=True)


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (error_reply, "lost"),
        (flush, "suspended"),
        (goodbye, "suspended"),
        (bare_eof, "lost"),
        (half_read, "lost"),
    ],
)
def test_a_sign_on_one_member_ends_the_cuts_of_the_whole_group(event, state) -> None:  # type: ignore[no-untyped-def]
    rig, (a, b) = libvirt("a", "b")
    rig.tick()
    cuts = len(rig.cuts())
    held = rig.group.cutter.held_until_ns
    event(a)
    assert rig.state() == state
    rig.tick()
    assert len(rig.cuts()) == cuts
    assert rig.group.cutter.held_until_ns == held
    b.write(512, DATA)  # issued by the guest after a write to A that nobody mirrored
    rig.tick()
    assert len(rig.cuts()) == cuts, "a cut holds B's write without A's earlier one"
    assert b.answers[-1] is False


def test_the_state_is_set_before_the_reply_that_follows() -> None:
    rig, (a, _) = libvirt("a", "b")
    a.send(write(0, DATA), refused(1 << 40, 512), write(512, DATA))
    assert a.seen[-1] == "lost"
    offsets = [record.offset for record in rig.records(rig.verified_end()) if record.length]
    assert offsets[-1] == 0, "the write in front of the error is kept, the one behind is not"


def test_a_hang_up_that_nobody_has_read_yet_stops_the_cut() -> None:
    rig, (a, b) = libvirt("a", "b")
    rig.tick()
    cuts = len(rig.cuts())
    b.write(512, DATA)
    a.gone = True  # its EOF lies unread behind other events of the loop
    held = rig.group.cutter.held_until_ns
    rig.tick()
    assert len(rig.cuts()) == cuts
    assert rig.group.cutter.held_until_ns == held
    assert rig.state() == "ready", "what it was is for the event itself to say"


def test_a_visitor_is_no_mirror() -> None:
    rig, (a,) = libvirt("a")
    visitor = rig.connect("a")
    visitor.send(read(0, 512))
    visitor.disc()
    stranger = rig.connect("a")
    stranger.end(EndKind.ERROR, mid_request=True)
    assert rig.state() == "ready"
    a.write(0, DATA)
    assert a.answers[-1] is True


def test_a_read_by_the_mirror_is_refused_and_so_loses() -> None:
    _, (a,) = libvirt("a")
    a.send(read(0, 512))
    assert a.seen[-1] == "lost"


def test_clients_of_an_external_disk_come_and_go() -> None:
    rig = external("a")
    first, second = rig.connect("a"), rig.connect("a")
    for client in (first, second):
        client.write(0, DATA)
        client.flush()
        client.send(read(0, 512))
        client.send(refused(1 << 40, 512))
    first.disc()
    second.end(EndKind.EOF)
    third = rig.connect("a")
    third.write(512, DATA)
    assert third.answers == [True]
    assert rig.state() == "ready"
    third.end(EndKind.EOF, mid_request=True)
    assert rig.state() == "lost"


def test_a_failed_sync_of_an_added_disk_costs_only_itself() -> None:
    rig, (a,) = libvirt("a")
    rig.declare("late")
    rig.group.sync_begin("late", "added")
    late = rig.connect("late")
    late.write(0, DATA)
    late.end(EndKind.EOF)
    assert rig.group.roster.find("late").state is DiskState.IDLE
    a.write(0, DATA)
    rig.tick()
    assert [member.name for member in rig.cuts()[-1].members] == ["a"]


class TestSuspended:
    """A mirror may have ended: only the agent can find out what that was."""

    def test_a_vm_that_went_down_ends_with_a_cut_of_everything(self) -> None:
        rig, (a, b) = libvirt("a", "b")
        a.write(0, DATA)
        for client in (a, b):
            client.flush()
            client.disc()
        rig.group.close_stream("shut off", final_cut=True)
        assert rig.state() == "closed"
        assert rig.types()[-1] == "CUT"
        assert all(member.complete for member in rig.cuts()[-1].members)

    def test_a_write_after_the_first_sign_means_that_the_source_went_on(self) -> None:
        rig, (a, b) = libvirt("a", "b")
        a.flush()
        b.write(0, DATA)
        assert rig.state() == "lost"
        assert b.answers[-1] is False
        assert b.seen[-1] == "lost"

    @pytest.mark.parametrize("case", ["one still there", "one by one"])
    def test_no_final_cut_where_it_cannot_be_true(self, case: str) -> None:
        rig, (a, b) = libvirt("a", "b")
        rig.tick()
        cuts = len(rig.cuts())
        a.flush()
        a.disc()
        if case == "one by one":
            rig.clock.move(SPREAD_NS + 1)
            b.disc()
        rig.group.close_stream("shut off", final_cut=True)
        assert rig.state() == "lost"
        assert "no final cut" in rig.group.reason
        assert len(rig.cuts()) == cuts

    def test_the_rule_names_its_reason(self) -> None:
        ending = Ending(first_ns=7, last_ns=7 + SPREAD_NS, at=Stamp(0, 7))
        assert "goodbye" in ending.refusal(all_said_goodbye=False)
        assert not ending.refusal(all_said_goodbye=True)
        ending.last_ns += 1
        assert "one by one" in ending.refusal(all_said_goodbye=True)

    def test_a_final_cut_carries_the_time_of_the_first_sign(self) -> None:
        rig, (a, b) = libvirt("a", "b")
        rig.tick()
        a.write(0, DATA)
        rig.clock.move(SECOND // 2)
        sign_ns = rig.clock.utc_ns()
        a.flush()
        rig.clock.move(SPREAD_NS)
        for client in (a, b):
            client.disc()
        for _ in range(3600):  # the agent is away, and the guest runs and ends again, unseen
            rig.tick()
        rig.group.close_stream("shut off", final_cut=True)
        time_ns = rig.log()[-1].time_ns
        assert sign_ns <= time_ns <= sign_ns + 1000, "times rise by a microsecond"
        assert rig.group.cutter.last_cut_time_ns == rig.group.cutter.held_until_ns == time_ns
        assert rig.group.stream_end == "final cut"

    def test_a_final_cut_needs_a_sign(self) -> None:
        rig, (a,) = libvirt("a")
        a.write(0, DATA)
        cuts = len(rig.cuts())
        rig.group.close_stream("shut off", final_cut=True)
        assert rig.state() == "lost"
        assert len(rig.cuts()) == cuts

    def test_an_end_that_nobody_watched_is_no_point_and_no_loss(self) -> None:
        rig, (a,) = libvirt("a")
        rig.tick()
        a.write(0, DATA)
        cuts = len(rig.cuts())
        a.flush()
        a.disc()
        rig.group.close_stream("the end was not watched", unwatched=True)
        assert (rig.state(), rig.group.stream_end) == ("closed", "unwatched")
        assert rig.group.reason == "the end was not watched"
        assert len(rig.cuts()) == cuts
        rig.group.open_stream(0, "again")
        assert rig.group.stream_end == ""

    def test_closing_without_a_final_cut_is_a_loss(self) -> None:
        rig, (a,) = libvirt("a")
        a.flush()
        rig.group.close_stream("the domain runs on")
        assert rig.state() == "lost"


class TestSyncOfALibvirtDisk:
    def begun(self) -> tuple[Rig, Client]:
        rig = Rig("libvirt")
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a")
        rig.group.sync_begin("a", "test")
        return rig, rig.connect("a")

    @pytest.mark.parametrize("event", [error_reply, flush, goodbye, bare_eof, half_read])
    def test_anything_between_flush_and_ready_voids_it(self, event) -> None:  # type: ignore[no-untyped-def]
        rig, mirror = self.begun()
        mirror.write(0, DATA)
        mirror.flush()
        event(mirror)
        assert rig.group.roster.find("a").state is DiskState.IDLE
        with pytest.raises(Exception, match="no FLUSH"):
            rig.confirm("a")
        assert "SYNC_END" not in rig.types()

    def test_ready_before_the_flush_is_of_an_earlier_job(self) -> None:
        rig, mirror = self.begun()
        mirror.write(0, DATA)
        with pytest.raises(Exception, match="no FLUSH"):
            rig.confirm("a")
        mirror.flush()
        rig.confirm("a")
        assert rig.state() == "ready"

    def test_the_flush_of_an_earlier_connection_counts_for_nothing(self) -> None:
        rig, old = self.begun()
        old.write(0, DATA)
        old.flush()
        new = rig.connect("a")
        new.write(0, DATA)  # the job was begun anew
        with pytest.raises(Exception, match="no FLUSH"):
            rig.confirm("a")
        old.end(EndKind.EOF)  # nor does its end concern the new one
        new.flush()
        rig.confirm("a")
        assert rig.state() == "ready"

    def test_a_connection_of_an_earlier_sync_may_end_late(self) -> None:
        rig, old = self.begun()
        old.write(0, DATA)
        synced(rig, "a")
        old.end(EndKind.EOF)
        assert rig.state() == "ready"

    def test_a_mirror_that_hung_up_before_the_sync_end_voids_it(self) -> None:
        rig, mirror = self.begun()
        mirror.write(0, DATA)
        mirror.flush()
        mirror.gone = True
        rig.confirm("a")
        assert rig.group.roster.find("a").state is DiskState.IDLE
        assert "SYNC_END" not in rig.types()

    def test_another_sync_follows_a_void_one_in_the_same_stream(self) -> None:
        rig, mirror = self.begun()
        mirror.write(0, DATA)
        mirror.end(EndKind.EOF)
        stranger = rig.connect("a")
        stranger.write(0, DATA)
        assert stranger.answers == [False], "between syncs nothing is recorded"
        mirror = synced(rig, "a")
        assert rig.state() == "ready"
        assert rig.types() == ["SYNC_BEGIN", "WRITE", "SYNC_BEGIN", "WRITE", "SYNC_END", "CUT"]


class TestEvidenceOfOtherJobs:
    """What comes over a connection counts for the job that opened it, and for no other sync."""

    def void(self) -> tuple[Rig, Client, int]:
        """A sync that a pause has voided, and its LSN; QEMU's job lives on for all we know."""
        rig = Rig("libvirt")
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a")
        rig.group.sync_begin("a", "test")
        old = rig.connect("a")
        sync_lsn = rig.group.roster.find("a").sync_lsn
        assert sync_lsn is not None
        old.write(0, DATA)
        old.flush()
        old.flush()
        return rig, old, sync_lsn

    def test_what_voids_a_sync_drops_the_connections_of_its_disk_alone(self) -> None:
        rig = Rig("libvirt")
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a", "b")
        for name in ("a", "b"):
            rig.group.sync_begin(name, "test")
        a, other, b = rig.connect("a"), rig.connect("a"), rig.connect("b")
        for client in (a, b):
            client.write(0, DATA)
        a.flush()
        a.send(flush_request(), write(512, DATA))
        assert a.answers[-1] is True, "answered before it is dropped"
        assert (a.dropped, other.dropped, b.dropped) == (True, True, False)
        disk = rig.group.roster.find("a")
        assert (disk.state, disk.sync_lsn) == (DiskState.IDLE, None)
        assert "flushed" in disk.void

    def test_a_connection_that_was_open_before_the_sync_begin_is_dropped_by_it(self) -> None:
        rig = Rig("libvirt")
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a")
        early = rig.visit("a")
        rig.group.sync_begin("a", "test")
        assert early.dropped

    @pytest.mark.parametrize("writes", [True, False])
    def test_a_job_that_comes_back_after_the_next_sync_began_carries_nothing(
        self, *, writes: bool
    ) -> None:
        """QEMU may reconnect: its old job lives, and flushes, and is READY."""
        rig, _, before = self.void()
        rig.group.sync_begin("a", "again")
        back = rig.connect("a", before)
        if writes:
            back.write(512, DATA)
        back.flush()
        assert rig.group.roster.find("a").state is DiskState.SYNCING
        with pytest.raises(Exception, match="no FLUSH"):
            rig.confirm("a")
        assert rig.types() == ["SYNC_BEGIN", "WRITE", "SYNC_BEGIN"]
        assert all(kept is False for kept in back.answers), "answered, and not recorded"

    def test_what_an_old_job_sends_late_is_not_recorded_over_the_new_one(self) -> None:
        rig, _, before = self.void()
        rig.group.sync_begin("a", "again")
        new, back = rig.connect("a"), rig.connect("a", before)
        new.write(0, b"n" * 512)
        back.write(0, b"o" * 512)
        new.flush()
        back.send(refused(1 << 40, 512))
        back.end(EndKind.EOF, mid_request=True)
        rig.confirm("a")
        assert rig.state() == "ready"
        assert image(rig.log(), 0, 512) == b"n" * 512

    def test_nor_over_a_complete_disk(self) -> None:
        rig, (a,) = libvirt("a")
        strangers = [rig.visit("a"), rig.connect("a", 1 << 40)]
        for stranger in strangers:
            stranger.write(0, b"o" * 512)
            stranger.flush()
            stranger.disc()
        assert rig.state() == "ready"
        a.write(512, DATA)
        assert image(rig.log(), 0, 1024) == b"s" * 512 + DATA

    def test_ready_is_the_word_on_one_connection(self) -> None:
        rig, _, _ = self.void()
        rig.group.sync_begin("a", "again")
        first = rig.connect("a")
        first.write(0, DATA)
        first.flush()
        told = rig.group.roster.find("a").flushed_by
        second = rig.connect("a")  # QEMU has reconnected
        second.write(0, DATA)
        second.flush()
        with pytest.raises(Exception, match=f"not on {told}"):
            rig.group.ready("a", told)
        with pytest.raises(Exception, match="not on 0"):
            rig.group.ready("a", 0)
        assert rig.state() == "syncing"
        rig.confirm("a")
        assert rig.state() == "ready"

    def test_no_two_syncs_ever_have_one_export(self) -> None:
        rig, _, first = self.void()
        seen = [first]
        for _ in range(3):
            rig.group.sync_begin("a", "again")
            client = rig.connect("a")
            client.write(0, DATA)
            seen.append(rig.group.roster.find("a").sync_lsn or 0)
            client.end(EndKind.EOF)
        rig.group.close_stream("test")
        rig.group.open_stream(0, "test")
        rig.group.sync_begin("a", "anew")
        seen.append(rig.group.roster.find("a").sync_lsn or 0)
        assert len(set(seen)) == len(seen)
        assert seen == sorted(seen)
        begins = [r.sequence for r in rig.log() if r.type == RecordType.SYNC_BEGIN]
        assert len(begins) == 1, "the last one is the first record of its stream"
        assert rig.group.writer.stream is not None
        assert seen[-1] == rig.group.writer.stream.first_lsn


class TestExports:
    def test_a_libvirt_disk_is_listed_under_the_name_of_its_sync(self) -> None:
        rig, _ = libvirt("a")
        exports = SplitterExports({"g": rig.group})
        sync_lsn = rig.group.roster.find("a").sync_lsn
        assert exports.names() == [f"g/a/{sync_lsn}"]
        served = ("g/a", f"g/a/{sync_lsn}", "g/a/1")  # a job that comes back is answered
        assert all(exports.find(name) is not None for name in served)
        unknown = ("", "g", "g/", "g/b", "h/a", "g/a/", "g/a/x", "g/a/-1", "g/a/1/2", "/a", "g/a/²")
        assert [name for name in unknown if exports.find(name) is not None] == []

    def test_an_external_disk_has_its_plain_name_alone(self) -> None:
        rig = external("a")
        exports = SplitterExports({"g": rig.group})
        assert exports.names() == ["g/a"]
        assert exports.find("g/a") is not None
        assert exports.find("g/a/0") is None
