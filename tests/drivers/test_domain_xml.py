# SPDX-License-Identifier: Apache-2.0
"""Domain XML: what is read, what is refused, and the destination of a block copy."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from agent.drivers.libvirt.domain_xml import (
    copy_destination,
    instance_of,
    is_ours,
    parse_domain,
    require_supported,
)
from agent.naming.export_name import ExportName
from replicator.base.errors import NotFoundError, ReplicatorError, UsageError

UUID_TEXT = "6f1b2c3d-0000-4000-8000-000000000001"


def domain_with(disk: str) -> str:
    return f"""<domain type='qemu'><name>web</name><uuid>{UUID_TEXT}</uuid>
    <devices>{disk}</devices></domain>"""


PLAIN = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='/images/web.qcow2'/><target dev='vda' bus='virtio'/></disk>"""

MIRRORED = """<disk type='file' device='disk'><source file='/images/web.qcow2'/>
<target dev='vda' bus='virtio'/>
<mirror type='network' job='copy' ready='yes'><format type='raw'/>
<source protocol='nbd' name='g/web-vda'><host transport='unix' socket='/run/s.sock'/>
<reconnect delay='10'/></source></mirror></disk>"""


@pytest.mark.parametrize(
    ("target", "state"),
    [
        ("name='com.redhat.spice.0' state='connected'", "absent"),
        ("name='org.qemu.guest_agent.0' state='connected'", "connected"),
        ("name='org.qemu.guest_agent.0' state='disconnected'", "disconnected"),
        ("name='org.qemu.guest_agent.0'", "disconnected"),
    ],
)
def test_the_guest_agents_channel_is_found(target: str, state: str) -> None:
    channel = f"<channel type='unix'><target type='virtio' {target}/></channel>"
    assert parse_domain(domain_with(PLAIN + channel)).guest_agent == state
    assert parse_domain(domain_with(PLAIN)).guest_agent == "absent"


def test_a_plain_disk_is_read_and_supported() -> None:
    domain = parse_domain(domain_with(PLAIN))
    disk = domain.disk("vda")
    assert (domain.name, str(domain.uuid)) == ("web", UUID_TEXT)
    assert (disk.source, disk.bus, disk.mirror) == ("/images/web.qcow2", "virtio", None)
    require_supported(domain, disk)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("device='disk'", "device='cdrom'", "cdrom"),
        ("device='disk'", "device='floppy'", "floppy"),
        ("device='disk'", "device='lun'", "pass-through"),
        ("type='file'", "type='vhostuser'", "vhost-user"),
        ("type='file'", "type='nvme'", "NVMe"),
        ("bus='virtio'", "bus='sd'", "bus 'sd'"),
        ("</disk>", "<transient/></disk>", "transient"),
        ("</disk>", "<shareable/></disk>", "shareable"),
        ("</disk>", "<readonly/></disk>", "read-only"),
        ("<source file='/images/web.qcow2'/>", "", "no source"),
    ],
)
def test_a_disk_that_cannot_be_protected_is_refused_with_the_reason(
    old: str, new: str, reason: str
) -> None:
    domain = parse_domain(domain_with(PLAIN.replace(old, new)))
    with pytest.raises(UsageError, match=reason) as refused:
        require_supported(domain, domain.disk("vda"))
    assert "'vda' of domain 'web'" in refused.value.message


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(NotFoundError) as missing:
        parse_domain(domain_with(PLAIN)).disk("vdz")
    assert "vda" in missing.value.hint


@pytest.mark.parametrize(
    "xml", ["", "<domain", "<network/>", "<domain><name>a</name><uuid>no</uuid></domain>"]
)
def test_what_is_no_domain_is_an_error_of_ours(xml: str) -> None:
    with pytest.raises(ReplicatorError, match="no domain"):
        parse_domain(xml)


def test_a_mirror_is_ours_only_with_our_socket_and_export() -> None:
    mirror = parse_domain(domain_with(MIRRORED)).disk("vda").mirror
    assert mirror is not None
    assert mirror.ready
    assert mirror.reconnect_seconds == 10
    vda, vdb = ExportName("g", "web-vda"), ExportName("g", "web-vdb")
    assert is_ours(mirror, "/run/s.sock", vda)
    assert is_ours(replace(mirror, export="g/web-vda/4096"), "/run/s.sock", vda), "of any sync"
    assert not is_ours(mirror, "/run/other.sock", vda)
    assert not is_ours(mirror, "/run/s.sock", vdb)
    assert not is_ours(replace(mirror, export="g/web-vda/x"), "/run/s.sock", vda)
    assert not is_ours(None, "/run/s.sock", vda)


def test_a_disk_keeps_its_instance_until_its_source_changes() -> None:
    first = parse_domain(domain_with(PLAIN))
    again = parse_domain(domain_with(PLAIN))
    other = parse_domain(domain_with(PLAIN.replace("web.qcow2", "new.qcow2")))
    assert instance_of(first, first.disk("vda")) == instance_of(again, again.disk("vda"))
    assert instance_of(first, first.disk("vda")) != instance_of(other, other.disk("vda"))


def test_the_copy_goes_to_the_export_on_the_socket() -> None:
    disk = ET.fromstring(copy_destination("vda", "/run/a&b.sock", "g/web-vda", 7))
    source = disk.find("source")
    assert source is not None
    host, reconnect = source.find("host"), source.find("reconnect")
    assert host is not None
    assert reconnect is not None
    assert (source.get("protocol"), source.get("name")) == ("nbd", "g/web-vda")
    assert (host.get("transport"), host.get("socket")) == ("unix", "/run/a&b.sock")
    assert reconnect.get("delay") == "7"
    assert ET.fromstring(copy_destination("vda", "/s", "e", 0)).find("source/reconnect") is None
