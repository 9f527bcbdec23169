# SPDX-License-Identifier: Apache-2.0
"""Appending to the history: a batch at once, durable when `sync` returns.

One append is one unit (a batch with all its images, an applied, a dropped, a state): it lands as a
whole or not at all. A new segment is only opened when everything before it is durable and sealed,
so a torn tail can lie in the newest segment alone. Its first record is the STATE of the group.

A failed sync is never tried again on the same bytes: the kernel may have dropped them and call
the next sync a success. What was not durable is cut off instead, and written anew by whoever
wanted it (nothing that is not durable here has had an effect on the replica yet).

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

from journal.appender import AppendError, LogWriter
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
    ) -> None:
        self._storage = storage
        self._directory = directory
        self._group = group
        self._name = history_name(group)
        self._now_ns = now_ns
        self._segment_bytes = segment_bytes
        self._log: LogWriter | None = None
        self._segment_first = 0
        self._segment_batches = 0
        self._previous_digest = _NO_DIGEST
        self._durable_chain = initial_chain(group)
        self._durable_end = 0
        self._doubtful: Path | None = None

    # -- where it stands

    @property
    def end(self) -> int:
        return self._log.end_lsn if self._log is not None else self._durable_end

    @property
    def durable_end(self) -> int:
        return self._durable_end

    @property
    def in_segment(self) -> bool:
        """Whether there is a segment to append to; if not, `start_segment` comes first."""
        log = self._log
        return (
            log is not None and log.segment_path is not None and log.end_lsn > self._segment_first
        )

    @property
    def segment_first(self) -> int:
        return self._segment_first

    @property
    def is_full(self) -> bool:
        return self.in_segment and (
            self.end - self._segment_first >= self._segment_bytes
            or self._segment_batches >= SEGMENT_BATCHES_MAX
        )

    def segment(self) -> Segment | None:
        """The segment that is written now."""
        if not self.in_segment:
            return None
        assert self._log is not None
        path = self._log.segment_path
        assert path is not None
        size = SEGMENT_HEADER_BYTES + self.end - self._segment_first
        return Segment(
            self._segment_first, self.end, self.end, path, self._log.chain, b"", size, sealed=False
        )

    @property
    def is_sound(self) -> bool:
        """False while something that failed may still lie on the disk: see `mend`."""
        return self._log is not None

    def mend(self) -> None:
        """Tries to make it sound. OSError if it is not yet."""
        if self._log is None:
            self._cut_back()

    # -- taking over what is there

    def begin_at(self, end: int, chain: int, previous_digest: bytes) -> None:
        """The next append opens a segment at `end`, behind a sealed one with that digest."""
        self._previous_digest = previous_digest
        self._durable_end, self._durable_chain = end, chain
        self._log = self._new_log(end, chain)

    def continue_in(self, segment: Segment, previous_digest: bytes, batches: int) -> None:
        """Goes on in the newest segment, which holds so many batches; what lies behind its end is
        cut off. Durable."""
        self._segment_batches = batches
        self.begin_at(segment.end, segment.chain, previous_digest)
        assert self._log is not None
        self._segment_first = segment.first
        self._log.continue_in(segment.path, segment.first, segment.end, segment.chain)
        self.sync()

    # -- appending

    def start_segment(
        self, next_batch: int, group: bodies.GroupBody, texts: dict[str, str]
    ) -> None:
        """Opens a segment with the group's state as its first record."""
        log = self._open_log()
        first = self._segment_first = log.end_lsn
        self._segment_batches = 0
        body = bodies.StateBody(first, next_batch, group, texts)
        self._append_body(RecordType.STATE, next_batch, bodies.encode(body))

    def append_batch(self, draft: Draft) -> EncodedBatch:
        """Appends the whole batch. Not durable yet."""
        log = self._open_log()
        encoded = encode_batch(draft, log.end_lsn, log.chain, log.known_durable, self._now_ns())
        self._append(log, encoded.buffers, encoded.size_bytes, encoded.chain)
        self._segment_batches += 1
        return encoded

    def append_applied(self, number: int) -> None:
        body = bodies.BatchApplied(self.end, number)
        self._append_body(RecordType.BATCH_APPLIED, number, bodies.encode(body))

    def append_dropped(self, sequences: list[int]) -> None:
        """In as many records as it takes, none of them large. A crash may leave some: each point
        that is named is one that may go."""
        for at in range(0, len(sequences), DROPPED_TOGETHER):
            body = bodies.PointsDropped(self.end, sequences[at : at + DROPPED_TOGETHER])
            self._append_body(RecordType.POINTS_DROPPED, 0, bodies.encode(body))

    def sync(self) -> None:
        """Everything appended is durable. OSError: what was not durable before is gone."""
        log = self._open_log()
        try:
            log.sync()
        except OSError:
            with suppress(OSError):  # the next use will tell, if it still fails then
                self._cut_back()
            raise
        self._durable_end, self._durable_chain = log.end_lsn, log.chain

    def finish_segment(self) -> Segment | None:
        """Makes the segment durable and seals it; the next append must start a new one."""
        segment = self.segment()
        if segment is None:
            return None
        self.sync()
        assert self._log is not None
        try:
            seal = seal_segment(
                self._storage,
                segment.path,
                end_lsn=segment.end,
                previous_digest=self._previous_digest,
            )
        except OSError:
            with suppress(OSError):
                self._cut_back()  # takes away what there may be of a seal
            raise
        self._log.close()
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
        )

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    # -- inside

    def _append_body(self, kind: RecordType, number: int, payload: bytes) -> None:
        log = self._open_log()
        header, chain = encode_header(
            kind, NO_DISK, 0, 0, number, self._now_ns(), payload, log.known_durable, log.chain
        )
        self._append(log, [header, payload], len(header) + len(payload), chain)

    def _append(self, log: LogWriter, buffers: Sequence[Buffer], total: int, chain: int) -> None:
        try:
            log.append(buffers, total, chain)
        except AppendError as error:
            if error.broken:
                with suppress(OSError):
                    self._cut_back()
            raise error.cause from None

    def _open_log(self) -> LogWriter:
        if self._log is None:
            self._cut_back()
        assert self._log is not None
        return self._log

    def _cut_back(self) -> None:
        """Starts over at the durable end, for good: what is cut off must not come back after a
        power cut, for by then it may have been said that it did not happen. OSError: there is
        nothing to append to, and the next use tries again."""
        if self._log is not None:
            self._doubtful = self._log.segment_path
            self._log.close()
            self._log = None
        log = self._new_log(self._durable_end, self._durable_chain)
        path = self._doubtful
        if path is not None and self._durable_end > self._segment_first:
            log.continue_in(path, self._segment_first, self._durable_end, self._durable_chain)
            try:
                log.sync()
            except OSError:
                log.close()
                raise
        elif path is not None and self._storage.exists(path):
            self._storage.unlink(path)
            self._storage.sync_directory(path.parent)
        self._doubtful = None
        self._log = log

    def _new_log(self, end: int, chain: int) -> LogWriter:
        log = LogWriter(
            self._storage,
            lambda _bytes: self._directory,
            kind=SegmentKind.HISTORY,
            group=self._group,
            stream=self._name.stream,
            ordinal=self._name.ordinal,
            first_lsn=end,
            chain=chain,
            segment_bytes=1 << 62,  # a segment is left by finish_segment alone
            now_ns=self._now_ns,
        )
        log.known_durable = end
        return log


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
