# SPDX-License-Identifier: Apache-2.0
"""What the libvirt driver does next for a group. No I/O.

The driver does not keep a state of its own that could disagree with the world. It reads what is
(the splitter's status, libvirt's live XML), asks `next_steps` for a safe one, does it, and reads
again. So a restart of the agent or of libvirtd, a lost event, or a kill between two steps needs no
case of its own: the next look finds the same world.

The steps of a protection, in order:

    OpenStream → Declare each disk → BeginSync each disk → RecordXml each domain →
    StartCopy each disk → (QEMU copies) → ConfirmReady each disk → Rest

Evidence counts only for the job it came from. A copy is begun into the export of one sync
(agent.naming.export_name), which libvirt shows as long as the job lives; so a copy is *of* the sync
that the splitter names for its disk, or it is an old one.

Rules
* An old copy of ours in a living stream is ended before anything else is done about its disk, and a
  sync begins only where no copy is. So the job whose FLUSH and READY end a sync was begun in it.
  QEMU flushes the target of a copy that goes on as well (a pause does), which voids the sync: then
  the disk is idle, and the copy an old one.
* A disk whose copy has ended while the splitter still takes its stream for alive is a loss: QEMU
  goes on completing guest writes that nobody mirrors, and the socket may stay open and silent.
  The stream is closed before anything else.
* A copy of ours without a living stream is useless: it is ended before a new stream opens, since
  libvirt allows one job a disk. A job that is not ours is somebody's: the group waits and says so.
* READY is confirmed to the splitter only as read back from the live XML after the FLUSH that the
  splitter told of, and for the connection of that FLUSH: events of earlier jobs arrive late.
* Of a source that has come to its end, or may have, nothing is asked here: libvirt_end decides
  that first, and this plan only sees groups whose domains run, with a stream that is live or gone.
* Splitter and libvirt disagreeing about a disk's size or instance means that it was resized, or
  another disk came back under the name: it is declared anew, at once where no copy of it was begun
  in the stream (the group's other disks go on then), else in a new stream. libvirt refuses to
  resize a disk while its copy runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from agent.drivers.libvirt.domain_xml import Mirror
from replicator.base.units import format_resize
from replicator.control.splitter import SplitterDiskStatus, SplitterGroupStatus

# States in which the splitter appends what the mirrors send.
_LIVE = ("syncing", "ready")


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """A disk of the group as libvirt knows it now."""

    name: str
    domain: str
    target: str
    size: int
    instance: UUID
    mirror: Mirror | None
    ours: bool
    source_errors: int | None = None
    """Failed writes and flushes of the guest since QEMU runs; None if QEMU cannot be asked."""


@dataclass(frozen=True, slots=True)
class OpenStream:
    reason: str


@dataclass(frozen=True, slots=True)
class Declare:
    disk: DiskFacts


@dataclass(frozen=True, slots=True)
class BeginSync:
    disk: DiskFacts


@dataclass(frozen=True, slots=True)
class RecordXml:
    domain: str


@dataclass(frozen=True, slots=True)
class StartCopy:
    disk: DiskFacts
    export: str


@dataclass(frozen=True, slots=True)
class ConfirmReady:
    disk: DiskFacts
    connection: int


@dataclass(frozen=True, slots=True)
class EndCopy:
    disk: DiskFacts


@dataclass(frozen=True, slots=True)
class Close:
    """`final_cut`, `unwatched`: see agent.splitter.ending; neither: continuity is lost."""

    reason: str
    final_cut: bool = False
    unwatched: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done until something changes; `reason` is shown to people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rest:
    """All is as it should be: syncing or protected."""


Step = (
    OpenStream
    | Declare
    | BeginSync
    | RecordXml
    | StartCopy
    | ConfirmReady
    | EndCopy
    | Close
    | Wait
    | Rest
)


@dataclass(frozen=True, slots=True)
class Told:
    """What this agent has told the splitter in the stream of now, beyond what a status shows.
    `ready`: disks and the connections that READY was confirmed for.

    Telling twice is harmless, so a restarted agent begins with nothing told.
    """

    stream: str | None = None
    domains: frozenset[str] = frozenset()
    ready: frozenset[tuple[str, int]] = frozenset()


def next_steps(
    group: SplitterGroupStatus, disks: tuple[DiskFacts, ...], told: Told
) -> Iterator[Step]:
    """Steps towards protection that are safe now, each by itself, the most urgent first; at least
    one. Who puts one off may take the next. `disks` are all disks of the group, in its order, as
    they were read after `group` was said."""
    if group.state in _LIVE:
        yield from _in_stream(group, disks, told)
    else:
        yield _without_stream(group, disks)


def _without_stream(group: SplitterGroupStatus, disks: tuple[DiskFacts, ...]) -> Step:
    assert group.state != "suspended", "libvirt_end decides"
    for disk in disks:
        if disk.mirror is not None and not disk.ours:
            return Wait(f"{disk.domain} {disk.target}: another block copy is running")
    for disk in disks:
        if disk.mirror is not None:
            return EndCopy(disk)
    resized = [_resized(disk, _status_of(disk, group)) for disk in disks]
    return OpenStream("; ".join(filter(None, resized)) or group.reason or "first protection")


def _in_stream(
    group: SplitterGroupStatus, disks: tuple[DiskFacts, ...], told: Told
) -> Iterator[Step]:
    declared = {disk.name: disk for disk in group.disks}
    if told.stream != group.stream:
        told = Told(group.stream)
    for disk in disks:
        first = _declared(disk, declared.get(disk.name)) or _loss(disk, declared[disk.name])
        if first is not None:
            yield first
            return
    for disk in disks:
        if disk.mirror is not None and disk.mirror.export != declared[disk.name].export:
            yield EndCopy(disk)
        elif declared[disk.name].state == "idle":
            yield BeginSync(disk)
    if all(declared[disk.name].state == "idle" for disk in disks):
        return  # a stream begins with a sync
    for domain in dict.fromkeys(disk.domain for disk in disks):
        if domain not in told.domains and group.state == "syncing":
            yield RecordXml(domain)
    steps = [_of_disk(disk, declared[disk.name], told) for disk in disks]
    yield from (step for step in steps if not isinstance(step, Wait | Rest))
    yield from (step for step in steps if isinstance(step, Wait))
    yield Rest()


def _declared(disk: DiskFacts, status: SplitterDiskStatus | None) -> Step | None:
    """What is to be done until the splitter knows the disk as it is."""
    if status is None:
        return Declare(disk)
    if status.size != disk.size or status.instance != str(disk.instance):
        if status.state == "idle" and not status.connected:
            return Declare(disk)
        why = _resized(disk, status) or f"{disk.name} is another disk than before"
        return Close(why, final_cut=False)
    return None


def _status_of(disk: DiskFacts, group: SplitterGroupStatus) -> SplitterDiskStatus | None:
    return next((one for one in group.disks if one.name == disk.name), None)


def _resized(disk: DiskFacts, status: SplitterDiskStatus | None) -> str:
    """In words; empty where it is as the splitter knows it, or not known there."""
    if status is None or status.size == disk.size:
        return ""
    return f"{disk.name} was resized {format_resize(status.size, disk.size)}"


def _loss(disk: DiskFacts, status: SplitterDiskStatus) -> Close | None:
    """Why the stream cannot go on: guest writes may go by unseen."""
    if disk.mirror is not None and not disk.ours:
        return Close(f"{disk.name}: another block copy took its place", final_cut=False)
    if status.state != "complete":
        return None
    if disk.mirror is None:
        return Close(f"{disk.name}: its block copy ended", final_cut=False)
    if disk.mirror.export != status.export:
        return Close(f"{disk.name}: its block copy is that of another sync", final_cut=False)
    return None


def _of_disk(disk: DiskFacts, status: SplitterDiskStatus, told: Told) -> Step:
    """A disk in its sync, without a copy or with the copy of this sync."""
    if status.state not in ("syncing", "flushed"):
        return Rest()
    if disk.mirror is None:
        if status.connected:
            return Wait(f"{disk.name}: somebody is connected to its export, and no copy of it runs")
        return StartCopy(disk, status.export)
    if disk.mirror.export != status.export or not disk.mirror.ready:
        return Rest()
    evidence = (disk.name, status.flushed_by)
    if not status.flushed_by or evidence in told.ready:
        return Rest()
    return ConfirmReady(disk, status.flushed_by)
