# SPDX-License-Identifier: Apache-2.0
"""Appending to the history: a batch at once, durable when `sync` returns.

One append is one unit (a batch with all its images, an applied, a dropped, a state): it lands as a
whole or not at all. A new segment is only opened when everything before it is durable and sealed,
so a torn tail can lie in the newest segment alone. Its first record is the STATE of the group.

What was not durable when something failed is cut off (journal.durable_log), and written anew by
whoever wanted it: nothing that is not durable here has had an effect on the replica yet.

Concurrency: one caller at a time, the group's apply thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from uuid import UUID

import numpy as np

from journal.durable_log import DurableLog
from journal.record import HEADER_BYTES as RECORD_HEADER_BYTES
from journal.record import NO_DISK, RecordType, encode_header, first_chain
from journal.seal import seal_segment
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import SegmentKind
from journal.spool import StreamName
from receiver.history import bodies
from receiver.history.batches import Batch, Segment, batch_of, point_body
from receiver.history.images import (
    BLOCK_BYTES,
    SLOT_SHIFT,
    U64,
    ImageTable,
    pack_extents,
)
from receiver.points.values import Point
from replicator.base.storage import Buffer, Storage

SEGMENT_BATCHES_MAX = 2048
"""Of small batches (a quiet guest's, one a second) most of a day would fit into a segment; and of
the segment that is being written a view has to read the tables one by one."""
DROPPED_TOGETHER = 4096
"""Points that one record gives up."""
_ORDINAL = 1
_NO_DIGEST = bytes(32)


def history_name(group: str) -> StreamName:
    """The history's own stream: the same for a group for ever."""
    return StreamName(
        _ORDINAL, UUID(bytes=blake2b(f"history of {group}".encode(), digest_size=16).digest())
    )


def initial_chain(group: str) -> int:
    return first_chain(history_name(group).stream, _ORDINAL)


@dataclass(frozen=True, slots=True)
class BeforeImages:
    """What a batch replaces: extents by their first key, and for each the old content as it is to
    be stored (`packed`: compressed), empty for zeroes. Sorted, disjoint."""

    starts: U64
    blocks: U64
    contents: Sequence[Buffer]
    packed: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Draft:
    """A batch about to be written. `sums` are those of the new content of each block that has an
    image, in the order of their keys."""

    number: int
    kind: bodies.BatchKind
    start_lsn: int
    images: BeforeImages
    sums: U64
    group: bodies.GroupBody
    point: Point | None = None
    held: bodies.Held | None = None
    texts: dict[str, str] | None = None
    zeroes: dict[int, bytes] | None = None


class HistoryWriter:
    """See the head of this file."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        group: str,
        now_ns: Callable[[], int],
        segment_bytes: int,
        *,
        lost: Callable[[], None],
    ) -> None:
        """`lost`: see DurableLog."""
        self._storage = storage
        self._name = history_name(group)
        self._now_ns = now_ns
        self._segment_bytes = segment_bytes
        self._segment_batches = 0
        self._previous_digest = _NO_DIGEST
        self.log = DurableLog(storage, directory, SegmentKind.HISTORY, group, now_ns, lost=lost)

    # -- where it stands

    @property
    def in_segment(self) -> bool:
        """Whether there is a segment to append to; if not, `start_segment` comes first."""
        log = self.log
        return log.segment_path is not None and log.end > log.segment_first

    @property
    def is_full(self) -> bool:
        return self.in_segment and (
            self.log.end - self.log.segment_first >= self._segment_bytes
            or self._segment_batches >= SEGMENT_BATCHES_MAX
        )

    def segment(self) -> Segment | None:
        """The segment that is written now."""
        log = self.log
        path, first, end = log.segment_path, log.segment_first, log.end
        if path is None or end == first:
            return None
        size = SEGMENT_HEADER_BYTES + end - first
        return Segment(first, end, end, path, log.chain, b"", size, sealed=False)

    # -- taking over what is there

    def begin_at(self, end: int, chain: int, previous_digest: bytes) -> None:
        """The next append opens a segment at `end`, behind a sealed one with that digest."""
        self._previous_digest = previous_digest
        self.log.begin_at(self._name, end, chain)

    def continue_in(self, segment: Segment, previous_digest: bytes, batches: int) -> None:
        """Goes on in the newest segment, which holds so many batches; what lies behind its end is
        cut off. Durable."""
        self._segment_batches = batches
        self._previous_digest = previous_digest
        self.log.continue_in(self._name, segment.path, segment.first, segment.end, segment.chain)

    # -- appending

    def start_segment(
        self, next_batch: int, group: bodies.GroupBody, texts: dict[str, str]
    ) -> None:
        """Opens a segment with the group's state as its first record."""
        self.log.make_sound()
        self._segment_batches = 0
        body = bodies.StateBody(self.log.end, next_batch, group, texts)
        self._append_body(RecordType.STATE, next_batch, bodies.encode(body))

    def append_batch(self, draft: Draft) -> EncodedBatch:
        """Appends the whole batch. Not durable yet."""
        log = self.log
        log.make_sound()
        encoded = encode_batch(draft, log.end, log.chain, log.known_durable, self._now_ns())
        log.append(encoded.buffers, encoded.size_bytes, encoded.chain)
        self._segment_batches += 1
        return encoded

    def append_applied(self, number: int) -> None:
        body = bodies.BatchApplied(self.log.end, number)
        self._append_body(RecordType.BATCH_APPLIED, number, bodies.encode(body))

    def append_dropped(self, sequences: list[int]) -> None:
        """In as many records as it takes, none of them large. A crash may leave some: each point
        that is named is one that may go. So does an error; then they are to be cut off."""
        for at in range(0, len(sequences), DROPPED_TOGETHER):
            body = bodies.PointsDropped(self.log.end, sequences[at : at + DROPPED_TOGETHER])
            self._append_body(RecordType.POINTS_DROPPED, 0, bodies.encode(body))

    def finish_segment(self) -> Segment | None:
        """Makes the segment durable and seals it; the next append must start a new one."""
        segment = self.segment()
        if segment is None:
            return None
        self.log.sync()
        try:
            seal = seal_segment(
                self._storage,
                segment.path,
                end_lsn=segment.end,
                previous_digest=self._previous_digest,
            )
        except OSError:
            with suppress(OSError):
                self.log.cut_back()  # takes away what there may be of a seal
            raise
        self.begin_at(segment.end, segment.chain, seal.digest)
        return Segment(
            segment.first,
            segment.end,
            segment.end,
            segment.path,
            segment.chain,
            seal.digest,
            self._storage.allocated_bytes(segment.path),
            sealed=True,
            seal_digest=seal.digest,
        )

    # -- inside

    def _append_body(self, kind: RecordType, number: int, payload: bytes) -> None:
        log = self.log
        log.make_sound()
        header, chain = encode_header(
            kind, NO_DISK, 0, 0, number, self._now_ns(), payload, log.known_durable, log.chain
        )
        log.append([header, payload], len(header) + len(payload), chain)


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    buffers: list[Buffer]
    size_bytes: int
    chain: int
    batch: Batch
    table: ImageTable


def encode_batch(
    draft: Draft, position: int, chain: int, known_durable: int, now_ns: int
) -> EncodedBatch:
    """All records of a batch that is to lie at `position`, behind `chain`."""
    images, number = draft.images, draft.number
    count = len(images.contents)
    stored = np.fromiter(map(len, images.contents), dtype=np.uint64, count=count)
    packed = np.fromiter(images.packed, dtype=np.bool_, count=count)
    begin = bodies.BatchBegin(
        position,
        number,
        draft.kind,
        draft.start_lsn,
        pack_extents(images.starts, images.blocks, stored, packed),
        draft.group,
        None if draft.point is None else point_body(draft.point),
        draft.held,
        draft.texts or {},
        draft.zeroes or {},
        draft.sums.astype("<u8").tobytes(),
    )
    buffers: list[Buffer] = []

    def add(kind: RecordType, payload: bytes, chain: int) -> int:
        header, chain = encode_header(
            kind, NO_DISK, 0, 0, number, now_ns, payload, known_durable, chain
        )
        buffers.extend((header, payload))
        return chain

    payload = bodies.encode(begin)
    chain = add(RecordType.BATCH_BEGIN, payload, chain)
    first_image = position + RECORD_HEADER_BYTES + len(payload)
    table = ImageTable.parse(begin.extents, first_image, "a batch of our own")
    assert len(draft.sums) in (0, table.block_count), "a sum for each block"
    chain = _encode_images(images, number, now_ns, known_durable, chain, buffers)
    commit_at = first_image + table.record_bytes
    commit = bodies.encode(bodies.BatchCommit(commit_at, number, position))
    chain = add(RecordType.BATCH_COMMIT, commit, chain)
    end = commit_at + RECORD_HEADER_BYTES + len(commit)
    batch = batch_of(begin, end, table.figures)
    return EncodedBatch(buffers, end - position, chain, batch, table)


def _encode_images(
    images: BeforeImages,
    number: int,
    now_ns: int,
    known_durable: int,
    chain: int,
    buffers: list[Buffer],
) -> int:
    """Appends the image records to `buffers`; returns the chain behind them."""
    write, zero, packed = (
        int(RecordType.WRITE),
        int(RecordType.ZERO),
        int(RecordType.PACKED_WRITE),
    )
    starts, blocks = images.starts.tolist(), images.blocks.tolist()
    block_mask = (1 << SLOT_SHIFT) - 1
    for start, count, content, is_packed in zip(
        starts, blocks, images.contents, images.packed, strict=True
    ):
        slot, offset = start >> SLOT_SHIFT, (start & block_mask) * BLOCK_BYTES
        kind = packed if is_packed else write if content else zero
        length = len(content) if kind == write else count * BLOCK_BYTES
        header, chain = encode_header(
            kind, slot, offset, length, number, now_ns, content, known_durable, chain
        )
        buffers.append(header)
        if content:
            buffers.append(content)
    return chain
