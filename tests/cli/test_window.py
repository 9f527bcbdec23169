# SPDX-License-Identifier: Apache-2.0
"""The line of `status` about a group's history."""

from __future__ import annotations

import msgspec

from replicator.cli.window import describe_history
from replicator.control.types import GroupStatus

GROUP = GroupStatus(
    name="web",
    state="protected",
    disks=[],
    window_seconds=3 * 3600 + 120,
    window_wanted_seconds=86_400,
    window_is_short=False,
    history_bytes=12 << 30,
    history_capacity_bytes=100 << 30,
)


def test_what_is_known_is_said() -> None:
    assert describe_history(GROUP) == "window 3 h 2 min of 1 d 0 h; 12 GiB of 100 GiB"


def test_a_short_window_a_forecast_and_a_lock_are_said() -> None:
    group = msgspec.structs.replace(
        GROUP,
        window_is_short=True,
        forecast_seconds=9 * 86_400 + 3 * 3600,
        lock_seconds=7 * 86_400,
        locked_until="2026-03-08T02:00:00.000000Z",
    )
    assert describe_history(group) == (
        "window 3 h 2 min of 1 d 0 h, made shorter by the budget;"
        " 12 GiB of 100 GiB, which holds 9 d 3 h at the present rate;"
        " locked for 7 d 0 h, until 2026-03-08T02:00:00.000000Z"
    )


def test_without_rules_there_is_nothing_to_reach() -> None:
    group = msgspec.structs.replace(GROUP, window_wanted_seconds=0, history_bytes=None)
    assert describe_history(group) == "window 3 h 2 min"
