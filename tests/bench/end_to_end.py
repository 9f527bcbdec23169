# SPDX-License-Identifier: Apache-2.0
"""All three processes on one machine: from fio's write to the applied replica.

The peer of each row is the same splitter with nobody behind it (`splitter alone`), so the ratio is
what shipping, receiving and applying on the same two cores cost the writer. Shown beside: how long
the receiver still applied after the last write, and the memory of each process.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from replicator.base.units import GIB, MIB, format_size
from replicator.control.orders import STATUS
from replicator.control.types import GroupStatus
from replicator.demo.account import Account
from replicator.demo.site import Group, Limits, Program, Site
from tests.peers.fio import Load, random_writes

DISK_BYTES = 256 * MIB
DEPTH = 32
CATCH_UP_SECONDS = 120.0
PROGRAMS: tuple[Program, ...] = ("splitter", "agent", "receiver")


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement. `catch_up_seconds`: from the last write until all of it is applied."""

    load: Load
    catch_up_seconds: float
    rss_bytes: dict[Program, int]


def rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(block_bytes: int, seconds: float, *, whole: bool) -> Run:
    """fio against the splitter, with agent and receiver behind it if `whole`."""
    home = Path(tempfile.mkdtemp(prefix="rpl-bench-", dir="/var/tmp"))
    for name in ("tmp", "run", "config", "cache", "data"):
        (home / name).mkdir()
    disk = f'name = "disk"\nsize = "{DISK_BYTES}"'
    limits = Limits(spool_memory_bytes=4 * GIB, history_bytes=64 * GIB)
    account = Account(os.getuid(), os.getgid(), (), is_self=True)
    try:
        with Site(home, account, (Group("bench", "external", (disk,)),), limits) as site:
            site.prepare()
            running = PROGRAMS if whole else ("splitter",)
            site.start(*running)
            _until(site.nbd_socket.exists, "the splitter serves")
            if whole:
                _until(lambda: _group(site).state == "protected", "the group is protected")
            load = random_writes(
                site.export("bench", "disk"),
                block_bytes=block_bytes,
                depth=DEPTH,
                span_bytes=DISK_BYTES,
                seconds=seconds,
            )
            ended = time.monotonic()
            if whole:
                _until(lambda: _caught_up(site), "everything is applied")
            rss = {program: rss_bytes(site.pid(program)) for program in running}
            return Run(load, time.monotonic() - ended, rss)
    finally:
        shutil.rmtree(home)


def _group(site: Site) -> GroupStatus:
    return site.agent.order(STATUS).groups[0]


def _caught_up(site: Site) -> bool:
    there = site.receiver.order(STATUS).groups[0]
    return not _group(site).lag_bytes and not there.lag_bytes


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + CATCH_UP_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain until {what}")
        time.sleep(0.02)


def end_to_end_table(rounds: int, seconds: float) -> Table:
    table = Table(title="End to end on one machine, random writes, depth 32 (medians)")
    for heading in ("block", "whole chain", "splitter alone", "ratio", "applied after", "RSS"):
        table.add_column(heading, justify="right")
    for block_bytes in (4096, 65536):
        wholes, alones = [], []
        for _ in range(rounds):
            wholes.append(measure(block_bytes, seconds, whole=True))
            alones.append(measure(block_bytes, seconds, whole=False))
        table.add_row(*_row(block_bytes, wholes, alones))
    return table


def _row(block_bytes: int, wholes: list[Run], alones: list[Run]) -> list[str]:
    def speed(runs: list[Run]) -> float:
        return statistics.median(run.load.writes_per_second for run in runs)

    def shown(runs: list[Run]) -> str:
        rate = speed(runs)
        return f"{rate:,.0f} writes/s, {rate * block_bytes / 1e6:,.0f} MB/s"

    after = statistics.median(run.catch_up_seconds for run in wholes)
    rss = ", ".join(
        f"{program} {format_size(max(run.rss_bytes[program] for run in wholes))}"
        for program in PROGRAMS
    )
    ratio = speed(wholes) / speed(alones)
    return [
        format_size(block_bytes),
        shown(wholes),
        shown(alones),
        f"{ratio:.2f}",
        f"{after:.1f} s",
        rss,
    ]
