# SPDX-License-Identifier: Apache-2.0
"""What both ends say when a part of the chain is gone: the same word, in time, with a reason."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable

import pytest

from replicator.base import pki
from replicator.base.errors import DamageError
from replicator.control.orders import MARK, RELOAD, RESYNC, SCRUB
from replicator.control.requests import MarkRequest, ReloadRequest
from replicator.control.types import GroupStatus
from replicator.demo.site import Site
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
from tests.process.waiting import wait_until

PROMISED_SECONDS = 12.0
KNOWN_SECONDS = 20.0
"""With what a machine takes that has other work. Nothing else would tell: the wire is silent for 30
seconds before it gives up."""
AT_ONCE_SECONDS = 5.0
"""By what ended, not by a proof that has grown old: that takes ten."""


async def both_protected(site: Site) -> None:
    site.start("receiver", "splitter", "agent")
    await protected(site)
    await wait_until(lambda: group_at_receiver(site).state == "protected", "both ends agree")


async def says(
    group: Callable[[], GroupStatus], state: str, within_seconds: float, since: float
) -> GroupStatus:
    """The group as it is shown once it is in that state; `since` is when the reason for it was."""
    left = within_seconds - (time.monotonic() - since)
    await wait_until(lambda: group().state == state, f"it is {state}", limit_seconds=left)
    return group()


def one_state(port: int) -> set[str]:
    """The states that /metrics has at 1."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = {line for line in lines if line.startswith("replicator_group_state{")}
    assert len(found) == 10
    return {line.split('state="')[1].split('"')[0] for line in found if line.endswith(" 1.0")}


async def test_a_killed_splitter_is_lost_at_both_ends(make_site: MakeSite) -> None:
    site = make_site()
    await both_protected(site)
    since = time.monotonic()
    site.kill("splitter")
    here = await says(lambda: group_at_agent(site), "lost", AT_ONCE_SECONDS, since)
    there = await says(lambda: group_at_receiver(site), "lost", KNOWN_SECONDS, since)
    for group in (here, there):
        assert "splitter" in group.reason
        assert "start the splitter" in group.remedy
    assert one_state(site.agent_metrics_port) == {"lost"}
    assert one_state(site.receiver_metrics_port) == {"lost"}
    site.kill("agent")  # what was lost does not get better by it
    await wait_until(lambda: group_at_receiver(site).peer is None, "the agent has left")
    await asyncio.sleep(PROMISED_SECONDS)
    assert group_at_receiver(site).state == "lost"


async def test_a_killed_agent_is_known_at_the_receiver(make_site: MakeSite) -> None:
    site = make_site()
    await both_protected(site)
    since = time.monotonic()
    site.kill("agent")
    there = await says(lambda: group_at_receiver(site), "disconnected", KNOWN_SECONDS, since)
    assert "no agent" in there.reason
    assert there.remedy
    assert there.rpo_seconds is not None
    assert there.rpo_seconds >= 9
    site.start("agent")
    await wait_until(lambda: group_at_receiver(site).state == "protected", "it is back")


async def test_a_killed_receiver_is_known_at_the_agent(make_site: MakeSite) -> None:
    site = make_site()
    await both_protected(site)
    since = time.monotonic()
    site.kill("receiver")
    here = await says(lambda: group_at_agent(site), "disconnected", KNOWN_SECONDS, since)
    assert "capture goes on" in here.reason
    assert here.remedy
    assert here.rpo_seconds is not None
    assert here.rpo_seconds >= 9
    site.start("receiver")
    await protected(site)


async def test_a_refused_certificate_is_said_with_its_name(make_site: MakeSite) -> None:
    site = make_site()
    await both_protected(site)
    site.stop("agent")
    folder = site.home / "pki"
    shutil.copytree(folder, site.home / "kept")
    for name in ("ca.crt", "ca.key", "kvm1.crt", "kvm1.key"):
        (folder / name).unlink()
    pki.init_ca(folder)
    pki.issue(folder, "kvm1")
    shutil.copy(site.home / "kept" / "ca.crt", folder / "ca.crt")
    since = time.monotonic()
    site.start("agent")
    here = await says(lambda: group_at_agent(site), "disconnected", KNOWN_SECONDS + 3, since)
    assert "certificate" in here.reason
    assert here.remedy
    there = await says(lambda: group_at_receiver(site), "disconnected", KNOWN_SECONDS + 3, since)
    assert there.reason


async def test_an_agent_that_may_not_feed_the_group_is_named_at_both_ends(
    make_site: MakeSite,
) -> None:
    site = make_site()
    await both_protected(site)
    site.stop("receiver")
    text = site.receiver_config.read_text()
    site.receiver_config.write_text(text.replace('agents = ["kvm1"]', 'agents = ["kvm2"]'))
    site.start("receiver")
    for group in (group_at_agent, group_at_receiver):
        await wait_until(
            lambda group=group: (
                group(site).state == "disconnected"  # type: ignore[misc]
                and "kvm1" in group(site).reason
            ),
            "the refusal is said",
        )
        assert group(site).remedy


async def test_a_replica_that_is_cut_short_is_damaged_at_both_ends(make_site: MakeSite) -> None:
    site = make_site()
    await both_protected(site)
    since = time.monotonic()
    with site.replica("g", "a").open("r+b") as image:
        image.truncate(DISK_BYTES // 2)
    there = await says(lambda: group_at_receiver(site), "damaged", KNOWN_SECONDS, since)
    here = await says(lambda: group_at_agent(site), "damaged", KNOWN_SECONDS, since)
    for group in (here, there):
        assert str(site.replica("g", "a")) in group.reason
        assert group.remedy
    assert site.replica("g", "a").stat().st_size == DISK_BYTES // 2, "nothing was written on it"


async def test_a_replica_that_is_cut_short_under_writes_is_not_filled_up(
    make_site: MakeSite,
) -> None:
    site = make_site()
    await both_protected(site)
    source = source_of(site)
    await source.connect()
    with site.replica("g", "a").open("r+b") as image:
        image.truncate(DISK_BYTES // 2)
    await source.write(100)
    await wait_until(lambda: group_at_receiver(site).state == "damaged", "it is seen")
    assert site.replica("g", "a").stat().st_size == DISK_BYTES // 2
    await source.disconnect()


async def test_damage_that_every_point_to_come_stands_on_is_no_protection(
    make_site: MakeSite,
) -> None:
    """Points go on, and none of them can be served: `resync` is the remedy, and it is one."""
    site = make_site()
    await both_protected(site)
    source = source_of(site)
    await source.connect()
    await source.write(100)
    await mark(site, "rotten")
    await wait_until(lambda: group_at_receiver(site).lag_bytes == 0, "it is applied")
    held = site.replica("g", "a").read_bytes()
    at = next(at for at, byte in enumerate(held) if byte)
    with site.replica("g", "a").open("r+b") as image:
        image.seek(at)
        image.write(bytes([held[at] ^ 1]))
    since = time.monotonic()
    await asyncio.to_thread(site.receiver.order, SCRUB, "g")
    there = await says(lambda: group_at_receiver(site), "damaged", KNOWN_SECONDS, since)
    here = await says(lambda: group_at_agent(site), "damaged", KNOWN_SECONDS, since)
    for group in (here, there):
        assert "disk a: 4096 bytes at" in group.reason
        assert "replicator resync g" in group.remedy
    await mark(site, "on damage")
    with pytest.raises(DamageError):
        await view_images(site, "on damage")
    await asyncio.to_thread(site.agent.order, RESYNC, "g")
    whole = source.image()["a"]
    for offset in range(0, DISK_BYTES, 1 << 20):
        await source.clients["a"].pwrite(whole[offset : offset + (1 << 20)], offset=offset)
    await source.clients["a"].flush()
    await protected(site)
    await wait_until(lambda: group_at_receiver(site).state == "protected", "both ends agree")
    await mark(site, "mended")
    assert await view_images(site, "mended") == {"a": whole}
    await source.disconnect()


async def test_a_receiver_that_hangs_is_behind_and_then_gone(make_site: MakeSite) -> None:
    """It answers nothing, and its socket stays open."""
    site = make_site()
    await both_protected(site)
    since = time.monotonic()
    os.kill(site.pid("receiver"), signal.SIGSTOP)
    here = await says(lambda: group_at_agent(site), "behind", KNOWN_SECONDS, since)
    assert "nothing new" in here.reason
    await says(lambda: group_at_agent(site), "disconnected", 35, since)
    os.kill(site.pid("receiver"), signal.SIGCONT)
    await protected(site)


async def mark_here(site: Site) -> None:
    """A point of its own for what was written, so that it is not folded into the next."""
    label = f"pass {time.monotonic_ns()}"
    await asyncio.to_thread(site.agent.order, MARK, "g", MarkRequest(label=label, wait=True))


async def test_a_receiver_without_room_for_its_history_is_paused_at_both_ends(
    make_site: MakeSite,
) -> None:
    """A budget that the minimum window does not let it keep: nothing is applied."""
    site = make_site()
    text = site.receiver_config.read_text()
    small = text.replace("[history]\n", '[history]\nmin_window = "1h"\nwhen_full = "pause"\n')
    budget = f'max_bytes = "{site.limits.history_bytes}"'
    site.receiver_config.write_text(small.replace(budget, 'max_bytes = "16MiB"'))
    await both_protected(site)
    client = await NbdClient.connect(site.export("g", "a"))
    for _ in range(8):  # each pass makes a history of the pass before
        for offset in range(0, DISK_BYTES, 1 << 20):
            await client.pwrite(os.urandom(1 << 20), offset=offset)
        await mark_here(site)
    for group in (group_at_receiver, group_at_agent):
        await wait_until(
            lambda group=group: group(site).state == "paused",  # type: ignore[misc]
            "it is said at both ends",
        )
        assert "max_bytes" in group(site).reason
        assert "replicator reload" in group(site).remedy
    site.receiver_config.write_text(text)
    await asyncio.to_thread(site.receiver.order, RELOAD, request=ReloadRequest())
    await wait_until(lambda: group_at_receiver(site).state == "protected", "it goes on by itself")
    await protected(site)
    await client.disconnect()
