# SPDX-License-Identifier: Apache-2.0
"""Which disks an I/O error concerns, and what follows from it."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from agent.drivers.libvirt.domain_xml import parse_domain
from agent.drivers.libvirt.events import IoError
from agent.drivers.libvirt.plan import DiskFacts
from agent.drivers.libvirt.source_errors import (
    AGAIN_SECONDS,
    SourceErrors,
    concerned,
    counted,
    in_words,
)
from agent.drivers.libvirt.stream_tries import STOOD_SECONDS, StreamTries
from replicator.control.splitter import SplitterDiskStatus
from tests.drivers.test_libvirt_end import GROUP

DOMAIN = parse_domain(
    """<domain><name>d</name><uuid>6a8c0f1e-4d6a-4b3e-9a57-0f6e8d0c7a11</uuid><devices>
    <disk type='file' device='disk'><source file='/a.raw'/><target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/></disk>
    <disk type='network' device='disk'><source protocol='nbd' name='x'/>
      <target dev='vdb' bus='virtio'/><alias name='virtio-disk1'/></disk>
    <disk type='file' device='disk'><source file='/c.raw'/><target dev='vdc' bus='virtio'/>
      <alias name='virtio-disk2'/></disk>
    </devices></domain>"""
)
MEMBERS = {"vda": "d-vda", "vdb": "d-vdb"}


@pytest.mark.parametrize(
    ("path", "alias", "disks"),
    [
        ("/a.raw", "virtio-disk0", {"d-vda"}),
        ("", "virtio-disk1", {"d-vdb"}),
        ("/a.raw", "", {"d-vda"}),
        ("/c.raw", "virtio-disk2", set()),  # of a disk that is not protected
        ("", "", {"d-vda", "d-vdb"}),  # a network disk
        ("", "libvirt-3-format", {"d-vda", "d-vdb"}),  # whatever that is
    ],
)
def test_only_what_names_another_disk_for_certain_concerns_none(
    path: str, alias: str, disks: set[str]
) -> None:
    assert concerned(IoError(path, alias, "report"), DOMAIN, MEMBERS) == disks


def test_of_a_domain_that_is_gone_all_disks_are_concerned() -> None:
    assert concerned(IoError("/a.raw", "virtio-disk0", "report"), None, MEMBERS) == {
        "d-vda",
        "d-vdb",
    }


def fact(name: str, errors: int | None) -> DiskFacts:
    return DiskFacts(name, "d", name, 512, UUID(int=1), None, ours=False, source_errors=errors)


def status(name: str, errors: int | None) -> SplitterDiskStatus:
    return SplitterDiskStatus(
        name=name, index=0, instance="", size=512, connected=1, state="complete",
        source_errors=errors,
    )  # fmt: skip


def test_the_count_is_compared_with_that_of_the_syncs_begin() -> None:
    group = msgspec.structs.replace(
        GROUP, disks=[status("a", 3), status("b", 3), status("c", None), status("d", 3)]
    )
    facts = [fact("a", 4), fact("b", 3), fact("c", 9), fact("d", None), fact("e", 1)]
    assert counted(group, facts) == {"a"}
    assert counted(group, [fact("a", 0)]) == set(), "another QEMU counts from 0"
    assert "the source of a, b" in in_words({"b", "a"})


def test_the_same_disk_again_within_ten_minutes_waits_for_a_person_or_for_calm() -> None:
    errors = SourceErrors()
    errors.failed({"a"}, 1000.0)
    errors.failed({"b"}, 1100.0)
    assert errors.holds(1100.0) == ""
    errors.failed({"a"}, 1000.0 + AGAIN_SECONDS - 1)
    said = errors.holds(1000.0 + AGAIN_SECONDS)
    assert "the source of a " in said
    assert "replicator resync g" in errors.remedy("g", 1000.0 + AGAIN_SECONDS)
    assert errors.holds(1000.0 + 2 * AGAIN_SECONDS) == ""
    errors.failed({"a"}, 1000.0 + 3 * AGAIN_SECONDS)
    assert errors.holds(1000.0 + 3 * AGAIN_SECONDS) == "", "it was calm long enough"
    errors.failed({"a"}, 1001.0 + 3 * AGAIN_SECONDS)
    errors.forget()
    assert errors.holds(1001.0 + 3 * AGAIN_SECONDS) == ""


def test_each_lost_stream_waits_longer_until_one_has_stood() -> None:
    tries = StreamTries()
    now = 100.0
    for number, wait in enumerate((1, 2, 4)):
        lost = msgspec.structs.replace(
            GROUP, state="lost", stream=f"s{number}", reason=f"reason {number}"
        )
        tries.saw(lost, now)
        tries.saw(lost, now + 0.5)  # a status comes four times a second
        assert tries.backoff.left(now) == wait
        assert tries.said(lost, now) == f"the next sync begins in {wait} s"
        syncing = msgspec.structs.replace(GROUP, state="syncing", stream=f"s{number + 1}")
        assert tries.said(syncing, now + wait).endswith(f"reason {number}")
        now += 60
    tries.saw(GROUP, now)
    tries.saw(GROUP, now + STOOD_SECONDS - 1)
    assert tries.backoff.failures == 3
    tries.saw(GROUP, now + STOOD_SECONDS)
    assert tries.backoff.failures == 0
    assert tries.said(GROUP, now + STOOD_SECONDS) == ""


def test_an_end_in_order_is_no_failure() -> None:
    tries = StreamTries()
    tries.saw(msgspec.structs.replace(GROUP, state="closed", ended="final cut"), 5.0)
    assert tries.backoff.failures == 0
