# SPDX-License-Identifier: Apache-2.0
"""How an external group's stream begins. No I/O of its own.

Nobody tells the splitter what an external disk held before it connected. So on the very first
stream of a group the disk *is* what comes: it starts as all zeroes and complete, and every write
counts. Any later stream follows a loss, or a restart in which writes may have been missed, and the
group stays lost until somebody says by `resync` that the client is going to send everything again:
what comes until the next FLUSH on a disk is then the sync of that disk.
"""

from __future__ import annotations

from agent.splitter.group_log import GroupLog
from replicator.base.errors import UsageError

RESTARTED = "the splitter was restarted, writes may have been missed"


def begin(group: GroupLog) -> None:
    """At the start of the splitter, with all disks declared."""
    if group.used_before:
        group.lose(RESTARTED)
        return
    group.open_stream()
    for disk in group.disks.values():
        group.sync_begin(disk, "first stream: the disk starts as all zeroes", from_zero=True)
    for disk in group.disks.values():
        group.sync_end(disk)


def resync(group: GroupLog, *, above_ordinal: int = 0) -> None:
    """Arms the group again. Refused while nothing was lost."""
    if group.state in ("ready", "suspended"):
        raise UsageError(
            f"group {group.name!r} is {group.state}, there is nothing to resync",
            hint="resync is for a group that is lost",
        )
    if not group.live:
        group.open_stream(above_ordinal=above_ordinal)
    for disk in group.disks.values():
        group.sync_begin(disk, "resync was ordered")
