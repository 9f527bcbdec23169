# SPDX-License-Identifier: Apache-2.0
"""Histories that a simulated world has lived, as files that a test can do anything to."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

from receiver.check.places import HistoryPlace, find_histories
from receiver.check.verify import HistoryVerification, SegmentReport
from replicator.base.storage import SystemStorage
from tests.receiver.history_of_seed import live
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World

LONG = -1
"""Not a seed: a quiet life of several segments, a rollback in the middle."""
COMPACTED = -2
"""The same, with unlabelled points given up, and what lies between the others merged."""
SEEDS = (LONG, COMPACTED, 5, 9, 26, 28, 29)


@cache
def lived(seed: int) -> World:
    """Not to be changed."""
    if seed not in (LONG, COMPACTED):
        return live(seed)
    world = _long()
    if seed == COMPACTED:
        world.give_up([each.sequence for each in world.group.points.all[:50] if not each.label])
        for _ in range(200):
            world.tidy(6)
        world.check()
    return world


def _long() -> World:
    world = World(limits=SMALL)
    world.begin_stream(from_zero=True)
    for value in range(60):
        world.write("a", value % 3 * 4096, noise(value, 4096))
        world.write("b", value % 5 * 4096, bytes([value]) * 8192)
        world.cut(f"mark {value}" if value % 7 == 0 else None)
        world.settle()
    world.rollback(40)
    world.finish_rollback()
    world.check()
    return world


def export(world: World, group_dir: Path, source: Path = GROUP_DIRECTORY) -> None:
    """Everything that the world's disk holds of its group, but for sockets."""
    group_dir.mkdir(parents=True, exist_ok=True)
    for name in world.storage.names(source):
        try:
            file = world.storage.open(source / name)
        except IsADirectoryError:
            export(world, group_dir / name, source / name)
            continue
        (group_dir / name).write_bytes(file.pread(file.size(), 0))
        file.close()


class BareHistory:
    """A group's directory in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.world = lived(seed)
        self.group_dir = folder / "g"
        shutil.rmtree(self.group_dir, ignore_errors=True)
        export(self.world, self.group_dir)

    @property
    def place(self) -> HistoryPlace:
        (place,) = find_histories(SystemStorage(), self.group_dir)
        return place

    @property
    def segments(self) -> list[Path]:
        return [segment.path for segment in self.place.segments(SystemStorage())]

    def verify(self) -> tuple[HistoryVerification, list[SegmentReport]]:
        verification = HistoryVerification(SystemStorage(), self.place)
        return verification, list(verification.run())

    def faults(self) -> list[str]:
        verification, _ = self.verify()
        return [str(fault) for fault in verification.faults]
