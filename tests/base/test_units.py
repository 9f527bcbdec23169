# SPDX-License-Identifier: Apache-2.0
"""Sizes and durations as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.units import (
    GIB,
    KIB,
    MIB,
    exact_duration,
    exact_size,
    format_duration,
    format_resize,
    format_size,
    parse_duration_ns,
    parse_size,
)

MS, S = 1_000_000, 1_000_000_000
MIN, H, D = 60 * S, 3600 * S, 86_400 * S


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1B", 1),
        ("1KiB", KIB),
        ("1KB", 1000),
        ("512 MiB", 512 * MIB),
        (" 10gib ", 10 * GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("0.1KB", 100),
        ("7PiB", 7 << 50),
        ("3TB", 3 * 10**12),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [
        ("0s", 0),
        ("250us", 250_000),
        ("250ms", 250 * MS),
        ("1s", S),
        ("0.25s", 250 * MS),
        ("15min", 15 * MIN),
        ("24h", 24 * H),
        ("7d", 7 * D),
        ("2 W", 14 * D),
    ],
)
def test_durations(text: str, duration_ns: int) -> None:
    assert parse_duration_ns(text) == duration_ns


NONSENSE = ["", " ", "B", "-1", "+1", "1,5GiB", "1e3", "0x10", "1 G iB", "1.", ".5GiB", "٣", "1\0"]


@pytest.mark.parametrize("text", [*NONSENSE, "1XiB", "1K", "1min", "1iB", "10 s"])
def test_what_is_no_size_is_said_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write for example"):
        parse_size(text)


@pytest.mark.parametrize("text", [*NONSENSE, "10", "1m", "1KiB", "1month", "1 hour"])
def test_what_is_no_duration_is_said_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write for example"):
        parse_duration_ns(text)


@pytest.mark.parametrize("text", ["8192PiB", "9223372036854775808", "1" + "0" * 10_000])
def test_what_no_field_can_hold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="too large"):
        parse_size(text)
    with pytest.raises(ValueError, match="too large"):
        parse_duration_ns("9" * 19 + "w")


def test_the_largest_size_is_accepted() -> None:
    assert parse_size(str((1 << 63) - 1)) == (1 << 63) - 1


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 * GIB, "10 GiB"),
        (MIB - 1, "1 MiB"),
        (1000 * MIB, "1000 MiB"),
        ((1 << 63) - 1, "8192 PiB"),
    ],
)
def test_sizes_are_shown_with_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0 ms"),
        (1, "0.001 us"),
        (250_000, "250 us"),
        (999_499_999, "999 ms"),
        (999_500_000, "1.0 s"),
        (59_960 * MS, "1 min 0 s"),
        (-1_200 * MS, "-1.2 s"),
        (340 * MS, "340 ms"),
        (1_200 * MS, "1.2 s"),
        (59_940 * MS, "59.9 s"),
        (250 * S, "4 min 10 s"),
        (3 * H + 2 * MIN + 59 * S, "3 h 2 min"),
        (5 * D + H + 59 * MIN, "5 d 1 h"),
    ],
)
def test_durations_are_shown_in_their_two_largest_units(duration_ns: int, text: str) -> None:
    assert format_duration(duration_ns) == text


@given(st.integers(0, 8191 << 50))
def test_a_shown_size_is_within_a_percent_and_never_in_powers_of_ten(size: int) -> None:
    text = format_size(size)
    assert "e" not in text
    assert abs(parse_size(text) - size) <= size / 100


@given(st.integers(0, 1 << 62))
def test_a_shown_duration_is_never_in_powers_of_ten_or_in_60_of_a_unit(duration_ns: int) -> None:
    text = format_duration(duration_ns)
    assert "e" not in text
    assert not any(part in text for part in ("1000 ms", "60.0 s", "60 s", "60 min", "24 h"))


@given(st.text(max_size=30))
def test_no_text_makes_parsing_fail_otherwise(text: str) -> None:
    for parse in (parse_size, parse_duration_ns):
        try:
            assert 0 <= parse(text) < 1 << 63
        except ValueError:
            continue


@given(st.integers(0, (1 << 63) - 1))
def test_an_exact_size_is_read_back(size: int) -> None:
    assert parse_size(exact_size(size)) == size


@given(st.integers(0, (1 << 63) - 1))
def test_an_exact_duration_is_read_back(nanoseconds: int) -> None:
    assert parse_duration_ns(exact_duration(nanoseconds)) == nanoseconds


def test_exact_ones_are_short() -> None:
    assert [exact_size(each) for each in (0, 1000, 512 * MIB, 3 * GIB)] == [
        "0",
        "1000",
        "512MiB",
        "3GiB",
    ]
    ms = 1_000_000
    assert [exact_duration(each * ms) for each in (250, 1000, 90_000, 24 * 3_600_000)] == [
        "250ms",
        "1s",
        "90s",
        "1d",
    ]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (24 << 20, 33 << 20, "from 24 MiB to 33 MiB"),
        (1 << 40, (1 << 40) + 512, "from 1099511627776 bytes to 1099511628288 bytes"),
    ],
)
def test_a_resize_says_two_sizes(before: int, after: int, text: str) -> None:
    assert format_resize(before, after) == text
