# SPDX-License-Identifier: Apache-2.0
"""Upkeep keeps to its share of the time, whatever its steps cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from receiver.tasks.pacing import Pacing


@given(st.lists(st.floats(0.001, 5.0), min_size=1, max_size=50), st.sampled_from([0.1, 0.25, 1.0]))
def test_its_share_is_kept(steps: list[float], share: float) -> None:
    pacing, now, busy = Pacing(share), 100.0, 0.0
    for seconds in steps:
        now += pacing.wait_seconds(now)
        assert pacing.wait_seconds(now) == 0
        pacing.took(now, now + seconds)
        now += seconds
        busy += seconds
    now += pacing.wait_seconds(now)
    assert abs(busy / (now - 100.0) - share) < 1e-6


def test_it_rests_no_longer_than_it_must() -> None:
    pacing = Pacing(0.25)
    assert pacing.wait_seconds(0.0) == 0
    pacing.took(10.0, 11.0)
    assert pacing.wait_seconds(11.0) == 3.0
    assert pacing.wait_seconds(13.5) == 0.5
    assert pacing.wait_seconds(20.0) == 0
