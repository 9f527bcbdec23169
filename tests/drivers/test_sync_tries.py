# SPDX-License-Identifier: Apache-2.0
"""When a disk's sync is tried again, and what a status says of it meanwhile."""

from __future__ import annotations

import msgspec

from agent.drivers.libvirt.plan import BeginSync, EndCopy, StartCopy
from agent.drivers.libvirt.sync_tries import SyncTries
from replicator.control.splitter import DiskState
from tests.drivers.test_libvirt_plan import World, fact

DISK = fact("web-vda")
BEGIN, START, END = BeginSync(DISK), StartCopy(DISK, "g/web-vda/1"), EndCopy(DISK)


def world(state: DiskState, void: str = "") -> World:
    made = World({DISK.name: DISK})
    made.set_disk(DISK.name, state, connected=0)
    made.declared[DISK.name] = msgspec.structs.replace(made.declared[DISK.name], void=void)
    return made


def test_each_void_sync_waits_longer_and_says_why() -> None:
    tries, void = SyncTries(), world("idle", "it has flushed")
    status = void.status()
    assert tries.left(BEGIN, status, 100.0) == 0, "the first needs no patience"
    waits = []
    for _ in range(8):
        tries.begun(START)
        waits.append(tries.left(BEGIN, status, 100.0))
        assert tries.left(BEGIN, status, 100.0) == waits[-1], "asked twice, it is one failure"
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    said = tries.said(void.status(), 150.0)
    assert said == "syncing web-vda again in 10 s; the last time it failed: it has flushed"
    assert tries.left(START, status, 161.0) == 0
    assert "try 9" in tries.said(void.status(), 161.0)


def test_a_copy_that_ends_before_it_has_begun_is_a_failure_too() -> None:
    tries, syncing = SyncTries(), world("syncing")
    tries.begun(START)
    assert tries.left(START, syncing.status(), 0.0) == 1
    assert "before it had sent anything" in tries.said(syncing.status(), 0.0)


def test_an_old_copy_that_does_not_go_away_is_not_ended_over_and_over() -> None:
    tries, idle = SyncTries(), world("idle", "it has flushed")
    status = idle.status()
    tries.begun(START)
    assert tries.left(END, status, 0.0) == 0, "at once, however long the next sync waits"
    tries.begun(END)
    assert tries.left(END, status, 0.0) == 1
    assert "ending the old block copy of web-vda again" in tries.said(idle.status(), 0.0)
    assert tries.left(BEGIN, status, 0.0) == 1
    tries.begun(START)
    assert "ending" not in tries.said(idle.status(), 0.0), "it is gone, if a copy could be begun"


def test_nothing_is_said_of_what_is_complete_or_was_cleared() -> None:
    tries, complete = SyncTries(), world("complete")
    tries.begun(START)
    tries.left(START, world("syncing").status(), 0.0)
    assert tries.said(complete.status(), 0.0) == ""
    tries.clear()
    assert tries.said(world("syncing").status(), 0.0) == ""
    assert tries.left(START, world("syncing").status(), 0.0) == 0


def test_the_end_of_a_stream_is_no_failure_of_its_copies() -> None:
    tries, idle = SyncTries(), world("idle")
    tries.begun(START)
    tries.begin_stream()
    assert tries.left(BEGIN, idle.status(), 0.0) == 0
