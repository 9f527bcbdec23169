# SPDX-License-Identifier: Apache-2.0
"""Which points a keep keeps: by hand for the plain cases, by any sequence of times for the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.points.policy import Rule
from receiver.points.values import Point, PointKind
from receiver.retention import thinning
from receiver.retention.thinning import Protection, thinned

S = 1_000_000_000
MINUTE, HOUR, DAY = 60 * S, 3600 * S, 86_400 * S
NONE = Protection()
GRADED = [Rule(0, HOUR), Rule(MINUTE, DAY), Rule(HOUR, 7 * DAY), Rule(DAY, 30 * DAY)]
T0 = 20_000 * DAY


def point(
    sequence: int,
    received_ns: int,
    *,
    label: str | None = None,
    kind: PointKind = "crash",
    held_ns: int = 0,
    expire_ns: int = 0,
) -> Point:
    """Its source's clock is of another century: ages must not depend on it."""
    time_ns = sequence * 1000
    return Point(
        sequence,
        time_ns,
        time_ns + held_ns,
        kind,
        label,
        received_ns=received_ns,
        stood_ns=held_ns,
        expire_ns=expire_ns,
    )


def every(step_ns: int, count: int) -> list[Point]:
    return [point(number + 1, T0 + number * step_ns) for number in range(count)]


def kept(points: list[Point], now_ns: int, rules: list[Rule] = GRADED) -> list[Point]:
    gone = {each.sequence for each in thinned(points, rules, now_ns, NONE)}
    return [each for each in points if each.sequence not in gone]


# -- by hand


def test_each_rule_keeps_one_point_for_each_of_its_steps() -> None:
    points = every(10 * S, 2 * 8640)  # two days of a point every 10 s
    now_ns = T0 + 2 * DAY
    ages = [now_ns - each.received_ns for each in kept(points, now_ns)]
    assert sum(age < HOUR for age in ages) == 359
    assert sum(HOUR <= age < DAY for age in ages) == 23 * 60
    assert sum(age >= DAY for age in ages) == 24 + 1  # the border lies inside one hour


def test_of_a_bucket_the_oldest_stays() -> None:
    points = every(10 * S, 20)
    found = kept(points, T0 + 2 * HOUR)
    assert [each.received_ns - T0 for each in found] == [0, MINUTE, 2 * MINUTE, 3 * MINUTE, 190 * S]


def test_buckets_do_not_move_with_the_clock() -> None:
    points = every(10 * S, 20)
    first = kept(points, T0 + 2 * HOUR)
    assert [kept(points, T0 + 2 * HOUR + shift * S) for shift in range(60)] == [first] * 60


def test_what_is_older_than_every_span_goes_but_never_the_newest() -> None:
    points = every(HOUR, 5)
    assert kept(points, T0 + 365 * DAY) == points[-1:]
    assert thinned([], GRADED, T0, NONE) == []


def test_a_point_is_as_old_as_what_it_stands_for() -> None:
    """The group was idle for 40 days, and then wrote again: the state of all those days stays."""
    points = [point(1, T0, held_ns=40 * DAY), point(2, T0 + 40 * DAY)]
    assert kept(points, T0 + 40 * DAY + S) == points
    assert kept(points, T0 + 71 * DAY) == points[1:]


def test_a_point_without_a_note_of_its_coming_ages_by_its_own_time() -> None:
    old = replace(point(1, 0), time_ns=T0, until_ns=T0)
    assert kept([old, point(2, T0 + HOUR)], T0 + 29 * DAY) == [old, point(2, T0 + HOUR)]
    assert kept([old, point(2, T0 + HOUR)], T0 + 30 * DAY) == [point(2, T0 + HOUR)]


@pytest.mark.parametrize(
    ("asked_for", "stays"),
    [
        (point(1, T0, label="mine"), True),
        (point(1, T0, kind="application"), True),
        (point(1, T0, label="mine", expire_ns=366 * DAY), True),
        (point(1, T0, label="mine", expire_ns=365 * DAY), False),
        (point(1, T0, kind="application", expire_ns=DAY), False),
        (point(1, T0, expire_ns=366 * DAY), False),
    ],
)
def test_what_was_asked_for_stays_until_its_own_expiry(asked_for: Point, stays: bool) -> None:
    points = [asked_for, point(2, T0 + S)]
    assert (asked_for in kept(points, T0 + 365 * DAY)) is stays


