# SPDX-License-Identifier: Apache-2.0
"""Making a run of sealed segments smaller, when points in it were given up.

Neighbouring batches are merged up to each kept point (receiver.history.merging), and written into
one new segment that stands for the whole run: it has the run's first position and chain, states up
to where it stands for it, and its last digest, so that the segment behind the run still finds
what it continues.

It is done in steps, each of which writes at most a part, so that applying goes on between them.
What is read does not change meanwhile: sealed segments never do, and whoever removes or replaces
them ends the compaction first. Only `finish` touches what is there.

Crash-safe by its order: the new segment is written beside, sealed and synced, then takes the place
of the run's first segment by one rename, then the rest of the run is unlinked. Whatever a crash
leaves, `opening.clear_leftovers` ends it; a compaction that a crash interrupted is begun anew, and
a run is small enough for that to cost little.

Memory: one part (merging.PART_BLOCKS), and the tables of one group, which the size of a run bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from journal.record import NO_DISK, RecordType, encode_header
from journal.seal import seal_segment
from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.segment import SegmentHeader, pack_header, parse_header
from journal.stream_files import read_seal
from receiver.history import bodies
from receiver.history.batches import Batch, Segment
from receiver.history.merging import PART_BLOCKS, Group, Sources, drafts, without_zeroes
from receiver.history.opening import NEW_SUFFIX
from receiver.history.packing import Packer
from receiver.history.units import read_body
from receiver.history.writer import Draft, encode_batch
from replicator.base.errors import DamageError
from replicator.base.storage import Buffer, File, Storage, write_all


@dataclass(frozen=True, slots=True)
class Compacted:
    segment: Segment
    batches: list[Batch]


class Compaction:
    """See the head of this file. `step` until it says that all is written, then `finish`; or
    `discard` at any time before. After an error of either it is discarded: nothing has changed.

    `dropped` are given-up points of batches before the run, which must go on being said."""

    def __init__(
        self,
        storage: Storage,
        run: Sequence[Segment],
        groups: Sequence[Group],
        sources: Sources,
        dropped: Sequence[int],
        now_ns: int,
        *,
        imageless: int = 0,
        step_blocks: int = PART_BLOCKS,
    ) -> None:
        """`imageless`: number of the last batch that loses its images. Raises DamageError,
        OSError."""
        self._step_blocks = step_blocks
        self.run = list(run)
        self._imageless = max(imageless, *(segment.imageless for segment in run))
        self.read_bytes = sum(segment.size_bytes for segment in run)
        self._storage = storage
        self._target = run[0].path
        header, state, self._previous_digest = _read_front(storage, self._target)
        texts = _texts(state, groups, sources)
        self._dropped = list(dropped)
        self._batches: list[Batch] = []
        self._drafts = _all_drafts(groups, sources, step_blocks)
        self._new = _NewSegment(storage, _beside(self._target), header, now_ns)
        with self._discarding():
            self._new.begin(header)
            self._new.add_state(_new_state(state, run[-1], texts, self._imageless))

    def step(self) -> bool:
        """Writes the next part, or several small ones. False when all is written. Raises
        DamageError, OSError."""
        with self._discarding():
            blocks = 0
            while blocks < self._step_blocks:
                draft = next(self._drafts, None)
                if draft is None:
                    return False
                self._batches.append(self._new.add_batch(draft))
                blocks += max(len(draft.sums), 1)
            return True

    def finish(self) -> Compacted | None:
        """Puts the new segment in place of the run's first. That this is durable is the caller's
        to see to, and then to unlink the rest of the run. None if it did not become smaller.
        Raises OSError."""
        last = self.run[-1]
        with self._discarding():
            if self._dropped:
                self._new.add_dropped(self._dropped)
            if self._new.end > last.end:
                self.discard()
                return None
            self._new.finish()
            seal = seal_segment(
                self._storage,
                self._new.path,
                end_lsn=self._new.end,
                previous_digest=self._previous_digest,
            )
            size = self._storage.allocated_bytes(self._new.path)
            self._storage.replace(self._new.path, self._target)
        segment = Segment(
            self.run[0].first,
            last.end,
            self._new.end,
            self._target,
            last.chain,
            last.digest,
            size,
            sealed=True,
            imageless=self._imageless,
            seal_digest=seal.digest,
        )
        return Compacted(segment, self._batches)

    def discard(self) -> None:
        self._new.discard()

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        try:
            yield
        except (OSError, DamageError):
            self.discard()
            raise


def _beside(target: Path) -> Path:
    return target.with_name(target.name + NEW_SUFFIX)


def _all_drafts(groups: Sequence[Group], sources: Sources, part_blocks: int) -> Iterator[Draft]:
    packer = Packer()
    for group in groups:
        yield from drafts(group, sources, packer, part_blocks)


class _NewSegment:
    """A segment that is written from front to end in one go."""

    def __init__(self, storage: Storage, path: Path, header: SegmentHeader, now_ns: int) -> None:
        self._storage = storage
        self.path = path
        self._now_ns = now_ns
        self._first = header.first_lsn
        self._known_durable = header.known_durable
        self._chain = header.chain
        self.end = header.first_lsn
        if storage.exists(path):
            storage.unlink(path)
        self._file: File | None = storage.create(path)

    def begin(self, header: SegmentHeader) -> None:
        assert self._file is not None
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
        assert self._file is not None
        self._file.datasync()
        self._close()

    def discard(self) -> None:
        """Idempotent. What cannot be unlinked goes at the next opening."""
        self._close()
        with suppress(OSError):
            self._storage.unlink(self.path)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _add(self, kind: RecordType, body: msgspec.Struct) -> None:
        payload = bodies.encode(body)
        header, chain = encode_header(
            kind, NO_DISK, 0, 0, 0, self._now_ns, payload, self._known_durable, self._chain
        )
        self._write([header, payload], chain)

    def _write(self, buffers: Sequence[Buffer], chain: int) -> None:
        assert self._file is not None
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


def _new_state(
    state: bodies.StateBody, last: Segment, texts: dict[str, str], imageless: int
) -> bodies.StateBody:
    return msgspec.structs.replace(
        state,
        group=without_zeroes(state.group),
        texts=texts,
        stands_for=bodies.StandsFor(last.end, last.chain, last.digest),
        imageless=imageless,
    )
