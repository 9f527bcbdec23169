# SPDX-License-Identifier: Apache-2.0
"""What the audit notes of the histories, and what shows by it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from receiver.audit.chain import Fact, Head, Seen
from receiver.audit.heads import Stretch, fault_of, newest_heads, newest_seen, unseen
from receiver.audit.log import open_audit, read_entries
from receiver.audit.watch import HistoryWatch
from receiver.catalog import Catalog
from receiver.history.batches import Segment
from receiver.offline.audit_check import check_audit, check_heads
from receiver.orders.recorder import DAY_NS, Recorder
from replicator.base.storage import SystemStorage
from replicator.control.orders import FORGET
from tests.offline.copies import COMPACTED, BareHistory

STORAGE = SystemStorage()
ROW = [Stretch(0, 100, "aa"), Stretch(100, 200, "bb"), Stretch(200, 300, "cc")]


@pytest.mark.parametrize(
    ("head", "row", "problem"),
    [
        (Head(300, "cc"), ROW, None),
        (Head(200, "bb"), ROW, None),
        (Head(200, "xx"), ROW, "another digest at position 200"),
        (Head(400, "dd"), ROW, "ends at position 300; the audit saw it sealed up to 400"),
        (Head(100, "aa"), ROW[1:], None),  # retention
        (Head(100, "aa"), [Stretch(0, 200, "bb")], None),  # compaction
        (Head(150, "aa"), [ROW[0], Stretch(150, 300, "cc")], "no segment that ends at"),
        (Head(100, "aa"), [], "the audit saw it sealed up to 100"),
    ],
)
def test_a_head_and_a_history(head: Head, row: list[Stretch], problem: str | None) -> None:
    found = fault_of("web", head, row, row[-1].end if row else 0)
    assert (found is None) if problem is None else (found is not None and problem in found)


def test_compacted_segments_that_the_audit_did_not_see() -> None:
    row = [Stretch(0, 100, "aa", "own"), Stretch(100, 200, "bb")]
    assert unseen("web", row, {0: "own"}) == []
    for seen in ({}, {0: "other"}):
        (problem,) = unseen("web", row, seen)
        assert "the compacted segment at position 0 of group web" in problem


class Noted:
    """A recorder over the histories that `segments` holds."""

    def __init__(self, folder: Path) -> None:
        self._segments: dict[str, list[Segment]] = {}
        self.now_ns = DAY_NS * 1000
        self.catalog = Catalog.open(folder / "catalog.db")
        self.folder = folder
        self.recorder = self.start()

    def start(self) -> Recorder:
        self.watch = HistoryWatch(STORAGE)
        self.look_at(self._segments)
        audit = self.folder / "audit"
        return Recorder(STORAGE, audit, self.catalog, lambda: self.now_ns, self.watch)

    def look_at(self, segments: dict[str, list[Segment]]) -> None:
        self._segments = segments
        for group, each in segments.items():
            self.watch.read(group, each)

    def seen(self) -> list[Seen]:
        entries = read_entries(STORAGE, self.folder / "audit")
        return [Seen(entry.heads, entry.rewritten) for entry in entries]


def test_heads_are_noted_with_orders_and_once_a_day(tmp_path: Path) -> None:
    noted = Noted(tmp_path)
    with closing(noted.catalog), closing(noted.recorder) as recorder:
        one = Segment(0, 100, 100, tmp_path / "x", 0, b"\xaa", 1, sealed=True)
        two = Segment(100, 200, 200, tmp_path / "y", 0, b"\xbb", 1, sealed=True)
        noted.look_at({"web": [one]})
        recorder.note_heads()
        recorder.note_heads()
        assert noted.seen() == [Seen({"web": Head(100, "aa")})]
        noted.look_at({"web": [one, two]})
        recorder.note_heads()  # not a day later
        recorder.record(Fact("rollback"))
        recorder.record(Fact("rollback"))
        assert noted.seen()[1:] == [Seen({"web": Head(200, "bb")}), Seen()]
        noted.look_at({"web": [two]})
        noted.now_ns += DAY_NS
        recorder.note_heads()
        assert len(noted.seen()) == 3  # nothing new
        noted.look_at({"web": [two], "db": [one]})
        recorder.note_heads()
        noted.now_ns += DAY_NS
        recorder.note_heads()
        assert noted.seen()[3:] == [Seen({"db": Head(100, "aa")})]


def test_what_was_seen_of_a_group_that_was_forgotten_counts_no_more(tmp_path: Path) -> None:
    noted = Noted(tmp_path)
    one = Segment(0, 100, 100, tmp_path / "x", 0, b"\xaa", 1, sealed=True)

    def seen() -> dict[str, Head]:
        return newest_heads(read_entries(STORAGE, tmp_path / "audit"))

    with closing(noted.catalog), closing(noted.recorder) as recorder:
        noted.look_at({"web": [one], "db": [one]})
        recorder.note_heads()
        for outcome, argument in (
            ("started", '{"confirm":"web"}'),
            ("owned", '{"confirm":"web"}'),
            ("done", '{"dry_run": true}'),
        ):
            recorder.record(Fact(FORGET.audit, "web", argument, outcome=outcome))
            assert set(seen()) == {"web", "db"}
        noted.watch.forget("web")
        recorder.record(Fact(FORGET.audit, "web", '{"confirm":"web"}', outcome="done"))
        assert set(seen()) == {"db"}
        assert set(newest_seen(read_entries(STORAGE, tmp_path / "audit"))[0]) == {"db"}
        noted.look_at({"web": [one]})  # its next life may look the same
        recorder.record(Fact("rollback"))
        assert set(seen()) == {"web", "db"}


def sealed_segments(bare: BareHistory) -> list[Segment]:
    return bare.world.group.history.segment_set.sealed


def test_what_a_compaction_made_is_noted_at_once_and_only_once(tmp_path: Path) -> None:
    bare = BareHistory(tmp_path / "data" / "groups", COMPACTED)
    noted = Noted(tmp_path / "data")
    _, reports = bare.verify()
    made = {each.first: each.digest.hex() for each in reports if each.digest != each.linked}
    assert made
    with closing(noted.recorder) as recorder:
        recorder.note_heads()
        at_hand = {each.first: path for each, path in zip(reports, bare.segments, strict=True)}
        segments = [
            Segment(
                *(each.first, each.end, each.data_end, at_hand[each.first]),
                *(each.chain, each.digest, each.size_bytes),
                sealed=True,
            )
            for each in sealed_segments(bare)
        ]
        noted.look_at({"g": segments})
        recorder.note_heads()
        assert noted.seen()[-1].rewritten == {"g": made}
        count = len(noted.seen())
        recorder.note_heads()
        recorder.record(Fact("rollback"))
        assert [seen.rewritten for seen in noted.seen()[count:]] == [{}]
    with closing(noted.start()) as again:
        assert again.verify(again.stretches()).faults == []
        again.record(Fact("rollback"))
        assert noted.seen()[-1].rewritten == {}
    noted.catalog.close()
    report = check_audit(STORAGE, tmp_path / "data")
    assert report is not None
    assert check_heads(report, "g", reports, reports[-1].stands_until) == []


def test_a_compacted_segment_that_was_made_anew_shows_in_the_audit(tmp_path: Path) -> None:
    bare = BareHistory(tmp_path / "data" / "groups", COMPACTED)
    _, reports = bare.verify()
    (made, *_) = [each for each in reports if each.digest != each.linked]
    log = open_audit(STORAGE, tmp_path / "data" / "audit", lambda: 1)
    log.append(Fact("history heads"), Seen({}, {"g": {made.first: made.digest.hex()}}))
    log.close()
    report = check_audit(STORAGE, tmp_path / "data")
    assert report is not None
    assert check_heads(report, "g", reports, reports[-1].stands_until) == []
    made.digest = b"\0" * 32  # as after a change with a seal that fits it
    (problem,) = check_heads(report, "g", reports, reports[-1].stands_until)
    assert "is not one that the audit saw" in problem
