# SPDX-License-Identifier: Apache-2.0
"""What people write for a point."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.counted.ages import Ages, Lag
from receiver.history.state import GroupState
from receiver.orders.describe import point_of, write_of
from receiver.points.points import PointList, apart
from receiver.points.pointspec import Chosen, begun, describe, find, reaches, stamp_of
from receiver.points.values import Point
from receiver.writes.history import PointWrite
from receiver.writes.walk import FineWrite
from replicator.base.clock import PointClock, rfc3339_exact
from replicator.base.errors import NoPointError, NotFoundError, UsageError
from replicator.base.moments import Moment
from replicator.base.pointtext import parse

S = 1_000_000_000
NOON = 1_772_366_400 * S  # 2026-03-01T12:00:00Z
POINTS = [
    Point(4, NOON, NOON + 5 * S, "crash"),
    Point(5, NOON + 10 * S, NOON + 10 * S, "crash", "before"),
    Point(6, NOON + 10 * S, NOON + 70 * S, "rollback"),
]


def choose(text: str, now_ns: int = NOON + 100 * S) -> Chosen:
    return find(text, now_ns, None, POINTS)


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


def test_a_label_that_would_be_read_as_something_else_is_named_with_its_prefix() -> None:
    """From before such labels were refused: the point is kept, and no name means two things."""
    points = [*POINTS, Point(7, NOON + 80 * S, NOON + 80 * S, "crash", "1m ago")]
    now_ns = NOON + 135 * S
    assert find("label:1m ago", now_ns, None, points).point.sequence == 7
    assert str(points[-1]) == "#7 'label:1m ago'"
    meant = find("1m ago", now_ns, None, points)
    assert (meant.point.sequence, meant.distance_ns) == (6, 5 * S)
    assert meant.notice == "the point with the label '1m ago' is named 'label:1m ago'"
    assert find("label:before", now_ns, None, points).point.sequence == 5
    assert not find("label:before", now_ns, None, points).notice
    with pytest.raises(NotFoundError, match="no point has the label 'latest'"):
        find("label:latest", now_ns, None, points)


@pytest.mark.parametrize("label", ["99:00", "2026-13-01T12:00:00Z", "#x", "#77"])
def test_what_is_refused_though_it_is_a_label_says_how_to_name_the_point(label: str) -> None:
    points = [*POINTS, Point(7, NOON + 80 * S, NOON + 80 * S, "crash", label)]
    with pytest.raises((UsageError, NotFoundError)) as caught:
        find(label, NOON, "UTC", points)
    assert caught.value.hint == f"the point with the label {label!r} is named 'label:{label}'"


@pytest.mark.parametrize("text", ["latest", "now", "10m ago"])
def test_without_points_there_is_none_in_range(text: str) -> None:
    with pytest.raises(NoPointError):
        find(text, NOON, None, [])


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
    points = [*POINTS, Point(7, NOON + 80 * S, NOON + 80 * S, "application")]
    assert find("latest application", NOON, None, points).point.sequence == 7
    assert find("Latest Application", NOON, None, points).point.sequence == 7


def test_local_times_are_said_in_their_zone() -> None:
    chosen = find("13:00:08", NOON + 100 * S, "Europe/Berlin", POINTS)
    assert chosen.point.sequence == 4
    assert chosen.local == "2026-03-01 13:00:08+01:00"
    assert choose("latest").local is None


# -- a source whose clock was set

DAY = 86_400 * S
SET_AHEAD = [
    Point(1, NOON, NOON + 4 * S, "crash", made_ns=NOON),
    Point(2, NOON + DAY + 5 * S, NOON + DAY + 5 * S, "crash", made_ns=NOON + 5 * S),
    Point(3, NOON + DAY + 6 * S, NOON + DAY + 8 * S, "crash", made_ns=NOON + 7 * S),
    Point(4, NOON + DAY + 9 * S, NOON + DAY + 9 * S, "crash"),  # nobody knows
]


@pytest.mark.parametrize(
    ("text", "sequence", "distance_ns"),
    [
        ("now", 3, 11 * S),
        ("11s ago", 3, 0),
        ("13.5s ago", 2, 1 * S + S // 2),
        ("16s ago", 1, 0),
        ("15.5s ago", 1, S // 2),
        ("latest", 4, None),
        ("2026-03-01T12:00:20Z", 1, 16 * S),
        ("2026-03-02T12:00:08Z", 3, 0),
    ],
)
def test_now_and_ago_mean_our_time_and_every_other_time_the_stamp(
    text: str, sequence: int, distance_ns: int | None
) -> None:
    chosen = find(text, NOON + 20 * S, "UTC", SET_AHEAD)
    assert (chosen.point.sequence, chosen.distance_ns) == (sequence, distance_ns)


def test_a_jump_of_our_own_clock_moves_nothing() -> None:
    """It is a week ahead; the counted clock is not, and what it was set forward by is counted."""
    jumped_ns, ages = NOON + 7 * DAY, Ages(NOON + 20 * S)
    for text, sequence in (("now", 3), ("13.5s ago", 2), ("16s ago", 1)):
        chosen = find(text, jumped_ns, "UTC", SET_AHEAD, ages)
        assert chosen.point.sequence == sequence
        assert chosen == find(text, NOON + 20 * S, "UTC", SET_AHEAD)
    set_forward = Ages(
        NOON + DAY + 20 * S,
        lags=(Lag(since_ns=NOON + 4 * S, by_ns=DAY, at_ns=NOON + DAY + 19 * S),),
    )
    chosen = find("14s ago", NOON + DAY + 20 * S, "UTC", SET_AHEAD, set_forward)
    assert chosen.point.sequence == 2, "5 s were counted behind the lag, and then a day at once"
    assert find("20s ago", NOON + DAY + 20 * S, "UTC", SET_AHEAD, set_forward).point.sequence == 1


def test_bounds_and_looks_around_by_our_time() -> None:
    def moment(text: str) -> Moment:
        found = parse(text, NOON + 20 * S, "UTC").moment
        assert found is not None
        return found

    def listed(since: str, until: str) -> list[int]:
        first, last = moment(since), moment(until)
        return [p.sequence for p in SET_AHEAD if reaches(p, first) and begun(p, last)]

    assert listed("16s ago", "14s ago") == [1, 2]
    assert listed("10s ago", "now") == []
    assert listed("2026-03-02T12:00:05Z", "2026-03-02T12:00:06Z") == [2, 3]
    assert stamp_of(moment("12s ago"), SET_AHEAD) == NOON + 8 * S + DAY - S
    assert stamp_of(moment("16s ago"), SET_AHEAD) == NOON + 4 * S
    assert stamp_of(moment("30s ago"), SET_AHEAD) == NOON - 10 * S
    assert stamp_of(moment("2026-03-02T12:00:05Z"), SET_AHEAD) == NOON + DAY + 5 * S
    with pytest.raises(NoPointError, match="by this machine's clock"):
        find("30s ago", NOON + 20 * S, None, SET_AHEAD)


# -- what is printed of a point names it


@st.composite
def histories(draw: st.DrawFn) -> list[Point]:
    """As a version before whole microseconds could leave them, too: to the nanosecond; some hold
    on, some have a label of any kind."""
    labels = st.none() | st.sampled_from(["latest", "10m ago", "x", "2026-03-01T12:00:00Z", "#3"])
    points: list[Point] = []
    state = GroupState()
    for gap_ns, hold_ns, label in draw(
        st.lists(
            st.tuples(st.integers(0, 3000), st.integers(0, 5000), labels), min_size=1, max_size=12
        )
    ):
        label = None if label in state.labels else label
        newest_ns = points[-1].time_ns if points else NOON
        point = state.number_point(
            Point(0, newest_ns + gap_ns, newest_ns + gap_ns, "crash", label, lsn=1)
        )
        points.append(replace(point, until_ns=point.time_ns + hold_ns))
    return apart(points)


@given(histories())
def test_every_text_that_is_printed_of_a_point_means_that_point(points: list[Point]) -> None:
    known = PointList(lambda: 0)
    known.add(points)
    assert known.all == points
    for point in points:
        said = point_of(point)
        texts = [f"#{said.sequence}", said.time, said.until, rfc3339_exact(point.time_ns)]
        texts += [] if said.label is None else [said.label]
        for zone in (None, "Asia/Kathmandu"):
            for text in texts:
                chosen = find(text, NOON + 100 * S, zone, points)
                assert chosen.point == point, text
                assert not chosen.distance_ns
                if chosen.local is not None:
                    assert find(chosen.local, 0, None, points).point == point


@dataclass
class HandClock:
    """Moved by hand."""

    utc: int = NOON
    monotonic: int = S

    def utc_ns(self) -> int:
        return self.utc

    def monotonic_ns(self) -> int:
        return self.monotonic


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3000),
            st.just(0) | st.integers(-5000, 5000),
            st.sampled_from(["write", "batch", "cut", "hold"]),
        ),
        max_size=40,
    )
)
def test_every_time_that_is_printed_of_a_write_means_the_last_with_it(
    moves: list[tuple[int, int, str]],
) -> None:
    """Whatever the source's clock did; and the points between are found by theirs."""
    clock, state = HandClock(), GroupState()
    stamps, known = PointClock(clock), PointList(lambda: 0)
    writes: list[tuple[int, int]] = []  # behind which point, when
    for elapsed_ns, step_ns, event in [(0, 0, "cut"), *moves]:
        clock.utc += elapsed_ns + step_ns
        clock.monotonic += elapsed_ns
        newest = known.newest
        if event == "cut":
            time_ns, _ = stamps.stamp()
            known.add([state.number_point(Point(0, time_ns, time_ns, "crash", lsn=1))])
        elif newest is not None and event == "hold":
            if not writes or writes[-1][0] != newest.sequence:
                known.hold(newest.sequence, stamps.stamp()[0])
        elif newest is not None:
            stamp_ns = stamps.passing_ns()
            writes += [(newest.sequence, stamp_ns)] * (3 if event == "batch" else 1)
    for at, (sequence, stamp_ns) in enumerate(writes):
        said = write_of(PointWrite(_known(known, sequence), _write(at, stamp_ns)))
        chosen = find(said.time, 0, None, known.all)
        assert (chosen.point.sequence, chosen.fine_ns) == (sequence, stamp_ns)
        behind = [time_ns for number, time_ns in writes if number == sequence]
        last = max(number for number, time_ns in enumerate(behind) if time_ns <= stamp_ns)
        assert behind[last] == stamp_ns
        assert behind[last + 1 : last + 2] != [stamp_ns]
    for point in known.all:
        for text in (point_of(point).time, point_of(point).until, rfc3339_exact(point.time_ns)):
            assert find(text, 0, None, known.all).point == point


def _known(points: PointList, sequence: int) -> Point:
    found = points.find(sequence)
    assert found is not None
    return found


def _write(number: int, time_ns: int) -> FineWrite:
    return FineWrite(number, 0, "a", 0, 512, time_ns, None)
