# SPDX-License-Identifier: Apache-2.0
"""Three real daemons, two groups, one of them in trouble at the source."""

from __future__ import annotations

import asyncio

from replicator.control.orders import MARK, RESTORE, STATUS
from replicator.control.requests import MarkRequest, RestoreRequest
from replicator.control.types import GroupStatus
from replicator.demo.site import Site
from tests.process.conftest import DISK_BYTES, MakeSite
from tests.process.source import Source
from tests.process.waiting import wait_until


def at_agent(site: Site, name: str) -> GroupStatus:
    return next(group for group in site.agent.order(STATUS).groups if group.name == name)


async def protected(site: Site, name: str) -> None:
    await wait_until(lambda: at_agent(site, name).state == "protected", f"{name} is protected")


async def fed(site: Site, name: str) -> None:
    """A write, marked, and compared at the receiver."""
    source = Source({"a": site.export(name, "a")}, DISK_BYTES)
    await source.connect()
    await source.write(30)
    await source.disconnect()
    point = await asyncio.to_thread(
        site.agent.order, MARK, name, MarkRequest(label=f"mark of {name}", wait=True)
    )
    target = site.home / f"{name}-{point.sequence}"
    await asyncio.to_thread(
        site.receiver.order, RESTORE, name, RestoreRequest(at=f"#{point.sequence}", to=str(target))
    )
    assert (target / "a.raw").read_bytes() == source.image()["a"]


async def test_an_agent_with_one_group_whose_memory_is_damaged(make_site: MakeSite) -> None:
    site = make_site(groups=("g", "h"))
    site.start("receiver", "splitter", "agent")
    for name in ("g", "h"):
        await protected(site, name)
    site.kill("agent")
    memory = site.home / "source" / "state" / "groups" / "g.json"
    sound = memory.read_bytes()
    memory.write_bytes(b"{")
    site.start("agent")
    await protected(site, "h")
    await fed(site, "h")
    await wait_until(lambda: str(memory) in at_agent(site, "g").reason, "the reason is said")
    memory.write_bytes(sound)  # and it is tried again by itself
    await protected(site, "g")
    await wait_until(lambda: at_agent(site, "g").reason == "", "it is well again")
    await fed(site, "g")


async def test_a_splitter_with_one_group_whose_state_is_damaged(make_site: MakeSite) -> None:
    site = make_site(groups=("g", "h"))
    state = site.home / "source" / "state" / "splitter" / "g.json"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"{")
    site.start("receiver", "splitter", "agent")
    await protected(site, "h")
    await fed(site, "h")
    group = await asyncio.to_thread(at_agent, site, "g")
    assert group.state == "lost"
    assert str(state) in group.reason
    assert site.stop("splitter") == 0
