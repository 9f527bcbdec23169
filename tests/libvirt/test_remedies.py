# SPDX-License-Identifier: Apache-2.0
"""What is said where libvirt does not answer is done, and all goes on."""

from __future__ import annotations

import asyncio

from tests.libvirt.house import house


async def test_a_libvirtd_that_is_down_is_started() -> None:
    """The guest writes on meanwhile, and costs no sync."""
    async with house() as it:
        await it.boot()
        await it.until("protected")
        before = await it.said(lambda group: group.state == "ready")
        await asyncio.to_thread(it.libvirtd.kill)
        said = await it.until("behind", "libvirt is not reachable")
        assert "start libvirtd" in said.remedy
        await asyncio.to_thread(it.libvirtd.start)
        after = await it.until("protected")
        assert (after.reason, after.remedy) == ("", "")
        assert (await it.said(lambda group: group.state == "ready")).stream == before.stream
