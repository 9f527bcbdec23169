# SPDX-License-Identifier: Apache-2.0
"""How the suite is spread over processes (`make test` runs three, see tests/README.md).

Tests that drive real programs wait most of their time, for guests, copies and other processes; so
those of one group run one after another in one process, and what is left of the machine computes
the rest meanwhile. A test that is in no group runs wherever there is room. Groups are begun in the
order of their size, before all others. In a single process groups mean nothing.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

GROUPS = {
    "guests": ("libvirt/", "qemu/"),
    "daemons": ("process/", "agent/test_process.py", "agent/test_thaw_watchdog.py"),
    "worlds": ("world/",),  # long, and would begin last
}
"""Files and folders whose tests run one after another."""
PLACES = {f"tests/{place}": group for group, places in GROUPS.items() for place in places}
FAILED = pytest.StashKey[bool]()

settings.register_profile("suite", deadline=None)  # a machine with other work is slow
settings.load_profile("suite")


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


def pytest_collection_finish() -> None:
    """What was collected stays: the collector need not look at it again, and so comes round to the
    simulated disks of tests that are over."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """What a test left open because it failed is let go of with it: it would be found, and be an
    error, in whatever test runs when the garbage is collected."""
    done = yield
    if FAILED in item.stash:
        for name in ("last_exc", "last_type", "last_value", "last_traceback"):
            sys.__dict__.pop(name, None)  # pytest keeps the last failure, and so all its frames
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    return done
