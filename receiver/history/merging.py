# SPDX-License-Identifier: Apache-2.0
"""Batches that become one: which, and what that one holds. Reads images, writes nothing.

Between two points that are kept, one set of before-images is enough: of each block the *earliest*
image wins, for it is what the older point needs, and the younger one needs none of them. The sum
of what a block holds behind it comes from the *latest*. Before the oldest kept point no images
are needed at all.

What a group comes to may be more than should be in memory at once. It is then written as several
batches, which share the group's *blocks* among them, not its time: each takes a range of keys, so
no block is in two of them and nothing is kept twice. They use the numbers of the batches that they
replace; the last one has the last number, and the point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import msgspec
import numpy as np

from receiver.history import bodies
from receiver.history.batches import Batch
from receiver.history.images import (
    BLOCK_BYTES,
    EXTENT_BLOCKS,
    U64,
    EarliestImages,
    Image,
    ImageTable,
    block_key,
)
from receiver.history.packing import Packer, unpack
from receiver.history.writer import BeforeImages, Draft
from receiver.points.values import Point
from replicator.base.storage import Buffer

PART_BLOCKS = 4096
"""What a part holds, about (16 MiB), unless the group has too few numbers for so many parts."""
_EMPTY = np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Group:
    """Batches that become one. `keep_images` is false for those before the oldest kept point."""

    batches: list[Batch]
    point: Point | None
    keep_images: bool


@dataclass(frozen=True, slots=True)
class Sources:
    """What is read of the batches that are merged."""

    read_stored: Callable[[Image], bytes]
    """An image's payload as it is stored, verified."""
    read_begin: Callable[[Batch], bodies.BatchBegin]
    table: Callable[[Batch], ImageTable]
    texts: dict[str, str]
    healed: Mapping[int, bytes] = field(default_factory=dict)
    """What images hold in truth that are wrong where they lie, by their positions."""


def group_batches(batches: Sequence[Batch], kept: frozenset[int], oldest_kept: int) -> list[Group]:
    """Which of a run's batches become one. `kept` are the sequences of the points that stay,
    `oldest_kept` is the number of the batch that ends at the oldest of all."""
    groups: list[Group] = []
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if batch.point is not None and batch.point.sequence in kept:
            groups.append(Group(waiting, batch.point, batch.number > oldest_kept))
            waiting = []
    if waiting:
        groups.append(Group(waiting, None, waiting[-1].number > oldest_kept))
    return groups


def merged_bytes(group: Group, table: Callable[[Batch], ImageTable]) -> int:
    """About what the group's images will take."""
    if not group.keep_images:
        return 0
    total = sum(batch.images.record_bytes for batch in group.batches)
    if len(group.batches) == 1:
        return total
    blocks = sum(batch.images.block_count for batch in group.batches)
    keys = np.unique(np.concatenate([table(batch).keys()[0] for batch in group.batches]))
    return total * len(keys) // max(blocks, 1)


def drafts(
    group: Group, sources: Sources, packer: Packer, part_blocks: int = PART_BLOCKS
) -> Iterator[Draft]:
    """The batches to be written for a group, in order; each is read when it is asked for. Raises
    DamageError, OSError."""
    last = group.batches[-1]
    body = without_zeroes(sources.read_begin(last).group)
    whole = Draft(
        last.number,
        last.kind,
        group.batches[0].start_lsn,
        BeforeImages(_EMPTY, _EMPTY, [], []),
        _EMPTY,
        body,
        None if group.point is None else replace(group.point, until_ns=group.point.time_ns),
        group.batches[0].held,  # only the first can say how long the kept point before it held
    )
    if not group.keep_images:
        yield whole
        return
    earliest = EarliestImages([sources.table(batch) for batch in group.batches])
    sums = _latest_sums(group, sources)
    parts = _parts(len(earliest), len(group.batches), part_blocks)
    for part, (low, high) in enumerate(parts):
        is_last = part == len(parts) - 1
        yield replace(
            whole,
            number=group.batches[part - len(parts)].number,
            images=_images(earliest, low, high, sources, packer),
            sums=sums[low:high],
            point=whole.point if is_last else None,
            held=whole.held if part == 0 else None,
        )


