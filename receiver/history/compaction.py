# SPDX-License-Identifier: Apache-2.0
"""Making a run of sealed segments smaller, when points in it were given up.

Between two points that are kept, one set of before-images is enough: of each block the *earliest*
image wins, for it is what the older point needs, and the younger one needs none of them. Before
the oldest kept point no images are needed at all. So neighbouring batches are merged up to each
kept point, and written into one new segment that stands for the whole run: it has the run's first
position and chain, states up to where it stands for it, and its last digest, so that the segment
behind the run still finds what it continues.

Crash-safe by its order: the new segment is written beside, sealed and synced, then takes the place
of the run's first segment by one rename, then the rest of the run is unlinked. Whatever a crash
leaves, `opening.clear_leftovers` ends it.

A merged batch is held in memory while it is written; beyond MERGED_BYTES_MAX a merge is left in
several batches, which costs nothing but their headers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from journal.record import NO_DISK, RecordType, encode_header
from journal.seal import seal_segment
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import SegmentHeader, pack_header, parse_header
from journal.stream_files import read_seal
from receiver.history import bodies
from receiver.history.batches import Batch, Segment
from receiver.history.images import (
    BLOCK_BYTES,
    EXTENT_BLOCKS,
    U64,
    EarliestImages,
    Image,
    block_key,
)
from receiver.history.opening import NEW_SUFFIX, read_body
from receiver.history.packing import Packer
from receiver.history.writer import BeforeImages, Draft, encode_batch
from receiver.values import Point
from replicator.base.errors import DamageError
from replicator.base.storage import Buffer, File, Storage, write_all
from replicator.base.units import MIB

MERGED_BYTES_MAX = 256 * MIB


@dataclass(frozen=True, slots=True)
class Group:
    """Batches that become one. `keep_images` is false for those before the oldest kept point."""

    batches: list[Batch]
    point: Point | None
    keep_images: bool


@dataclass(frozen=True, slots=True)
class Compacted:
    segment: Segment
    batches: list[Batch]


@dataclass(frozen=True, slots=True)
class Sources:
    """What a compaction reads."""

    read_image: Callable[[Image], bytes]
    read_begin: Callable[[Batch], bodies.BatchBegin]
    texts: dict[str, str]


def group_batches(batches: Sequence[Batch], kept: frozenset[int], oldest_kept: int) -> list[Group]:
    """Which of a run's batches become one. `kept` are the sequences of the points that stay,
    `oldest_kept` is the number of the batch that ends at the oldest of all. No I/O."""
    groups: list[Group] = []
    waiting: list[Batch] = []
    size = 0
    for batch in batches:
        keep_images = batch.number > oldest_kept
        size += batch.images.block_count * BLOCK_BYTES if keep_images else 0
        if waiting and size > MERGED_BYTES_MAX:
            groups.append(Group(waiting, None, keep_images))
            waiting, size = [], batch.images.block_count * BLOCK_BYTES
        waiting.append(batch)
        if batch.point is not None and batch.point.sequence in kept:
            groups.append(Group(waiting, batch.point, keep_images))
            waiting, size = [], 0
    if waiting:
        groups.append(Group(waiting, None, waiting[-1].number > oldest_kept))
    return groups


def merged_bytes(group: Group) -> int:
    """About what the merged batch's images will take. No I/O."""
    if not group.keep_images:
        return 0
    total = sum(batch.images.record_bytes for batch in group.batches)
    if len(group.batches) == 1:
        return total
    blocks = sum(batch.images.block_count for batch in group.batches)
    keys = np.unique(np.concatenate([batch.images.keys()[0] for batch in group.batches]))
    return total * len(keys) // max(blocks, 1)


def compact(
    storage: Storage,
    run: Sequence[Segment],
    groups: Sequence[Group],
    sources: Sources,
    dropped: Sequence[int],
    now_ns: int,
) -> Compacted | None:
    """Writes the new segment and puts it in place of the run's first. That this is durable is the
    caller's to see to, and then to unlink the rest of the run. `dropped` are given-up points of
    batches before the run, which must go on being said. None if it would not become smaller.
    Raises DamageError, OSError (then nothing has changed)."""
    target = run[0].path
    header, state, previous_digest = _read_front(storage, target)
    new_path = target.with_name(target.name + NEW_SUFFIX)
    if storage.exists(new_path):
        storage.unlink(new_path)
    new = _NewSegment(storage, new_path, header, now_ns)
    try:
        texts = _texts(state, groups, sources)
        new.add_state(_new_state(state, run[-1], texts))
        batches = [new.add_batch(_draft(group, sources)) for group in groups]
        if dropped:
            new.add_dropped(list(dropped))
        smaller = new.end <= run[-1].end
        new.finish()
    except (OSError, DamageError):
        new.discard()
        raise
    if not smaller:
        new.discard()
        return None
    seal_segment(storage, new_path, end_lsn=new.end, previous_digest=previous_digest)
    size = storage.allocated_bytes(new_path)
    storage.replace(new_path, target)
    last = run[-1]
    segment = Segment(
        run[0].first, last.end, new.end, target, last.chain, last.digest, size, sealed=True
    )
    return Compacted(segment, batches)


