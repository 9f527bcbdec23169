# SPDX-License-Identifier: Apache-2.0
"""What is handed to the audit of orders, and what follows where it refuses."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from replicator.base.errors import (
    NoPointError,
    NoSpaceError,
    OwnedError,
)
from replicator.control.orders import (
    CLOSE_VIEW,
    POINTS,
    ROLLBACK,
)
from replicator.control.requests import (
    RollbackRequest,
)
from tests.control.daemon import Daemon

in_thread = asyncio.to_thread


async def test_what_changes_something_is_audited_with_who_ordered_it(daemon: Daemon) -> None:
    await in_thread(daemon.client.order, POINTS, "web")
    assert daemon.audit == []
    with pytest.raises(NoPointError):
        await in_thread(daemon.client.order, ROLLBACK, "web", RollbackRequest(to="never"))
    await in_thread(daemon.client.order, CLOSE_VIEW, "v1")
    rollback, refused, closing, closed = daemon.audit
    assert (rollback.order, rollback.object, rollback.outcome) == ("rollback", "web", "started")
    assert json.loads(rollback.argument) == {
        "to": "never",
        "dry_run": False,
        "force_detach": False,
        "zone": None,
    }
    assert (refused.outcome, refused.message) == ("no-point", "no point 'never' in group web")
    assert (closing.object, closed.outcome) == ("v1", "done")
    assert {(entry.uid, entry.pid) for entry in daemon.audit} == {(os.getuid(), os.getpid())}


async def test_an_order_whose_end_cannot_be_audited_is_said_to_be_done(daemon: Daemon) -> None:
    daemon.audit.refusal_behind = 1
    with pytest.raises(NoSpaceError, match="rollback was carried out, but the disk is full"):
        await in_thread(daemon.client.order, ROLLBACK, "web", RollbackRequest(to="latest"))
    assert daemon.receiver.orders[-1] == ("rollback", "web", "latest")
    assert [entry.outcome for entry in daemon.audit] == ["started"]


async def test_how_an_order_failed_counts_more_than_that_it_is_not_recorded(daemon: Daemon) -> None:
    daemon.audit.refusal_behind = 1
    with pytest.raises(OwnedError):
        await in_thread(daemon.client.order, ROLLBACK, "web", RollbackRequest(to="connected"))


async def test_an_order_that_cannot_be_audited_is_not_carried_out(daemon: Daemon) -> None:
    daemon.audit.refusal = NoSpaceError("the catalog is full")
    with pytest.raises(NoSpaceError):
        await in_thread(daemon.client.order, ROLLBACK, "web", RollbackRequest(to="latest"))
    assert daemon.receiver.orders == []
