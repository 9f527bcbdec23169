# SPDX-License-Identifier: Apache-2.0
"""Interleaved rounds, medians, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: medians of each peer, and the ratio of ours to each."""

    title: str
    unit: str
    ours: str
    medians: Mapping[str, float]
    targets: Mapping[str, float]

    def ratio(self, peer: str) -> float:
        return self.medians[self.ours] / self.medians[peer]


def interleaved(measures: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Runs every measure once per round, in turn; returns the median of each."""
    taken: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            taken[name].append(measure())
    return {name: statistics.median(values) for name, values in taken.items()}


def show(rows: list[Row], console: Console) -> None:
    table = Table(title="Replicator benchmarks (medians of interleaved rounds)")
    for heading in ("measure", "peer", "median", "ours / peer", "target"):
        table.add_column(heading, justify="left" if heading in ("measure", "peer") else "right")
    for row in rows:
        for peer, median in row.medians.items():
            own = peer == row.ours
            target = row.targets.get(peer)
            table.add_row(
                row.title if own else "",
                peer,
                f"{median:,.0f} {row.unit}",
                "" if own else f"{row.ratio(peer):.2f}",
                "" if target is None else f"≥ {target:.1f}",
            )
        table.add_section()
    console.print(table)
