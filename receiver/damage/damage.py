# SPDX-License-Identifier: Apache-2.0
"""Which blocks are known to be damaged, and which points that makes unusable. No I/O.

A block's content was written by one batch and replaced by a later one. If it has rotted, in the
replica or in the image that the later batch took of it, then exactly the points between the two
cannot be had: number of the writer <= number of the point's batch < number of the replacer. While
nothing has replaced it (`replaced` 0) that includes every point still to come.

A batch that overwrites a rotten block of the replica takes a before-image of rot. Its checksum is
right; only that the damage is on record (in the state of the group, with each batch) keeps it from
being served. So `overwritten` must be told of every batch, before it is written.

Merging batches changes nothing about this: the batch of a point keeps its number.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence

import numpy as np

from receiver.history.batches import Batch
from receiver.history.bodies import DamagedBlocks
from receiver.history.images import BLOCK_BYTES, U64, Bools, block_key
from receiver.points.values import Point
from replicator.base.errors import DamageError

ENTRIES_MAX = 512
"""They stand in each batch's header. Beyond, neighbours are taken together with what lies between
them: some good points count as damaged then, never the other way round."""
NAMED_MAX = 3

Damage = tuple[DamagedBlocks, ...]


def touches(each: DamagedBlocks, number: int) -> bool:
    """Whether a point whose batch has that number needs these blocks."""
    return each.written <= number and (number < each.replaced or not each.replaced)


def of_point(damage: Damage, point: Point, number: int) -> list[DamagedBlocks]:
    """What of the damage the point needs; `number` is that of its batch."""
    slots = {member.slot for member in point.members}
    return [each for each in damage if each.slot in slots and touches(each, number)]


def of_newest(damage: Damage, point: Point) -> list[DamagedBlocks]:
    """What of it the newest state needs, and so every point to come until something replaces it.
    `point` is the newest one."""
    slots = {member.slot for member in point.members}
    return [each for each in damage if each.slot in slots and not each.replaced]


def of_others(damage: Damage, slots: Container[int]) -> Damage:
    """What of it is of other disks."""
    return tuple(each for each in damage if each.slot not in slots)


def damaged_points(damage: Damage, batches: Iterable[Batch]) -> dict[int, list[DamagedBlocks]]:
    """By the points' sequences."""
    found: dict[int, list[DamagedBlocks]] = {}
    if damage:
        for batch in batches:
            if batch.point is not None:
                needs = of_point(damage, batch.point, batch.number)
                if needs:
                    found[batch.point.sequence] = needs
    return found


def describe(blocks: Sequence[DamagedBlocks], point: Point) -> str:
    """`disk vda: 4096 bytes at 8192, …`"""
    names = {member.slot: member.name for member in point.members}
    told = [
        f"disk {names.get(each.slot, each.slot)}: {each.blocks * BLOCK_BYTES} bytes at"
        f" {each.block * BLOCK_BYTES}"
        for each in blocks[:NAMED_MAX]
    ]
    more = len(blocks) - NAMED_MAX
    return "; ".join(told) + (f"; and {more} more places" if more > 0 else "")


def refuse(damage: Damage, point: Point, number: int, group: str) -> None:
    """Raises DamageError if the point cannot be had whole."""
    blocks = of_point(damage, point, number)
    if blocks:
        raise DamageError(
            f"point {point} of group {group!r} is damaged: {describe(blocks, point)}",
            hint="`replicator points` shows which points are good; `replicator scrub` tries to heal"
            " it",
        )


def refuse_range(damage: Damage, point: Point, number: int, low: int, high: int) -> None:
    """As `refuse`, for the keys [low, high) alone: of a view that was open already."""
    for each in damage:
        start = block_key(each.slot, each.block)
        if start < high and low < start + each.blocks and touches(each, number):
            raise DamageError(
                f"point {point} is damaged here: {describe([each], point)}",
                hint="`replicator scrub` tries to heal it",
            )


def damaged_ranges(damage: Damage, number: int, low: int, high: int) -> Iterator[tuple[int, int]]:
    """The keys within [low, high) that a point whose batch has that number cannot have."""
    for each in damage:
        start = max(block_key(each.slot, each.block), low)
        stop = min(block_key(each.slot, each.block) + each.blocks, high)
        if start < stop and touches(each, number):
            yield start, stop


