# SPDX-License-Identifier: Apache-2.0
"""From the records of a batch to what has to be written, and what that replaces.

For each disk: which blocks do the operations touch; read their old content; lay the operations over
a copy of it, in order, byte by byte exact (two writes may share a block without sharing a
sector: "the last write of a block wins" would be wrong); compare old and new. A block that comes
out the same needs neither an image nor a write, so what is written is the smallest set of blocks,
and a batch that is applied a second time finds what is left to do.

Zeroes are looked at only where the replica holds data, or should (`ranges`): a terabyte of zeroes
over a hole is free.

What was read is verified before anything is made of it, by whoever drafts the batch (`Verify`; see
receiver.damage.old_content). Blocks that hold what they must not count as changed whatever becomes
of them; those of them that the operations do not cover whole are *tainted*: they go on holding some
of it, and get no sum.

All blocks of a disk lie side by side in one arena, so comparing, finding runs and recognising
zeroes are a few numpy calls for the whole batch; per record there is one slice assignment.

Reads the replica, writes nothing. Limits: the caller bounds what a batch touches (apply_plan).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from receiver.blocks.zeroes import ZERO_BLOCK_SUM
from receiver.history.bodies import UNKNOWN_SUM
from receiver.history.extents import ExtentSet
from receiver.history.images import BLOCK_BYTES, EXTENT_BLOCKS, I64, U64, Bools, block_key
from replicator.base.storage import READ_ERRORS, Buffer, File, write_all
from replicator.base.units import MIB

_WORDS = BLOCK_BYTES // 8
_ZEROES = bytes(1 * MIB)
Bytes = npt.NDArray[np.uint8]


class Operation(NamedTuple):
    """Bytes to be written at `offset`; `content` is None for zeroes."""

    offset: int
    length: int
    content: Buffer | None


@dataclass(frozen=True, slots=True)
class Extent:
    """Neighbouring blocks that change. `new` is empty where they become zeroes."""

    offset: int
    length: int
    new: memoryview


def _no_keys() -> U64:
    return np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class OldBlocks:
    """What was read of some blocks of a disk, in order, whole blocks side by side; zeroes for those
    that could not be read."""

    numbers: I64
    arena: Bytes
    unreadable: Bools

    def sums(self, size_bytes: int) -> list[int]:
        """The xxh3-64 of each."""
        view = self.arena.data
        found = [
            xxh3_64_intdigest(view[at : at + BLOCK_BYTES])
            for at in range(0, len(view), BLOCK_BYTES)
        ]
        length = _length(int(self.numbers[-1]), 1, size_bytes)
        if length < BLOCK_BYTES:
            at = len(view) - BLOCK_BYTES
            found[-1] = xxh3_64_intdigest(view[at : at + length])
        return found

    def put(self, place: int, content: bytes) -> None:
        """What the block at `place` holds in truth."""
        at = place * BLOCK_BYTES
        self.arena.data[at : at + len(content)] = content


DataRanges = Callable[[int, int], list[tuple[int, int]]]
"""Within [start, end): what is looked at though it is to become zeroes."""
Verify = Callable[[OldBlocks], Bools]
"""Which of them hold what they must not. Puts right what it can."""


@dataclass(frozen=True, slots=True)
class DiskChange:
    """What a batch does to one disk. `starts`, `blocks`, `old` are its before-images (extents of
    at most EXTENT_BLOCKS, `old` empty for zeroes); `keys` all blocks that change, `sums` the
    xxh3-64 of what each of them becomes; `writes` what to do. Everything sorted by offset. `old`
    and `writes` are views of the arena. `rotten` are those of the keys whose old content is not
    what it must be, `tainted` those of them whose new content takes part of it over."""

    slot: int
    name: str
    keys: U64
    sums: U64
    starts: U64
    blocks: U64
    old: list[memoryview]
    writes: list[Extent]
    rotten: U64 = field(default_factory=_no_keys)
    tainted: U64 = field(default_factory=_no_keys)

    @property
    def changed_bytes(self) -> int:
        return len(self.keys) * BLOCK_BYTES


def change_of(
    file: File,
    name: str,
    slot: int,
    size_bytes: int,
    operations: Sequence[Operation],
    always: U64 | None = None,
    verify: Verify | None = None,
    *,
    ranges: DataRanges | None = None,
) -> DiskChange:
    """`operations` in order, each within the disk. `always`: keys of blocks that count as changed
    whatever they hold now (those of other disks do not matter). Without `verify` a block that
    cannot be read is an OSError, without `ranges` a hole is zeroes."""
    forced = _blocks_of(slot, always)
    starts, ends = _touched_runs(ranges or file.data_ranges, size_bytes, operations, forced)
    if not len(starts):
        return _nothing(slot, name)
    counts = ends - starts
    bases = np.cumsum(counts) - counts  # of each run in the arena, in blocks
    total = int(counts.sum())
    numbers = np.repeat(starts - bases, counts) + np.arange(total, dtype=np.int64)
    unreadable = None if verify is None else np.zeros(total, dtype=np.bool_)
    old = _read_old(file, starts, counts, bases, unreadable)
    always_changed = np.isin(numbers, forced)
    rotten = tainted = numbers[:0]
    if verify is not None and unreadable is not None:
        is_rotten = verify(OldBlocks(numbers, old, unreadable))
        if is_rotten.any():
            rotten = numbers[is_rotten]
            tainted = rotten[~_are_covered(rotten, size_bytes, operations)]
            always_changed |= is_rotten
    new = old.copy()
    _lay_over(new.data, starts, ends, bases, operations)
    change = _compare(name, slot, size_bytes, numbers, old, new, always_changed)
    return _with_rot(change, rotten, tainted) if len(rotten) else change


def _are_covered(numbers: I64, size_bytes: int, operations: Sequence[Operation]) -> Bools:
    """Which of these blocks the operations overwrite whole."""
    written = ExtentSet((each.offset, each.offset + each.length) for each in operations)
    bounds = [
        (number * BLOCK_BYTES, min((number + 1) * BLOCK_BYTES, size_bytes))
        for number in numbers.tolist()
    ]
    return np.array(
        [(low, high) in written.within(low, high) for low, high in bounds], dtype=np.bool_
    )


def _with_rot(change: DiskChange, rotten: I64, tainted: I64) -> DiskChange:
    first_key = np.uint64(block_key(change.slot, 0))
    tainted_keys = tainted.astype(np.uint64) + first_key
    sums = change.sums.copy()
    sums[np.isin(change.keys, tainted_keys)] = UNKNOWN_SUM
    return replace(
        change, sums=sums, rotten=rotten.astype(np.uint64) + first_key, tainted=tainted_keys
    )


def _nothing(slot: int, name: str) -> DiskChange:
    empty = np.empty(0, dtype=np.uint64)
    return DiskChange(slot, name, empty, empty, empty, empty, [], [])


def _blocks_of(slot: int, keys: U64 | None) -> I64:
    """Block numbers of those keys that are this disk's."""
    if keys is None:
        return np.empty(0, dtype=np.int64)
    low, high = np.uint64(block_key(slot, 0)), np.uint64(block_key(slot + 1, 0))
    return (keys[(keys >= low) & (keys < high)] - low).astype(np.int64)


