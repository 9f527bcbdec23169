# SPDX-License-Identifier: Apache-2.0
"""The histogram of what the splitter adds to a write."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.splitter.latency import BOUNDS_US, Histogram

TIMES = st.lists(st.tuples(st.integers(0, 10**10), st.integers(1, 50)))


@given(st.integers(0, 10**10))
def test_a_time_lies_between_the_bounds_of_its_bucket(nanoseconds: int) -> None:
    histogram = Histogram()
    histogram.add(nanoseconds, 1)
    bucket = histogram.counts.index(1)
    if bucket < len(BOUNDS_US):
        assert nanoseconds <= BOUNDS_US[bucket] * 1000
    if bucket:
        assert nanoseconds >= BOUNDS_US[bucket - 1] * 1000


@given(TIMES, TIMES)
def test_merging_is_counting_all_in_one(left: list[tuple[int, int]], right) -> None:  # type: ignore[no-untyped-def]
    one, two, both = Histogram(), Histogram(), Histogram()
    for times, histogram in ((left, one), (right, two)):
        for nanoseconds, requests in times:
            histogram.add(nanoseconds, requests)
            both.add(nanoseconds, requests)
    one.merge(two)
    assert (one.counts, one.sum_ns, one.count) == (both.counts, both.sum_ns, both.count)
    assert sum(both.counts) == both.count
