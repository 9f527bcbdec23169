# SPDX-License-Identifier: Apache-2.0
"""Every event of QEMU and libvirt at every state of a sync: no cut is false, and each ends well.

Exhaustive over a model (mirrored.py) with the real splitter group and the real plan: every event,
and every pair of events, at every moment of a protection, before a step and between what the agent
saw and what it does. tests/libvirt has what of this can be had with a real machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.drivers.libvirt.plan import DiskFacts, Rest
from agent.splitter.disk import Disk
from agent.splitter.group import GroupLog
from tests.drivers.mirrored import SECTORS, Protected

Event = Callable[[Protected], None]

EVENTS: dict[str, Event] = {
    "pause": lambda it: it.machine.pauses(),
    "pause and resume": lambda it: it.machine.pauses_for_a_moment(),
    "resume": lambda it: it.machine.resumes(),
    "reset": lambda it: it.machine.resets(),
    "the source is full": lambda it: it.machine.filesystem_fills_up("a", 1),
    "the job fails": lambda it: it.machine.job_fails("a"),
    "the job breaks": lambda it: it.machine.job_breaks("a"),
    "somebody cancels": lambda it: it.machine.somebody_cancels("a"),
    "the connection breaks": lambda it: it.machine.connection_breaks("a"),
    "a visitor": lambda it: it.machine.someone_looks("a"),
    "the agent is killed": lambda it: it.agent_is_killed(),
    "a resize": lambda it: it.machine.resizes("a"),
    "a write": lambda it: it.machine.guest_writes("a", 0),
    "the copy goes on": lambda it: it.machine.copies("a"),
    "a tick": lambda it: it.ticks(),
}
# Those that change what is so of the job; the others only show it, or use it.
CHANGES = (
    "pause",
    "pause and resume",
    "the source is full",
    "the job fails",
    "the job breaks",
    "somebody cancels",
    "the connection breaks",
    "the agent is killed",
)
MOMENTS = range(14)  # how often everybody has done something; undisturbed it is ready after 11


def happens(it: Protected, name: str) -> None:
    """A visitor comes to what is declared."""
    if name == "a visitor" and "a" not in it.rig.group.roster.disks:
        return
    EVENTS[name](it)
    it.check()


def at(moment: int, *, flushes: int, reconnects: bool, disks: tuple[str, ...]) -> Protected:
    it = Protected(*disks, flushes=flushes, reconnects=reconnects)
    for _ in range(moment):
        it.goes_on()
    return it


def test_the_moments_are_all_there_are() -> None:
    it = at(max(MOMENTS), flushes=2, reconnects=False, disks=("a",))
    assert it.rig.state() == "ready"
    assert it.decides() == Rest()
    it.until_ready()


@pytest.mark.parametrize("disks", [("a",), ("a", "b")], ids=["one disk", "two"])
@pytest.mark.parametrize("reconnects", [False, True], ids=["no delay", "reconnect"])
@pytest.mark.parametrize("flushes", [1, 2])
@pytest.mark.parametrize("event", EVENTS)
def test_each_event_at_each_moment(
    event: str, flushes: int, disks: tuple[str, ...], *, reconnects: bool
) -> None:
    for moment, late in product(MOMENTS, (False, True)):
        it = at(moment, flushes=flushes, reconnects=reconnects, disks=disks)
        if late:  # what the agent does now was decided before
            step = it.decides()
            happens(it, event)
            it.does(step)
        else:
            happens(it, event)
        it.until_ready()


@pytest.mark.parametrize("reconnects", [False, True], ids=["no delay", "reconnect"])
@pytest.mark.parametrize("second", EVENTS)
@pytest.mark.parametrize("first", CHANGES)
def test_each_pair_of_events(first: str, second: str, *, reconnects: bool) -> None:
    for moment, between in product(MOMENTS, (0, 2)):
        it = at(moment, flushes=2, reconnects=reconnects, disks=("a",))
        happens(it, first)
        for _ in range(between):
            it.goes_on()
        happens(it, second)
        it.until_ready()


class Credulous(Protected):
    """Believes that each copy of a disk is that of its sync of now, as version 0.1.0 did."""

    def facts(self) -> tuple[DiskFacts, ...]:
        exports = {disk.name: disk.export for disk in self.status().disks}
        return tuple(
            disk
            if disk.mirror is None or disk.name not in exports
            else replace(disk, mirror=replace(disk.mirror, export=exports[disk.name]))
            for disk in super().facts()
        )


def test_the_model_notices_evidence_of_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that all of this is about: a copy that a pause has taken out of its sync."""
    monkeypatch.setattr(Disk, "owns", lambda disk, link: link in disk.links)
    monkeypatch.setattr(GroupLog, "_drop_what_is_over", lambda group: group._to_drop.clear())
    false = 0
    for moment in MOMENTS:
        it = Credulous("a")
        for _ in range(moment):
            it.goes_on()
        it.machine.pauses_for_a_moment()
        it.machine.guest_writes("a", 0)
        try:
            it.until_ready()
        except AssertionError as error:
            false += "a false cut" in str(error)
    assert false > 0


MACHINE_STEPS = st.one_of(
    st.tuples(st.sampled_from(sorted(EVENTS)), st.just(0)),
    st.tuples(st.just("agent"), st.just(0)),
    st.tuples(st.just("agent, late"), st.integers(0, len(EVENTS) - 1)),
    st.tuples(st.just("copy b"), st.just(0)),
    st.tuples(st.just("write b"), st.integers(0, SECTORS - 1)),
    st.tuples(st.just("write a"), st.integers(0, SECTORS - 1)),
    st.tuples(st.just("all"), st.integers(1, 6)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(MACHINE_STEPS, max_size=40), st.integers(1, 2), st.booleans())
def test_any_course_of_events(steps: list[tuple[str, int]], flushes: int, reconnects: bool) -> None:
    it = Protected("a", "b", flushes=flushes, reconnects=reconnects)
    for name, number in steps:
        match name:
            case "agent":
                it.steps()
            case "agent, late":
                step = it.decides()
                happens(it, sorted(EVENTS)[number])
                it.does(step)
            case "copy b":
                it.machine.copies("b")
            case "write a" | "write b":
                it.machine.guest_writes(name[-1], number)
            case "all":
                for _ in range(number):
                    it.goes_on()
            case _:
                happens(it, name)
        it.check()
    it.until_ready()