def test_an_expired_point_is_a_point_like_any_other() -> None:
    expired = point(1, T0, label="mine", expire_ns=S)
    assert expired in kept([expired, point(2, T0 + S)], T0 + 2 * HOUR)


def test_pinned_and_young_points_stay() -> None:
    points = every(S, 10)
    now_ns = T0 + 60 * DAY
    protection = Protection(pinned=frozenset([4]))
    assert [each.sequence for each in thinned(points, GRADED, now_ns, protection)] == [
        1, 2, 3, 5, 6, 7, 8, 9,
    ]  # fmt: skip
    locked = Protection(spared_after_ns=T0 + 3 * S)
    assert [each.sequence for each in thinned(points, GRADED, now_ns, locked)] == [1, 2, 3, 4]


def test_the_window_is_how_far_back_the_oldest_point_reaches() -> None:
    assert thinning.window_ns([], T0) is None
    assert thinning.window_ns(every(S, 3), T0 + HOUR) == HOUR
    assert thinning.window_ns(every(S, 3), T0 - HOUR) == 0, "the clock went back"
    assert thinning.span_ns(GRADED) == 30 * DAY


# -- by any sequence of times

RULES = [Rule(0, 40), Rule(10, 120), Rule(30, 400), Rule(120, 1000)]
moments = st.lists(st.integers(0, 1500), min_size=1, max_size=60).map(sorted)


@st.composite
def lives(draw: st.DrawFn) -> list[Point]:
    return [
        point(
            number + 1,
            T0 + moment,
            label=draw(st.sampled_from([None, None, None, None, "label"])),
            expire_ns=draw(st.sampled_from([0, 0, 50, 700])),
            kind=draw(st.sampled_from(["crash", "crash", "application"])),
        )
        for number, moment in enumerate(draw(moments))
    ]


@given(moments, st.integers(0, 3000))
def test_thinning_again_at_once_changes_nothing(times: list[int], age: int) -> None:
    points = [point(number + 1, T0 + moment) for number, moment in enumerate(times)]
    once = kept(points, T0 + age, RULES)
    assert kept(once, T0 + age, RULES) == once


@given(moments, st.lists(st.integers(0, 3000), max_size=12).map(sorted), st.integers(0, 3000))
def test_often_and_once_come_to_the_same(times: list[int], ages: list[int], last: int) -> None:
    """So what went at one moment is needed at no later one, whenever thinning happened to run."""
    points = [point(number + 1, T0 + moment) for number, moment in enumerate(times)]
    now_ns = T0 + max([*ages, last])
    often = points
    for age in ages:
        often = kept(often, T0 + age, RULES)
    assert kept(often, now_ns, RULES) == kept(points, now_ns, RULES)


@given(lives(), st.integers(0, 3000), st.integers(0, 3000), st.data())
def test_nothing_protected_goes(
    points: list[Point], age: int, younger: int, data: st.DataObject
) -> None:
    now_ns = T0 + age
    pinned = frozenset(data.draw(st.sets(st.integers(1, len(points)))))
    for gone in thinned(points, RULES, now_ns, Protection(pinned, now_ns - younger)):
        assert gone is not points[-1]
        assert gone.sequence not in pinned
        assert not thinning.is_promised(gone, now_ns)
        assert now_ns - gone.received_ns >= younger


@given(lives(), st.integers(0, 3000))
def test_no_step_is_left_without_a_point_that_had_one(points: list[Point], age: int) -> None:
    """From any moment of the window that had a point at most one step (and the next rule's where
    two meet) before it, one is still there."""
    now_ns = T0 + age
    left = kept(points, now_ns, RULES)
    for each in points:
        age_ns = now_ns - each.received_ns
        step = next((rule.step_ns for rule in RULES if age_ns < rule.span_ns), None)
        if step is None or each in left:
            continue
        near = [other for other in left if abs(other.received_ns - each.received_ns) < step]
        older_rule = age_ns + step >= next(r.span_ns for r in RULES if age_ns < r.span_ns)
        assert near or older_rule, (each, left)
