# SPDX-License-Identifier: Apache-2.0
"""`journal inspect` puts a history into words, damaged or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from journal.dump import inspect_path
from journal.record import NO_DISK, Record, RecordType
from receiver.history import bodies
from receiver.offline.words import describe_record
from replicator.cli.main import run
from tests.offline.copies import COMPACTED, LONG, SEEDS, BareHistory
from tests.offline.test_verify import images_of

LINE_CHARS = 1500


def inspected(path: Path) -> list[str]:
    return list(inspect_path(path, describe_record))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_record_of_any_history_has_its_words(tmp_path: Path, seed: int) -> None:
    bare = BareHistory(tmp_path, seed)
    lines = inspected(bare.place.directory)
    text = "\n".join(lines)
    _, reports = bare.verify()
    assert text.count(" is whole") == sum(report.batches for report in reports)
    assert text.count("state in front of batch") == len(bare.segments)
    for point in bare.world.group.points.all:
        assert f"point #{point.sequence} " in text
    assert "nothing holds" not in text
    assert "does not lead here" not in text
    assert "no msgpack" not in text
    assert max(map(len, lines)) < LINE_CHARS


def test_what_a_batch_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = BareHistory(tmp_path, LONG)
    assert run(["journal", "inspect", str(bare.group_dir)]) == 0
    out = capsys.readouterr().out
    assert "state in front of batch 1; generation 1, next point #1; disks: none" in out
    assert "disks: a (slot 0, 36.5 KiB, complete), b (slot 1, 24 KiB, complete)" in out
    assert "(crash): a, b" in out
    assert "point #8 'mark 7' of 2026-" in out
    assert "batch 2 is in the replica" in out
    assert "(mark), stream 1" in out
    assert "(before-rollback)" in out
    assert ", packed, " in out


def test_a_compacted_segment_says_what_it_stands_for(tmp_path: Path) -> None:
    bare = BareHistory(tmp_path, COMPACTED)
    text = "\n".join(inspected(bare.group_dir))
    assert "compacted: stands for all up to position" in text
    assert "points given up: #2" in text or "batch 8 (log)" in text


def test_behind_a_fault_it_goes_on(tmp_path: Path) -> None:
    bare = BareHistory(tmp_path, LONG)
    whole = inspected(bare.group_dir)
    path = bare.segments[1]
    content = bytearray(path.read_bytes())
    offset, size = images_of(bytes(content))[3]
    content[offset] ^= 1
    path.write_bytes(content)
    lines = inspected(bare.group_dir)
    text = "\n".join(lines)
    assert f"(file offset {offset - 64}, " in text
    assert f"{size + 64} bytes that cannot be read" in text
    assert "the seal is that of these entries" in text
    records = [line for line in whole if " image of " in line or " is whole" in line]
    assert len([line for line in records if line not in lines]) == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_damage_makes_it_fail(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    bare = BareHistory(tmp_path_factory.mktemp("bare"), data.draw(st.sampled_from(SEEDS)))
    path = data.draw(st.sampled_from(bare.segments))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path.write_bytes(content)
    lines = inspected(bare.group_dir)
    assert any(str(path) in line for line in lines)
    assert max(map(len, lines)) < LINE_CHARS


def test_long_lists_and_strange_texts_are_shortened_and_quoted() -> None:
    dropped = bodies.PointsDropped(9, list(range(1, 5000)))
    record = Record(RecordType.POINTS_DROPPED, NO_DISK, 0, 0, 0, 1, bodies.encode(dropped))
    assert describe_record(record).endswith(
        "points given up: #1, #2, #3, #4, #5, #6, #7, #8 and 4991 more"
    )
    disk = bodies.DiskBody(0, "\x1b[2J" * 99, "i", 4096, None, False, True, False, 0)
    group = bodies.GroupBody(b"", 1, 2, 0, 1, 1, 1, 0, 0, 0, False, [disk] * 3000, {})
    state = bodies.StateBody(0, 1, group, {})
    record = Record(RecordType.STATE, NO_DISK, 0, 0, 0, 1, bodies.encode(state))
    text = describe_record(record)
    assert "\x1b" not in text
    assert "and 2992 more" in text
    assert len(text) < LINE_CHARS
