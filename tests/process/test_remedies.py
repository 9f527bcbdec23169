# SPDX-License-Identifier: Apache-2.0
"""What `status` and errors say to do is done, in the very state in which it is said.

A remedy that nobody tried is a guess. Those that take a person's hands are here; what has a test of
its own elsewhere (resync after a loss, a rollback and its undo, --resume) is not repeated.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from replicator.base.errors import ReplicatorError
from replicator.control.orders import POINTS, RELOAD, RESYNC, ROLLBACK, STATUS
from replicator.control.requests import ReloadRequest, RollbackRequest
from replicator.demo.site import Group, Site
from tests.peers.nbd_client import NbdClient
from tests.process.conftest import DISK_BYTES, MakeSite
from tests.process.test_main_path import (
    group_at_agent,
    group_at_receiver,
    mark,
    protected,
    source_of,
    view_images,
)
from tests.process.test_states import both_protected
from tests.process.waiting import until_served, wait_until


async def synced_anew(site: Site) -> None:
    """What `resync` of an external group asks for: every byte again, and a flush."""
    await asyncio.to_thread(site.agent.order, RESYNC, "g")
    client = await NbdClient.connect(site.export("g", "a"))
    await client.pwrite(bytes(DISK_BYTES), offset=0)
    await client.flush()
    await protected(site)
    await client.disconnect()


async def test_a_group_that_the_splitter_does_not_know_is_taken_over_by_its_reload(
    make_site: MakeSite,
) -> None:
    site = make_site()
    site.start("receiver", "splitter")
    await until_served(site.splitter_control)
    other = Group("h", "external", (f'name = "x"\nsize = "{DISK_BYTES}"',), "200ms")
    site.groups = (*site.groups, other)
    site.write_configs()
    site.start("agent")
    await protected(site)

    def status() -> str:
        (found,) = [each for each in site.agent.order(STATUS).groups if each.name == "h"]
        return found.remedy

    await wait_until(lambda: "replicator reload" in status(), "what to do is said")
    await asyncio.to_thread(site.agent.order, RELOAD, request=ReloadRequest())
    await asyncio.to_thread(site.receiver.order, RELOAD, request=ReloadRequest())
    await wait_until(
        lambda: {each.state for each in site.agent.order(STATUS).groups} == {"protected"},
        "both groups are protected",
    )


async def test_a_disk_of_another_size_goes_into_a_group_of_another_name(
    make_site: MakeSite,
) -> None:
    site = make_site()
    await both_protected(site)
    await mark(site, "before")
    site.stop("agent")
    site.stop("splitter")
    grown = (f'name = "a"\nsize = "{2 * DISK_BYTES}"',)
    site.groups = (replace(site.groups[0], disks=grown),)
    site.write_configs()
    site.start("splitter", "agent")
    await wait_until(lambda: "its replica has" in group_at_agent(site).reason, "it is refused")
    remedy = group_at_agent(site).remedy
    assert "a group of another name" in remedy
    assert group_at_receiver(site).state in ("disconnected", "protected", "behind")
    began = time.monotonic()
    with pytest.raises(ReplicatorError, match="its replica has"):
        await asyncio.to_thread(site.agent.order, RESYNC, "g")
    assert time.monotonic() - began < 3, "an order that is known to be refused is refused at once"
    site.stop("agent")
    site.stop("splitter")
    site.stop("receiver")
    kept = site.groups[0]
    site.groups = (replace(kept, name="g2"),)
    site.write_configs()
    text = site.receiver_config.read_text()
    site.receiver_config.write_text(text + '\n[[group]]\nname = "g"\nagents = ["kvm1"]\n')
    site.start("receiver", "splitter", "agent")
    await protected(site)
    assert group_at_agent(site).name == "g2"
    assert [point.label for point in site.receiver.order(POINTS, "g")][-1] == "before"


async def test_a_receiver_that_was_set_back_is_taken_as_it_is_without_the_memory(
    make_site: MakeSite,
) -> None:
    """Its data went, with the generation that a rollback had raised."""
    site = make_site()
    await both_protected(site)
    await mark(site, "one")
    site.stop("agent")
    await wait_until(lambda: group_at_receiver(site).peer is None, "the source has left")
    await asyncio.to_thread(site.receiver.order, ROLLBACK, "g", RollbackRequest(to="one"))
    site.start("agent")
    await wait_until(lambda: group_at_agent(site).state == "rolled-back", "it is fenced")
    assert "replicator resync g" in group_at_agent(site).remedy
    await synced_anew(site)
    site.stop("receiver")
    (site.home / "dr").rename(site.home / "dr-set-aside")
    (site.home / "dr").mkdir()
    site.start("receiver")
    await wait_until(lambda: "set back" in group_at_agent(site).reason, "it is refused")
    found = group_at_agent(site)
    assert found.state == "paused"
    assert "groups/g.json" in found.remedy
    site.stop("agent")
    memory = site.home / "source" / "state" / "groups" / "g.json"
    memory.unlink()
    site.start("agent")
    # The spool still holds the stream from its beginning on, so not even a sync is needed.
    await protected(site)
    assert group_at_receiver(site).points


async def test_an_image_that_was_cut_short_is_put_back(make_site: MakeSite) -> None:
    site = make_site()
    await both_protected(site)
    source = source_of(site)
    await source.connect()
    await source.write(30)
    await mark(site, "whole")
    image = site.replica("g", "a")
    await wait_until(lambda: group_at_receiver(site).lag_bytes == 0, "it is applied")
    content = image.read_bytes()
    with image.open("r+b") as file:
        file.truncate(4096)
    await wait_until(lambda: group_at_receiver(site).state == "damaged", "it is seen")
    assert "put the right one back, and restart the receiver" in group_at_receiver(site).remedy
    with image.open("r+b") as file:
        file.write(content)
    site.stop("receiver")
    site.start("receiver")
    await protected(site)
    await source.write(10)
    await mark(site, "after")
    assert await view_images(site, "after") == source.image()
    assert await view_images(site, "whole") == source.image(30)
    await source.disconnect()


async def test_a_group_of_which_the_history_is_damaged_is_set_aside_and_syncs_anew(
    make_site: MakeSite,
) -> None:
    site = make_site()
    await both_protected(site)
    await mark(site, "old")
    site.stop("receiver")
    folder = site.home / "dr" / "groups" / "g"
    spoil(max(each for each in (folder / "history").rglob("*") if each.is_file()))
    site.start("receiver")
    await wait_until(lambda: group_at_receiver(site).state == "damaged", "it is seen")
    await wait_until(lambda: group_at_agent(site).state == "damaged", "at both ends")
    site.stop("receiver")
    folder.rename(site.home / "set-aside")
    site.start("receiver")
    # The spool still holds the stream from its beginning on, so it needs no resync here.
    await wait_until(lambda: group_at_receiver(site).state == "protected", "it begins anew")
    await protected(site)
    assert "old" in [point.label for point in site.receiver.order(POINTS, "g")]


def spoil(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(64))


async def test_a_smaller_budget_is_taken_over_by_reload(make_site: MakeSite) -> None:
    site = make_site()
    await both_protected(site)
    text = site.receiver_config.read_text()
    before = group_at_receiver(site).history_capacity_bytes
    site.receiver_config.write_text(text.replace(f'max_bytes = "{before}"', 'max_bytes = "64MiB"'))
    done = await asyncio.to_thread(site.receiver.order, RELOAD, request=ReloadRequest())
    assert [change.live for change in done.changes] == [True]
    assert group_at_receiver(site).history_capacity_bytes == 64 << 20
