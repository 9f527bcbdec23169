# SPDX-License-Identifier: Apache-2.0
"""What the splitter's status says of a group's state. No I/O.

The agent's column of the table of states (replicator.states.source) is told from facts; those that
stand in the splitter's status are read here. A status is the whole truth at its time, so nothing
is remembered from one to the next.
"""

from __future__ import annotations

from replicator.control.splitter import SplitterGroupStatus
from replicator.states.source import Capture
from replicator.wire.messages import Point


def capture_of(status: SplitterGroupStatus | None) -> Capture:
    """A splitter that has been started anew knows no stream: what the one before it captured has
    not ended in order, whatever it was."""
    if status is None:
        return Capture.UNHEARD
    match status.state:
        case "closed":
            is_known = status.stream is not None or status.ended
            return Capture.ENDED if is_known else Capture.NOTHING
        case "lost":
            return Capture.LOST
        case "syncing":
            begun = any(disk.state != "idle" for disk in status.disks)
            return Capture.SYNCING if begun else Capture.OPENED
        case "ready":
            return Capture.COMPLETE
        case "suspended":
            return Capture.SUSPENDED


def is_of_stream(point: Point | None, status: SplitterGroupStatus | None) -> bool:
    """Whether the point was cut in the stream that is captured now."""
    return (
        point is not None and status is not None and status.first_lsn < point.lsn <= status.end_lsn
    )
