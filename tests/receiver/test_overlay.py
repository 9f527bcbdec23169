# SPDX-License-Identifier: Apache-2.0
"""The overlay of a writable view: equal to a plain disk that is written to, and never beyond its
budget."""

from __future__ import annotations

import errno
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.blocks.holes import Extents
from receiver.views.overlay import Overlay, OverlayBudget
from replicator.base.errors import NoSpaceError
from replicator.base.storage import SystemStorage
from tests.receiver.content_extents import check_extents, extents_of
from tests.world.faults import Failure
from tests.world.storage import SimStorage

SIZE = 12 * 4096 + 700
PLENTY = 1 << 40
FILE = Path("/overlay/vda")


class Point:
    """A disk as of a point, which nobody may write to."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.content)
        return self.content[offset : offset + length]

    def extents(self, offset: int, length: int) -> Extents:
        return extents_of(self.content, offset, length)


def budget(max_bytes: int = PLENTY, free: int = PLENTY, reserve: int = 0) -> OverlayBudget:
    return OverlayBudget(max_bytes, lambda: free, reserve_bytes=reserve)


def overlay_of(content: bytes, within: OverlayBudget, storage: SimStorage | None = None) -> Overlay:
    storage = storage or SimStorage()
    storage.make_directory(FILE.parent)
    return Overlay(Point(content), len(content), storage.create(FILE), within)


RANGES = st.integers(0, SIZE - 1).flatmap(
    lambda start: st.tuples(st.just(start), st.integers(1, SIZE - start))
)
STEPS = st.lists(st.tuples(st.sampled_from(["write", "zero", "read"]), RANGES), max_size=30)


@given(STEPS, st.integers(0, 1000))
def test_it_is_a_disk_that_begins_as_the_point(
    steps: list[tuple[str, tuple[int, int]]], seed: int
) -> None:
    chance = random.Random(seed)
    content = chance.randbytes(SIZE)
    model = bytearray(content)
    kept = budget()
    overlay = overlay_of(content, kept)
    for what, (offset, length) in steps:
        if what == "write":
            data = chance.randbytes(length)
            overlay.write(offset, memoryview(data))
            model[offset : offset + length] = data
        elif what == "zero":
            overlay.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        assert overlay.read(offset, length) == model[offset : offset + length]
        assert 0 <= kept.used_bytes <= 13 * 4096
    assert overlay.read(0, SIZE) == model
    check_extents(overlay.extents, bytes(model))
    overlay.zero(0, SIZE)
    assert kept.used_bytes == 0
    overlay.close()


def test_a_full_overlay_refuses_a_write_and_has_changed_nothing() -> None:
    content = random.Random(1).randbytes(SIZE)
    overlay = overlay_of(content, budget(max_bytes=2 * 4096))
    overlay.write(4096, b"a" * 4096)
    with pytest.raises(NoSpaceError, match="may take 8 KiB"):
        overlay.write(8192, b"b" * 4097)
    assert overlay.read(8192, 8192) == content[8192:16384]
    overlay.write(4096, b"c" * 8192)
    overlay.zero(4096, 4096)
    overlay.write(20_000, b"d")
    assert overlay.read(4096, 8192) == bytes(4096) + b"c" * 4096


def test_a_disk_without_room_refuses_before_the_receiver_suffers() -> None:
    overlay = overlay_of(bytes(SIZE), budget(free=3 * 4096, reserve=2 * 4096))
    overlay.write(0, b"x" * 4096)
    with pytest.raises(NoSpaceError, match="the receiver's disk"):
        overlay.write(4096, b"x" * 8192)
    assert overlay.read(4096, 8192) == bytes(8192)


def test_a_write_that_fails_has_taken_nothing_from_the_budget() -> None:
    storage, kept = SimStorage(), budget()
    overlay = overlay_of(b"p" * SIZE, kept, storage)
    storage.plan(Failure(frozenset(["pwritev"]), 1, errno.ENOSPC))
    with pytest.raises(OSError, match=r"."):
        overlay.write(100, b"x" * 5000)
    assert kept.used_bytes == 0
    assert overlay.read(0, SIZE) == b"p" * SIZE


def test_what_a_failed_write_left_in_the_file_is_never_seen() -> None:
    storage = SimStorage()
    overlay = overlay_of(b"p" * SIZE, budget(), storage)
    storage.plan(
        Failure(frozenset(["pwritev"]), 1, errno.EIO, written=5000),
        Failure(frozenset(["pwritev"]), 1, errno.EIO),
    )
    with pytest.raises(OSError, match=r"."):
        overlay.write(0, b"x" * 8192)
    overlay.zero(0, 4096)
    overlay.write(10, b"y")
    assert overlay.read(0, 8192) == bytes(10) + b"y" + bytes(4085) + b"p" * 4096


def test_many_threads_see_each_other_and_lose_nothing(tmp_path: Path) -> None:
    """Neighbours within a block, each written by a thread of its own, over and over."""
    content = random.Random(2).randbytes(64 * 4096)
    file = SystemStorage().create(tmp_path / "vda")
    overlay = Overlay(Point(content), len(content), file, budget())
    width = 1000
    wrong: list[tuple[int, int]] = []

    def work(lane: int) -> None:
        chance = random.Random(lane)
        mine = {}
        for _ in range(300):
            offset = chance.randrange(64) * 4096 + lane * width
            data = chance.randbytes(width) if chance.random() < 0.8 else bytes(width)
            if any(data):
                overlay.write(offset, data)
            else:
                overlay.zero(offset, width)
            mine[offset] = data
            probe, expected = chance.choice(list(mine.items()))
            if overlay.read(probe, width) != expected:
                wrong.append((lane, probe))

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    overlay.close()
