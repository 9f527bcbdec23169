# SPDX-License-Identifier: Apache-2.0
"""/metrics of the receiver: the groups' figures as Prometheus families. No I/O.

Nothing is counted here: the collector asks `snapshots` when it is scraped, so an unscraped
receiver pays nothing. Labels are bounded: the groups of the config, and fixed words. Figures that
are not known are left out rather than shown as 0; but a group without any point lags by +Inf, since
an alarm on a figure that is not there never rings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from receiver.counted.keeper import ClockFacts
from receiver.counted.rules import ClockState
from receiver.points.figures import Durations, GroupFigures
from replicator.states.words import WORDS

CLOCK_STATES = get_args(ClockState)
NS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSnapshot:
    """A group as it is now. None: not known, or there is none."""

    name: str
    state: str
    figures: GroupFigures
    views: int
    reconnects: int
    points: int = 0
    rpo_seconds: float | None = None
    clock_offset_seconds: float | None = None
    durable_lsn: int | None = None
    applied_lsn: int | None = None
    lag_bytes: int | None = None
    oldest_point_ns: int | None = None
    newest_point_ns: int | None = None
    history_bytes: int | None = None
    inbox_bytes: int | None = None
    fine_bytes: int | None = None
    is_paused: bool = False
    window_seconds: float | None = None
    window_wanted_seconds: float | None = None
    is_window_short: bool | None = None
    capacity_bytes: int | None = None
    forecast_seconds: float | None = None
    lock_seconds: float | None = None
    scrub_good_ns: int | None = None
    scrub_progress: float | None = None
    damaged_points: int | None = None
    oldest_view_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ReceiverSnapshot:
    """The daemon as it is now. `refused` counts connections by the name of the error."""

    name: str
    version: str
    groups: Sequence[GroupSnapshot]
    history_capacity_bytes: int
    free_bytes: int
    refused: dict[str, int]
    clock: ClockFacts
    certificate_not_after_ns: int


class ReceiverCollector(Collector):
    """See the head of this file."""

    def __init__(self, snapshot: Callable[[], ReceiverSnapshot]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: registering must not take a snapshot."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        yield InfoMetricFamily(
            "replicator_build",
            "What runs here.",
            value={"version": now.version, "role": "receiver", "name": now.name},
        )
        yield GaugeMetricFamily(
            "replicator_journal_capacity_bytes",
            "Budget of each group's history.",
            value=now.history_capacity_bytes,
        )
        yield GaugeMetricFamily(
            "replicator_data_free_bytes", "Free on the disk of data_dir.", value=now.free_bytes
        )
        yield GaugeMetricFamily(
            "replicator_tls_cert_not_after_timestamp_seconds",
            "When the receiver's certificate expires, or its CA's if that is sooner.",
            value=now.certificate_not_after_ns / NS,
        )
        refused = CounterMetricFamily(
            "replicator_connections_refused",
            "Agents' connections refused, by the name of the error.",
            labels=["reason"],
        )
        for reason, count in sorted(now.refused.items()):
            refused.add_metric([reason], count)
        yield refused
        yield from _clock(now.clock)
        yield from _states(now.groups)
        for name, text, gauge in _GAUGES:
            yield _gauge(name, text, now.groups, gauge)
        for name, text, counter in _COUNTERS:
            yield _counter(name, text, now.groups, counter)
        yield from _labelled_counters(now.groups)
        yield _sync_durations(now.groups)


def _clock(clock: ClockFacts) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "replicator_clock_state",
        "Whether the clock that points age by is good, has stepped, or is unconfirmed.",
        labels=["state"],
    )
    for each in CLOCK_STATES:
        state.add_metric([each], float(each == clock.state))
    yield state
    yield GaugeMetricFamily(
        "replicator_clock_behind_seconds",
        "How far that clock is behind the machine's; negative where it is ahead.",
        value=clock.behind_ns / NS,
    )


def registry_of(snapshot: Callable[[], ReceiverSnapshot]) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReceiverCollector(snapshot))
    return registry


Gauge = Callable[[GroupSnapshot], float | None]
Counter = Callable[[GroupFigures], float]


def _seconds(time_ns: int | None) -> float | None:
    return None if time_ns is None else time_ns / NS


_GAUGES: tuple[tuple[str, str, Gauge], ...] = (
    (
        "replicator_replication_lag_seconds",
        "RPO now: age of the newest durable point; +Inf without one.",
        lambda group: math.inf if group.rpo_seconds is None else group.rpo_seconds,
    ),
    (
        "replicator_clock_offset_seconds",
        "How far the source's wall clock is ahead of the receiver's.",
        lambda group: group.clock_offset_seconds,
    ),
    (
        "replicator_replication_lag_bytes",
        "Log that is durable and not yet applied.",
        lambda group: group.lag_bytes,
    ),
    ("replicator_acked_lsn", "Log position that is durable here.", lambda g: g.durable_lsn),
    ("replicator_applied_lsn", "Log position of the replica.", lambda g: g.applied_lsn),
    ("replicator_points", "Recovery points that can be reached.", lambda g: g.points),
    (
        "replicator_last_point_timestamp_seconds",
        "Time of the newest point.",
        lambda g: _seconds(g.newest_point_ns),
    ),
    (
        "replicator_oldest_point_timestamp_seconds",
        "Time of the oldest point.",
        lambda g: _seconds(g.oldest_point_ns),
    ),
    (
        "replicator_journal_window_seconds",
        "Age of the oldest point, by the receiver's clock.",
        lambda group: group.window_seconds,
    ),
    (
        "replicator_journal_window_wanted_seconds",
        "How far back keep reaches.",
        lambda group: group.window_wanted_seconds,
    ),
    (
        "replicator_journal_window_short",
        "1 while the budget makes the window shorter than that.",
        lambda group: group.is_window_short,
    ),
    (
        "replicator_journal_forecast_seconds",
        "How long a window the budget holds at the present rate of change.",
        lambda group: group.forecast_seconds,
    ),
    (
        "replicator_journal_lock_seconds",
        "Points younger than this are given up for nothing.",
        lambda group: group.lock_seconds,
    ),
    (
        "replicator_journal_group_capacity_bytes",
        "Budget of the group's history.",
        lambda group: group.capacity_bytes,
    ),
    (
        "replicator_apply_paused",
        "1 while nothing is applied for want of room.",
        lambda group: group.is_paused,
    ),
    ("replicator_journal_bytes", "Size of the history.", lambda g: g.history_bytes),
    ("replicator_inbox_bytes", "Size of the inbox.", lambda g: g.inbox_bytes),
    (
        "replicator_fine_history_bytes",
        "Frames kept for single writes as points.",
        lambda group: group.fine_bytes,
    ),
    (
        "replicator_scrub_last_success_timestamp_seconds",
        "When the last scrub ended that left nothing bad.",
        lambda group: _seconds(group.scrub_good_ns),
    ),
    (
        "replicator_scrub_progress_ratio",
        "How far the scrub under way has come; absent while there is none.",
        lambda group: group.scrub_progress,
    ),
    (
        "replicator_points_damaged",
        "Points that cannot be served.",
        lambda group: group.damaged_points,
    ),
    ("replicator_views", "Views that are open.", lambda g: g.views),
    (
        "replicator_oldest_view_age_seconds",
        "For how long the oldest view has been open; nothing behind its point is freed.",
        lambda group: group.oldest_view_seconds,
    ),
)

_COUNTERS: tuple[tuple[str, str, Counter], ...] = (
    ("replicator_received_frames", "Frames made durable.", lambda f: f.received_frames),
    ("replicator_applied_bytes", "Log applied to the replica.", lambda f: f.applied_log_bytes),
    ("replicator_batches", "Batches applied.", lambda f: f.batches),
    ("replicator_points_made", "Recovery points made.", lambda f: f.points_made),
    ("replicator_points_dropped", "Points that retention removed.", lambda f: f.points_dropped),
    ("replicator_scrub_errors", "Bad places found by scrubs.", lambda f: f.scrub_errors),
    (
        "replicator_unverified_bytes",
        "Old content that had no sum when a batch changed it.",
        lambda f: f.unverified_bytes,
    ),
    ("replicator_compared_bytes", "Replica content compared in syncs.", lambda f: f.digest_bytes),
    ("replicator_connects", "Sessions with an agent.", lambda f: f.sessions),
)


def _states(groups: Sequence[GroupSnapshot]) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "replicator_group_state", "1 for the state a group is in.", labels=["group", "state"]
    )
    for group in groups:
        for state in WORDS:
            family.add_metric([group.name, state], float(group.state == state))
    yield family


def _gauge(name: str, text: str, groups: Sequence[GroupSnapshot], value: Gauge) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["group"])
    for group in groups:
        found = value(group)
        if found is not None:
            family.add_metric([group.name], found)
    return family


def _counter(name: str, text: str, groups: Sequence[GroupSnapshot], value: Counter) -> Metric:
    family = CounterMetricFamily(name, text, labels=["group"])
    for group in groups:
        family.add_metric([group.name], value(group.figures))
    return family


def _labelled_counters(groups: Sequence[GroupSnapshot]) -> Iterator[Metric]:
    reconnects = CounterMetricFamily(
        "replicator_reconnects",
        "Sessions that replaced a live one of the same agent.",
        labels=["group"],
    )
    received = CounterMetricFamily(
        "replicator_received_bytes", "Frames by stage of their bytes.", labels=["group", "stage"]
    )
    failures = CounterMetricFamily(
        "replicator_checksum_failures",
        "Bytes that failed their checksum, by where they were found.",
        labels=["group", "where"],
    )
    for group in groups:
        reconnects.add_metric([group.name], group.reconnects)
        received.add_metric([group.name, "raw"], group.figures.received_raw_bytes)
        received.add_metric([group.name, "compressed"], group.figures.received_bytes)
        for where, count in sorted(group.figures.checksum_failures.items()):
            failures.add_metric([group.name, where], count)
    yield reconnects
    yield received
    yield failures


def _sync_durations(groups: Sequence[GroupSnapshot]) -> Metric:
    family = HistogramMetricFamily(
        "replicator_fsync_duration_seconds",
        "Time to make a group of frames durable in the inbox.",
        labels=["group"],
    )
    for group in groups:
        durations = group.figures.inbox_syncs
        family.add_metric([group.name], _buckets(durations), durations.sum_seconds)
    return family


def _buckets(durations: Durations) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus wants them."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, durations.bounds), "+Inf"], durations.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
