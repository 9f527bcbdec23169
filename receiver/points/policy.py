# SPDX-License-Identifier: Apache-2.0
"""How much of a group's past is kept, as retention goes by it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from replicator.config.receiver import HistorySection

WhenFull = Literal["thin", "pause"]


@dataclass(frozen=True, slots=True)
class Rule:
    """Of points up to `span_ns` old one for each `step_ns` stays; step 0: all of them."""

    step_ns: int
    span_ns: int


@dataclass(frozen=True, slots=True)
class HistoryPolicy:
    """`rules` empty: points of any age are kept. `min_window_ns` spares points from the budget,
    `min_lock_ns` from everything; the lock in force may be longer (receiver.retention.keeping)."""

    max_bytes: int
    rules: tuple[Rule, ...] = ()
    min_window_ns: int = 0
    when_full: WhenFull = "thin"
    min_lock_ns: int = 0
    fine_ns: int = 0
    """How long applied frames are kept, for single writes as points."""


def policy_of(section: HistorySection) -> HistoryPolicy:
    return HistoryPolicy(
        max_bytes=int(section.max_bytes),
        rules=tuple(Rule(rule.step_ns, rule.span_ns) for rule in section.keep),
        min_window_ns=int(section.min_window),
        when_full=section.when_full,
        min_lock_ns=int(section.min_lock),
        fine_ns=int(section.fine_history),
    )
