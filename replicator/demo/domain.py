# SPDX-License-Identifier: Apache-2.0
"""The guest as libvirt XML, and the same machine again on the replica's disks. No I/O."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from uuid import uuid4

from replicator.base.errors import DamageError
from replicator.demo.guest.image import GuestImage

Accelerator = Literal["kvm", "tcg"]
Role = Literal["writer", "verify", "probe"]
MEMORY_MIB = 256


@dataclass(frozen=True, slots=True)
class GuestDisk:
    """An image file and how it is read."""

    target: str
    path: Path
    format: Literal["raw", "qcow2"]


def command_line(role: Role) -> str:
    return f"console=ttyS0 quiet panic=-1 replicator.role={role}"


def domain_xml(
    name: str,
    image: GuestImage,
    disks: tuple[GuestDisk, ...],
    *,
    accelerator: Accelerator,
    console: Path,
    guest_agent: Path | None = None,
) -> str:
    """A domain that writes. Emulated, it gets the largest CPU model: without its random number
    instruction a boot waits seconds for entropy. `guest_agent` is the socket of its channel to
    qemu-guest-agent, made by QEMU; None: it has no such channel."""
    domain = ET.Element("domain", type="kvm" if accelerator == "kvm" else "qemu")
    ET.SubElement(domain, "name").text = name
    ET.SubElement(domain, "uuid").text = str(uuid4())
    ET.SubElement(domain, "memory", unit="MiB").text = str(MEMORY_MIB)
    ET.SubElement(domain, "vcpu").text = "1"
    os_element = ET.SubElement(domain, "os")
    ET.SubElement(os_element, "type", arch="x86_64", machine="q35").text = "hvm"
    ET.SubElement(os_element, "kernel").text = str(image.kernel)
    ET.SubElement(os_element, "initrd").text = str(image.initramfs)
    ET.SubElement(os_element, "cmdline").text = command_line("writer")
    ET.SubElement(domain, "cpu", mode="maximum")
    ET.SubElement(domain, "on_crash").text = "destroy"
    devices = ET.SubElement(domain, "devices")
    for disk in disks:
        add_disk(devices, disk)
    _add_console(devices, console)
    if guest_agent is not None:
        channel = ET.SubElement(devices, "channel", type="unix")
        ET.SubElement(channel, "source", mode="bind", path=str(guest_agent))
        ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    ET.SubElement(devices, "memballoon", model="none")
    return ET.tostring(domain, encoding="unicode")


def replica_domain_xml(
    replicated: str,
    name: str,
    disks: Mapping[str, GuestDisk],
    *,
    accelerator: Accelerator,
    console: Path,
    role: Role,
) -> str:
    """The replicated machine under another name, on other disk images (by target).

    Raises DamageError if the text is no domain, or has a disk that `disks` lacks.
    """
    try:
        domain = ET.fromstring(replicated)
    except ET.ParseError as error:
        raise DamageError(f"the replicated domain XML cannot be read: {error}") from error
    devices = domain.find("devices")
    if domain.tag != "domain" or devices is None:
        raise DamageError("the replicated text is no domain")
    domain.set("type", "kvm" if accelerator == "kvm" else "qemu")
    _set_text(domain, "name", name)
    _set_text(domain, "uuid", str(uuid4()))
    _set_text(domain, "os/cmdline", command_line(role))
    for element in devices.findall("disk"):
        target = element.find("target")
        wanted = None if target is None else disks.get(target.get("dev", ""))
        if wanted is None:
            raise DamageError("the replicated domain has a disk that the replica lacks")
        devices.remove(element)
    for kind in ("serial", "console", "channel"):
        for element in devices.findall(kind):
            devices.remove(element)
    for disk in disks.values():
        add_disk(devices, disk)
    _add_console(devices, console)
    return ET.tostring(domain, encoding="unicode")


def _set_text(domain: ET.Element, path: str, text: str) -> None:
    element = domain.find(path)
    if element is None:
        raise DamageError(f"the replicated domain has no <{path}>")
    element.text = text


def add_disk(devices: ET.Element, disk: GuestDisk) -> None:
    element = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(element, "driver", name="qemu", type=disk.format, cache="writeback")
    ET.SubElement(element, "source", file=str(disk.path))
    ET.SubElement(element, "target", dev=disk.target, bus="virtio")


def _add_console(devices: ET.Element, console: Path) -> None:
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="bind", path=str(console))