def added(damage: Damage, more: Iterable[DamagedBlocks]) -> Damage:
    """Neighbours become one; what is there already is not added again."""
    entries = sorted({*damage, *more}, key=_order)
    joined: list[DamagedBlocks] = []
    for each in entries:
        last = joined[-1] if joined else None
        if (
            last is not None
            and _order(last)[:3] == _order(each)[:3]
            and (each.block <= last.block + last.blocks)
        ):
            end = max(last.block + last.blocks, each.block + each.blocks)
            joined[-1] = DamagedBlocks(
                last.slot, last.block, end - last.block, last.written, last.replaced
            )
        else:
            joined.append(each)
    return _bounded(joined)


def _order(each: DamagedBlocks) -> tuple[int, int, int, int]:
    return each.slot, each.written, each.replaced, each.block


def _bounded(entries: list[DamagedBlocks]) -> Damage:
    if len(entries) <= ENTRIES_MAX:
        return tuple(entries)
    by_slot: dict[int, list[DamagedBlocks]] = {}
    for each in entries:
        by_slot.setdefault(each.slot, []).append(each)
    return tuple(_together(slot, found) for slot, found in sorted(by_slot.items()))


def _together(slot: int, entries: list[DamagedBlocks]) -> DamagedBlocks:
    start = min(each.block for each in entries)
    end = max(each.block + each.blocks for each in entries)
    is_open = any(not each.replaced for each in entries)
    return DamagedBlocks(
        slot,
        start,
        end - start,
        min(each.written for each in entries),
        0 if is_open else max(each.replaced for each in entries),
    )


def in_replica(damage: Damage) -> list[DamagedBlocks]:
    """What of it lies in the replica still."""
    return [each for each in damage if not each.replaced]


def are_lost(damage: Damage, keys: U64) -> Bools:
    """Which of the keys, sorted, are damaged in the replica."""
    found = np.zeros(len(keys), dtype=np.bool_)
    for each in in_replica(damage):
        first = block_key(each.slot, each.block)
        low, high = np.searchsorted(keys, np.array([first, first + each.blocks], dtype=np.uint64))
        found[low:high] = True
    return found


def overlaps(
    damage: Iterable[DamagedBlocks], slot: int, size_bytes: int, extents: Iterable[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The byte ranges of whole damaged blocks of a disk within `extents`, sorted and disjoint."""
    found: list[tuple[int, int]] = []
    for low, high in extents:
        for each in damage:
            start = max(-(-low // BLOCK_BYTES), each.block) * BLOCK_BYTES
            end = min(high, (each.block + each.blocks) * BLOCK_BYTES)
            if end < size_bytes:
                end -= end % BLOCK_BYTES
            if each.slot == slot and start < end:
                found.append((start, end))
    return found


def touched(damage: Damage, low: int, high: int) -> Iterator[DamagedBlocks]:
    """What of it lies in the replica still, and within the keys [low, high)."""
    for each in in_replica(damage):
        start = block_key(each.slot, each.block)
        if start < high and low < start + each.blocks:
            yield each


def overwritten(damage: Damage, keys: U64, number: int) -> Damage:
    """Behind batch `number`, which replaces the blocks `keys` (sorted) of the replica."""
    if not in_replica(damage) or not len(keys):
        return damage
    result: list[DamagedBlocks] = []
    for each in damage:
        result += [each] if each.replaced else _split(each, keys, number)
    return added((), result)


def healed(damage: Damage, keys: U64, *, replaced: int) -> Damage:
    """Without these blocks (`keys`, sorted), as far as batch `replaced` is what replaced them; 0:
    of the replica."""
    result: list[DamagedBlocks] = []
    for each in damage:
        if each.replaced == replaced:
            result += [part for part in _split(each, keys, -1) if part.replaced != -1]
        else:
            result.append(each)
    return added((), result)


def _split(each: DamagedBlocks, keys: U64, number: int) -> list[DamagedBlocks]:
    """Parts of it; those among `keys` are replaced by batch `number`."""
    first = block_key(each.slot, each.block)
    low = int(np.searchsorted(keys, np.uint64(first), "left"))
    high = int(np.searchsorted(keys, np.uint64(first + each.blocks), "left"))
    if low == high:
        return [each]
    parts: list[DamagedBlocks] = []
    at = first
    hit = keys[low:high]
    for run in np.split(hit, np.flatnonzero(np.diff(hit) != 1) + 1):
        start, end = int(run[0]), int(run[-1]) + 1
        parts += _part(each, at - first, start - at, each.replaced)
        parts += _part(each, start - first, end - start, number)
        at = end
    return parts + _part(each, at - first, first + each.blocks - at, each.replaced)


def _part(each: DamagedBlocks, skip: int, blocks: int, replaced: int) -> list[DamagedBlocks]:
    if not blocks:
        return []
    return [DamagedBlocks(each.slot, each.block + skip, blocks, each.written, replaced)]