def without_zeroes(group: bodies.GroupBody) -> bodies.GroupBody:
    """Waiting zeroes matter for the newest segment alone, which is never compacted."""
    disks = [
        msgspec.structs.replace(disk, zeroes_cleared=b"", zeroes_added=b"") for disk in group.disks
    ]
    return msgspec.structs.replace(group, disks=disks)


def _parts(blocks: int, numbers: int, part_blocks: int) -> list[tuple[int, int]]:
    """Ranges of all blocks, in order: as many as are needed, but no more than there are numbers."""
    count = max(1, min(numbers, -(-blocks // part_blocks)))
    bounds = [blocks * at // count for at in range(count + 1)]
    return list(pairwise(bounds))


def _latest_sums(group: Group, sources: Sources) -> U64:
    """What each block holds behind the group: the latest batch that changed it knows."""
    newest_first = group.batches[::-1]
    keys = [sources.table(batch).keys()[0] for batch in newest_first]
    sums = [_sums_of(batch, sources) for batch in newest_first]
    _, first = np.unique(np.concatenate([_EMPTY, *keys]), return_index=True)
    return np.concatenate([_EMPTY, *sums])[first]


def _sums_of(batch: Batch, sources: Sources) -> U64:
    packed = sources.read_begin(batch).sums
    if not packed:
        return np.full(batch.images.block_count, bodies.UNKNOWN_SUM, dtype=np.uint64)
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64)


# -- images


@dataclass(frozen=True, slots=True)
class _Piece:
    """Blocks [first, end) of an image."""

    first: int
    end: int
    image: Image

    @property
    def is_whole(self) -> bool:
        return self.end - self.first == self.image.blocks

    def is_zero(self, sources: Sources) -> bool:
        return not self.image.stored and self.image.position not in sources.healed

    def content(self, sources: Sources) -> bytes:
        """Empty for zeroes."""
        content = sources.healed.get(self.image.position)
        if content is None:
            if not self.image.stored:
                return b""
            stored, blocks = sources.read_stored(self.image), self.image.blocks
            content = unpack(stored, blocks, "a merge") if self.image.packed else stored
        key = block_key(self.image.slot, self.image.block)
        return content[(self.first - key) * BLOCK_BYTES : (self.end - key) * BLOCK_BYTES]


def _images(
    earliest: EarliestImages, low: int, high: int, sources: Sources, packer: Packer
) -> BeforeImages:
    """Of the blocks that are the [low, high) of all."""
    if low == high:
        return BeforeImages(_EMPTY, _EMPTY, [], [])
    keys = earliest.keys
    found = earliest.within(int(keys[low]), int(keys[high - 1]) + 1)
    starts: list[int] = []
    blocks: list[int] = []
    contents: list[Buffer] = []
    packed: list[bool] = []
    pieces = (_Piece(*each) for each in found)
    for run in _joined(pieces, lambda piece: piece.is_zero(sources)):
        content, is_packed = _stored(run, sources, packer)
        starts.append(run[0].first)
        blocks.append(run[-1].end - run[0].first)
        contents.append(content)
        packed.append(is_packed)
    return BeforeImages(
        np.array(starts, dtype=np.uint64), np.array(blocks, dtype=np.uint64), contents, packed
    )


def _joined(pieces: Iterator[_Piece], is_zero: Callable[[_Piece], bool]) -> Iterator[list[_Piece]]:
    """Neighbours that make one image: all zeroes or all content, and not too many blocks."""
    run: list[_Piece] = []
    for piece in pieces:
        joins = (
            run
            and run[-1].end == piece.first
            and is_zero(run[-1]) == is_zero(piece)
            and piece.end - run[0].first <= EXTENT_BLOCKS
        )
        if run and not joins:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def _stored(run: list[_Piece], sources: Sources, packer: Packer) -> tuple[Buffer, bool]:
    """What to store for a run, and whether it is packed."""
    if run[0].is_zero(sources):
        return b"", False
    if len(run) == 1 and run[0].is_whole and run[0].image.position not in sources.healed:
        return sources.read_stored(run[0].image), run[0].image.packed
    (content,), (is_packed,) = packer.pack_all([b"".join(each.content(sources) for each in run)])
    return content, is_packed
