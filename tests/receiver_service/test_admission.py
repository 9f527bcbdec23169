# SPDX-License-Identifier: Apache-2.0
"""Who may feed which group."""

from __future__ import annotations

import pytest

from receiver.session.admission import check_disks, check_hello
from replicator.base.errors import IdentityError, NotFoundError, ReplicatorError
from replicator.wire.messages import Hello, OfferedDisk

INSTANCE = "00000000-0000-0000-0000-000000000001"
AGENTS = {"web": ["kvm1", "kvm2"], "db": ["kvm2"]}


def hello(agent: str, group: str) -> Hello:
    return Hello(agent, INSTANCE, group, "external", 0, [])


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


def test_a_disk_of_another_size_is_refused_and_a_new_one_is_not() -> None:
    replica = {"vda": 4096}
    check_disks("web", [OfferedDisk("vda", 4096), OfferedDisk("vdb", 512)], replica)
    with pytest.raises(ReplicatorError, match="8192 bytes") as refused:
        check_disks("web", [OfferedDisk("vda", 8192)], replica)
    assert "4096 bytes" in refused.value.message
    assert "'vda'" in refused.value.message
