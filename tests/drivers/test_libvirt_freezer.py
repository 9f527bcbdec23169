# SPDX-License-Identifier: Apache-2.0
"""Which guests can be frozen, and what a thaw makes of libvirt's answers."""

from __future__ import annotations

from uuid import UUID

import pytest

pytest.importorskip("libvirt")

import libvirt

from agent.drivers.libvirt.connection import LibvirtConnection, LiveDomain
from agent.drivers.libvirt.domain_xml import AgentState, Domain
from agent.drivers.libvirt.freezer import LibvirtFreezer
from agent.drivers.libvirt.thaw import DomainThaw
from agent.quiesce.watchdog import ThawError
from replicator.base.errors import UnreachableError, UsageError

URI = "test:///default"


class Guests(LibvirtConnection):
    """libvirt's word on guests, as far as their agents go."""

    def __init__(self, states: dict[str, AgentState]) -> None:
        super().__init__(URI, opened=lambda: None, changed=lambda *_: None)
        self._states = states

    async def domain(self, name: str) -> LiveDomain:
        return LiveDomain(Domain(name, UUID(int=1), (), self._states[name]), "", running=True)


def freezer(**states: AgentState) -> LibvirtFreezer:
    return LibvirtFreezer(URI, Guests(states), [*states, *states])


async def test_every_guest_needs_an_agent_that_answers() -> None:
    await freezer(a="connected", b="connected").require_agents()
    with pytest.raises(UsageError, match="'b' has no channel"):
        await freezer(a="connected", b="absent").require_agents()
    with pytest.raises(UnreachableError, match="no guest agent answers in domain 'a'"):
        await freezer(a="disconnected", b="connected").require_agents()


def test_a_domain_of_several_disks_is_frozen_once_and_named_to_the_watchdog() -> None:
    found = freezer(a="connected", b="connected")
    assert found.domains == ("a", "b")
    command = found.watchdog(("a",), 10)
    assert command[1:3] == ("-m", "agent.drivers.libvirt.thaw")
    assert command[-2:] == ("--", "a")


def test_a_guest_that_is_gone_is_thawed_and_one_that_is_not_frozen_too() -> None:
    """On libvirt's own test driver: its guest `test` runs, and freezes nothing."""
    thaw = DomainThaw(URI, ["test", "gone"])
    assert thaw("gone") == 0
    assert thaw("test") >= 0


def test_a_thaw_that_fails_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    thaw = DomainThaw(URI, ["test"])

    def fail(_domain: object) -> int:
        raise libvirt.libvirtError("no agent answers")

    monkeypatch.setattr(libvirt.virDomain, "fsThaw", fail)
    with pytest.raises(ThawError):
        thaw("test")
    domain = libvirt.open(URI).lookupByName("test")
    assert domain.isActive()
