# SPDX-License-Identifier: Apache-2.0
"""What the splitter publishes about its groups, as the control protocol says it. No I/O.

`end_lsn` is the end of what is whole in the files: what is queued or encoded is not in it, so a
reader that stays below never sees a record that is half written.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.naming.export_name import ExportName
from agent.splitter.disk import Disk
from agent.splitter.group import GroupLog
from agent.splitter.latency import BOUNDS_US, Histogram
from agent.splitter.tiers import SpoolTiers
from replicator.control.splitter import (
    LatencyStatus,
    SplitterDiskStatus,
    SplitterGroupStatus,
    SplitterStatus,
)


def splitter_status(
    instance: str, groups: Iterable[GroupLog], tiers: SpoolTiers, now_ns: int
) -> SplitterStatus:
    """`now_ns`: the machine's monotonic clock."""
    return SplitterStatus(
        instance=instance, groups=[group_status(group, tiers, now_ns) for group in groups]
    )


def group_status(group: GroupLog, tiers: SpoolTiers, now_ns: int) -> SplitterGroupStatus:
    name = group.settings.name
    stream = group.writer.stream
    return SplitterGroupStatus(
        name=name,
        state=group.state,
        reason=group.reason,
        stream=str(stream.name.stream) if stream is not None else None,
        ordinal=stream.name.ordinal if stream is not None else 0,
        first_lsn=stream.first_lsn if stream is not None else 0,
        end_lsn=stream.end_lsn if stream is not None else 0,
        last_cut_time_ns=group.cutter.last_cut_time_ns,
        held_until_ns=group.cutter.held_until_ns,
        disks=[_disk_status(name, disk) for disk in group.roster.disks.values()],
        memory_bytes=tiers.memory.group_bytes(name),
        disk_bytes=tiers.disk.group_bytes(name),
        latency=_latency_status(group),
        requests=group.requests,
        bytes=group.bytes,
        said_ns=now_ns,
        sign_ns=0 if group.ending is None else group.ending.first_ns,
        ended=group.stream_end,
    )


def lost_status(name: str, reason: str) -> SplitterGroupStatus:
    """Of a group that has no log."""
    return SplitterGroupStatus(
        name=name,
        state="lost",
        reason=reason,
        stream=None,
        ordinal=0,
        first_lsn=0,
        end_lsn=0,
        last_cut_time_ns=0,
        held_until_ns=0,
        disks=[],
        memory_bytes=0,
        disk_bytes=0,
        latency=LatencyStatus(bounds_us=BOUNDS_US, counts=Histogram().counts, sum_us=0, count=0),
        requests=0,
        bytes=0,
    )


def _disk_status(group: str, disk: Disk) -> SplitterDiskStatus:
    return SplitterDiskStatus(
        name=disk.name,
        index=disk.index,
        instance=disk.instance,
        size=disk.size,
        connected=len(disk.links),
        state=disk.state.value,
        source_errors=disk.source_errors,
        export=str(ExportName(group, disk.name, disk.sync_lsn)),
        flushed_by=disk.flushed_by,
        void=disk.void,
    )


def _latency_status(group: GroupLog) -> LatencyStatus:
    total = Histogram()
    for disk in group.roster.disks.values():
        total.merge(disk.latency)
    return LatencyStatus(
        bounds_us=BOUNDS_US,
        counts=total.counts,
        sum_us=total.sum_ns // 1000,
        count=total.count,
    )


def dump_of(group: SplitterGroupStatus) -> dict[str, object]:
    """A group in the fields of a log line."""
    return {
        "group": group.name,
        "state": group.state,
        "reason": group.reason,
        "stream": group.stream,
        "ordinal": group.ordinal,
        "first_lsn": group.first_lsn,
        "end_lsn": group.end_lsn,
        "memory_bytes": group.memory_bytes,
        "disk_bytes": group.disk_bytes,
        "disks": ", ".join(
            f"{disk.name} {disk.state} {disk.connected} connected" for disk in group.disks
        ),
    }
