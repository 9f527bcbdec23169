# SPDX-License-Identifier: Apache-2.0
"""How the suite is spread over processes (`make test` runs three, see tests/README.md).

Tests that drive real programs wait most of their time, for guests, copies and other processes; so
those of one group run one after another in one process, and what is left of the machine computes
the rest meanwhile. A test that is in no group runs wherever there is room. Groups are begun in the
order of their size, before all others. In a single process groups mean nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

GROUPS = {
    "guests": ("libvirt/", "qemu/"),
    "daemons": ("process/", "agent/test_process.py", "agent/test_thaw_watchdog.py"),
    "worlds": ("world/",),  # long, and would begin last
}
"""Files and folders whose tests run one after another."""
PLACES = {f"tests/{place}": group for group, places in GROUPS.items() for place in places}


class InGroups(LoadScopeScheduling):  # type: ignore[misc]
    """Each group, and each other test, is a unit of work. (Not pytest-xdist's own loadgroup: it
    writes a test's mark into its name, which pytest 9.2 does not let it, and then there are no
    groups, without a word.)"""

    def _split_scope(self, nodeid: str) -> str:
        return next((group for place, group in PLACES.items() if nodeid.startswith(place)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> InGroups:
    return InGroups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A process's folder has a shorter name than pytest-xdist's own: the kernel takes socket paths
    up to 107 bytes, and some lie deep."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        config.option.basetemp = str(Path(config.option.basetemp).with_name(worker))
