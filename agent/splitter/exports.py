# SPDX-License-Identifier: Apache-2.0
"""The group's disks as NBD exports: requests into the group, replies back.

A libvirt disk is served under the name of its sync (agent.naming.export_name). The names of syncs
that are over, and its plain one, are served as well: a job that comes back to one is answered, for
its guest's sake, and what it sends goes nowhere.

What is offered is what QEMU needs, and nothing that would make it skip a write: FLUSH (the mark of
a sync's end), FUA, WRITE_ZEROES, TRIM; no block status, no fast zeroes, no multi-conn. The smallest
block is a sector, so a mirror never has to read what it does not write; READ is refused (EPERM).

FLUSH and FUA are answered like all else, when everything before is in the log: they do not make the
spool survive a power cut of this host (docs/guarantees.md).

While a batch is queued its connection is held: nothing more is read from it, and the payloads stay
where the kernel put them, without a copy.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from agent.naming.export_name import ExportName, parse_export_name
from agent.splitter.disk import Disk
from agent.splitter.group import GroupLog
from replicator.nbd.constants import Command, WireError
from replicator.nbd.exports import Client, ConnectionEnd, ExportInfo
from replicator.nbd.request import Request

_READ = int(Command.READ)


class DiskClient:
    """One connection to a disk. Implements agent.splitter.disk.Link."""

    __slots__ = ("_batch", "_connection", "_disk", "_group", "_held", "_started_ns")

    def __init__(self, group: GroupLog, disk: Disk, connection: Client) -> None:
        self._group = group
        self._disk = disk
        self._connection = connection
        self._batch: Sequence[Request] | None = None  # taken and not settled
        self._started_ns = 0
        self._held = False

    def submit(self, batch: Sequence[Request]) -> None:
        assert self._batch is None, "a held connection brought another batch"
        self._batch = batch
        self._started_ns = time.monotonic_ns()
        self._group.take(self._disk, self, batch)
        if self._batch is not None:
            self._held = True
            self._connection.hold()

    def settled(self, kept: bool) -> None:
        batch, self._batch = self._batch, None
        assert batch is not None, "a batch is settled once"
        for request in batch:
            if request.command == _READ and not request.error:
                self._connection.reply(request, WireError.EPERM)
        self._connection.reply_all(batch)
        self._disk.latency.add(time.monotonic_ns() - self._started_ns, len(batch))
        if self._held:
            self._held = False
            self._connection.release()

    def hung_up(self) -> bool:
        return self._connection.hung_up()

    def drop(self) -> None:
        self._connection.close("dropped by order")


class DiskExport:
    """A disk as one client negotiated it. Implements replicator.nbd.exports.Export."""

    def __init__(self, group: GroupLog, disk: Disk, sync_lsn: int | None) -> None:
        self._group = group
        self._disk = disk
        self._sync_lsn = sync_lsn
        self._clients: dict[Client, DiskClient] = {}

    @property
    def info(self) -> ExportInfo:
        return ExportInfo(
            size_bytes=self._disk.size,
            can_flush=True,
            can_fua=True,
            can_trim=True,
            can_write_zeroes=True,
            description=f"disk {self._disk.name} of group {self._group.settings.name}",
        )

    def opened(self, connection: Client) -> None:
        if self._group.roster.disks.get(self._disk.name) is not self._disk:
            connection.close("the disk became another one meanwhile")
            return
        client = self._clients[connection] = DiskClient(self._group, self._disk, connection)
        self._group.opened(self._disk, client, self._sync_lsn)

    def submit(self, connection: Client, batch: Sequence[Request]) -> None:
        try:
            self._clients[connection].submit(batch)
        except Exception as error:
            self._group.lose_by(error)  # known, before the connection ends by it
            raise

    def closed(self, connection: Client, end: ConnectionEnd) -> None:
        client = self._clients.pop(connection, None)
        if client is not None:
            self._group.ended(self._disk, client, end)


class SplitterExports:
    """Every declared disk. Implements replicator.nbd.exports.Exports."""

    def __init__(self, groups: Mapping[str, GroupLog]) -> None:
        self._groups = groups

    def names(self) -> Sequence[str]:
        return [
            str(ExportName(name, disk.name, disk.sync_lsn))
            for name, group in self._groups.items()
            for disk in group.roster.disks.values()
        ]

    def find(self, name: str) -> DiskExport | None:
        asked = parse_export_name(name)
        group = self._groups.get(asked.group) if asked is not None else None
        if asked is None or group is None:
            return None
        disk = group.roster.disks.get(asked.disk)
        if disk is None or (asked.sync_lsn is not None and group.settings.driver == "external"):
            return None
        return DiskExport(group, disk, asked.sync_lsn)
