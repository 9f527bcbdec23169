# SPDX-License-Identifier: Apache-2.0
"""What QEMU and libvirt may do while a disk is copied: no point is false afterwards.

Every test ends with a point that is compared with the source, byte for byte.
"""

from __future__ import annotations

import pytest

from replicator.base.units import KIB, MIB
from tests.libvirt.machine import NAME, Machine, machine

pytestmark = pytest.mark.timeout(180)
SLOW = 24 * MIB  # bytes per second of a copy, so that things happen in its middle
COPIED = 24 * MIB


async def copying(it: Machine) -> None:
    it.site.start("agent")
    await it.copying(bytes_per_second=SLOW, at_least=COPIED)


async def pause(it: Machine) -> None:
    await it.virsh("suspend", NAME)
    await it.virsh("resume", NAME)


async def test_a_pause_while_copying_ends_in_no_false_point() -> None:
    """The pause flushes the mirror's target, as the end of a copy does."""
    async with machine() as it:
        await copying(it)
        await pause(it)
        await it.protected()
        await it.compare()


async def test_an_agent_that_was_away_in_a_pause_ends_what_is_left_of_the_copy() -> None:
    """The old job may be alive, and nothing of it is recorded since the pause."""
    async with machine() as it:
        await copying(it)
        it.site.kill("agent")
        await pause(it)
        await it.write(0, 512 * KIB, 7)
        it.site.start("agent")
        await it.protected()
        await it.compare()
