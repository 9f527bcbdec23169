# SPDX-License-Identifier: Apache-2.0
"""What state a group is in, and how old its newest point is. No I/O.

    damaged       applying has stopped at damage or a failing disk; or the group cannot be read
    paused        applying waits for room on the disk
    syncing       an agent is connected, and a disk of its stream is in a sync
    protected     an agent is connected, its stream is open, and every disk of it is complete
    rolled-back   no stream since a rollback: the source must sync when it comes back
    disconnected  there is a stream to resume, and nobody connected
    idle          nothing has come yet; or an agent is connected and has opened no stream yet

The first that fits counts, from the top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from replicator.base.clock import NS_PER_S

GroupState = Literal[
    "idle", "syncing", "protected", "disconnected", "rolled-back", "paused", "damaged"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts:
    """What the state is told from."""

    is_stopped: bool
    is_paused: bool
    is_connected: bool
    has_stream: bool
    is_syncing: bool
    is_rolled_back: bool


def state_of(facts: GroupFacts) -> GroupState:
    if facts.is_stopped:
        return "damaged"
    if facts.is_paused:
        return "paused"
    if facts.is_connected and facts.has_stream:
        return "syncing" if facts.is_syncing else "protected"
    if facts.is_rolled_back:
        return "rolled-back"
    if facts.has_stream and not facts.is_connected:
        return "disconnected"
    return "idle"


def rpo_seconds(until_ns: int | None, now_ns: int) -> float | None:
    """The age of the newest point: of the last moment for which it stands. None without one;
    never negative, though the source's clock may be ahead of ours."""
    if until_ns is None:
        return None
    return max(now_ns - until_ns, 0) / NS_PER_S
