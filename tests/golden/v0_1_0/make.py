# SPDX-License-Identifier: Apache-2.0
"""Makes site.tar.xz and expected.json beside it: what version 0.1.0 leaves on its disks.

Run once, in a checkout of tag v0.1.0, so that every byte is that version's own:

    git worktree add ../old v0.1.0
    cd ../old && PYTHONPATH=. ../main/.venv/bin/python ../main/tests/golden/v0_1_0/make.py

The story: two disks, marks, a rollback and its undo, a resync, a scrub, a point dropped (so batches
are merged), segments so small that some are sealed. Then the history may not grow any more: apply
pauses, and the inbox keeps what was acknowledged. Then the receiver dies, and the spool keeps what
was answered. All three die by SIGKILL, so every tail is that of a crash. expected.json holds the
digests of the disks at each point, through 0.1.0's own views, and at the end of the inbox and of
the spool.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from replicator.control.types import DropRequest
from replicator.demo.account import Account
from replicator.demo.site import _MODULES as PROGRAMS
from replicator.demo.site import Group, Limits, Site
from tests.peers.nbd_client import NbdClient

HERE = Path(__file__).parent
RECEIVER = """
from functools import partial
import receiver.group as group

group.Limits = partial(
    group.Limits, history_segment_bytes=16 << 10, inbox_segment_bytes=16 << 10, step_blocks=8
)
from receiver.__main__ import main

