# SPDX-License-Identifier: Apache-2.0
"""What a rollback may expect."""

from __future__ import annotations

from receiver.retention.rewrite_rate import (
    ASSUMED_BYTES_PER_SECOND,
    ENOUGH_BYTES,
    HALF_BYTES,
    RewriteRate,
)


def test_it_is_assumed_until_enough_was_measured() -> None:
    rate = RewriteRate()
    assert rate.bytes_per_second == ASSUMED_BYTES_PER_SECOND
    rate.note(ENOUGH_BYTES - 1, 10.0)
    assert rate.bytes_per_second == ASSUMED_BYTES_PER_SECOND
    rate.note(1, 6.0)
    assert rate.bytes_per_second == ENOUGH_BYTES / 16.0


def test_what_was_long_ago_counts_for_less() -> None:
    rate = RewriteRate()
    for _ in range(4):
        rate.note(HALF_BYTES, 1000.0)
    slow = rate.bytes_per_second
    for _ in range(40):
        rate.note(HALF_BYTES // 4, 1.0)
    assert rate.bytes_per_second > 50 * slow
