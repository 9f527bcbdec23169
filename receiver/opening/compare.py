# SPDX-License-Identifier: Apache-2.0
"""The replica's blocks beside the sums on record, where an opening has reason to doubt them.

`suspects`  what was last written behind batch R, which `disks/applied` vouches for: an older image
            that was put back holds something else there. Few blocks after a crash (the last batch
            or two), and they are read at once.
`lately`    some of what was last written up to batch R: an older image that lies in the same file
            holds something else there. What differs is no proof of that; it asks for a scrub.
`entire`    every block, for `history accept`: the replica may hold what the history never had.

What is not right is *damage* from the batch on that wrote it; points in front of that are served,
for each later change has its image. Where a block has no sum, `entire` takes it for wrong: that a
block is right is to be proven there.

Concurrency: the group's apply thread, with nothing being applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from xxhash import xxh3_64_intdigest

from receiver.blocks.replica import Replica
from receiver.blocks.zeroes import with_zeroes, zero_sums
from receiver.damage import damage as rules
from receiver.fitting.looking import batch_of
from receiver.history.batches import Batch
from receiver.history.bodies import UNKNOWN_SUM, DamagedBlocks
from receiver.history.images import BLOCK_BYTES, U64, Bools, block_key, block_keys, key_parts
from receiver.history.log import HistoryLog
from receiver.history.state import Disk
from receiver.history.sums.sums import LatestSums
from receiver.points.evidence import Applied
from replicator.base.errors import DamageError
from replicator.base.storage import write_all
from replicator.base.units import MIB

SUSPECTS_MAX = 2048 * MIB // BLOCK_BYTES
"""More than that is not read before the group is opened: it is damage until the scrub has been
there that begins at once."""
LATELY_BATCHES, LATELY_BLOCKS = 16, 256
"""That many are read at each opening."""
READ_BLOCKS = 4 * MIB // BLOCK_BYTES
WINDOW_BLOCKS = 1 << 18
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Suspects:
    """Blocks by key, sorted; the sum that each must have, and the batch that wrote it."""

    keys: U64
    sums: U64
    writers: U64


def written_behind(applied: Applied, history: HistoryLog) -> int:
    """The number of a batch at or before R behind which nothing was merged with what is before it:
    R itself, or the newest point's that is still kept. Where neither is there any more, all that is
    left was written behind it."""
    batch = batch_of(applied, history)
    if batch is not None and batch.end == applied.position:
        return applied.number
    kept = [
        each.number
        for each in history.batch_list.all
        if each.point is not None and each.number <= applied.number
    ]
    first = history.batch_list.all[0].number if history.batch_list.all else applied.number + 1
    return max(kept, default=min(applied.number, first - 1))


def suspects(history: HistoryLog, number: int) -> Suspects | None:
    """What was last written behind batch `number`, but for a batch that is to be done again; None
    where it is too much to be read now. Raises DamageError, OSError."""
    if has_let_go(history, number):
        return None
    batches = [
        each
        for each in history.batch_list.after(number)
        if each is not history.batch_list.unapplied
    ]
    if sum(each.images.block_count for each in batches) > SUSPECTS_MAX:
        return None
    empty = np.empty(0, dtype=np.uint64)
    newest_first = batches[::-1]
    every_key = [history.reader.table(each).keys()[0] for each in newest_first]
    every_sum = [_sums_of(history, each) for each in newest_first]
    every_writer = [
        np.full(len(keys), each.number, dtype=np.uint64)
        for keys, each in zip(every_key, newest_first, strict=True)
    ]
    keys, at = np.unique(np.concatenate([empty, *every_key]), return_index=True)
    sums = np.concatenate([empty, *every_sum])[at]
    return Suspects(keys, sums, np.concatenate([empty, *every_writer])[at])


def lately(history: HistoryLog, number: int, damage: rules.Damage) -> Suspects:
    """Some of the newest that batches up to `number` wrote, and nothing has touched since; without
    what has no sum, or is on record as damaged. Raises DamageError, OSError."""
    empty = np.empty(0, dtype=np.uint64)
    seen = np.concatenate(
        [
            empty,
            *(history.reader.table(each).keys()[0] for each in history.batch_list.after(number)),
        ]
    )
    batches = [each for each in history.batch_list.all if each.number <= number]
    parts: list[Suspects] = []
    left = LATELY_BLOCKS
    for batch in batches[-LATELY_BATCHES:][::-1]:
        found = written_by(history, batch)
        is_good = (found.sums != np.uint64(UNKNOWN_SUM)) & ~rules.are_lost(damage, found.keys)
        places = np.flatnonzero(is_good & ~np.isin(found.keys, seen))[:left]
        parts.append(Suspects(found.keys[places], found.sums[places], found.writers[places]))
        seen, left = np.concatenate([seen, found.keys]), left - len(places)
    keys = np.concatenate([empty, *(each.keys for each in parts)])
    order = np.argsort(keys)
    return Suspects(
        keys[order],
        np.concatenate([empty, *(each.sums for each in parts)])[order],
        np.concatenate([empty, *(each.writers for each in parts)])[order],
    )


def written_by(history: HistoryLog, batch: Batch) -> Suspects:
    """Raises DamageError, OSError."""
    keys = history.reader.table(batch).keys()[0]
    return Suspects(
        keys, _sums_of(history, batch), np.full(len(keys), batch.number, dtype=np.uint64)
    )


def is_of(disk: Disk, keys: U64) -> Bools:
    """Which of the blocks are the disk's."""
    low, high = np.uint64(block_key(disk.slot, 0)), np.uint64(block_key(disk.slot + 1, 0))
    return (keys >= low) & (keys < high)


