# SPDX-License-Identifier: Apache-2.0
"""Memory, pace and marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.marks import RECENT_MAX, Marks
from agent.memory import AgentMemory, FrozenNote, GroupMemory
from agent.pace import Pace
from replicator.base.errors import DamageError, NoPointError
from replicator.base.storage import SystemStorage
from replicator.wire.messages import Point


def test_the_identity_of_a_state_directory_never_changes(tmp_path: Path) -> None:
    first = AgentMemory(SystemStorage(), tmp_path / "a").identity()
    assert AgentMemory(SystemStorage(), tmp_path / "a").identity() == first
    assert AgentMemory(SystemStorage(), tmp_path / "b").identity() != first


def test_a_groups_memory_survives_and_a_broken_file_is_named(tmp_path: Path) -> None:
    memory = AgentMemory(SystemStorage(), tmp_path)
    assert memory.group("g") == GroupMemory(0, None)
    memory.remember("g", GroupMemory(5, 4))
    assert AgentMemory(SystemStorage(), tmp_path).group("g") == GroupMemory(5, 4)
    (tmp_path / "groups" / "g.json").write_text("{")
    with pytest.raises(DamageError, match=r"groups/g\.json"):
        memory.group("g")


def test_the_pace_doubles_is_bounded_jittered_and_begins_again() -> None:
    pace = Pace(first_seconds=1.0, most_seconds=8.0)
    waits = [pace.next_seconds() for _ in range(6)]
    for wait, whole in zip(waits, [1, 2, 4, 8, 8, 8], strict=True):
        assert whole / 2 <= wait <= whole
    pace.succeeded()
    assert pace.next_seconds() <= 1.0
    assert len({Pace(1.0, 8.0).next_seconds() for _ in range(20)}) > 1


def test_a_note_of_frozen_guests_stays_until_it_is_forgotten(tmp_path: Path) -> None:
    memory = AgentMemory(SystemStorage(), tmp_path)
    assert memory.frozen("g") is None
    assert memory.frozen_groups() == []
    note = FrozenNote(("db", "web"), "before")
    memory.note_frozen("g", note)
    again = AgentMemory(SystemStorage(), tmp_path)
    assert again.frozen("g") == note
    assert again.frozen_groups() == ["g"]
    again.forget_frozen("g")
    again.forget_frozen("g")
    assert memory.frozen("g") is None


async def test_a_mark_is_settled_by_its_own_point_alone() -> None:
    marks = Marks()
    marks.labels.add("x")
    mark = marks.add("x", 500)
    marks.settle([Point(1, 0, "crash", 400, None), Point(2, 0, "crash", 500, "y")])
    assert not mark.point.done()
    assert marks.unanswered(499) == []
    assert marks.unanswered(500) == [mark]
    marks.settle([Point(3, 0, "crash", 500, "x")])
    assert await mark.point == Point(3, 0, "crash", 500, "x")
    assert marks.labels == set()
    assert marks.unanswered(500) == []


async def test_a_point_may_come_before_its_mark_is_waited_for() -> None:
    """Between the cut and the wait guests are thawed."""
    marks = Marks()
    points = [Point(n, 0, "crash", 100 * n, None) for n in range(1, RECENT_MAX + 2)]
    marks.settle(points)
    assert await marks.add(None, 200).point == points[1]
    assert await marks.add(None, points[-1].lsn).point == points[-1]
    assert not marks.add("another", 300).point.done()
    assert not marks.add(None, 100).point.done(), "what is remembered is bounded"


async def test_marks_that_cannot_become_points_say_so() -> None:
    marks = Marks()
    mark = marks.add("x", 500)
    marks.fail(NoPointError("the stream was given up"))
    with pytest.raises(NoPointError):
        await mark.point
