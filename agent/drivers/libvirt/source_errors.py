# SPDX-License-Identifier: Apache-2.0
"""Operations of a guest that failed on its source, and what they cost. No I/O.

QEMU mirrors a write after the source has taken it. One that fails half-way is on the source by
half, and is never sent: the guest gets its error and goes on, and source and replica differ there
for as long as the stream lives. Nothing else shows it. So any such error ends the stream as lost,
and a sync makes them equal again. An error that *pauses* the guest does not: what failed is done
again when it goes on.

It is known in two ways, since events are lost while agent or libvirtd are away:
* libvirt's io-error event. It does not tell reads from writes, and for a network disk not even the
  disk: then all disks of the domain are concerned, or those whose count has risen.
* QEMU's count of failed writes and flushes of each disk, against the count that the disk's sync
  began with. The splitter keeps that one, over the lives of the agent.

A disk that fails for good would begin a sync after each error. So one that fails again within
AGAIN_SECONDS waits, as lost and with that reason, until so much time has passed without one, or a
person orders a resync.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.drivers.libvirt.domain_xml import Domain
from agent.drivers.libvirt.events import IoError
from agent.drivers.libvirt.plan import DiskFacts
from replicator.control.splitter import SplitterGroupStatus

AGAIN_SECONDS: Final = 600.0


def concerned(error: IoError, domain: Domain | None, members: Mapping[str, str]) -> set[str]:
    """The names of the group's disks that an error may be of. `members`: those of its domain, by
    target. Only what names another disk of the domain for certain concerns none."""
    for disk in domain.disks if domain is not None else ():
        by_alias = error.alias and disk.alias == error.alias
        if by_alias or (error.path and disk.source == error.path):
            return {members[disk.target]} if disk.target in members else set()
    return set(members.values())


def counted(group: SplitterGroupStatus, disks: Iterable[DiskFacts]) -> set[str]:
    """The disks of which QEMU counts more failures than their sync began with."""
    before = {disk.name: disk.source_errors for disk in group.disks}
    return {
        disk.name
        for disk in disks
        if disk.source_errors is not None
        and (known := before.get(disk.name)) is not None
        and disk.source_errors > known
    }


def in_words(disks: Collection[str]) -> str:
    return (
        f"an I/O error of the source of {', '.join(sorted(disks))}: a guest's write may be on it by"
        " half, and was not sent"
    )


@dataclass(slots=True)
class SourceErrors:
    """When each disk of a group failed last, in seconds of the caller's clock."""

    _last: dict[str, float] = field(default_factory=dict)
    _again: set[str] = field(default_factory=set)

    def failed(self, disks: Iterable[str], now: float) -> None:
        for disk in disks:
            last = self._last.get(disk)
            if last is not None and now - last < AGAIN_SECONDS:
                self._again.add(disk)
            else:
                self._again.discard(disk)
            self._last[disk] = now

    def forget(self) -> None:
        """A person says that it may be tried."""
        self._last.clear()
        self._again.clear()

    def holds(self, now: float) -> str:
        """Why no sync begins now; empty if one may."""
        waits = {disk: self._last[disk] + AGAIN_SECONDS - now for disk in self._again}
        left = max(waits.values(), default=0.0)
        if left <= 0:
            return ""
        names = ", ".join(sorted(disk for disk, wait in waits.items() if wait > 0))
        return (
            f"the source of {names} had I/O errors twice within {AGAIN_SECONDS / 60:.0f} min;"
            f" without an order a sync begins in {left:.0f} s"
        )

    def remedy(self, group: str, now: float) -> str:
        """What a person does about it; empty if nothing waits."""
        return f"mend the disk, then run: replicator resync {group}" if self.holds(now) else ""
