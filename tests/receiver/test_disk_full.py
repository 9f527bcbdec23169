# SPDX-License-Identifier: Apache-2.0
"""The disk is full from one storage call on, whichever it is, until there is room again.

Nothing that was promised is lost meanwhile, and afterwards everything goes on; the same with a kill
while it is full."""

from __future__ import annotations

import errno

import pytest

from replicator.base.errors import NoSpaceError
from tests.receiver.test_crash_points import WORKLOADS, Workload, go_on, started
from tests.receiver.world import World
from tests.world.faults import Failure

NEEDS_ROOM = frozenset(["create", "pwritev", "make_directory"])


def run_full(workload: Workload, nth: int) -> tuple[World, bool]:
    """(the world, whether the disk was full before the workload was done)."""
    world = started(nth)
    full = Failure(NEEDS_ROOM, nth, errno.ENOSPC, forever=True)
    world.storage.plan(full)
    try:
        workload(world)
    except NoSpaceError:
        pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return world, full.seen >= nth


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_full_from_any_call_on(workload: Workload) -> None:
    nth = 1
    while True:
        world, was_full = run_full(workload, nth)
        if not was_full:
            break
        world.check_views_of_points()
        world.storage.heal()
        world.after_mishap()
        go_on(world)
        nth += 1
    assert nth > 5


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_killed_while_it_is_full(workload: Workload, power: bool) -> None:
    nth = 1
    while True:
        world, was_full = run_full(workload, nth)
        if not was_full:
            break
        world.storage.heal()
        world.crash(power=power)
        go_on(world)
        nth += 1
