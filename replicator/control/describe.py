# SPDX-License-Identifier: Apache-2.0
"""A group's status in the fields of a log line. No I/O."""

from __future__ import annotations

from replicator.control.types import GroupStatus


def group_in_words(group: GroupStatus) -> dict[str, object]:
    """What SIGUSR1 writes into the log. A field that is not known is left out."""
    newest = group.newest_point
    fields: dict[str, object | None] = {
        "group": group.name,
        "state": group.state,
        "reason": group.reason or None,
        "peer": group.peer,
        "rpo_seconds": None if group.rpo_seconds is None else round(group.rpo_seconds, 3),
        "durable_lsn": group.durable_lsn,
        "applied_lsn": group.applied_lsn,
        "lag_bytes": group.lag_bytes,
        "points": group.points,
        "newest_point": None if newest is None else newest.sequence,
        "newest_until": None if newest is None else newest.until,
        "history_bytes": group.history_bytes,
        "disks": ", ".join(f"{disk.name} {disk.size}" for disk in group.disks) or None,
    }
    return {name: value for name, value in fields.items() if value is not None}
