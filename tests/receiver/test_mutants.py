# SPDX-License-Identifier: Apache-2.0
"""Each rule taken away, one at a time: the random lives must notice. Tests of the tests.

A rule that no test misses when it is gone is either not a rule or not tested. Every case here was
once a hole in a model of the design, or is what an inattentive change would do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from journal.record import RecordType
from journal.spool import StreamName
from receiver.apply import applier as apply_module
from receiver.apply.applier import Applier
from receiver.apply.batch import BatchBuilder
from receiver.apply.redo import Redo
from receiver.blocks import content as apply_content
from receiver.blocks.content import Operation
from receiver.blocks.replica import Replica
from receiver.counted.ages import Ages
from receiver.group.group import GroupReplica
from receiver.history.batches import Batch, point_body
from receiver.history.bodies import PointBody
from receiver.history.images import BLOCK_BYTES, ImageTable
from receiver.history.index import stack as index_stack
from receiver.history.index import sweep
from receiver.history.index.runs import earliest
from receiver.history.log import HistoryLog
from receiver.history.merging import group_batches
from receiver.history.state import GroupState
from receiver.intake.front import Front
from receiver.intake.inbox import Inbox
from receiver.intake.intake import Intake
from receiver.intake.units import units_of
from receiver.points.policy import HistoryPolicy
from receiver.points.values import Point
from receiver.retention import reclaim as reclaim_module
from receiver.retention import thinning
from receiver.retention.budget import Situation
from receiver.retention.keeping import Keeping
from receiver.retention.reclaim import Reclaim
from receiver.rollback.rollback import OverlayOf, RollbackWork
from receiver.views import point_view
from receiver.writes.log import FineLog
from replicator.base.errors import ReplicatorError
from tests.receiver.history_of_seed import live
from tests.world.storage import SimFile, SimStorage

Patch = pytest.MonkeyPatch
Mutant = Callable[[Patch], None]
SEEDS = 1500
NOTICED = (AssertionError, ReplicatorError, OSError, LookupError, ValueError)


def no_sync_in_recovery(patch: Patch) -> None:
    """The page cache is believed: what it holds is reported and reused without a sync."""
    recover = GroupReplica.recover

    def unsynced(group: GroupReplica) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(SimFile, "datasync", lambda _file: None)
            inner.setattr(SimStorage, "sync_directory", lambda _storage, _path: None)
            recover(group)

    patch.setattr(GroupReplica, "recover", unsynced)


def batch_limits_decided_anew(patch: Patch) -> None:
    """A redo takes whatever is in the inbox by now."""

    def again(
        redo: Redo, batch: Batch, before: GroupState, behind: GroupState
    ) -> dict[str, list[Operation]]:
        state = before.copy()
        if state.ordinal != batch.ordinal:
            state.begin_stream(behind.stream, batch.ordinal, batch.start_lsn)
        builder = BatchBuilder(state, 1 << 40)
        for frame in redo._inbox.frames_from(batch.ordinal, batch.start_lsn):
            opened = redo._inbox.read(batch.ordinal, frame)
            for unit in units_of(opened, state.lsn):
                builder.feed(unit)
                redo._create(builder.created)
        return builder.operations

    patch.setattr(Redo, "_of_records", again)
    patch.setattr(ImageTable, "covers", lambda _table, _keys: True)


def images_after_overwrite(patch: Patch) -> None:
    """The replica is written before its before-images are in the history."""
    commit = Applier._commit

    def early(applier: Applier, draft: Any, changes: Any, state: Any) -> None:
        for change in changes:
            apply_content.write_changes(applier._replica.file(change.name), change.writes)
        commit(applier, draft, changes, state)

    patch.setattr(Applier, "_commit", early)


def images_not_synced(patch: Patch) -> None:
    """The replica is written while its before-images are in the page cache."""
    patch.setattr(HistoryLog, "sync", lambda _log: None)
    patch.setattr(HistoryLog, "publish", _publish_anyway)


def _publish_anyway(log: HistoryLog, batch: Any) -> None:
    log.unapplied = batch
    log.batches = [*log.batches, batch]
    log.next_batch = batch.number + 1


def replica_not_synced(patch: Patch) -> None:
    """ "Applied" is said of what is in the page cache."""
    patch.setattr(Replica, "sync", lambda _replica, _names: None)


def inbox_freed_too_early(patch: Patch) -> None:
    """The inbox goes when a batch is begun, not when it is applied for good."""
    commit = Applier._commit

    def early(applier: Applier, draft: Any, changes: Any, state: Any) -> None:
        applier._inbox.free(state.ordinal, state.lsn)
        commit(applier, draft, changes, state)

    patch.setattr(Applier, "_commit", early)


def acknowledged_before_synced(patch: Patch) -> None:
    def claim(inbox: Inbox) -> None:
        stream = inbox.newest
        if stream is not None:
            stream.durable_lsn, stream.durable_chain = stream.received_lsn, stream.chain
            stream.durable_frames = len(stream.frames)

    patch.setattr(Inbox, "sync", claim)


def waiting_zeroes_lost(patch: Patch) -> None:
    """They live in memory alone."""
    follow = GroupState.follow

    def forgetful(state: GroupState, body: Any, where: str) -> GroupState:
        found = follow(state, body, where)
        for disk in found.disks.values():
            disk.pending.remove(0, disk.size_bytes)
        return found

    patch.setattr(GroupState, "follow", forgetful)


def same_keeps_waiting_zeroes(patch: Patch) -> None:
    content = BatchBuilder._content

    def careless(builder: BatchBuilder, record: Any) -> None:
        if record.type != RecordType.SAME:
            content(builder, record)

    patch.setattr(BatchBuilder, "_content", careless)


def zeroes_not_settled(patch: Patch) -> None:
    patch.setattr(BatchBuilder, "_settle", lambda _builder, _lsn, _record: None)


def zeroes_applied_at_once(patch: Patch) -> None:
    """A zero inside a sync wipes the replica, which a later `same` takes for what it was."""
    content = BatchBuilder._content

    def eager(builder: BatchBuilder, record: Any) -> None:
        content(builder, record)
        if record.type == RecordType.ZERO:
            disk = builder.state.by_index[record.disk]
            builder._operate(disk, Operation(record.offset, record.length, None))

    patch.setattr(BatchBuilder, "_content", eager)


def rollback_without_draining(patch: Patch) -> None:
    """What is in the inbox stays there, and is applied on top of the rollback."""
    patch.setattr(GroupState, "close_stream", lambda _state: None)
    patch.setattr(Inbox, "remove_closed", lambda _inbox, _ordinal: None)
    begin = GroupReplica._begin_rollback

    def hasty(group: GroupReplica, sequence: int, writes: int) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            if group.is_point_applied(sequence):
                inner.setattr(GroupReplica, "apply_next", lambda _group: False)
            return begin(group, sequence, writes)

    patch.setattr(GroupReplica, "_begin_rollback", hasty)


def stream_stays_open(patch: Patch) -> None:
    """A rollback closes nothing: the source goes on where it was."""

    def nothing(state: GroupState) -> None:
        state.closed_ordinal = 0

    patch.setattr(GroupState, "close_stream", nothing)


def rollback_forgets_its_intent(patch: Patch) -> None:
    follow = GroupState.follow

    def forgetful(state: GroupState, body: Any, where: str) -> GroupState:
        found = follow(state, body, where)
        found.rollback = None
        return found

    patch.setattr(GroupState, "follow", forgetful)


def last_write_of_a_block_wins(patch: Patch) -> None:
    """Folding by blocks, as if nobody wrote sectors."""
    change_of = apply_content.change_of

    def folded(
        file: Any, name: str, slot: int, size: int, operations: Sequence[Operation], *rest: Any
    ) -> Any:
        kept: list[Operation] = []
        seen: set[int] = set()
        for each in reversed(operations):
            blocks = set(
                range(each.offset // BLOCK_BYTES, -(-(each.offset + each.length) // BLOCK_BYTES))
            )
            if not blocks <= seen:
                kept.append(each)
            seen |= blocks
        return change_of(file, name, slot, size, kept[::-1], *rest)

    patch.setattr(apply_module, "change_of", folded)


def latest_image_wins(patch: Patch) -> None:
    for module in (sweep, index_stack, point_view):
        patch.setattr(module, "earliest", lambda parts: earliest(parts[::-1]))


def redo_believes_the_cache(patch: Patch) -> None:
    """A redo leaves out the blocks that look as they should."""
    changes = Applier._changes
    patch.setattr(
        Applier,
        "_changes",
        lambda applier, state, operations, always=None, **named: changes(
            applier, state, operations, **named
        ),
    )


def points_inside_a_sync(patch: Patch) -> None:
    """Members count as complete, whatever the cut says."""
    cut = GroupState._cut

    def trusting(state: GroupState, end_lsn: int, record: Any, body: Any) -> Any:
        was = [(disk, disk.syncing, disk.complete) for disk in state.disks.values()]
        members = [msgspec.structs.replace(each, complete=True) for each in body.members]
        for disk, _, _ in was:
            disk.syncing, disk.complete = False, True
        try:
            return cut(state, end_lsn, record, msgspec.structs.replace(body, members=members))
        finally:
            for disk, syncing, complete in was:
                disk.syncing, disk.complete = syncing, complete

    patch.setattr(GroupState, "_cut", trusting)


def numbers_from_memory(patch: Patch) -> None:
    """What is in the inbox is not walked again: its points get their numbers when applied."""

    def start(intake: Intake, state: GroupState) -> None:
        intake.front = Front(state.copy())

    patch.setattr(Intake, "start", start)


def points_dropped_without_a_record(patch: Patch) -> None:
    """What they needed is freed, and after a restart they are back."""
    patch.setattr(
        HistoryLog, "drop_points", lambda log, sequences, _state: log.forget_points(sequences)
    )


def promises_forgotten(patch: Patch) -> None:
    """A label protects nothing from growing old."""
    patch.setattr(thinning, "is_promised", lambda _point, _now_ns: False)


def lock_in_memory_alone(patch: Patch) -> None:
    """A restart with another configuration is without it."""
    body = GroupState.body
    patch.setattr(
        GroupState,
        "body",
        lambda state, disks: msgspec.structs.replace(body(state, disks), lock_ns=0),
    )


def lock_of_the_configuration_alone(patch: Patch) -> None:
    """A shorter one in the configuration is believed."""

    def situation(keeping: Keeping, policy: HistoryPolicy, ages: Ages | None = None) -> Situation:
        applier = keeping._applier
        state, point = applier.newest_state, applier.applied_point
        ages = ages or keeping._clock.ages()
        return Situation(ages, state, point, keeping._pins(), policy.min_lock_ns)

    patch.setattr(Keeping, "situation", situation)


def coming_not_on_record(patch: Patch) -> None:
    """A point's age is known only while the process lives."""

    def unaged(point: Point) -> PointBody:
        return msgspec.structs.replace(point_body(point), received_ns=0)

    patch.setattr("receiver.history.writer.point_body", unaged)


