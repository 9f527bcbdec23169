# SPDX-License-Identifier: Apache-2.0
"""One random life of a group, named by its seed: the same every time."""

from __future__ import annotations

from random import Random

from receiver.group.group import GroupReplica
from tests.receiver import actions
from tests.receiver.world import SMALL, Factory, World

FINE_NS = (0, 20 * 1_000_000_000, 3600 * 1_000_000_000)


def live(
    seed: int, *, steps: int = 45, factory: Factory = GroupReplica, resizes: bool = False
) -> World:
    """`resizes`: disks grow and shrink; a life without is the same as before they could. Raises
    AssertionError, or whatever a broken core raises, where a promise is broken."""
    rng = Random(seed)
    draw = actions.rng_draw(rng)
    world = World(seed=seed, limits=SMALL, factory=factory, fine_ns=FINE_NS[seed % 3])
    world.has_exact_holes = True
    actions.start(world, draw)
    names = [name for name in actions.ACTIONS if resizes or name != "resize"]
    weights = [actions.ACTIONS[name][0] for name in names]
    for _ in range(steps):
        (name,) = rng.choices(names, weights)
        fate = rng.randrange(12)
        if fate == 0:
            actions.crash_in(world, name, draw)
        elif fate == 1:
            actions.fail_in(world, name, draw)
        else:
            actions.perform(world, name, draw)
        if rng.randrange(3) == 0:
            world.check()
    world.finish_rollback()
    world.apply_all()
    world.check()
    return world
