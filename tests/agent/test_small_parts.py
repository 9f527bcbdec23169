# SPDX-License-Identifier: Apache-2.0
"""Memory, pace and marks."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.memory import AgentMemory, FrozenNote, GroupMemory
from agent.retrying.pace import Pace
from replicator.base.errors import DamageError
from replicator.base.storage import SystemStorage


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
