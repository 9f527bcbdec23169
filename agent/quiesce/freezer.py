# SPDX-License-Identifier: Apache-2.0
"""What a consistent point asks of whoever can freeze a group's guests. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Freezer(Protocol):
    """Freezes the filesystems of a group's guests. It does not thaw: the program that `watchdog`
    names does, also when this process is gone (agent.quiesce)."""

    @property
    def domains(self) -> tuple[str, ...]: ...

    async def require_agents(self) -> None:
        """Raises UsageError for a guest that can never be frozen, UnreachableError for one whose
        agent does not answer now."""
        ...

    async def freeze(self, domain: str) -> int:
        """How many filesystems were frozen. May take for ever. UnreachableError, and a
        cancellation, leave open whether the guest is frozen, or will be; after any other
        ReplicatorError nothing of it is on its way any more."""
        ...

    def watchdog(self, domains: Sequence[str], freeze_timeout_ns: int) -> Sequence[str]:
        """The command of a process that thaws `domains`: see agent.quiesce.watchdog."""
        ...
