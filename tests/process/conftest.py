# SPDX-License-Identifier: Apache-2.0
"""A whole installation for each test, in a directory of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from replicator.demo.account import Account
from replicator.demo.site import Group, Limits, Site

DISK_BYTES = 8 << 20

MakeSite = Callable[..., Site]


@pytest.fixture
def make_site() -> Iterator[MakeSite]:
    """Makes a site with external groups of `disks` disks each, `a`, `b`, …"""
    home = Path(tempfile.mkdtemp(prefix="rpl-", dir="/var/tmp"))  # short: sockets lie in it
    account = Account(os.getuid(), os.getgid(), (), is_self=True)
    for name in ("tmp", "run", "config", "cache", "data"):
        (home / name).mkdir()
    sites: list[Site] = []

    def make(
        *,
        disks: int = 1,
        disk_bytes: int = DISK_BYTES,
        interval: str = "200ms",
        limits: Limits | None = None,
        groups: Sequence[str] = ("g",),
    ) -> Site:
        tables = tuple(f'name = "{name}"\nsize = "{disk_bytes}"' for name in "abcdef"[:disks])
        made = tuple(Group(name, "external", tables, interval) for name in groups)
        site = Site(home, account, made, limits or Limits())
        site.prepare()
        sites.append(site)
        return site

    try:
        yield make
    finally:
        for site in sites:
            site.__exit__()
            for program in ("receiver", "splitter", "agent"):  # shown where a test fails
                print(f"--- {program}\n{site.said(program)}")
        shutil.rmtree(home)
