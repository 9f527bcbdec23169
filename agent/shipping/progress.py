# SPDX-License-Identifier: Apache-2.0
"""What a shipper tells of itself: counters, progress, and what it cannot ship. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from replicator.wire.messages import Point


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the agent started."""

    log_bytes: int = 0
    """Log that was shipped, before reduction and compression."""
    raw_bytes: int = 0
    """Records in frames: less than the log where a sync left out what the replica holds."""
    wire_bytes: int = 0
    frames: int = 0


@dataclass(frozen=True, slots=True)
class Renew:
    """The source must leave this stream and begin a new one."""

    stream: str
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known of the receiver: as of now while connected, else as of then."""

    connected: bool
    durable_lsn: int | None
    applied_lsn: int | None
    points: int
    newest_point: Point | None
    held_until_ns: int
    """Up to here the newest point is known to hold at the receiver."""
    in_flight_bytes: int
    waits_for: tuple[int, int] | None
