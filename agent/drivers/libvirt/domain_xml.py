# SPDX-License-Identifier: Apache-2.0
"""Domain XML as the libvirt driver reads and writes it. No I/O.

Facts that decide here, all measured on libvirt 9.0 with QEMU 7.2:
* A block copy refuses disks on bus `sd`, transient and vhost-user disks, and `device='lun'`; of a
  shareable disk other writers are never seen; a read-only disk or a cdrom has nothing to copy.
* `<reconnect delay>` in the copy's destination is accepted and silently dropped before libvirt
  9.2, so what took effect is read back from the `<mirror>` of the live XML, never assumed.
* Events are lost while libvirtd is down: the `<mirror>` element is the truth about a job.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal
from uuid import UUID, uuid5

from agent.naming.export_name import ExportName, parse_export_name
from replicator.base.errors import NotFoundError, ReplicatorError, UsageError

# Namespace of disk instances, so that one domain's disk keeps its identity over restarts.
_INSTANCES = UUID("0b6c2c7e-4d5e-5e0a-9a57-0f6e8d0c7a11")
GUEST_AGENT_CHANNEL = "org.qemu.guest_agent.0"
AgentState = Literal["absent", "disconnected", "connected"]


@dataclass(frozen=True, slots=True)
class Mirror:
    """A block copy of a disk as libvirt knows it now."""

    socket: str
    export: str
    ready: bool
    reconnect_seconds: int


@dataclass(frozen=True, slots=True)
class DomainDisk:
    """A disk of a domain. `source` names what it reads and writes: a path, a volume, a URL.
    `alias` is QEMU's name for the device; a domain that does not run has none."""

    target: str
    device: str
    bus: str
    storage: str
    source: str
    read_only: bool
    shareable: bool
    transient: bool
    mirror: Mirror | None
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Domain:
    """What the driver needs of a domain's XML."""

    name: str
    uuid: UUID
    disks: tuple[DomainDisk, ...]
    guest_agent: AgentState = "absent"

    def disk(self, target: str) -> DomainDisk:
        for disk in self.disks:
            if disk.target == target:
                return disk
        known = ", ".join(disk.target for disk in self.disks) or "none"
        raise NotFoundError(
            f"domain {self.name!r} has no disk with target {target!r}",
            hint=f"its disks are: {known}",
        )


def parse_domain(xml: str) -> Domain:
    """Reads the XML of virDomainGetXMLDesc. Raises ReplicatorError if it is none."""
    try:
        root = ET.fromstring(xml)
        name, identity = root.findtext("name"), root.findtext("uuid")
        if root.tag != "domain" or name is None or identity is None:
            raise ValueError("no <domain> with name and uuid")
        uuid = UUID(identity)
    except (ET.ParseError, ValueError) as error:
        raise ReplicatorError(f"libvirt gave XML that is no domain: {error}") from error
    disks = tuple(
        _disk(element)
        for element in root.findall("./devices/disk")
        if element.find("target") is not None
    )
    return Domain(name, uuid, disks, _guest_agent(root))


def _guest_agent(root: ET.Element) -> AgentState:
    """`state` is in the XML of a running domain only."""
    for target in root.findall("./devices/channel/target"):
        if target.get("name") == GUEST_AGENT_CHANNEL:
            return "connected" if target.get("state") == "connected" else "disconnected"
    return "absent"


def _disk(element: ET.Element) -> DomainDisk:
    target, source = element.find("target"), element.find("source")
    assert target is not None
    alias = element.find("alias")
    return DomainDisk(
        target=target.get("dev", ""),
        device=element.get("device", "disk"),
        bus=target.get("bus", ""),
        storage=element.get("type", ""),
        source=_source_text(source),
        read_only=element.find("readonly") is not None,
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        mirror=_mirror(element.find("mirror")),
        alias="" if alias is None else alias.get("name", ""),
    )


def _source_text(source: ET.Element | None) -> str:
    if source is None:
        return ""
    for key in ("file", "dev", "volume"):
        if source.get(key):
            return "/".join(filter(None, (source.get("pool"), source.get(key))))
    host = source.find("host")
    place = "" if host is None else host.get("name", "") or host.get("socket", "")
    return f"{source.get('protocol', '')}://{place}/{source.get('name', '')}"


def _mirror(element: ET.Element | None) -> Mirror | None:
    if element is None:
        return None
    source = element.find("source")
    host = None if source is None else source.find("host")
    reconnect = None if source is None else source.find("reconnect")
    delay = "0" if reconnect is None else reconnect.get("delay", "0")
    return Mirror(
        socket="" if host is None else host.get("socket", ""),
        export="" if source is None else source.get("name", ""),
        ready=element.get("ready") == "yes",
        reconnect_seconds=int(delay) if delay.isdecimal() else 0,
    )


def require_supported(domain: Domain, disk: DomainDisk) -> None:
    """Raises UsageError with the reason why a block copy of this disk cannot be protection."""
    reason = _refusal(disk)
    if reason:
        raise UsageError(
            f"disk {disk.target!r} of domain {domain.name!r} cannot be protected: {reason}",
            hint="take it out of the group's disks",
        )


def _refusal(disk: DomainDisk) -> str:
    refusals = (
        (disk.device in ("cdrom", "floppy"), f"it is a {disk.device} drive"),
        (disk.device == "lun", "SCSI pass-through (device='lun') bypasses the block layer"),
        (disk.storage == "vhostuser", "vhost-user disks bypass the block layer"),
        (disk.storage == "nvme", "a passed-through NVMe device bypasses the block layer"),
        (disk.bus == "sd", "QEMU runs no block jobs on bus 'sd'"),
        (disk.transient, "it is transient: its writes are thrown away at shutdown"),
        (disk.shareable, "it is shareable: writes of other machines would not be seen"),
        (disk.read_only, "it is read-only"),
        (not disk.source, "it has no source"),
    )
    return next((reason for applies, reason in refusals if applies), "")


def instance_of(domain: Domain, disk: DomainDisk) -> UUID:
    """The identity of a disk instance: the same disk of the same domain, over restarts; another
    one when the target gets another source."""
    return uuid5(_INSTANCES, f"{domain.uuid}\n{disk.target}\n{disk.source}")


def copy_destination(target: str, socket: str, export: str, reconnect_seconds: int) -> str:
    """The destination of virDomainBlockCopy: the splitter's export, raw, over a unix socket."""
    disk = ET.Element("disk", type="network", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type="raw")
    source = ET.SubElement(disk, "source", protocol="nbd", name=export)
    ET.SubElement(source, "host", transport="unix", socket=socket)
    if reconnect_seconds:
        ET.SubElement(source, "reconnect", delay=str(reconnect_seconds))
    ET.SubElement(disk, "target", dev=target)
    return ET.tostring(disk, encoding="unicode")


def goes_to(mirror: Mirror | None, socket: str, group: str) -> bool:
    """Whether it goes to our splitter as any disk of that group."""
    if mirror is None or mirror.socket != socket:
        return False
    name = parse_export_name(mirror.export)
    return name is not None and name.group == group


def is_ours(mirror: Mirror | None, socket: str, disk: ExportName) -> bool:
    """Whether a block copy that libvirt reports goes to our splitter as this disk, of any sync."""
    if mirror is None or mirror.socket != socket:
        return False
    name = parse_export_name(mirror.export)
    return name is not None and (name.group, name.disk) == (disk.group, disk.disk)
