# SPDX-License-Identifier: Apache-2.0
"""How a point looks whose source's clock was set."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from replicator.cli.orders import _kind
from replicator.cli.output import describe_clock, describe_point
from replicator.control.types import Point

TIME = "2026-03-01T02:00:00.000000Z"


def point(apart: timedelta | None = None, step: float | None = None) -> Point:
    made = None
    if apart is not None:
        made = f"{(datetime.fromisoformat(TIME) - apart).isoformat()[:19]}.000000Z"
    return Point(
        sequence=7, time=TIME, until=TIME, kind="crash", made=made, clock_step_seconds=step
    )


@pytest.mark.parametrize(
    ("shown", "mark"),
    [
        (point(), ""),
        (point(timedelta(seconds=2)), ""),
        (point(timedelta(days=1)), "clock 1 d 0 h ahead"),
        (point(timedelta(minutes=-3)), "clock 3 min 0 s behind"),
        (point(timedelta(days=1), 86_400.0), "clock 1 d 0 h ahead"),
        (point(None, -3600.0), "clock set by -1 h 0 min"),
        (point(timedelta(0), 0.75), "clock set by 750 ms"),
    ],
)
def test_a_clock_that_was_set_is_said_at_the_point(shown: Point, mark: str) -> None:
    assert describe_clock(shown) == mark
    assert _kind(shown) == ("crash" if not mark else f"crash, {mark}")


def test_both_times_are_said_where_they_differ() -> None:
    assert describe_point(point(timedelta(days=1))) == (
        f"point #7 of {TIME} (crash), made at 2026-02-28T02:00:00.000000Z by the receiver's clock"
    )
    assert describe_point(point(timedelta(seconds=1))) == f"point #7 of {TIME} (crash)"
