# SPDX-License-Identifier: Apache-2.0
"""The replica's blocks beside the log that comes next.

`holds_newer`   E2: blocks that hold already what comes next. Only where nothing vouches for less.
`has_not_come`  a batch was begun behind the history's end, or was to be: whether the images are as
                they were in front of it. All of the log that it takes has to be there.

Concurrency: the group's apply thread, with nothing being applied.
"""

from __future__ import annotations

import numpy as np

from receiver.apply.batch import BatchBuilder
from receiver.blocks.content import Operation, change_of, merge_runs
from receiver.blocks.replica import Replica
from receiver.blocks.zeroes import with_zeroes
from receiver.fitting.voucher import Upto
from receiver.history.bodies import UNKNOWN_SUM
from receiver.history.images import BLOCK_BYTES, I64, U64, block_key, key_parts
from receiver.history.log import HistoryLog
from receiver.history.state import Disk, GroupState
from receiver.history.sums.sums import LatestSums
from receiver.intake.inbox import Inbox
from receiver.intake.units import units_of
from receiver.opening.compare import runs, sums_there
from replicator.base.errors import UsageError
from replicator.base.units import MIB

LOOKED_AT_BYTES = 64 * MIB
"""Of the log ahead, for blocks that hold what comes next."""
HELD_BYTES_MAX = 64 * MIB
"""Of one record, compared with what lies there."""


def holds_newer(
    history: HistoryLog, sums: LatestSums, replica: Replica, inbox: Inbox, state: GroupState
) -> bool:
    """Whether some block holds, whole, what the log behind `state` will write there, and not what
    the sums on record say. Rot does not come out as the future. Raises DamageError, OSError."""
    ahead = state.copy()
    read_bytes = 0
    for frame in inbox.frames_from(ahead.ordinal, ahead.lsn):
        opened = inbox.read(ahead.ordinal, frame)
        for unit in units_of(opened, ahead.lsn):
            builder = BatchBuilder(ahead, LOOKED_AT_BYTES)
            try:
                builder.feed(unit)
            except UsageError:
                return False  # it says so when it is applied
            if _has_come(history, sums, replica, builder):
                return True
            ahead = builder.state
        read_bytes += opened.header.raw_bytes
        if read_bytes >= LOOKED_AT_BYTES:
            break
    return False


def has_not_come(
    sums: LatestSums, replica: Replica, inbox: Inbox, state: GroupState, upto: Upto
) -> bool:
    """Whether the log behind `state` is there up to `upto`, and each block that it touches holds
    what the sums on record say; one that has no sum, anything but what the log writes there. Raises
    DamageError, OSError."""
    while sums.gather():
        pass
    ahead = state.copy()
    following = inbox.stream_after(ahead.ordinal)
    if upto[0] != ahead.ordinal and following is not None:
        ahead.begin_stream(following[0].stream, following[0].ordinal, following[1])
    while ahead.ordinal == upto[0] and ahead.lsn < upto[1]:
        frames = inbox.frames_from(ahead.ordinal, ahead.lsn)
        if not frames:
            return False
        for frame in frames:
            for unit in units_of(inbox.read(ahead.ordinal, frame), ahead.lsn):
                builder = BatchBuilder(ahead)
                try:
                    builder.feed(unit)
                except UsageError:
                    return False
                if not _holds_old(sums, replica, builder, state):
                    return False
                ahead = builder.state
                if ahead.lsn >= upto[1]:
                    return True
    return ahead.ordinal == upto[0]


def _holds_old(
    sums: LatestSums, replica: Replica, builder: BatchBuilder, before: GroupState
) -> bool:
    """Whether each block that the builder touches is as it was, by its sum."""
    for name, operations in builder.operations.items():
        disk = before.disks.get(name)
        if disk is None:
            continue  # it comes with the batch: no point has it yet
        starts = np.array([each.offset for each in operations], dtype=np.int64)
        ends = starts + np.array([each.length for each in operations], dtype=np.int64)
        ranges = merge_runs(starts // BLOCK_BYTES, -(-ends // BLOCK_BYTES))
        keys = _keys_within(disk, *ranges)
        known = sums.find(keys)
        wanted = with_zeroes(disk, keys, known.sums, known.is_changed, is_whole=sums.is_whole)
        there = np.concatenate([_there(replica, disk, keys[at : at + n]) for at, n in runs(keys)])
        is_known = wanted != np.uint64(UNKNOWN_SUM)
        if (is_known & (there != wanted)).any():
            return False
        if not is_known.all() and any(_has_written(replica, name, each) for each in operations):
            return False
    return True


def _has_written(replica: Replica, name: str, operation: Operation) -> bool:
    """Whether the image holds what the operation writes."""
    if operation.length > HELD_BYTES_MAX:
        return True  # it may have
    there = replica.read(name, operation.offset, operation.length)
    content = operation.content
    return there == (bytes(operation.length) if content is None else content)


def _has_come(
    history: HistoryLog, sums: LatestSums, replica: Replica, builder: BatchBuilder
) -> bool:
    pending = np.empty(0, dtype=np.uint64)
    if history.batch_list.unapplied is not None:
        pending = history.reader.table(history.batch_list.unapplied).keys()[0]
    for name, operations in builder.operations.items():
        disk = builder.state.disks[name]
        if replica.size_of(name) is None:
            continue
        starts = np.array([each.offset for each in operations], dtype=np.int64)
        ends = starts + np.array([each.length for each in operations], dtype=np.int64)
        first, last = -(-starts // BLOCK_BYTES), ends // BLOCK_BYTES
        keys = _keys_within(disk, *merge_runs(first[first < last], last[first < last]))
        keys = keys[~np.isin(keys, pending)]
        if not len(keys):
            continue
        recorded, writers = sums.latest(keys)
        change = change_of(
            replica.file(name), name, disk.slot, disk.size_bytes, operations, always=keys
        )
        future = change.sums[np.searchsorted(change.keys, keys)]
        there = np.concatenate([_there(replica, disk, keys[at : at + n]) for at, n in runs(keys)])
        is_known = (recorded != np.uint64(UNKNOWN_SUM)) & (writers > 0)
        if (is_known & (there == future) & (there != recorded)).any():
            return True
    return False


def _there(replica: Replica, disk: Disk, keys: U64) -> U64:
    """Of neighbours."""
    block = key_parts(int(keys[0]))[1]
    return sums_there(replica, disk, block, block + len(keys))


def _keys_within(disk: Disk, first: I64, last: I64) -> U64:
    """Of the whole blocks [first, last), range by range."""
    ranges = [
        np.arange(low, high, dtype=np.uint64)
        for low, high in zip(first.tolist(), last.tolist(), strict=True)
        if low < high
    ]
    base = np.uint64(block_key(disk.slot, 0))
    return np.concatenate([np.empty(0, dtype=np.uint64), *ranges]) + base
