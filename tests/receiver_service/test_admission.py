# SPDX-License-Identifier: Apache-2.0
"""Who may feed which group."""

from __future__ import annotations

import pytest

from receiver.retention.earlier_images import EARLIER_MAX
from receiver.session.admission import check_disks, check_hello
from replicator.base.errors import IdentityError, NotFoundError, ReplicatorError
from replicator.wire.messages import Driver, Hello, OfferedDisk

INSTANCE = "00000000-0000-0000-0000-000000000001"
AGENTS = {"web": ["kvm1", "kvm2"], "db": ["kvm2"]}


def hello(agent: str, group: str) -> Hello:
    return Hello(agent, INSTANCE, group, "external", 0, [])


def offer(driver: Driver, **sizes: int) -> Hello:
    disks = [OfferedDisk(name, size) for name, size in sizes.items()]
    return Hello("kvm1", INSTANCE, "web", driver, 0, disks)


def test_an_agent_that_is_who_it_says_and_is_listed_may_come() -> None:
    check_hello(hello("kvm1", "web"), ("kvm1", "kvm1.example.org"), AGENTS)


@pytest.mark.parametrize("names", [(), ("kvm2",), ("*.kvm1",), ("kvm1x", "xkvm1")])
def test_a_name_that_the_certificate_does_not_hold_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(IdentityError, match="calls itself 'kvm1'"):
        check_hello(hello("kvm1", "web"), names, AGENTS)


def test_an_agent_that_is_not_the_groups_is_refused() -> None:
    with pytest.raises(IdentityError, match="may not feed group 'db'"):
        check_hello(hello("kvm1", "db"), ("kvm1",), AGENTS)


def test_an_unknown_group_is_told_to_proven_agents_alone() -> None:
    with pytest.raises(NotFoundError, match="no group 'mail'"):
        check_hello(hello("kvm1", "mail"), ("kvm1",), AGENTS)
    with pytest.raises(IdentityError):
        check_hello(hello("kvm1", "mail"), ("kvm9",), AGENTS)


def test_an_external_disk_of_another_size_is_refused_and_a_new_one_is_not() -> None:
    replica = {"vda": 4096}
    check_disks(offer("external", vda=4096, vdb=512), replica, {})
    with pytest.raises(ReplicatorError, match="8192 bytes") as refused:
        check_disks(offer("external", vda=8192), replica, {})
    assert "4096 bytes" in refused.value.message
    assert "'vda'" in refused.value.message
    assert "another name" in refused.value.hint


def test_a_libvirt_disk_may_be_resized_until_too_many_sizes_of_it_are_kept() -> None:
    hello, sizes = offer("libvirt", vda=8192), {"vda": 4096, "vdb": 512}
    kept = {"vda": [512] * (EARLIER_MAX - 1)}
    check_disks(hello, sizes, kept)
    with pytest.raises(ReplicatorError, match="resized to 8192 bytes") as refused:
        check_disks(hello, sizes, {**kept, "vdb": [1024]})
    assert "points drop web" in refused.value.hint
    check_disks(offer("libvirt", vda=4096), sizes, {**kept, "vdb": [1024]})
