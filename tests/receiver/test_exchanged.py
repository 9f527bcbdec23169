# SPDX-License-Identifier: Apache-2.0
"""Random lives with folders put back or taken away: never a false point."""

from __future__ import annotations

from random import Random

import pytest

from receiver.opening.opening import ignore_progress
from replicator.base.errors import DamageError
from tests.receiver import actions
from tests.receiver.history_of_seed import FINE_NS
from tests.receiver.side_by_side import FOLDERS, Group
from tests.receiver.world import SMALL, World

LIVES = 60
ONCE_FALSE = (779, 938, 1022, 2132)
"""A history shorter by the batch being applied, with no inbox; replica and sums as old as each
other, and a history that had let go of more since (twice); as the first, with an older inbox."""
QUIET = (
    "roll_back",
    "roll_back_to_write",
    "open_view",
    "close_view",
    "look_at_writes",
)
"""What needs a source that knows what became of it, or a view that outlives the exchange."""


class Exchanged(Group):
    """A random life, remembered at one moment in it."""

    def __init__(self, seed: int, *, resizes: bool) -> None:
        rng = Random(seed)
        self.rng = rng
        self.flavour = 0
        self.gone = {}
        self.done = []
        self.world = World(seed=seed, limits=SMALL, fine_ns=FINE_NS[seed % 3])
        self._remember_gone()
        draw = actions.rng_draw(rng)
        actions.start(self.world, draw)
        quiet = QUIET if resizes else (*QUIET, "resize")
        names = [name for name in actions.ACTIONS if name not in quiet]
        weights = [actions.ACTIONS[name][0] for name in names]
        moment = rng.randrange(15, 40)
        for step in range(50):
            (name,) = rng.choices(names, weights)
            actions.perform(self.world, name, draw)
            if step == moment:
                self.then = self.folders()
        self.now = self.folders()
        self.highest = max(self.world.announced, default=0)

    def exchange(self) -> list[str]:
        """Some folders; what was done to which."""
        done = self.done
        self.stop()
        for folder in FOLDERS:
            fate = self.rng.randrange(6)
            if fate == 0:
                self.remove(folder)
                done.append(f"{folder} removed")
            elif fate in (1, 2):
                self.put_back(folder, self.then[folder], in_place=fate == 2)
                done.append(f"{folder} {'set' if fate == 2 else 'put'} back")
        return done


LIVES_OF = [
    *((seed, False) for seed in (*range(LIVES), *ONCE_FALSE)),
    *((seed, True) for seed in range(LIVES // 2)),
]


@pytest.mark.parametrize(("seed", "resizes"), LIVES_OF)
def test_whatever_is_exchanged_no_point_is_false(seed: int, *, resizes: bool) -> None:
    group = Exchanged(seed, resizes=resizes)
    done = group.exchange()
    try:
        try:
            group.open()
        except DamageError:
            if not group.world.group.opening.stopped.stops:
                return  # a part by itself: a history with a hole, a torn inbox
            group.world.group.accept_loss(ignore_progress)
        group.world.finish_rollback()
        group.check()
        group.open()
        group.served()
    except Exception as error:
        raise AssertionError(f"{', '.join(done)}: {error!r}") from error
