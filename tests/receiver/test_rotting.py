# SPDX-License-Identifier: Apache-2.0
"""Random lives in which the replica rots at any time. (One rule each: test_old_content.)"""

from __future__ import annotations

from random import Random

import pytest

from receiver.damage.damage import in_replica
from replicator.base.errors import DamageError
from tests.receiver import actions
from tests.receiver.source import noise
from tests.receiver.test_scrub import at_the_source_again, scrub
from tests.receiver.world import World


@pytest.mark.parametrize("block", range(4))
def test_random_lives_with_rot(block: int) -> None:
    """Whatever rots at any time: what a batch has touched is served right, or refused."""
    for seed in range(block * 30, (block + 1) * 30):
        try:
            rotting(seed)
        except Exception as error:
            raise AssertionError(f"rotting({seed}): {error}") from error


def rotting(seed: int, *, steps: int = 60) -> None:
    rng = Random(seed)
    draw = actions.rng_draw(rng)
    world = World(seed=seed)
    actions.start(world, draw)
    names = ["guest_writes", "cut", "settle", "apply", "give_up", "tidy", "finish_sync", "retain"]
    for _ in range(steps):
        if rng.randrange(6) == 0:
            world.rot(rng)
        name = rng.choice(["crash", "scrub", "new_stream", "roll_back", *names * 3])
        if name == "crash":
            actions.crash(world, draw)
            read_back(world)
        elif name == "scrub":
            world.apply_all()
            scrub(world)
        elif name == "roll_back":
            with_damage(world, draw)
        else:
            actions.perform(world, name, draw)
        world.check()
    at_the_source_again(world)
    for disk, size in world.disks:
        world.write(disk, 0, noise(seed, size))
    world.cut()
    world.settle()
    world.check()
    assert world.group.points.all[-1].sequence not in world.group.known.damaged_points()
    assert not in_replica(world.group.known.damage)
    scrub(world)
    world.check()


def read_back(world: World) -> None:
    """What an opening doubts, since what was written last has rotted, is scrubbed at once."""
    if world.group.opening.unverified:
        world.apply_all()
        scrub(world)
        assert not world.group.opening.unverified


def with_damage(world: World, draw: actions.Draw) -> None:
    """A rollback to a point that is damaged is refused."""
    try:
        actions.roll_back(world, draw)
    except DamageError:
        world.not_rolled_back()
