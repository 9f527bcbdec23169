# SPDX-License-Identifier: Apache-2.0
"""The one rule by which the source's side tries again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.retrying.backoff import Backoff


def test_each_failure_waits_longer_up_to_the_bound_and_a_success_begins_again() -> None:
    backoff = Backoff(first_seconds=1.0, most_seconds=10.0)
    assert [backoff.failed("no", 0.0) for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.succeeded()
    assert (backoff.left(0.0), backoff.reason, backoff.failures) == (0, "", 0)
    assert backoff.failed("no", 0.0) == 1


def test_the_reason_of_the_last_failure_stands_until_a_success() -> None:
    backoff = Backoff(first_seconds=4.0, most_seconds=60.0)
    assert backoff.said("syncing vda", 0.0) == ""
    backoff.failed("a read error", 100.0)
    backoff.failed("another", 100.0)
    assert backoff.said("syncing vda", 101.0) == (
        "syncing vda again in 7 s; the last time it failed: another"
    )
    assert backoff.said("syncing vda", 200.0) == (
        "syncing vda again (try 3); the last time it failed: another"
    )
    backoff.succeeded()
    assert backoff.said("syncing vda", 200.0) == ""


def test_an_order_tries_at_once_and_forgives_nothing() -> None:
    backoff = Backoff(first_seconds=1.0, most_seconds=60.0)
    backoff.failed("no", 0.0)
    backoff.hurry()
    assert backoff.left(0.0) == 0
    assert backoff.reason == "no"
    assert backoff.failed("no", 0.0) == 2


@given(st.integers(1, 3000), st.floats(0, 1e6))
def test_it_is_bounded_however_long_it_fails(failures: int, now: float) -> None:
    backoff = Backoff(first_seconds=0.5, most_seconds=30.0)
    waits = [backoff.failed("no", now) for _ in range(failures)]
    assert waits == sorted(waits)
    assert waits[-1] <= 30
    assert backoff.left(now + 30.001) == 0
