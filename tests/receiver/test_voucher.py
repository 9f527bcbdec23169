# SPDX-License-Identifier: Apache-2.0
"""`disks/applied`: what it says, when it is durable, and what a torn slot of it means."""

from __future__ import annotations

import errno
from uuid import UUID

import pytest

from receiver.fitting.applied import SLOT_BYTES, AppliedSlots, pack, unpack
from receiver.points.evidence import Applied
from receiver.tasks.beside import InTurn
from replicator.base.storage import write_all
from tests.receiver.world import GROUP_DIRECTORY, World
from tests.world.faults import Failure
from tests.world.storage import SimStorage, Stopped

PATH = GROUP_DIRECTORY / "disks" / "applied"


def statement(number: int) -> Applied:
    return Applied(UUID(int=7), number, 1000 * number, 77 * number, number + 1, 1, {"a": 12})


def slots(storage: SimStorage) -> AppliedSlots:
    storage.make_directory(PATH.parent)
    made = AppliedSlots(storage, PATH, InTurn())
    made.open()
    return made


def test_what_is_packed_comes_back_and_nothing_else_does() -> None:
    packed = pack(statement(3), 9)
    assert unpack(packed.ljust(SLOT_BYTES, b"\0")) == (9, statement(3))
    for at in range(len(packed)):
        changed = bytearray(packed)
        changed[at] ^= 1
        assert unpack(bytes(changed)) is None, at
    for size in range(len(packed)):
        assert unpack(packed[:size]) is None


def test_it_says_what_was_made_durable_last() -> None:
    storage = SimStorage()
    written = slots(storage)
    for number in range(1, 6):
        written.ensure(statement(number))
        storage.kill()
        written = slots(storage)
        assert written.durable == statement(number)


def test_a_torn_slot_leaves_the_one_before() -> None:
    for slot, left in ((0, 1), (1, 2)):
        storage = SimStorage()
        written = slots(storage)
        for number in (1, 2):
            written.ensure(statement(number))
        file = storage.open(PATH, writable=True)
        write_all(file, [b"torn"], slot * SLOT_BYTES + 50)
        file.close()
        assert slots(storage).durable == statement(left)


def test_both_slots_torn_is_told_from_none_at_all() -> None:
    storage = SimStorage()
    assert not slots(storage).is_unreadable
    written = slots(storage)
    written.ensure(statement(1))
    file = storage.open(PATH, writable=True)
    file.truncate(100)
    file.close()
    again = slots(storage)
    assert (again.durable, again.is_unreadable) == (None, True)
    again.ensure(statement(2))
    assert slots(storage).durable == statement(2)


def test_a_sync_that_failed_is_not_believed() -> None:
    """The same slot is written anew; the other one stays whatever comes."""
    storage = SimStorage()
    written = slots(storage)
    written.ensure(statement(1))
    storage.plan(Failure(frozenset(["datasync"]), 1, errno.EIO, under=PATH))
    written.begin(statement(2))
    written.settle()
    assert written.durable == statement(1)
    written.ensure(statement(2))
    storage.kill()
    assert slots(storage).durable == statement(2)


def test_a_crash_before_every_call_leaves_one_that_was_stated() -> None:
    for at in range(1, 30):
        world = World(seed=at)
        written = slots(world.storage)
        stated = 0
        world.storage.stop_at(at)
        try:
            for number in range(1, 5):
                written.begin(statement(number))
                written.ensure(statement(number))
                stated = number
        except Stopped:
            pass
        else:
            world.storage.heal()
        world.storage.power_cut(world.rng)
        found = slots(world.storage).durable
        assert (0 if found is None else found.number) in (stated, stated + 1)


def test_the_replica_is_not_touched_before_it_is_vouched_for() -> None:
    """A disk that does not take the statement holds up the batch, and nothing is lost."""
    world = World()
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"1" * 4096)
    world.cut()
    world.settle()
    world.write("a", 0, b"2" * 4096)
    world.cut()
    world.write("a", 0, b"3" * 4096)
    world.cut()
    world.ship_all()
    world.apply()
    before = world.raw("a")
    for _ in range(3):
        for _ in range(2):
            world.storage.plan(Failure(frozenset(["pwritev"]), 1, errno.EIO, under=PATH))
        with pytest.raises(OSError, match="Input/output"):
            world.apply()
        assert world.raw("a") == before
        world.storage.heal()
    world.apply_all()
    world.check()
    world.crash(power=True)
    world.check()


def test_what_it_says_is_never_more_than_the_replica_holds() -> None:
    """At every crash: R is a batch that is durable in the replica, whole."""
    for at in range(1, 80):
        world = World(seed=at)
        world.begin_stream(from_zero=True)
        world.storage.stop_at(at)
        try:
            for value in (b"1", b"2", b"3"):
                world.write("a", 0, value * 4096)
                world.write("b", 512, value * 600)
                world.cut()
                world.settle()
        except Stopped:
            pass
        else:
            world.storage.heal()
        world.crash(power=bool(at % 2))
        assert not [event for event in world.events if event.name.startswith("replica.")]
        assert not [event for event in world.events if event.name == "group.mended"]
        world.check()