def has_let_go(history: HistoryLog, number: int) -> bool:
    """Whether the history no longer tells of all that batches behind that number changed: some were
    removed, or merged without their images, as no kept point needed them."""
    batches = history.batch_list.after(number)
    if not batches:
        return False
    kept = (
        each.number
        for each in history.batch_list.all
        if each.point is not None and each.point.sequence not in history.batch_list.dropped
    )
    oldest = next(kept, 0)
    merged = [each for each in history.opened.segments if each.data_end != each.end]
    return history.batch_list.all[0].number > number + 1 or any(
        segment.first <= each.begin < segment.end and each.number <= oldest
        for each in batches
        for segment in merged
    )


def wrong_of(found: Suspects, replica: Replica, disks: Sequence[Disk]) -> Bools:
    """Which of them hold something else. Raises OSError."""
    wrong = np.zeros(len(found.keys), dtype=np.bool_)
    by_slot = {disk.slot: disk for disk in disks}
    for first, count in runs(found.keys):
        slot, block = key_parts(int(found.keys[first]))
        disk = by_slot.get(slot)
        if disk is not None:
            sums = sums_there(replica, disk, block, block + count)
            wrong[first : first + count] = sums != found.sums[first : first + count]
    return wrong


def sums_there(replica: Replica, disk: Disk, start: int, stop: int) -> U64:
    """Of the blocks [start, stop) of an image; UNKNOWN_SUM beyond its end. A hole is not read.
    Raises OSError."""
    end = min(stop * BLOCK_BYTES, disk.size_bytes)
    file = replica.file(disk.name)
    if file.size() >= end and not file.data_ranges(start * BLOCK_BYTES, end):
        return zero_sums(disk, block_keys(disk.slot, start, stop))
    try:
        data = replica.read(disk.name, start * BLOCK_BYTES, end - start * BLOCK_BYTES)
    except DamageError:
        return np.full(stop - start, UNKNOWN_SUM, dtype=np.uint64)
    blocks = range(0, len(data), BLOCK_BYTES)
    return np.array([xxh3_64_intdigest(data[at : at + BLOCK_BYTES]) for at in blocks], np.uint64)


def runs(keys: U64) -> Iterator[tuple[int, int]]:
    """(place of the first, how many) of neighbours, not too many at once."""
    if not len(keys):
        return
    parts = np.split(np.arange(len(keys)), np.flatnonzero(np.diff(keys) != 1) + 1)
    for part in parts:
        for at in range(0, len(part), READ_BLOCKS):
            chunk = part[at : at + READ_BLOCKS]
            yield int(chunk[0]), len(chunk)


