# SPDX-License-Identifier: Apache-2.0
"""How far back a group's history reaches, as `status` says it to people. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replicator.base.units import format_duration, format_size

if TYPE_CHECKING:
    from replicator.control.types import GroupStatus


def describe_history(group: GroupStatus) -> str:
    """`window 3 h 2 min of 1 d 0 h; 12 GiB of 100 GiB, which holds 9 d 3 h at the present rate`."""
    window = f"window {_duration(group.window_seconds)}"
    if group.window_wanted_seconds:
        window += f" of {_duration(group.window_wanted_seconds)}"
    parts = [window]
    if group.window_is_short:
        parts[0] += ", made shorter by the budget"
    if group.history_bytes is not None and group.history_capacity_bytes is not None:
        size = format_size(group.history_bytes)
        size += f" of {format_size(group.history_capacity_bytes)}"
        if group.forecast_seconds is not None:
            size += f", which holds {_duration(group.forecast_seconds)} at the present rate"
        parts.append(size)
    if group.fine_bytes:
        parts.append(f"single writes since {group.fine_since}, {format_size(group.fine_bytes)}")
    if group.locked_until is not None:
        parts.append(f"locked for {_duration(group.lock_seconds)}, until {group.locked_until}")
    return "; ".join(parts)


def _duration(seconds: float | None) -> str:
    return format_duration(round((seconds or 0) * 1e9))