def _touched_runs(
    ranges: DataRanges, size_bytes: int, operations: Sequence[Operation], forced: I64
) -> tuple[I64, I64]:
    """Disjoint runs of blocks [start, end) that may change, sorted."""
    offsets = [each.offset for each in operations if each.content is not None]
    lengths = [each.length for each in operations if each.content is not None]
    for each in operations:
        if each.content is None:
            end = min(-(-(each.offset + each.length) // BLOCK_BYTES) * BLOCK_BYTES, size_bytes)
            start = each.offset // BLOCK_BYTES * BLOCK_BYTES
            for data_start, data_end in ranges(start, end):
                offsets.append(data_start)
                lengths.append(data_end - data_start)
    first = np.array(offsets, dtype=np.int64) // BLOCK_BYTES
    last = -(
        -(np.array(offsets, dtype=np.int64) + np.array(lengths, dtype=np.int64)) // BLOCK_BYTES
    )
    return merge_runs(np.concatenate([first, forced]), np.concatenate([last, forced + 1]))


def merge_runs(first: I64, last: I64) -> tuple[I64, I64]:
    """The union of the ranges [first, last), sorted, merged where they touch."""
    if not len(first):
        return first, last
    order = np.argsort(first, kind="stable")
    first, last = first[order], np.maximum.accumulate(last[order])
    opens = np.empty(len(first), dtype=bool)
    opens[0] = True
    opens[1:] = first[1:] > last[:-1]
    at = np.flatnonzero(opens)
    return first[at], last[np.append(at[1:], len(first)) - 1]


def _read_old(file: File, starts: I64, counts: I64, bases: I64, unreadable: Bools | None) -> Bytes:
    """Notes in `unreadable` which blocks the medium cannot give."""
    old = np.zeros(int(counts.sum()) * BLOCK_BYTES, dtype=np.uint8)
    arena = old.data
    pread = file.pread
    places = (bases * BLOCK_BYTES).tolist()
    sizes = (counts * BLOCK_BYTES).tolist()
    for offset, size, place in zip((starts * BLOCK_BYTES).tolist(), sizes, places, strict=True):
        try:
            data = pread(size, offset)  # short at the end of a disk that ends inside a block
        except OSError as error:
            if unreadable is None or error.errno not in READ_ERRORS:
                raise
            _read_singly(
                file, offset, arena[place : place + size], unreadable[place // BLOCK_BYTES :]
            )
        else:
            arena[place : place + len(data)] = data
    return old


def _read_singly(file: File, offset: int, arena: memoryview, unreadable: Bools) -> None:
    for block in range(len(arena) // BLOCK_BYTES):
        at = block * BLOCK_BYTES
        try:
            data = file.pread(BLOCK_BYTES, offset + at)
        except OSError as error:
            if error.errno not in READ_ERRORS:
                raise
            unreadable[block] = True
        else:
            arena[at : at + len(data)] = data


def _lay_over(
    arena: memoryview, starts: I64, ends: I64, bases: I64, operations: Sequence[Operation]
) -> None:
    """The operations, in order, over the content of the runs."""
    offsets = np.fromiter((each.offset for each in operations), np.int64, len(operations))
    runs = np.searchsorted(starts, offsets // BLOCK_BYTES, "right") - 1
    shifts = (bases - starts) * BLOCK_BYTES
    places = (offsets + shifts[np.maximum(runs, 0)]).tolist()
    for each, place, run in zip(operations, places, runs.tolist(), strict=True):
        if each.content is not None:
            arena[place : place + each.length] = each.content
        else:
            _lay_zeroes(arena, starts, ends, shifts, each, max(run, 0))


def _lay_zeroes(
    arena: memoryview, starts: I64, ends: I64, shifts: I64, zeroes: Operation, run: int
) -> None:
    """Zeroes may span many runs, and lie partly in none."""
    end = zeroes.offset + zeroes.length
    while run < len(starts):
        low = max(int(starts[run]) * BLOCK_BYTES, zeroes.offset)
        if low >= end:
            return
        high = min(int(ends[run]) * BLOCK_BYTES, end)
        if low < high:
            shift = int(shifts[run])
            arena[low + shift : high + shift] = bytes(high - low)
        run += 1


def _compare(
    name: str,
    slot: int,
    size_bytes: int,
    numbers: I64,
    old: Bytes,
    new: Bytes,
    forced: Bools,
) -> DiskChange:
    """`numbers` are the block numbers of the arena's blocks, `forced` those that count as changed
    in any case."""
    old_words = old.view(np.uint64).reshape(-1, _WORDS)
    new_words = new.view(np.uint64).reshape(-1, _WORDS)
    changed = np.flatnonzero((old_words != new_words).any(axis=1) | forced)
    if not len(changed):
        return _nothing(slot, name)
    changed_numbers = numbers[changed]
    was_zero: Bools = np.logical_not(old_words[changed].any(axis=1))
    is_zero: Bools = np.logical_not(new_words[changed].any(axis=1))
    old_view, new_view = old.data, new.data

    image_at, image_blocks = _extents(changed_numbers, was_zero, limit=EXTENT_BLOCKS)
    images: list[memoryview] = []
    for at, count in zip(image_at.tolist(), image_blocks.tolist(), strict=True):
        length = _length(int(changed_numbers[at]), count, size_bytes)
        place = int(changed[at]) * BLOCK_BYTES
        images.append(old_view[place : place + (0 if was_zero[at] else length)])

    writes: list[Extent] = []
    write_at, write_blocks = _extents(changed_numbers, is_zero, limit=None)
    for at, count in zip(write_at.tolist(), write_blocks.tolist(), strict=True):
        number = int(changed_numbers[at])
        length = _length(number, count, size_bytes)
        place = int(changed[at]) * BLOCK_BYTES
        content = new_view[place : place + (0 if is_zero[at] else length)]
        writes.append(Extent(number * BLOCK_BYTES, length, content))

    first_key = np.uint64(block_key(slot, 0))
    return DiskChange(
        slot,
        name,
        changed_numbers.astype(np.uint64) + first_key,
        _sums(new_view, changed, changed_numbers, is_zero, size_bytes),
        changed_numbers[image_at].astype(np.uint64) + first_key,
        image_blocks.astype(np.uint64),
        images,
        writes,
    )


def _sums(new: memoryview, places: I64, numbers: I64, is_zero: Bools, size_bytes: int) -> U64:
    """Of each block's new content; `places` are the blocks' indexes in the arena."""
    sums = np.full(len(places), ZERO_BLOCK_SUM, dtype=np.uint64)
    content = np.flatnonzero(~is_zero)
    starts = (places[content] * BLOCK_BYTES).tolist()
    sums[content] = [xxh3_64_intdigest(new[at : at + BLOCK_BYTES]) for at in starts]
    last = len(places) - 1
    length = _length(int(numbers[last]), 1, size_bytes)
    if length < BLOCK_BYTES:
        at = int(places[last]) * BLOCK_BYTES
        sums[last] = xxh3_64_intdigest(new[at : at + length])
    return sums


def _extents(numbers: I64, flags: Bools, *, limit: int | None) -> tuple[I64, I64]:
    """(index of each extent's first block, its blocks): neighbours with the same flag.

    Neighbouring block numbers are neighbours in the arena too, for touching runs were merged.
    """
    opens = np.empty(len(numbers), dtype=bool)
    opens[0] = True
    opens[1:] = (np.diff(numbers) != 1) | (flags[1:] != flags[:-1])
    if limit is not None:
        indexes = np.arange(len(numbers), dtype=np.int64)
        since = indexes - np.maximum.accumulate(np.where(opens, indexes, 0))
        opens |= since % limit == 0
    at = np.flatnonzero(opens)
    return at, np.diff(np.append(at, len(numbers)))


def _length(number: int, count: int, size_bytes: int) -> int:
    return min(count * BLOCK_BYTES, size_bytes - number * BLOCK_BYTES)


def write_changes(file: File, writes: Iterable[Extent]) -> None:
    """Does what a DiskChange says. Zeroes punch holes. Not durable yet; OSError leaves a part
    written, and the whole can be done again."""
    for extent in writes:
        if len(extent.new):
            _write(file, extent)
        else:
            file.punch(extent.offset, extent.length)


def write_again(file: File, writes: Iterable[Extent]) -> None:
    """As write_changes, after a sync of the same that failed, or may have failed in an earlier
    life: every byte is written, zeroes too. A hole that is there already would leave nothing to
    sync, be it on the disk or not. `punch_zeroes` gives the room back afterwards."""
    for extent in writes:
        if len(extent.new):
            _write(file, extent)
        else:
            write_all(file, [_ZEROES], extent.offset, repeat_to=extent.length)


def punch_zeroes(file: File, writes: Iterable[Extent]) -> None:
    """Once zeroes are durable as content, they may become holes, synced or not."""
    for extent in writes:
        if not len(extent.new):
            file.punch(extent.offset, extent.length)


def _write(file: File, extent: Extent) -> None:
    done = file.pwritev([extent.new], extent.offset)
    if done < extent.length:
        write_all(file, [extent.new[done:]], extent.offset + done)