def views_do_not_stop_compaction(patch: Patch) -> None:
    """What a view reads is rewritten under it."""
    patch.setattr(Reclaim, "_frozen_from", lambda reclaim, _pins: reclaim._history.newest_first)


def needed_segments_removed(patch: Patch) -> None:
    """One segment more than no kept point needs."""
    count = reclaim_module.removable
    patch.setattr(
        reclaim_module,
        "removable",
        lambda segments, batches, kept: min(len(segments), count(segments, batches, kept) + 1),
    )


def merged_over_a_kept_point(patch: Patch) -> None:
    """Batches on both sides of a kept point become one."""
    patch.setattr(
        reclaim_module,
        "group_batches",
        lambda batches, kept, oldest: group_batches(batches, frozenset(sorted(kept)[::2]), oldest),
    )


def rollback_forgets_the_writes(patch: Patch) -> None:
    """The intent says the point alone."""

    def of_point(history: HistoryLog, state: GroupState, _overlay_of: OverlayOf) -> RollbackWork:
        assert state.rollback is not None
        return RollbackWork.to(history, state.rollback.target)

    patch.setattr(RollbackWork, "of", of_point)


def frames_go_while_a_rollback_needs_them(patch: Patch) -> None:
    """Where nothing is kept otherwise, they are gone after a crash."""
    take = FineLog.take

    def careless(log: FineLog, stream: StreamName, first: int, path: Path) -> bool:
        return log.keep_ns is not None and take(log, stream, first, path)

    patch.setattr(FineLog, "take", careless)


