# SPDX-License-Identifier: Apache-2.0
"""The disks of a group: which there are, which are members, and what their records say. No I/O.

A disk's index is its number in records; it is given once and stays, also over streams. Members are
the disks that a cut must find complete: those declared before the stream was ready for the first
time, and each later one from its sync-end on. So a disk that is added to a protected group does
not stop its points, and no point of a new group lacks one of its disks.
"""

from __future__ import annotations

from itertools import count
from uuid import UUID

from agent.splitter.continuity import DiskState
from agent.splitter.disk import Disk
from journal.bodies import Detach, Member, SyncBegin, SyncEnd, encode_body
from journal.record import NO_DISK
from replicator.base.errors import NotFoundError, OwnedError, UsageError
from replicator.base.names import check_name
from replicator.nbd.limits import MIN_BLOCK_BYTES


class Roster:
    """See the head of this file."""

    def __init__(self, group: str) -> None:
        self.disks: dict[str, Disk] = {}
        self._group = group
        self._indexes = count()
        self._was_ready = False  # in this stream: who is declared now is no member yet
        self._streaming = False

    def find(self, name: str) -> Disk:
        if name not in self.disks:
            raise NotFoundError(
                f"group {self._group!r} has no disk {name!r}", hint="declare it first"
            )
        return self.disks[name]

    # Who is there.

    def same(self, name: str, size: int, instance: str) -> Disk | None:
        """The disk, if it is declared just so. Raises UsageError for what cannot be a disk, and
        OwnedError if another instance is connected under that name."""
        check_name("disk", name)
        if not 0 < size < 1 << 63 or size % MIN_BLOCK_BYTES:
            raise UsageError(f"disk {name!r}: size {size} is no multiple of {MIN_BLOCK_BYTES}")
        try:
            UUID(instance)
        except ValueError:
            raise UsageError(f"disk {name!r}: {instance[:80]!r} is no UUID") from None
        found = self.disks.get(name)
        if found is None or (found.size, found.instance) == (size, instance):
            return found
        if found.links:
            raise OwnedError(
                f"disk {name!r} is connected and cannot become another one",
                hint="end its block copy first, or drop the connections of the group",
            )
        return None

    def declare(self, name: str, size: int, instance: str) -> Disk:
        """A new disk, or a new instance in the place of the one before. `same` has been asked."""
        disk = Disk(name, next(self._indexes), instance, size)
        disk.member = self._streaming and not self._was_ready
        assert disk.index < NO_DISK, "a group has seen too many disks"
        self.disks[name] = disk
        return disk

    def remove(self, name: str) -> None:
        disk = self.disks.pop(name)
        disk.leave_stream()

    # The stream.

    def begin_stream(self) -> None:
        self._streaming, self._was_ready = True, False
        for disk in self.disks.values():
            disk.member = True

    def end_stream(self) -> None:
        self._streaming = False
        for disk in self.disks.values():
            disk.leave_stream()

    def became_ready(self) -> bool:
        """Whether all members are complete, for the first time in this stream. True once."""
        if not self._streaming or self._was_ready or self.incomplete():
            return False
        self._was_ready = True
        return True

    # The members.

    def members(self) -> list[Disk]:
        return [disk for disk in self.disks.values() if disk.member]

    def incomplete(self) -> str:
        """Why the group as a whole is not complete; empty if it is."""
        members = self.members()
        for disk in members:
            if disk.state is not DiskState.COMPLETE:
                return f"disk {disk.name} is not complete"
        return "" if members else "no disk is complete"

    def hung_up(self) -> str:
        """Whose mirror has closed its socket, known or not yet known to us, as a reason."""
        for disk in self.members():
            if disk.mirror_hung_up():
                return f"the connection of disk {disk.name} has ended"
        return ""

    def all_said_disc(self) -> bool:
        return all(disk.said_disc for disk in self.members())

    def listed(self) -> list[Member]:
        """As a cut lists them."""
        return [
            Member(
                disk=disk.index,
                name=disk.name,
                instance=disk.instance,
                size=disk.size,
                complete=disk.state is DiskState.COMPLETE,
            )
            for disk in self.members()
        ]


def sync_begin_body(disk: Disk, reason: str, *, from_zero: bool) -> bytes:
    return encode_body(
        SyncBegin(
            name=disk.name,
            instance=disk.instance,
            size=disk.size,
            from_zero=from_zero,
            reason=reason,
        )
    )


def sync_end_body(disk: Disk) -> bytes:
    return encode_body(SyncEnd(name=disk.name, instance=disk.instance))


def detach_body(disk: Disk) -> bytes:
    return encode_body(Detach(name=disk.name, instance=disk.instance))
