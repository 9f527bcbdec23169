# SPDX-License-Identifier: Apache-2.0
"""Small workloads, a crash before every single storage call of them, both kinds of crash.

And once more during the recovery from each, before every storage call of that (on one kind)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from receiver.history import writer
from receiver.points.policy import HistoryPolicy, Rule
from replicator.base.clock import NS_PER_S
from tests.receiver.source import noise
from tests.receiver.world import World
from tests.world.storage import Stopped

Workload = Callable[[World], None]


def started(seed: int) -> World:
    """Two points, applied."""
    world = World(seed=seed)
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"1" * 8192)
    world.write("b", 512, b"1" * 1024)
    world.cut("one")
    world.settle()
    world.write("a", 4096, b"2" * 512)
    world.cut()
    world.settle()
    return world


def write_cut_apply(world: World) -> None:
    world.write("a", 512, b"3" * 4096)
    world.zero("b", 0, 4096)
    world.write("b", 8192, b"3" * 512)
    world.cut("three")
    world.ship_all()
    world.apply_all()


def two_batches(world: World) -> None:
    """The second begins before anything says that the first is applied."""
    for value in (b"4", b"5"):
        world.write("a", 0, value * 4096)
        world.cut()
    world.ship_all()
    world.apply_all()


def roll_back(world: World) -> None:
    world.write("b", 0, b"6" * 512)
    world.cut()
    world.ship_all()
    world.rollback(1)


def roll_back_and_undo(world: World) -> None:
    world.rollback(1)
    world.rollback(3)


def resync(world: World) -> None:
    """What the guest wrote meanwhile went unseen; part of it became zero."""
    world.guest["a"][0:4096] = bytes(4096)
    world.guest["b"][4096:8192] = b"7" * 4096
    world.begin_stream(from_zero=False)
    for name in ("a", "b"):
        world.sync_all(name)
    world.cut("synced")
    world.ship_all()
    world.apply_all()


def retain(world: World) -> None:
    for value in (b"1", b"2", b"3", b"4"):
        world.write("a", 0, value * 20_000)
        world.cut("kept" if value == b"2" else None)
        world.settle()
    world.retain(40_000)


def thin_and_tidy(world: World) -> None:
    for value in range(3, 9):
        world.write("a", 0, noise(value, 20_000))
        world.cut()
        world.settle()
    world.give_up([4, 5, 7])
    world.tidy(50)


def age_out(world: World) -> None:
    """More than what one record says."""
    for value in range(3, 9):
        world.write("a", 0, noise(value, 512))
        world.cut()
        world.settle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "DROPPED_TOGETHER", 2)
        world.age(HistoryPolicy(1 << 40, (Rule(0, 60 * NS_PER_S),)), 600 * NS_PER_S)
    assert len(world.group.points.all) < 4


def resize(world: World) -> None:
    """And back to the first size; then nobody needs the images before."""
    for size in (11 * 4096, 9 * 4096 + 512):
        world.resize("a", size, in_stream=True)
        world.sync_all("a")
        world.cut()
        world.ship_all()
        world.apply_all()
    world.give_up([1, 2, 3])
    world.tidy(50)


WORKLOADS: list[Workload] = [
    write_cut_apply,
    two_batches,
    roll_back,
    roll_back_and_undo,
    resync,
    retain,
    thin_and_tidy,
    age_out,
    resize,
]


def run_stopped(workload: Workload, at: int, *, seed: int) -> tuple[World, bool]:
    """(the world, whether it died before the workload was done)."""
    world = started(seed)
    world.storage.stop_at(at)
    try:
        workload(world)
    except Stopped:
        return world, True
    world.storage.heal()
    return world, False


def go_on(world: World) -> None:
    """After any crash the group must still be good for all there is to do."""
    world.finish_rollback()
    world.check()
    world.apply_all()
    world.check()
    if world.is_source_dead:
        world.begin_stream(from_zero=False)
    for name, disk in world.plain.disks.items():
        if disk.syncing:
            world.sync_all(name)
    world.write("a", 1024, b"9" * 512)
    world.cut("after")
    world.settle()
    world.check()
    assert world.group.points.newest is not None
    assert world.group.points.newest.label == "after"


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.__name__)
def test_crash_before_every_call(workload: Workload, power: bool) -> None:
    at = 1
    while True:
        world, died = run_stopped(workload, at, seed=at)
        if not died:
            break
        world.crash(power=power)
        go_on(world)
        at += 1
    assert at > 10


@pytest.mark.parametrize("workload", [write_cut_apply, roll_back], ids=lambda each: each.__name__)
def test_crash_in_recovery_from_every_crash(workload: Workload) -> None:
    at = 1
    while True:
        world, died = run_stopped(workload, at, seed=at)
        if not died:
            break
        for again in range(1, 12):
            world, _ = run_stopped(workload, at, seed=at * 100 + again)
            world.crash(power=bool(again % 2), recover_stop=again)
            go_on(world)
        at += 1