main()
"""  # small segments, so that some are sealed
DISK_BYTES = 2 << 20
DISKS = ("a", "b")
BLOCK = 4096


class Source:
    """Writes that half compress, one after another, and the disks they make."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._random = random.Random(10)
        self.disks = {disk: bytearray(DISK_BYTES) for disk in DISKS}
        self._clients: dict[str, NbdClient] = {}

    async def connect(self) -> None:
        for disk in DISKS:
            self._clients[disk] = await NbdClient.connect(self._site.export("g", disk))

    async def write(self, count: int) -> None:
        for _ in range(count):
            disk = self._random.choice(DISKS)
            length = 512 * self._random.choice((1, 2, 8, 8, 16))
            offset = 512 * self._random.randrange((DISK_BYTES - length) // 512 + 1)
            if self._random.random() < 0.15:
                data = bytes(length)
                await self._clients[disk].write_zeroes(offset=offset, length=length)
            else:
                data = (self._random.randbytes(160) + bytes(96)) * (length // 256)
                await self._clients[disk].pwrite(data, offset=offset)
            self.disks[disk][offset : offset + length] = data

    async def write_all(self) -> None:
        for disk in DISKS:
            await self._clients[disk].pwrite(bytes(self.disks[disk]), offset=0)
            await self._clients[disk].flush()

    def digests(self) -> dict[str, str]:
        return {disk: hashlib.sha256(content).hexdigest() for disk, content in self.disks.items()}


async def when(holds: Any, what: str) -> None:
    for _ in range(800):
        if await asyncio.to_thread(holds):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(what)


async def digests_of(site: Site, at: str) -> dict[str, str]:
    view = await asyncio.to_thread(site.receiver.open_view, "g", at)
    found = {}
    for disk, uri in view.result.disks.items():
        client = await NbdClient.connect(uri)
        found[disk] = hashlib.sha256(await client.pread(offset=0, length=DISK_BYTES)).hexdigest()
        await client.disconnect()
    await asyncio.to_thread(site.receiver.close_view, view.result.id)
    return found


async def listed(site: Site) -> list[dict[str, Any]]:
    found = []
    for point in site.receiver.points("g"):
        at = f"#{point.sequence}"
        found.append(
            {
                "sequence": point.sequence,
                "time": point.time,
                "label": point.label,
                "kind": point.kind,
                "sha256": await digests_of(site, at),
            }
        )
    return found


def at_receiver(site: Site) -> Any:
    return site.receiver.status().groups[0]


def is_protected(site: Site) -> bool:
    return site.agent.status().groups[0].state == "protected"


def set_history(site: Site, more: str) -> None:
    text = site.receiver_config.read_text()
    head, rest = text.split("[history]\n")
    groups = rest[rest.index("[[group]]") :]
    site.receiver_config.write_text(f"{head}[history]\n{more}\n\n{groups}")


async def story(home: Path) -> None:
    tables = tuple(f'name = "{name}"\nsize = "{DISK_BYTES}"' for name in DISKS)
    site = Site(
        home,
        Account(os.getuid(), os.getgid(), (), is_self=True),
        (Group("g", "external", tables, "200ms"),),
        Limits(),
    )
    with site:
        site.prepare()
        (home / "small_receiver.py").write_text(RECEIVER)
        os.environ["PYTHONPATH"] += f"{os.pathsep}{home}"
        PROGRAMS["receiver"] = "small_receiver"
        set_history(site, 'max_bytes = "1GiB"\nkeep = ["all 100d"]\nfine_history = "100d"')
        site.start("receiver", "splitter", "agent")
        await when(lambda: is_protected(site), "protected")
        source = Source(site)
        await source.connect()
        for number in range(3):
            await source.write(25)
            site.agent.mark("g", f"mark {number}", wait=True)
        site.stop("agent")
        await when(lambda: at_receiver(site).peer is None, "left")
        done = site.receiver.rollback("g", "mark 1").result
        site.receiver.rollback("g", f"#{done.before.sequence}")
        site.start("agent")
        await when(lambda: site.agent.status().groups[0].state in ("lost", "paused"), "lost")
        await source.write(10)
        site.agent.resync("g")
        await source.write_all()
        await when(lambda: is_protected(site), "protected again")
        for number in range(3, 6):
            await source.write(25)
            site.agent.mark("g", f"mark {number}", wait=True)
        await when(lambda: at_receiver(site).lag_bytes == 0, "applied")
        site.receiver.scrub("g", waits=True)
        points = site.receiver.points("g")
        plain = [point for point in points if point.label is None and point.kind == "crash"]
        site.receiver.drop_points("g", DropRequest(points=[f"#{plain[1].sequence}"]))
        known = await listed(site)
        site.stop("receiver")
        # Nothing more may be applied: every point is younger than min_window.
        set_history(
            site,
            'max_bytes = "64KiB"\nwhen_full = "pause"\n'
            'keep = ["all 100d"]\nmin_window = "100d"\nfine_history = "100d"',
        )
        site.start("receiver")
        await when(lambda: site.agent.status().groups[0].peer is not None, "linked")
        await source.write(100)
        await when(lambda: at_receiver(site).history_bytes > 65536, "over the budget")
        await source.write(20)
        site.agent.mark("g", "in the inbox", wait=True)
        in_inbox = source.digests()
        await when(lambda: at_receiver(site).reason != "", "paused")
        site.kill("receiver")
        await source.write(20)
        site.agent.mark("g", "in the spool", wait=False)
        in_spool = source.digests()
        site.kill("agent")
        site.kill("splitter")
        pack(site, {"points": known, "in the inbox": in_inbox, "in the spool": in_spool})


def pack(site: Site, expected: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "site"
        whole.mkdir()
        for name in ("source", "dr"):
            shutil.copytree(site.home / name, whole / name, ignore=only_files)
        shutil.copytree(site.memory, whole / "memory", ignore=only_files)
        subprocess.run(
            [
                *("tar", "-C", folder, "--sort=name", "--owner=0", "--group=0", "--sparse"),
                *("-cJf", HERE / "site.tar.xz", "site"),
            ],
            check=True,
        )
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def only_files(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]


def main() -> None:
    home = Path(tempfile.mkdtemp(prefix="rpl-", dir="/var/tmp"))
    for name in ("tmp", "run", "config", "cache", "data"):
        (home / name).mkdir()
    try:
        asyncio.run(story(home))
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
