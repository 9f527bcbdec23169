# SPDX-License-Identifier: Apache-2.0
"""Freezes the filesystems of a group's domains through their guest agents.

It freezes only: every thaw is made by the watchdog (thaw.py), over connections of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agent.drivers.libvirt.connection import LibvirtConnection
from replicator.base.errors import UnreachableError, UsageError


class LibvirtFreezer:
    """Implements agent.drivers.driver.Freezer."""

    def __init__(self, uri: str, connection: LibvirtConnection, domains: Sequence[str]) -> None:
        self.domains = tuple(dict.fromkeys(domains))
        self._uri = uri
        self._connection = connection

    async def require_agents(self) -> None:
        for name in self.domains:
            found = (await self._connection.domain(name)).facts.guest_agent
            if found == "absent":
                raise UsageError(
                    f"domain {name!r} has no channel to a guest agent, so it cannot be frozen",
                    hint="add a virtio channel org.qemu.guest_agent.0 and install qemu-guest-agent",
                )
            if found == "disconnected":
                raise UnreachableError(
                    f"no guest agent answers in domain {name!r}",
                    hint="is qemu-guest-agent running in the guest?",
                )

    async def freeze(self, domain: str) -> int:
        return await self._connection.freeze(domain)

    def watchdog(self, domains: Sequence[str], freeze_timeout_ns: int) -> Sequence[str]:
        return (
            *(sys.executable, "-m", "agent.drivers.libvirt.thaw"),
            *("--uri", self._uri, "--freeze-timeout-ns", str(freeze_timeout_ns)),
            *("--", *domains),
        )
