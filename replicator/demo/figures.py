# SPDX-License-Identifier: Apache-2.0
"""The figures at the end of the story: gathered while it runs, shown as a table."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from replicator.base.units import format_size

_SCRAPE_SECONDS = 5.0


@dataclass
class Figures:
    """Zero where nothing was measured yet."""

    writes: int = 0
    raw_bytes: int = 0
    wire_bytes: int = 0
    write_p50_us: float = 0.0
    write_p99_us: float = 0.0
    rollback_seconds: float = 0.0
    boot_seconds: float = 0.0
    rto_seconds: float = 0.0
    rpo_seconds: list[float] = field(default_factory=list)

    def read_agent(self, port: int, group: str) -> None:
        """Takes what the agent's /metrics says now."""
        url = f"http://127.0.0.1:{port}/metrics"
        with urllib.request.urlopen(url, timeout=_SCRAPE_SECONDS) as answer:
            text = answer.read().decode()
        buckets: list[tuple[float, float]] = []
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("group") != group:
                    continue
                if sample.name == "replicator_guest_requests_total":
                    self.writes = int(sample.value)
                elif sample.name == "replicator_sent_bytes_total":
                    self._sent(sample.labels["stage"], int(sample.value))
                elif sample.name == "replicator_guest_write_duration_seconds_bucket":
                    buckets.append((float(sample.labels["le"]), sample.value))
        self.write_p50_us = bucket_quantile(buckets, 0.5) * 1e6
        self.write_p99_us = bucket_quantile(buckets, 0.99) * 1e6

    def _sent(self, stage: str, value: int) -> None:
        if stage == "raw":
            self.raw_bytes = value
        elif stage == "compressed":
            self.wire_bytes = value

    def table(self) -> Table:
        rpo = sorted(self.rpo_seconds) or [0.0]
        sizes = f"{format_size(self.raw_bytes)} / {format_size(self.wire_bytes)}"
        ages = f"{quantile(rpo, 0.5):.2f} / {quantile(rpo, 0.99):.2f} / {rpo[-1]:.2f} s"
        added = f"≤ {self.write_p50_us:,.0f} / ≤ {self.write_p99_us:,.0f} µs"
        rows = [
            ("writes replicated", f"{self.writes:,}"),
            ("bytes, raw / on the wire", sizes),
            ("RPO p50 / p99 / max", ages),
            ("added to a guest write, p50 / p99", added),
            ("time to roll back", f"{self.rollback_seconds:.2f} s"),
            ("time to boot the replica", f"{self.boot_seconds:.1f} s"),
            ("RTO: from the order to a verified guest", f"{self.rto_seconds:.1f} s"),
        ]
        table = Table(title="What was measured", show_header=False, title_justify="left")
        for name, value in rows:
            table.add_row(name, value)
        return table


def quantile(ordered: list[float], share: float) -> float:
    """Nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def bucket_quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """The upper bound of the bucket that holds the quantile; the last finite one beyond all."""
    if not buckets:
        return 0.0
    ordered = sorted(buckets)
    wanted = share * ordered[-1][1]
    bound = next(bound for bound, count in ordered if count >= wanted)
    return bound if bound != float("inf") else ordered[-2][0]
