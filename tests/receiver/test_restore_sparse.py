# SPDX-License-Identifier: Apache-2.0
"""A large disk with little in it costs what is in it: on a real filesystem, by what is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.restore.restore import RestoreOrder, restore_view
from receiver.views.point_view import PointView
from replicator.base.errors import DamageError
from replicator.base.storage import SystemFile
from replicator.base.units import GIB, MIB
from tests.bench.history_feed import Feed, fed

SIZE = 4096 * GIB + 700
PLACES = (0, 3 * GIB - 4096, 1025 * GIB + 4096, SIZE - 700)
LENGTH = 256 * 1024


@pytest.fixture
def feed() -> Iterator[Feed]:
    with fed(SIZE) as feed:
        for place in PLACES:
            feed.write(place, min(LENGTH, SIZE - place))
        feed.cut()
        feed.acknowledge()
        feed.apply_all()
        yield feed


def data_bytes() -> int:
    return sum(min(LENGTH, SIZE - place) for place in PLACES)


def test_a_restore_reads_and_writes_what_is_there(
    feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = feed.group.points.newest
    assert point is not None
    view = feed.group.showing.view(point.sequence)
    told: list[int] = []
    reads = count_reads(monkeypatch)
    target = tmp_path / "restored"
    restore_view(view, target, lambda done, _total: told.append(done), RestoreOrder("g"))
    read = sum(reads)
    assert read < 4 * data_bytes(), "by the view, and when it is read back"
    assert told[-1] == SIZE
    assert len(told) < 1000
    image = target / "disk.raw"
    assert image.stat().st_size == SIZE
    assert image.stat().st_blocks * 512 < 4 * MIB
    with image.open("rb") as file:
        for place in PLACES:
            file.seek(place)
            length = min(LENGTH, SIZE - place)
            assert file.read(length) == view.read("disk", place, length)
    view.close()


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    reads: list[int] = []
    pread = SystemFile.pread

    def counted(file: SystemFile, size: int, offset: int) -> bytes:
        data = pread(file, size, offset)
        if file.path.suffix in (".raw", ".partial"):
            reads.append(len(data))
        return data

    monkeypatch.setattr(SystemFile, "pread", counted)
    return reads


def test_a_verified_image_that_lost_a_piece_or_gained_one_is_refused(
    feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holes are not read, but they are judged."""
    for number, spoil in enumerate((punched, written_to)):
        view = view_of(feed)
        monkeypatch.setattr("receiver.restore.restore.drop_cache", lambda *_args: None)
        monkeypatch.setattr(
            "receiver.restore.image.drop_cache", lambda _storage, path, spoil=spoil: spoil(path)
        )
        with pytest.raises(DamageError, match="are not what was written there"):
            restore_view(view, tmp_path / str(number), lambda *_: None, RestoreOrder("g"))
        view.close()


def view_of(feed: Feed) -> PointView:
    point = feed.group.points.newest
    assert point is not None
    return feed.group.showing.view(point.sequence)


def punched(path: Path) -> None:
    with path.open("r+b") as file:
        SystemFile(path, file.fileno()).punch(1025 * GIB + 8192, 4096)


def written_to(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2222 * GIB)
        file.write(b"x")


def test_a_scrub_reads_what_is_there(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(monkeypatch)
    steps = scrubbed(feed)
    assert sum(reads) < 2 * data_bytes()
    assert steps < 2000
    state = feed.group.scrub.state
    assert state.replica_bytes == SIZE
    assert not state.bad
    assert not state.unverified_bytes


def test_a_scrub_judges_the_holes_that_it_does_not_read(feed: Feed) -> None:
    punched(feed.replica_path)
    scrubbed(feed)
    (bad,) = feed.group.scrub.state.bad
    assert (bad.block_offset, bad.length, bad.healed) == (1025 * GIB + 8192, 4096, False)


def scrubbed(feed: Feed) -> int:
    task = feed.group.scrub
    task.begin()
    steps = 0
    while task.state.is_running:
        steps += 1
        segment = task.step()
        if segment is not None:
            task.take_segment(segment, task.read_segment(segment))
    return steps
