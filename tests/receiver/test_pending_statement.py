# SPDX-License-Identifier: Apache-2.0
"""History that is let go of while a batch is begun and not applied: the next opening takes nothing
for damaged that is as it should be."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from receiver.fitting.applied import NAME
from tests.receiver.source import noise
from tests.receiver.world import GROUP_DIRECTORY, SMALL, World
from tests.world.faults import Failure

DISKS = GROUP_DIRECTORY / "disks"
STATEMENT = DISKS / NAME
IMAGE = DISKS / "a.raw"
WRITES = frozenset(["pwritev"])
BEFORE = 8


def with_a_batch_begun(*, failing: Path) -> World:
    """Some batches that no point needs, and one behind them that cannot be applied, as nothing can
    be written to `failing`."""
    world = World(limits=replace(SMALL, history_segment_bytes=6_000))
    world.begin_stream(from_zero=True)
    for number in range(BEFORE):
        write(world, number)
        world.ship_all()
        world.apply()  # and no more: what it holds is stated with the next batch, or at rest
    write(world, BEFORE)
    world.cut()
    world.ship_all()
    fail(world, failing)
    assert world.group.history.batch_list.unapplied is not None
    return world


def write(world: World, number: int) -> None:
    world.write("a", number % 3 * 4096, noise(number, 2 * 4096))


def fail(world: World, failing: Path) -> None:
    world.storage.plan(Failure(WRITES, 1, errno.EIO, forever=True, under=failing))
    with pytest.raises(OSError, match="Input/output"):
        world.apply_all()
    world.storage.heal()


def let_go(world: World) -> None:
    """Of all that no point needs."""
    while world.group.tidy():
        pass
    history = world.group.history
    assert history.batch_list.all == [history.batch_list.unapplied]


def opens_in_silence(world: World) -> None:
    world.events.clear()
    world.crash(power=True)
    told = {event.name for event in world.events}
    assert not told & {"group.mended", "replica.older", "replica.unverified"}, told
    assert not world.group.known.damage


@pytest.mark.parametrize("failing", [IMAGE, STATEMENT], ids=["image", "statement"])
@pytest.mark.parametrize("restarts", range(3))
def test_what_went_while_a_batch_was_begun_is_no_damage(failing: Path, restarts: int) -> None:
    world = with_a_batch_begun(failing=failing)
    for _ in range(restarts):
        opens_in_silence(world)
        fail(world, IMAGE)
    let_go(world)
    opens_in_silence(world)
    world.settle()
    world.check()
