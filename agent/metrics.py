# SPDX-License-Identifier: Apache-2.0
"""/metrics of the agent, with the splitter's figures among them. No I/O.

Nothing is counted for the sake of a scrape: the collector reads what the groups know when it is
asked. Labels are bounded: groups and disks of the config, fixed words. What is not known (no
splitter) is left out rather than shown as 0; but a group without any point lags by +Inf, since an
alarm on a figure that is not there never rings.

The splitter has no port of its own: its histogram from request to reply, which is what protection
costs a guest, comes here from its status and begins at 0 when it is restarted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from agent.group.group import GroupAgent
from agent.links.splitter_link import SplitterLink
from agent.quiesce.figures import FROZEN_BOUNDS_SECONDS
from replicator import __version__
from replicator.base.clock import NS_PER_S
from replicator.control.splitter import LatencyStatus
from replicator.states.words import WORDS
from replicator.wire.credentials import Credentials

US_PER_S = 1e6

Figure = Callable[[GroupAgent], float | None]


class AgentCollector(Collector):
    """See the head of this file."""

    def __init__(
        self,
        name: str,
        splitter: SplitterLink,
        groups: Mapping[str, GroupAgent],
        credentials: Credentials,
    ) -> None:
        self._name = name
        self._splitter = splitter
        self._groups = groups
        self._credentials = credentials

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        groups = list(self._groups.values())
        yield InfoMetricFamily(
            "replicator_build",
            "What runs here.",
            value={"version": __version__, "role": "agent", "name": self._name},
        )
        yield GaugeMetricFamily(
            "replicator_splitter_up",
            "1 while the splitter can be heard.",
            value=0 if self._splitter.problem else 1,
        )
        yield GaugeMetricFamily(
            "replicator_tls_cert_not_after_timestamp_seconds",
            "When the agent's certificate expires, or its CA's if that is sooner.",
            value=self._credentials.not_after_ns / NS_PER_S,
        )
        for name, text, figure in _GAUGES:
            yield _gauge(name, text, groups, figure)
        for name, text, figure in _COUNTERS:
            yield _counter(name, text, groups, figure)
        yield _states(groups)
        yield _sent(groups)
        yield _reconnects(groups)
        yield _spool(groups)
        yield _disks(groups)
        yield _guest_writes(groups)
        yield _frozen(groups)
        yield _quiesced(groups)
        yield _scheduled(groups)


def _gauge(name: str, text: str, groups: Sequence[GroupAgent], figure: Figure) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["group"])
    for group in groups:
        if (value := figure(group)) is not None:
            family.add_metric([group.name], value)
    return family


def _counter(
    name: str, text: str, groups: Sequence[GroupAgent], figure: Figure
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["group"])
    for group in groups:
        if (value := figure(group)) is not None:
            family.add_metric([group.name], value)
    return family


def _newest_point(group: GroupAgent) -> float | None:
    point = group.shipper.progress.newest_point
    return None if point is None else point.time_ns / NS_PER_S


def _lag_seconds(group: GroupAgent) -> float:
    lag = group.rpo_seconds()
    return math.inf if lag is None else lag


_GAUGES: tuple[tuple[str, str, Figure], ...] = (
    (
        "replicator_replication_lag_seconds",
        "Age of the newest moment that the receiver is known to hold (RPO now); +Inf without one.",
        _lag_seconds,
    ),
    (
        "replicator_replication_lag_bytes",
        "Log that is not durable at the receiver.",
        lambda group: group.lag_bytes(),
    ),
    (
        "replicator_last_point_timestamp_seconds",
        "Time of the newest recovery point.",
        _newest_point,
    ),
    (
        "replicator_points",
        "Recovery points at the receiver, as it said last.",
        lambda group: group.shipper.progress.points,
    ),
    (
        "replicator_acked_lsn",
        "Log position that is durable at the receiver.",
        lambda group: group.shipper.progress.durable_lsn,
    ),
    (
        "replicator_applied_lsn",
        "Log position of the replica.",
        lambda group: group.shipper.progress.applied_lsn,
    ),
    (
        "replicator_in_flight_bytes",
        "Sent and not yet acknowledged.",
        lambda group: group.shipper.progress.in_flight_bytes,
    ),
    (
        "replicator_receiver_connected",
        "1 while there is a session with the receiver.",
        lambda group: float(group.link.connected),
    ),
    (
        "replicator_fenced",
        "1 while the receiver may not be fed by this source.",
        lambda group: float(group.link.refused is not None),
    ),
)

_COUNTERS: tuple[tuple[str, str, Figure], ...] = (
    (
        "replicator_sent_frames",
        "Frames sent to the receiver.",
        lambda group: group.shipper.counters.frames,
    ),
    (
        "replicator_guest_requests",
        "Requests that the splitter has answered, since it started.",
        lambda group: None if group.status is None else group.status.requests,
    ),
    (
        "replicator_log_bytes",
        "Log that the splitter has appended, since it started.",
        lambda group: None if group.status is None else group.status.bytes,
    ),
)


def _states(groups: Sequence[GroupAgent]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "replicator_group_state", "1 for the state a group is in.", labels=["group", "state"]
    )
    for group in groups:
        now = group.state.word
        for word in WORDS:
            family.add_metric([group.name, word], float(now == word))
    return family


def _sent(groups: Sequence[GroupAgent]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "replicator_sent_bytes",
        "Bytes by stage: the log; what a sync left of it (raw); what was sent (compressed).",
        labels=["group", "stage"],
    )
    for group in groups:
        counters = group.shipper.counters
        family.add_metric([group.name, "log"], counters.log_bytes)
        family.add_metric([group.name, "raw"], counters.raw_bytes)
        family.add_metric([group.name, "compressed"], counters.wire_bytes)
    return family


def _reconnects(groups: Sequence[GroupAgent]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "replicator_reconnects",
        "Sessions and attempts that ended, by the name of the error.",
        labels=["group", "reason"],
    )
    for group in groups:
        for reason, count in sorted(group.link.reconnects.items()):
            family.add_metric([group.name, reason], count)
    return family


def _spool(groups: Sequence[GroupAgent]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "replicator_spool_bytes", "Spool in use, by tier.", labels=["group", "tier"]
    )
    for group in groups:
        if group.status is not None:
            family.add_metric([group.name, "memory"], group.status.memory_bytes)
            family.add_metric([group.name, "disk"], group.status.disk_bytes)
    return family


def _disks(groups: Sequence[GroupAgent]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "replicator_disk_state",
        "1 for the state a disk is in at the splitter.",
        labels=["group", "disk", "state"],
    )
    for group in groups:
        for disk in group.status.disks if group.status is not None else ():
            for state in ("idle", "syncing", "flushed", "complete"):
                family.add_metric([group.name, disk.name, state], float(disk.state == state))
    return family


def _guest_writes(groups: Sequence[GroupAgent]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "replicator_guest_write_duration_seconds",
        "From a request's receipt to its reply at the splitter: what protection costs the guest.",
        labels=["group"],
    )
    for group in groups:
        if group.status is not None:
            buckets = _buckets(group.status.latency)
            family.add_metric([group.name], buckets, group.status.latency.sum_us / US_PER_S)
    return family


def _frozen(groups: Sequence[GroupAgent]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "replicator_frozen_seconds",
        "How long guests' filesystems were frozen for a quiesced mark.",
        labels=["group"],
    )
    for group in groups:
        figures, total = group.quiescence.figures, 0
        buckets: list[tuple[str, float]] = []
        bounds = [*map(str, FROZEN_BOUNDS_SECONDS), "+Inf"]
        for bound, count in zip(bounds, figures.counts, strict=True):
            total += count
            buckets.append((bound, total))
        family.add_metric([group.name], buckets, figures.sum_seconds)
    return family


def _quiesced(groups: Sequence[GroupAgent]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "replicator_quiesced_marks",
        "Quiesced marks: application, crash (quiesce = try), failed.",
        labels=["group", "outcome"],
    )
    for group in groups:
        for outcome in ("application", "crash", "failed"):
            family.add_metric([group.name, outcome], group.quiescence.figures.outcomes[outcome])
    return family


def _scheduled(groups: Sequence[GroupAgent]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "replicator_scheduled_marks",
        "Marks that came by mark_every: made, failed.",
        labels=["group", "outcome"],
    )
    for group in groups:
        if group.schedule is not None:
            family.add_metric([group.name, "made"], group.schedule.made)
            family.add_metric([group.name, "failed"], group.schedule.failed)
    return family


def _buckets(latency: LatencyStatus) -> list[tuple[str, float]]:
    """Cumulated, as Prometheus wants them."""
    bounds = [str(bound / US_PER_S) for bound in latency.bounds_us] + ["+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(bounds, latency.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
