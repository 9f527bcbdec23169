# SPDX-License-Identifier: Apache-2.0
"""The group's state: each observation from each state, and what is observed of which facts."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest

from agent.group_state import MOVES, Facts, Seen, State, observe
from replicator.control.splitter import GroupState, SplitterDiskStatus, SplitterGroupStatus
from tests.agent.source import NO_LATENCY

DISK = SplitterDiskStatus(name="d", index=0, instance="i", size=512, connected=0, state="idle")
GROUP = SplitterGroupStatus(
    name="g",
    state="ready",
    reason="",
    stream="s",
    ordinal=1,
    first_lsn=1000,
    end_lsn=2000,
    last_cut_time_ns=0,
    held_until_ns=0,
    disks=[DISK],
    memory_bytes=0,
    disk_bytes=0,
    latency=NO_LATENCY,
    requests=0,
    bytes=0,
)


def seen(state: GroupState, *, point: int | None = None, refused: bool = False) -> Seen:
    return observe(Facts(msgspec.structs.replace(GROUP, state=state), point, refused))


def test_every_observation_is_legal_in_every_state() -> None:
    assert set(MOVES) == set(product(State, Seen))


@pytest.mark.parametrize("state", State)
def test_only_a_point_of_the_live_stream_protects(state: State) -> None:
    for one in Seen:
        after = MOVES[state, one]
        protected = one is Seen.CONFIRMED or (one is Seen.UNCONFIRMED and state is State.PROTECTED)
        assert (after is State.PROTECTED) == protected


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (None, Seen.UNCONFIRMED),
        (999, Seen.UNCONFIRMED),  # of an earlier stream
        (1000, Seen.UNCONFIRMED),
        (1001, Seen.CONFIRMED),
        (2000, Seen.CONFIRMED),
        (2001, Seen.UNCONFIRMED),  # of another host
    ],
)
def test_a_point_counts_if_its_cut_is_in_the_stream(point: int | None, expected: Seen) -> None:
    assert seen("ready", point=point) is expected
    assert seen("suspended", point=point) is expected


def test_what_the_splitter_says_otherwise() -> None:
    assert observe(Facts(None, 1500, False)) is Seen.NO_SPLITTER
    assert seen("closed") is Seen.CLOSED
    assert seen("lost", point=1500) is Seen.LOST
    assert seen("syncing") is Seen.OPENED
    syncing = msgspec.structs.replace(
        GROUP, state="syncing", disks=[msgspec.structs.replace(DISK, state="syncing")]
    )
    assert observe(Facts(syncing, None, False)) is Seen.SYNCING
    assert seen("ready", point=1500, refused=True) is Seen.REFUSED


def test_losing_the_splitter_is_a_loss_only_where_something_was_captured() -> None:
    assert MOVES[State.PROTECTED, Seen.NO_SPLITTER] is State.LOST
    assert MOVES[State.SYNCING, Seen.NO_SPLITTER] is State.LOST
    assert MOVES[State.IDLE, Seen.NO_SPLITTER] is State.IDLE
    assert MOVES[State.PAUSED, Seen.NO_SPLITTER] is State.PAUSED
