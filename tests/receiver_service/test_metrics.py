# SPDX-License-Identifier: Apache-2.0
"""/metrics: what stands in the exposition for a group with and without points."""

from __future__ import annotations

from prometheus_client import generate_latest

from receiver.counted.keeper import ClockFacts
from receiver.metrics import GroupSnapshot, ReceiverSnapshot, registry_of
from receiver.points.figures import GroupFigures
from replicator.states.words import WORDS

CLOCK = ClockFacts("stepped", 0, 0, 604_800_000_000_000, "why")


def snapshot(*groups: GroupSnapshot) -> ReceiverSnapshot:
    refused = {"identity": 3}
    return ReceiverSnapshot("dr", "0.1.0", groups, 1 << 30, 5 << 30, refused, CLOCK, 77 * 10**9)


def lines_of(*groups: GroupSnapshot) -> list[str]:
    return generate_latest(registry_of(lambda: snapshot(*groups))).decode().splitlines()


def test_figures_of_a_group_at_work() -> None:
    figures = GroupFigures(received_frames=4, received_bytes=100, received_raw_bytes=700)
    figures.scrub_errors = 3
    figures.unverified_bytes = 8192
    figures.inbox_syncs.add(0.0001)
    figures.inbox_syncs.add(0.003)
    figures.inbox_syncs.add(9.0)
    figures.checksum_failures["wire"] = 2
    lines = lines_of(
        GroupSnapshot(
            name="web",
            state="protected",
            figures=figures,
            views=1,
            reconnects=5,
            points=3,
            rpo_seconds=1.5,
            lag_bytes=200,
            oldest_point_ns=10_000_000_000,
            newest_point_ns=14_500_000_000,
            history_bytes=42,
            is_paused=True,
            window_seconds=4.5,
            window_wanted_seconds=86_400.0,
            is_window_short=True,
            capacity_bytes=1000,
            forecast_seconds=7200.0,
            lock_seconds=60.0,
            scrub_good_ns=7_000_000_000,
            scrub_progress=0.25,
            damaged_points=2,
            oldest_view_seconds=90_000.0,
        )
    )
    for wanted in (
        'replicator_replication_lag_seconds{group="web"} 1.5',
        'replicator_replication_lag_bytes{group="web"} 200.0',
        'replicator_journal_window_seconds{group="web"} 4.5',
        'replicator_journal_window_wanted_seconds{group="web"} 86400.0',
        'replicator_journal_window_short{group="web"} 1.0',
        'replicator_journal_forecast_seconds{group="web"} 7200.0',
        'replicator_journal_lock_seconds{group="web"} 60.0',
        'replicator_journal_group_capacity_bytes{group="web"} 1000.0',
        'replicator_apply_paused{group="web"} 1.0',
        'replicator_scrub_last_success_timestamp_seconds{group="web"} 7.0',
        'replicator_scrub_progress_ratio{group="web"} 0.25',
        'replicator_scrub_errors_total{group="web"} 3.0',
        'replicator_points_damaged{group="web"} 2.0',
        'replicator_unverified_bytes_total{group="web"} 8192.0',
        'replicator_oldest_view_age_seconds{group="web"} 90000.0',
        'replicator_last_point_timestamp_seconds{group="web"} 14.5',
        'replicator_journal_bytes{group="web"} 42.0',
        'replicator_reconnects_total{group="web"} 5.0',
        'replicator_received_bytes_total{group="web",stage="raw"} 700.0',
        'replicator_received_bytes_total{group="web",stage="compressed"} 100.0',
        'replicator_checksum_failures_total{group="web",where="wire"} 2.0',
        'replicator_group_state{group="web",state="protected"} 1.0',
        'replicator_group_state{group="web",state="damaged"} 0.0',
        'replicator_fsync_duration_seconds_bucket{group="web",le="0.0001"} 1.0',
        'replicator_fsync_duration_seconds_bucket{group="web",le="0.005"} 2.0',
        'replicator_fsync_duration_seconds_bucket{group="web",le="+Inf"} 3.0',
        'replicator_connections_refused_total{reason="identity"} 3.0',
        'replicator_build_info{name="dr",role="receiver",version="0.1.0"} 1.0',
    ):
        assert wanted in lines


def test_what_is_not_known_is_left_out() -> None:
    lines = lines_of(
        GroupSnapshot(name="web", state="damaged", figures=GroupFigures(), views=0, reconnects=0)
    )
    assert 'replicator_points{group="web"} 0.0' in lines
    assert 'replicator_replication_lag_seconds{group="web"} +Inf' in lines
    states = [line for line in lines if line.startswith("replicator_group_state{")]
    assert len(states) == len(WORDS)
    assert [line for line in states if line.endswith(" 1.0")] == [
        'replicator_group_state{group="web",state="damaged"} 1.0'
    ]
    for absent in ("lag_bytes", "window", "last_point", "journal_bytes"):
        assert not [line for line in lines if line[0] != "#" and absent in line]