def _sums_of(history: HistoryLog, batch: Batch) -> U64:
    count = history.reader.table(batch).block_count
    packed = history.reader.read_begin(batch).sums
    if len(packed) != 8 * count:
        return np.full(count, UNKNOWN_SUM, dtype=np.uint64)
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64)


def damage_of(keys: U64, writers: U64) -> list[DamagedBlocks]:
    """As it goes on record."""
    found: list[DamagedBlocks] = []
    for key, writer in zip(keys.tolist(), writers.tolist(), strict=True):
        slot, block = key_parts(key)
        last = found[-1] if found else None
        if (
            last is not None
            and (last.slot, last.written) == (slot, writer)
            and last.block + last.blocks == block
        ):
            found[-1] = DamagedBlocks(slot, last.block, last.blocks + 1, writer, 0)
        else:
            found.append(DamagedBlocks(slot, block, 1, writer, 0))
    return found


def whole_disks(disks: Sequence[Disk], number: int) -> list[DamagedBlocks]:
    """All that was written by batches from `number` on."""
    return [
        DamagedBlocks(disk.slot, 0, -(-disk.size_bytes // BLOCK_BYTES), number, 0) for disk in disks
    ]


def undo_torn(batch: Batch, history: HistoryLog, replica: Replica, disks: Sequence[Disk]) -> None:
    """Before a batch is done again: each of its blocks that holds neither what it found nor what it
    writes gets back what it found. A crash may have torn it, or an older image was put back: then
    a write of less than the block would leave the rest of it wrong. Raises DamageError, OSError."""
    table = history.reader.table(batch)
    behind = dict(zip(table.keys()[0].tolist(), _sums_of(history, batch).tolist(), strict=True))
    by_slot = {disk.slot: disk for disk in disks}
    touched: set[str] = set()
    for row in range(len(table)):
        image = table.image(row)
        disk = by_slot.get(image.slot)
        if disk is None:
            continue
        there = sums_there(replica, disk, image.block, image.block + image.blocks)
        old = history.reader.read_image(image)
        for at in range(image.blocks):
            key = block_key(image.slot, image.block + at)
            size = min(BLOCK_BYTES, disk.size_bytes - (image.block + at) * BLOCK_BYTES)
            content = old[at * BLOCK_BYTES :][:size] or bytes(size)
            if int(there[at]) not in (behind[key], xxh3_64_intdigest(content)):
                write_all(replica.file(disk.name), [content], (image.block + at) * BLOCK_BYTES)
                touched.add(disk.name)
    replica.sync(sorted(touched))


# -- every block


def entire(
    sums: LatestSums, replica: Replica, disks: Sequence[Disk], progress: Progress
) -> rules.Damage:
    """What of the replica is not proven to be what the history says. Raises OSError."""
    total, done = sum(disk.size_bytes for disk in disks), 0
    damage: rules.Damage = ()
    while sums.gather():
        pass
    for disk in disks:
        end = -(-disk.size_bytes // BLOCK_BYTES)
        for start in range(0, end, WINDOW_BLOCKS):
            stop = min(start + WINDOW_BLOCKS, end)
            for keys in _unproven(sums, replica, disk, start, stop):
                writers = sums.latest(keys)[1]
                damage = rules.added(damage, damage_of(keys, writers))
            done += (stop - start) * BLOCK_BYTES
            progress(min(done, total), total)
    return damage


def _unproven(
    sums: LatestSums, replica: Replica, disk: Disk, start: int, stop: int
) -> Iterator[U64]:
    low = block_key(disk.slot, start)
    window = sums.window(low, low + stop - start)
    keys = block_keys(disk.slot, start, stop)
    wanted = with_zeroes(disk, keys, window.sums, window.changed, is_whole=window.is_whole)
    for at in range(0, stop - start, READ_BLOCKS):
        upto = min(at + READ_BLOCKS, stop - start)
        there = sums_there(replica, disk, start + at, start + upto)
        expected = wanted[at:upto]
        places = np.flatnonzero((there != expected) | (expected == np.uint64(UNKNOWN_SUM)))
        if len(places):
            yield (places + at).astype(np.uint64) + np.uint64(low)
