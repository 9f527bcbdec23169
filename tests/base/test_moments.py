# SPDX-License-Identifier: Apache-2.0
"""What people write for a time, wherever they sit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator.base.clock import rfc3339, rfc3339_exact
from replicator.base.errors import UsageError
from replicator.base.moments import END_NS, Moment, local_text, moment_of, zone_of

S = 1_000_000_000
BERLIN = "Europe/Berlin"
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC")
SUNDAY_NOON = 1_772_366_400 * S  # 2026-03-01T12:00:00Z, 13:00 in Berlin


def meant(text: str, zone: str | None = BERLIN, now_ns: int = SUNDAY_NOON) -> Moment:
    found = moment_of(text, now_ns, zone)
    assert found is not None
    return found


def shown(text: str, zone: str | None = "Europe/Berlin", now_ns: int = SUNDAY_NOON) -> str:
    return rfc3339(meant(text, zone, now_ns).time_ns)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", "2026-03-01T12:00:00.000000Z"),
        ("2h ago", "2026-03-01T10:00:00.000000Z"),
        ("90s ago", "2026-03-01T11:58:30.000000Z"),
        ("1h 30m ago", "2026-03-01T10:30:00.000000Z"),
        ("-10m", "2026-03-01T11:50:00.000000Z"),
        ("- 1.5 s", "2026-03-01T11:59:58.500000Z"),
        ("2026-02-28 14:00", "2026-02-28T13:00:00.000000Z"),
        ("2026-02-28 9:30", "2026-02-28T08:30:00.000000Z"),
        ("2026-07-01T14:00:05", "2026-07-01T12:00:05.000000Z"),
        ("2026-02-28T14:00:00Z", "2026-02-28T14:00:00.000000Z"),
        ("2026-02-28 14:00 UTC", "2026-02-28T14:00:00.000000Z"),
        ("2026-02-28 14:00:00.25+02:00", "2026-02-28T12:00:00.250000Z"),
        ("yesterday 14:00", "2026-02-28T13:00:00.000000Z"),
        ("Yesterday 23:59:59.5", "2026-02-28T22:59:59.500000Z"),
        ("today 9:30", "2026-03-01T08:30:00.000000Z"),
        ("today 23:00", "2026-03-01T22:00:00.000000Z"),
        ("12:59", "2026-03-01T11:59:00.000000Z"),
        ("13:00", "2026-03-01T12:00:00.000000Z"),
        ("13:01", "2026-02-28T12:01:00.000000Z"),
        ("monday 14:00", "2026-02-23T13:00:00.000000Z"),
        ("sunday 12:00", "2026-03-01T11:00:00.000000Z"),
        ("sunday 14:00", "2026-02-22T13:00:00.000000Z"),
        ("2026-10-25 02:30+01:00", "2026-10-25T01:30:00.000000Z"),
    ],
)
def test_meant(text: str, moment: str) -> None:
    assert shown(text) == moment


@pytest.mark.parametrize("text", ["latest", "before the update", "yesterday", "14", "#12", "-x"])
def test_no_times(text: str) -> None:
    assert moment_of(text, SUNDAY_NOON, BERLIN) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-03-29 02:30", "was never on the clock in Europe/Berlin"),
        ("2026-10-25 02:30", "was on the clock twice in Europe/Berlin"),
        ("2026-02-30 12:00", "is not a time"),
        ("2026-02-28 25:00", "is not a time"),
        ("2026-02-28 12:00 CET", "is not a time"),
        ("99:00", "is not a time"),
        ("2026-02-28 12:00+99:00", "not an offset"),
        ("5 parsecs ago", "is not a duration"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        moment_of(text, SUNDAY_NOON, BERLIN)
    assert caught.value.hint


def test_both_readings_are_named_and_each_can_be_typed() -> None:
    with pytest.raises(UsageError) as caught:
        moment_of("2026-10-25 02:30", SUNDAY_NOON, BERLIN)
    assert "2026-10-25 02:30:00+02:00 or 2026-10-25 02:30:00+01:00" in caught.value.message
    assert shown("2026-10-25 02:30:00+02:00") == "2026-10-25T00:30:00.000000Z"
    with pytest.raises(UsageError) as caught:
        moment_of("2026-03-29 02:30", SUNDAY_NOON, BERLIN)
    assert "2026-03-29 01:30:00+01:00 or 2026-03-29 03:30:00+02:00" in caught.value.message


def test_without_a_zone_local_times_mean_nothing() -> None:
    for text in ("2026-02-28 14:00", "yesterday 14:00", "14:00"):
        with pytest.raises(UsageError, match="does not say in which time zone"):
            moment_of(text, SUNDAY_NOON, None)
    assert shown("2026-02-28 14:00Z", None) == "2026-02-28T14:00:00.000000Z"


def test_a_clock_time_that_comes_twice_but_not_yet_is_that_of_the_day_before() -> None:
    before_ns = int(datetime(2026, 10, 24, 23, 0, tzinfo=UTC).timestamp()) * S
    assert shown("02:30", now_ns=before_ns) == "2026-10-24T00:30:00.000000Z"


@pytest.mark.parametrize("name", ["Mars/Phobos", "../etc/passwd", "", "+1:00", "A" * 200, "/etc"])
def test_unknown_zones(name: str) -> None:
    with pytest.raises(UsageError, match="does not know the time zone"):
        zone_of(name)


def test_local_texts() -> None:
    assert local_text(SUNDAY_NOON, zone_of(BERLIN)) == "2026-03-01 13:00:00+01:00"
    assert local_text(SUNDAY_NOON + 5, zone_of("+05:45")) == "2026-03-01 17:45:00.000000005+05:45"
    assert local_text(0, zone_of("Africa/Monrovia")) == "1969-12-31 23:15:30-00:44:30"
    assert local_text(END_NS - 1, zone_of("+14:00")) == "9999-12-30 13:59:59.999999999+14:00"


def test_a_text_stands_for_as_much_time_as_it_says() -> None:
    def stretch(text: str) -> tuple[int, bool]:
        moment = meant(text)
        return moment.end_ns - moment.time_ns, moment.is_fine

    assert stretch("2026-02-28 14:00") == (999, False)
    assert stretch("2026-02-28 14:00:00.25") == (999, True)
    assert stretch("yesterday 14:00:00.123456") == (999, True)
    assert stretch("yesterday 14:00:00.1234567") == (0, True)
    assert stretch("2026-02-28 14:00:00.000001999Z") == (0, True)
    assert stretch("1.5s ago") == stretch("now") == (0, False)
    assert meant("2026-02-28 14:00:00.000001999Z").time_ns == 1_772_287_200_000_001_999
    assert shown("2026-02-28 14:00:00.000001999Z") == "2026-02-28T14:00:00.000001Z"


def test_only_what_is_said_by_its_distance_is_relative() -> None:
    for text in ("now", "NOW", "10m ago", "-10m"):
        assert meant(text, zone=None).is_relative
    for text in ("14:00", "2026-02-28 14:00:00Z"):
        assert not meant(text).is_relative


def test_a_zone_that_nobody_knows_is_refused_where_it_is_needed_and_nowhere_else() -> None:
    for text in ("14:00", "2026-02-28 14:00", "yesterday 14:00:00.5"):
        with pytest.raises(UsageError, match="does not know the time zone 'CET-1CEST'"):
            meant(text, "CET-1CEST")
    for text in ("now", "10m ago", "2026-02-28 14:00Z", "2026-02-28 14:00+01:00"):
        assert meant(text, "CET-1CEST").local is None
        assert meant(text, "CET-1CEST") == meant(text, None)


@pytest.mark.parametrize(
    "text",
    [
        "14:00 CET",
        "14:00Z",
        "yesterday 14:00+01:00",
        "2026-02-28 14:00+01:60",
        "2026-02-28 14:00+24:00",
        "2026-02-28 14:00:00.1234567891Z",
        "2026-02-28 14:00 Europe/Berlin",
    ],
)
def test_what_is_not_understood_exactly_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        moment_of(text, SUNDAY_NOON, BERLIN)


@pytest.mark.parametrize("zone", ["+14:00", "-12:00", "Pacific/Apia", "UTC"])
def test_the_ends_of_the_calendar(zone: str) -> None:
    for text in ("9999-12-31 23:59:59.999999", "9999-12-31T23:59:59-23:59"):
        with pytest.raises(UsageError, match="beyond the year 9999"):
            moment_of(text, SUNDAY_NOON, zone)
    assert meant("0001-01-01 00:00", zone).time_ns == 0
    latest = meant("9999-12-29 00:00", zone)
    assert latest.time_ns < END_NS
    assert rfc3339(latest.end_ns)
    assert shown("99999d ago", None) == "1970-01-01T00:00:00.000000Z"


MOMENTS = st.integers(10**9 * S, 4_000_000_000 * S).map(lambda ns: ns // S * S)


@given(st.integers(0, END_NS - 1), st.sampled_from((*ZONES, "Africa/Monrovia", "+14:00", "-12:00")))
def test_what_is_shown_can_be_typed_again(moment_ns: int, name: str) -> None:
    for text in (local_text(moment_ns, zone_of(name)), rfc3339_exact(moment_ns)):
        assert meant(text, None).time_ns == moment_ns
        assert meant(text, "Asia/Kathmandu").time_ns == moment_ns
    shown_ns = moment_ns // 1000 * 1000
    moment = meant(rfc3339(moment_ns), name)
    assert (moment.time_ns, moment.end_ns) == (shown_ns, shown_ns + 999)
    assert moment.local == local_text(shown_ns, zone_of(name))


@given(MOMENTS, st.sampled_from(ZONES))
def test_a_local_time_is_that_of_its_zone_or_refused(moment_ns: int, name: str) -> None:
    zone = zone_of(name)
    typed = local_text(moment_ns, zone)[:19]
    local = datetime.fromisoformat(typed).replace(tzinfo=zone)
    if local.utcoffset() == local.replace(fold=1).utcoffset():
        assert meant(typed, name, 0).time_ns == moment_ns
    else:
        with pytest.raises(UsageError, match="twice"):
            moment_of(typed, 0, name)


@given(MOMENTS, st.integers(0, 23), st.integers(0, 59))
def test_a_clock_time_is_past_and_less_than_a_day_ago(now_ns: int, hour: int, minute: int) -> None:
    for name in ("UTC", "Asia/Dubai", "+05:45"):  # days of 24 hours, at least since 1970
        found_ns = meant(f"{hour}:{minute:02}", name, now_ns).time_ns
        assert found_ns <= now_ns < found_ns + int(timedelta(days=1).total_seconds()) * S
