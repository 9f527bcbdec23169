# SPDX-License-Identifier: Apache-2.0
"""Each state, and which one wins."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from receiver.group_status import GroupFacts, rpo_seconds, state_of
from receiver.metrics import STATES

NOTHING = GroupFacts(
    is_stopped=False,
    is_paused=False,
    is_connected=False,
    has_stream=False,
    is_syncing=False,
    is_rolled_back=False,
)


@pytest.mark.parametrize(
    ("state", "true"),
    [
        ("idle", ()),
        ("idle", ("is_connected",)),
        ("protected", ("is_connected", "has_stream")),
        ("syncing", ("is_connected", "has_stream", "is_syncing")),
        ("disconnected", ("has_stream",)),
        ("disconnected", ("has_stream", "is_syncing")),
        ("rolled-back", ("is_rolled_back",)),
        ("rolled-back", ("is_rolled_back", "is_connected")),
        ("paused", ("is_paused", "is_connected", "has_stream")),
        ("damaged", ("is_stopped", "is_paused", "is_rolled_back")),
    ],
)
def test_states(state: str, true: tuple[str, ...]) -> None:
    assert state_of(replace(NOTHING, **dict.fromkeys(true, True))) == state


def test_protected_is_never_said_of_a_group_without_a_live_complete_stream() -> None:
    names = list(GroupFacts.__dataclass_fields__)
    for values in product((False, True), repeat=len(names)):
        facts = GroupFacts(**dict(zip(names, values, strict=True)))
        state = state_of(facts)
        assert state in STATES
        if state == "protected":
            assert facts.is_connected
            assert facts.has_stream
            assert not facts.is_syncing
            assert facts.is_stopped is facts.is_paused is False


def test_rpo_is_the_age_of_the_moment_that_the_newest_point_stands_for() -> None:
    assert rpo_seconds(None, 5) is None
    assert rpo_seconds(1_000_000_000, 3_500_000_000) == 2.5
    assert rpo_seconds(9_000_000_000, 3_500_000_000) == 0