class _NewSegment:
    """A segment that is written from front to end in one go."""

    def __init__(self, storage: Storage, path: Path, header: SegmentHeader, now_ns: int) -> None:
        self._storage = storage
        self._path = path
        self._now_ns = now_ns
        self._first = header.first_lsn
        self._known_durable = header.known_durable
        self._chain = header.chain
        self.end = header.first_lsn
        self._file: File = storage.create(path)
        write_all(self._file, [pack_header(header)], 0)

    def add_state(self, body: bodies.StateBody) -> None:
        self._add(RecordType.STATE, body)

    def add_dropped(self, sequences: list[int]) -> None:
        self._add(RecordType.POINTS_DROPPED, bodies.PointsDropped(self.end, sequences))

    def add_batch(self, draft: Draft) -> Batch:
        encoded = encode_batch(draft, self.end, self._chain, self._known_durable, self._now_ns)
        self._write(encoded.buffers, encoded.chain)
        return encoded.batch

    def finish(self) -> None:
        self._file.datasync()
        self._file.close()

    def discard(self) -> None:
        self._file.close()
        self._storage.unlink(self._path)

    def _add(self, kind: RecordType, body: msgspec.Struct) -> None:
        payload = bodies.encode(body)
        header, chain = encode_header(
            kind, NO_DISK, 0, 0, 0, self._now_ns, payload, self._known_durable, self._chain
        )
        self._write([header, payload], chain)

    def _write(self, buffers: Sequence[Buffer], chain: int) -> None:
        offset = SEGMENT_HEADER_BYTES + self.end - self._first
        self.end += write_all(self._file, buffers, offset)
        self._chain = chain


def _read_front(storage: Storage, path: Path) -> tuple[SegmentHeader, bodies.StateBody, bytes]:
    file = storage.open(path)
    try:
        header = parse_header(file.pread(SEGMENT_HEADER_BYTES, 0), str(path))
        first = header.first_lsn
        state = read_body(file, first, first, bodies.StateBody, str(path))
        seal = read_seal(file, first)
    finally:
        file.close()
    if seal is None:
        raise DamageError(f"{path}: lost its seal")
    return header, state, seal.previous_digest


def _texts(state: bodies.StateBody, groups: Sequence[Group], sources: Sources) -> dict[str, str]:
    wanted = set(state.group.domains.values())
    for group in groups:
        if group.point is not None:
            wanted.update(group.point.domains.values())
    return {digest: sources.texts[digest] for digest in sorted(wanted)}


def _new_state(state: bodies.StateBody, last: Segment, texts: dict[str, str]) -> bodies.StateBody:
    return msgspec.structs.replace(
        state,
        group=_without_zeroes(state.group),
        texts=texts,
        stands_for=bodies.StandsFor(last.end, last.chain, last.digest),
    )


def _without_zeroes(group: bodies.GroupBody) -> bodies.GroupBody:
    """Waiting zeroes matter for the newest segment alone, which is never compacted."""
    disks = [
        msgspec.structs.replace(disk, zeroes_cleared=b"", zeroes_added=b"") for disk in group.disks
    ]
    return msgspec.structs.replace(group, disks=disks)


def _draft(group: Group, sources: Sources) -> Draft:
    last = group.batches[-1]
    begin = sources.read_begin(last)
    images = _merged_images(group, sources) if group.keep_images else _no_images()
    sums = _merged_sums(group, sources) if group.keep_images else np.empty(0, dtype=np.uint64)
    return Draft(
        last.number,
        last.kind,
        group.batches[0].start_lsn,
        images,
        sums,
        _without_zeroes(begin.group),
        None if group.point is None else replace(group.point, until_ns=group.point.time_ns),
        _held(group),
    )


def _held(group: Group) -> bodies.Held | None:
    """Only the first batch can say how long the kept point before the group held."""
    return group.batches[0].held


def _no_images() -> BeforeImages:
    empty = np.empty(0, dtype=np.uint64)
    return BeforeImages(empty, empty, [], [])


def _merged_images(group: Group, sources: Sources) -> BeforeImages:
    earliest = EarliestImages([batch.images for batch in group.batches])
    starts: list[int] = []
    blocks: list[int] = []
    contents: list[Buffer] = []
    for first, end, image in earliest.within(0, (1 << 64) - 1):
        key = block_key(image.slot, image.block)
        content = sources.read_image(image)
        piece = content[(first - key) * BLOCK_BYTES : (end - key) * BLOCK_BYTES]
        joins = (
            starts
            and starts[-1] + blocks[-1] == first
            and bool(contents[-1]) == bool(piece)
            and blocks[-1] + end - first <= EXTENT_BLOCKS
            and len(contents[-1]) in (0, blocks[-1] * BLOCK_BYTES)
        )
        if joins:
            blocks[-1] += end - first
            contents[-1] = bytes(contents[-1]) + piece
        else:
            starts.append(first)
            blocks.append(end - first)
            contents.append(piece)
    stored, packed = Packer().pack_all(contents)
    return BeforeImages(
        np.array(starts, dtype=np.uint64), np.array(blocks, dtype=np.uint64), stored, packed
    )


def _merged_sums(group: Group, sources: Sources) -> U64:
    """What each block holds behind the group: the latest batch that changed it knows."""
    newest_first = group.batches[::-1]
    keys = [batch.images.keys()[0] for batch in newest_first]
    sums = [_sums_of(batch, sources) for batch in newest_first]
    _, first = np.unique(np.concatenate(keys), return_index=True)
    return np.concatenate(sums)[first]


def _sums_of(batch: Batch, sources: Sources) -> U64:
    """Unknown ones as UNKNOWN_SUM."""
    packed = sources.read_begin(batch).sums
    if not packed:
        return np.full(batch.images.block_count, bodies.UNKNOWN_SUM, dtype=np.uint64)
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64)
