# SPDX-License-Identifier: Apache-2.0
"""How a group stands, as its DR site can tell: facts for the receiver's column.

The table is replicator.states.replica; the worker and its witness know what it looks at.
"""

from __future__ import annotations

from receiver.damage import doubt
from receiver.damage.damage import describe, of_newest
from receiver.group.worker import GroupWorker
from replicator.base.clock import NS_PER_S
from replicator.base.errors import ReplicatorError
from replicator.base.units import format_size
from replicator.states import replica as column
from replicator.states.replica import ReplicaFacts
from replicator.states.words import Trouble, Verdict
from replicator.wire.messages import Ping, Said


def verdict_of(worker: GroupWorker) -> Verdict:
    """What people are shown."""
    return column.stand(facts_of(worker))


def word_for_agent(worker: GroupWorker) -> Ping:
    """Our own verdict, as the agent is told it."""
    own = column.own(facts_of(worker))
    return Ping(said=Said(own.state.value, own.reason[:2000], own.remedy[:2000], own.is_watched))


def lag_seconds(worker: GroupWorker) -> float | None:
    """The age of the newest durable point: of the last moment for which it stands. None without
    one. Before an agent has said what its clock shows, it is told by when the newest applied point
    came in here, which is our own clock's."""
    newest = worker.replica.points.newest if worker.health.is_recovered else None
    if newest is None:
        return None
    age = worker.witness.age_seconds(max(newest.until_ns, newest.time_ns))
    if age is not None:
        return age
    received_ns = max(
        (point.received_ns for point in worker.replica.points.all[-_LOOK_BACK:]), default=0
    )
    if not received_ns:
        return None
    return max(worker.replica.known.ages().counted_ns - received_ns, 0) / NS_PER_S


_LOOK_BACK = 64


def facts_of(worker: GroupWorker) -> ReplicaFacts:
    witness = worker.witness
    if not worker.health.is_recovered:
        return ReplicaFacts(
            stopped=_trouble(worker.health.stopped), recovering=_trouble(worker.health.trouble)
        )
    replica, stream = worker.replica, worker.replica.known.welcome()
    newest, has_stream = replica.points.newest, stream.stream is not None
    unapplied = replica.known.unapplied_bytes
    return ReplicaFacts(
        stopped=_trouble(worker.health.stopped),
        paused=_trouble(worker.health.paused) or witness.refusing,
        rolled_back=_rolled_back(worker),
        spoiled=_spoiled(worker),
        told=witness.told,
        away_seconds=witness.away_seconds,
        was_here=witness.was_here,
        last_word=witness.last_word,
        has_stream=has_stream,
        has_points=newest is not None,
        has_point_of_stream=has_stream and newest is not None and newest.ordinal == stream.ordinal,
        syncing="a sync is under way" if replica.known.condition == "syncing" else "",
        verifying=doubt.awaited(replica.opening.unverified),
        backlog=f"{format_size(unapplied)} are taken in and not applied" if unapplied else "",
        proof_seconds=witness.proof_seconds,
        lag_seconds=lag_seconds(worker),
        promise=witness.promise,
    )


def _trouble(error: ReplicatorError | None) -> Trouble | None:
    return None if error is None else Trouble(error.message, error.hint)


def _spoiled(worker: GroupWorker) -> Trouble | None:
    """What is on record as damaged of the newest state."""
    newest = worker.replica.points.newest
    lost = of_newest(worker.replica.known.damage, newest) if newest is not None else []
    if newest is None or not lost:
        return None
    return Trouble(
        f"its newest points are damaged, and so are those to come: {describe(lost, newest)}",
        f"replicator resync {worker.name}, where its agent runs, brings the replica in order;"
        f" replicator points {worker.name} shows which points are good",
    )


def _rolled_back(worker: GroupWorker) -> Trouble | None:
    match worker.replica.known.condition:
        case "rolling-back":
            return Trouble("a rollback is being done", "none needed: it goes on by itself")
        case "rolled-back":
            return Trouble(
                "the replica was taken back to an earlier point, or a loss was accepted; its stream"
                " is closed",
                f"replicator resync {worker.name}, where its agent runs, lets the source go on",
            )
    return None
