# SPDX-License-Identifier: Apache-2.0
"""A group that left the configuration while the agent was away: its block copies run on, until it
is forgotten. The guest notices nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

from replicator.control.orders import FORGET, STATUS
from replicator.control.requests import ForgetRequest
from tests.libvirt.house import BOOT_SECONDS, GUEST, house
from tests.libvirt.test_reload import mirrors, writes_on
from tests.process.waiting import wait_until


async def test_copies_that_nobody_ended_are_ended_by_forget() -> None:
    async with house() as it:
        console = await it.boot()
        await it.until("protected")
        it.site.kill("agent")
        it.site.groups = ()
        it.site.write_configs()
        it.site.start("agent")
        await wait_until(
            lambda: [each.name for each in it.site.agent.order(STATUS).leftovers] == [GUEST],
            "what is left over is said",
        )
        assert await mirrors(it) == 2
        before = console.confirmed
        done = await asyncio.to_thread(
            it.site.agent.order, FORGET, GUEST, ForgetRequest(confirm=GUEST)
        )
        assert sorted(done.copies) == [f"{GUEST}/vda", f"{GUEST}/vdb"]
        assert done.notice == ""
        assert await mirrors(it) == 0
        assert not any(Path(place).exists() for place in done.places)
        assert (await asyncio.to_thread(it.site.agent.order, STATUS)).leftovers == []
        await console.wait_confirmed(before + 10, BOOT_SECONDS)
        await writes_on(it)