MUTANTS: list[Mutant] = [
    rollback_forgets_the_writes,
    frames_go_while_a_rollback_needs_them,
    views_do_not_stop_compaction,
    needed_segments_removed,
    merged_over_a_kept_point,
    no_sync_in_recovery,
    batch_limits_decided_anew,
    images_after_overwrite,
    images_not_synced,
    replica_not_synced,
    inbox_freed_too_early,
    acknowledged_before_synced,
    waiting_zeroes_lost,
    same_keeps_waiting_zeroes,
    zeroes_not_settled,
    zeroes_applied_at_once,
    rollback_without_draining,
    stream_stays_open,
    rollback_forgets_its_intent,
    last_write_of_a_block_wins,
    latest_image_wins,
    redo_believes_the_cache,
    points_inside_a_sync,
    numbers_from_memory,
    points_dropped_without_a_record,
    promises_forgotten,
    lock_in_memory_alone,
    lock_of_the_configuration_alone,
    coming_not_on_record,
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_is_noticed(mutant: Mutant, monkeypatch: Patch) -> None:
    mutant(monkeypatch)
    for seed in range(SEEDS):
        try:
            live(seed, steps=60)
        except NOTICED:
            return
    pytest.fail(f"{SEEDS} lives without this rule, and nothing was wrong")
