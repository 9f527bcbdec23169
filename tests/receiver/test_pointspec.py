# SPDX-License-Identifier: Apache-2.0
"""What people write for a point."""

from __future__ import annotations

import pytest

from receiver.moments import zone_of
from receiver.pointspec import Chosen, describe, find, parse, resolve
from receiver.values import Point
from replicator.base.errors import NoPointError, NotFoundError, UsageError

S = 1_000_000_000
NOON = 1_772_366_400 * S  # 2026-03-01T12:00:00Z
POINTS = [
    Point(4, NOON, NOON + 5 * S, "crash"),
    Point(5, NOON + 10 * S, NOON + 10 * S, "crash", "before"),
    Point(6, NOON + 10 * S, NOON + 70 * S, "rollback"),
]


def choose(text: str, now_ns: int = NOON + 100 * S) -> Chosen:
    return resolve(parse(text, now_ns), POINTS)


@pytest.mark.parametrize(
    ("text", "sequence", "distance_ns"),
    [
        ("latest", 6, None),
        ("#5", 5, None),
        ("before", 5, None),
        (" before ", 5, None),
        ("now", 6, 30 * S),
        ("1m ago", 6, 0),
        ("95s ago", 4, 0),
        ("91 s ago", 4, 4 * S),
        ("1min 35s ago", 4, 0),
        ("1m30s ago", 6, 0),
        ("0.5min ago", 6, 0),
        ("2026-03-01T12:00:00Z", 4, 0),
        ("2026-03-01T13:00:08+01:00", 4, 3 * S),
        ("2026-03-01 12:00:10.000001Z", 6, 0),
        ("2026-03-01T12:00:09.999999Z", 4, 5 * S - 1000),
    ],
)
def test_chosen(text: str, sequence: int, distance_ns: int | None) -> None:
    chosen = choose(text)
    assert chosen.point.sequence == sequence
    assert chosen.distance_ns == distance_ns
    assert chosen.asked == text.strip()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("#9", NotFoundError, "there is no point #9"),
        ("beforehand", NotFoundError, "no point has the label 'beforehand'"),
        ("1h ago", NoPointError, "no point at or before 2026-03-01T11:01:40.000000Z"),
        ("2026-03-01T11:59:59Z", NoPointError, "no point at or before"),
        ("", UsageError, "no point is given"),
        ("#x", UsageError, "'#x' is not a point number"),
        ("2026-03-01T12:00:00", UsageError, "does not say in which time zone"),
        ("2026-13-01T12:00:00Z", UsageError, "is not a time"),
        ("5 parsecs ago", UsageError, "is not a duration"),
    ],
)
def test_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        choose(text)
    assert caught.value.hint  # type: ignore[attr-defined]


def test_a_label_is_itself_whatever_else_it_could_mean() -> None:
    points = [*POINTS, Point(7, NOON + 80 * S, NOON + 80 * S, "crash", "10m ago")]
    assert resolve(parse("10m ago", NOON + 2000 * S), points).point.sequence == 7


@pytest.mark.parametrize("text", ["latest", "now", "10m ago"])
def test_without_points_there_is_none_in_range(text: str) -> None:
    with pytest.raises(NoPointError):
        resolve(parse(text, NOON), [])


def test_described_for_people() -> None:
    assert describe(choose("before")) == "#5 'before' of 2026-03-01T12:00:10.000000Z"
    assert describe(choose("now")) == "#6 of 2026-03-01T12:00:10.000000Z, 30.0 s before now"


def test_writes_behind_a_point() -> None:
    chosen = choose("#5+17w")
    assert (chosen.point.sequence, chosen.writes) == (5, 17)
    assert choose("#5+0w") == Chosen(POINTS[1], "#5+0w")
    assert describe(chosen) == "write 17 behind #5 'before' of 2026-03-01T12:00:10.000000Z"
    for text in ("#5+w", "#5+1", "#5 +1w", "#5+-1w"):
        with pytest.raises(UsageError, match="is not a point number"):
            choose(text)


def test_a_time_within_a_second_asks_for_a_write() -> None:
    chosen = choose("2026-03-01T12:00:07.5Z")
    assert (chosen.point.sequence, chosen.fine_ns) == (4, NOON + 7 * S + S // 2)
    assert choose("2026-03-01T12:00:04.5Z").fine_ns is None, "the point stands for that moment"
    assert choose("2026-03-01T12:00:07Z").fine_ns is None


def test_the_latest_application_consistent_one() -> None:
    with pytest.raises(NoPointError, match="no application-consistent point"):
        choose("latest application")
    points = [*POINTS, Point(7, NOON + 80 * S, NOON + 80 * S, "application"), *POINTS[:1]]
    assert resolve(parse("latest application", NOON), points).point.sequence == 7


def test_local_times_are_said_in_their_zone() -> None:
    chosen = find("13:00:08", NOON + 100 * S, zone_of("Europe/Berlin"), POINTS)
    assert chosen.point.sequence == 4
    assert chosen.local == "2026-03-01 13:00:08 CET (+01:00)"
    assert choose("latest").local is None


def test_a_label_that_looks_like_a_bad_time_is_a_label() -> None:
    points = [*POINTS, Point(7, NOON + 80 * S, NOON + 80 * S, "crash", "99:00")]
    assert find("99:00", NOON, zone_of("UTC"), points).point.sequence == 7
    assert find("before", NOON, None, points).point.sequence == 5
