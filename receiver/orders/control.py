# SPDX-License-Identifier: Apache-2.0
"""The receiver's answers to all orders of the control API: its parts, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from receiver.counted.keeper import CountedClock
from receiver.data_dir.reserve import Reserve
from receiver.group.worker import GroupWorker
from receiver.orders.audit import AuditOrders
from receiver.orders.choosing import Chooser
from receiver.orders.groups import KnownGroups
from receiver.orders.histories import HistoryOrders
from receiver.orders.house import ClockOrders, ConfigOrders, StatusOrder
from receiver.orders.leftovers import Leftovers
from receiver.orders.lookout import Lookout
from receiver.orders.points import PointOrders
from receiver.orders.recorder import Recorder
from receiver.orders.reloading import Reloading
from receiver.orders.returning import ReturnOrders
from receiver.orders.views import ViewOrders
from receiver.views.open_views import Views
from replicator.base.clock import Clock
from replicator.control.service import Answers
from replicator.wire.credentials import Credentials


def receiver_answers(
    name: str,
    workers: Mapping[str, GroupWorker],
    views: Views,
    agents: Mapping[str, Sequence[str]],
    *,
    clock: Clock,
    counted: CountedClock,
    recorder: Recorder,
    lookout: Lookout,
    credentials: Credentials,
    leftovers: Leftovers,
    reloading: Reloading,
    data_dir: Path,
    reserve: Reserve,
) -> Answers:
    """`name` is the receiver's; `agents`: who may feed each group. A reload changes `workers` and
    `agents` in place."""
    groups, chooser = KnownGroups(workers), Chooser(clock)
    status = StatusOrder(
        *(name, groups),
        clock=clock,
        counted=counted,
        recorder=recorder,
        credentials=credentials,
        leftovers=leftovers,
    )
    parts = (
        status,
        ConfigOrders(reloading, leftovers),
        ClockOrders(groups, counted),
        PointOrders(groups, chooser),
        ViewOrders(groups, chooser, views, agents, reserve),
        ReturnOrders(groups, chooser, data_dir),
        HistoryOrders(groups),
        AuditOrders(chooser, recorder, lookout),
    )
    return Answers("receiver", (each for part in parts for each in part.answers()))
