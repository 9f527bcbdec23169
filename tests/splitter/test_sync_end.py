# SPDX-License-Identifier: Apache-2.0
"""FLUSH and READY are not yet "consistent": the continuation rule."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.splitter.continuity import DiskState
from agent.splitter.sync_end import CONTINUATION_NS, SyncEnd
from replicator.base.units import MIB
from tests.splitter.rig import Client, Rig, flush, zero

WRITE, ZERO = 1, 6
LONGEST = 32 * MIB
GIB = 1024 * MIB


def rule(size: int = GIB) -> SyncEnd:
    return SyncEnd(longest=LONGEST, size=size)


def flushed_and_ready(ended: SyncEnd) -> SyncEnd:
    ended.flushed = True
    ended.confirm_ready()
    return ended


def test_without_both_it_is_open() -> None:
    ended = rule()
    assert ended.due_ns() is None
    ended.flushed = True
    assert ended.due_ns() is None
    ended.confirm_ready()
    assert ended.due_ns() == 0


def test_a_request_of_the_maximum_length_awaits_the_rest_of_its_write() -> None:
    ended = rule()
    ended.request(WRITE, 0, LONGEST, now_ns=10)
    flushed_and_ready(ended)
    assert ended.due_ns() == 10 + CONTINUATION_NS
    ended.request(WRITE, LONGEST, LONGEST, now_ns=20)
    assert ended.due_ns() == 20 + CONTINUATION_NS, "the continuation awaits its own"
    ended.request(WRITE, 2 * LONGEST, 4096, now_ns=30)
    assert ended.due_ns() == 0


def test_neither_kind_nor_place_may_differ() -> None:
    ended = rule()
    ended.request(WRITE, 0, LONGEST, now_ns=0)
    ended.request(ZERO, LONGEST, 4096, now_ns=0)
    ended.request(WRITE, LONGEST + 512, 4096, now_ns=0)
    assert flushed_and_ready(ended).due_ns() == CONTINUATION_NS


def test_two_writes_that_meet_await_two_continuations() -> None:
    ended = rule()
    ended.request(WRITE, 0, LONGEST, now_ns=0)
    ended.request(WRITE, 0, LONGEST, now_ns=0)
    flushed_and_ready(ended)
    ended.request(WRITE, LONGEST, 4096, now_ns=0)
    assert ended.due_ns() == CONTINUATION_NS
    ended.request(WRITE, LONGEST, 4096, now_ns=0)
    assert ended.due_ns() == 0


def test_what_ends_with_the_disk_or_is_shorter_awaits_nothing() -> None:
    ended = rule(size=LONGEST)
    ended.request(WRITE, 0, LONGEST, now_ns=0)
    ended.request(WRITE, 0, LONGEST - 512, now_ns=0)
    assert flushed_and_ready(ended).due_ns() == 0


def test_a_write_that_began_after_the_flush_is_one_under_way_like_any_other() -> None:
    ended = flushed_and_ready(rule())
    ended.request(WRITE, 0, LONGEST, now_ns=0)
    assert ended.due_ns() == 0


def test_the_time_counts_from_our_reply() -> None:
    ended = rule()
    ended.request(WRITE, 0, LONGEST, now_ns=0)
    flushed_and_ready(ended)
    ended.answered(5_000)
    assert ended.due_ns() == 5_000 + CONTINUATION_NS


@given(st.lists(st.integers(1, 6 * 4), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_no_split_write_is_ever_cut_off(quarters: list[int], random) -> None:  # type: ignore[no-untyped-def]
    """Guest writes of any length, each sent in pieces one after another, interleaved in any way,
    with FLUSH and READY at any moment: the sync never ends while a piece is still to come that
    belongs to a write whose first piece came before the FLUSH."""
    ended = rule(size=1 << 50)
    writes = []
    for number, quarter in enumerate(quarters):
        length = quarter * LONGEST // 4
        start = number << 40
        pieces = range(start, start + length, LONGEST)
        writes.append([(at, min(LONGEST, start + length - at)) for at in pieces])
    begun_before: set[int] = set()
    while any(writes):
        if random.random() < 0.3 and not ended.flushed:
            flushed_and_ready(ended)
        number = random.choice([n for n, pieces in enumerate(writes) if pieces])
        at, length = writes[number].pop(0)
        if not ended.flushed:
            begun_before.add(number)
        ended.request(WRITE, at, length, now_ns=1)
        if any(writes[n] for n in begun_before):
            assert ended.due_ns() != 0
    if ended.flushed:
        # Lengths that are whole multiples look as if more could come; only time tells.
        whole = any(quarters[n] % 4 == 0 for n in begun_before)
        assert ended.due_ns() == (1 + CONTINUATION_NS if whole else 0)


class TestInAGroup:
    """The same on a group, where the end of a sync is a record, and leads to a point."""

    def syncing(self, *, sticky: bool = False) -> tuple[Rig, Client]:
        rig = Rig("libvirt", memory_is_sticky=sticky)
        rig.group.begin()
        rig.group.open_stream(0, "test")
        rig.declare("a", size=GIB)
        rig.group.sync_begin("a", "test")
        return rig, rig.connect("a")

    def test_flush_and_ready_in_the_middle_of_a_split_write_make_no_point(self) -> None:
        rig, mirror = self.syncing()
        mirror.send(zero(0, LONGEST))
        mirror.send(flush())
        rig.confirm("a")
        rig.tick(CONTINUATION_NS - 1)
        assert "SYNC_END" not in rig.types()
        mirror.send(zero(LONGEST, 4096))
        rig.tick(1)
        assert rig.types() == ["SYNC_BEGIN", "ZERO", "ZERO", "SYNC_END", "CUT"]

    def test_after_a_second_without_a_continuation_there_was_none(self) -> None:
        rig, mirror = self.syncing()
        mirror.send(zero(0, LONGEST))
        mirror.flush()
        rig.confirm("a")
        assert rig.woken[-1] == rig.clock.monotonic + CONTINUATION_NS
        rig.tick(CONTINUATION_NS)
        assert rig.group.roster.find("a").state is DiskState.COMPLETE

    def test_the_second_begins_when_the_reply_goes_out(self) -> None:
        rig, mirror = self.syncing(sticky=True)
        rig.lane.run()
        mirror.send(zero(0, LONGEST))
        rig.clock.move(CONTINUATION_NS // 2)
        rig.lane.run()
        assert mirror.answers == [True]
        mirror.flush()
        rig.confirm("a")
        assert rig.woken[-1] == rig.clock.monotonic + CONTINUATION_NS

    def test_what_the_connection_before_has_shown_counts_for_nothing(self) -> None:
        """It had flushed, and READY was confirmed for it; a continuation was awaited."""
        rig, mirror = self.syncing()
        mirror.send(zero(0, LONGEST))
        mirror.flush()
        rig.confirm("a")
        again = rig.connect("a")  # QEMU has reconnected, and sends again
        again.send(zero(0, 4096))
        rig.tick(2 * CONTINUATION_NS)
        assert rig.group.roster.find("a").state is DiskState.SYNCING
        assert "SYNC_END" not in rig.types()
        again.flush()
        rig.tick(2 * CONTINUATION_NS)
        assert "SYNC_END" not in rig.types(), "READY is the word on the one before"
        rig.confirm("a")
        assert rig.group.roster.find("a").state is DiskState.COMPLETE
