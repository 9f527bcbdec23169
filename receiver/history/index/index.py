# SPDX-License-Identifier: Apache-2.0
"""The index of a history's sealed segments: files beside them, made, merged and taken away.

    GROUP/index/FIRST-END.idx     receiver.history.index.file, one for each span of positions

Which files there should be is decided in receiver.history.index.levels. `step` does a bounded
part of what is missing (some tens of milliseconds), so applying goes on in between: first a file
for each segment, then the merging. It is work on the side: where it fails (a full disk, a bad
segment) it is left until segments change, and look-ups ask the segments themselves.

A file counts only while every segment that it was made from is there unchanged. Its identity is a
digest of what these were: positions, the digest they are sealed with, and the shape of each batch.
Whoever rewrites or removes segments says `forget` *before* they change on the disk; so a crash in
between leaves too few files, never one that tells of other segments. On opening, what does not fit
is removed.

Concurrency: the files known are one dictionary, replaced as a whole, so any thread may take it
(`files`). Everything else is called by the group's apply thread, but for `distrust` (any thread).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct

from xxhash import xxh3_128_digest

from receiver.history.batches import Batch, Segment
from receiver.history.images import ImageTable
from receiver.history.index import levels as levels
from receiver.history.index.file import (
    IDENTITY_BYTES,
    NEW_SUFFIX,
    ChunkCache,
    IndexFile,
    IndexWriter,
    Span,
    open_index,
)
from receiver.history.index.runs import NO_RUNS, Runs, runs_of
from receiver.history.index.sweep import sweep, windows
from replicator.base.errors import DamageError
from replicator.base.storage import Storage
from replicator.base.units import MIB

STEP_RUNS = 1 << 16
PIECE_CHUNKS = 8
TABLES_PER_STEP = 512
CACHE_BYTES = 8 * MIB

_SHAPE = Struct("<QQQQQ")


def span_of(segment: Segment) -> Span:
    return Span(segment.first, segment.end)


class HistoryIndex:
    """See the head of this file. `segments`, `batches_in` and `table` give what there is now."""

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        segments: Callable[[], Sequence[Segment]],
        batches_in: Callable[[Span], Sequence[Batch]],
        table: Callable[[Batch], ImageTable],
        *,
        step_runs: int = STEP_RUNS,
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._segments = segments
        self._batches_in = batches_in
        self._table = table
        self._step_runs = step_runs
        self.cache = ChunkCache(CACHE_BYTES)
        self.files: Mapping[Span, IndexFile] = {}
        """By what they answer for. Replaced as a whole. Any thread."""
        self._identities: dict[Span, bytes] = {}
        self._work: _Work | None = None
        self._left: set[Span] = set()
        self._distrusted: set[Span] = set()

    # -- what there is

    @property
    def used_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files.values())

    @property
    def memory_bytes(self) -> int:
        """Of what is kept in memory for look-ups."""
        return self.cache.used_bytes + sum(file.memory_bytes for file in self.files.values())

    def open(self) -> None:
        """Takes up the files that fit the segments, and removes the rest. Raises OSError."""
        self._storage.make_directory(self._folder)
        self._identities = {}
        spans = {span_of(segment) for segment in self._segments()}
        starts, ends = {span.first for span in spans}, {span.end for span in spans}
        found: dict[Span, IndexFile] = {}
        for name in self._storage.names(self._folder):
            path = self._folder / name
            file = None if name.endswith(NEW_SUFFIX) else self._opened(path)
            if (
                file is not None
                and file.span.first in starts
                and file.span.end in ends
                and file.identity == self._identity(file.span)
            ):
                found[file.span] = file
            else:
                self._storage.unlink(path)
        self.files = found

    def _opened(self, path: Path) -> IndexFile | None:
        with suppress(DamageError):
            return open_index(self._storage, path, self.cache)
        return None

    def _identity(self, span: Span) -> bytes:
        """Of the segments within."""
        inside = [each for each in self._segments() if each.first < span.end]
        parts = [self._identity_of(each) for each in inside if each.first >= span.first]
        return xxh3_128_digest(b"".join(parts))

    def _identity_of(self, segment: Segment) -> bytes:
        span = span_of(segment)
        known = self._identities.get(span)
        if known is None:
            parts = [_SHAPE.pack(segment.first, segment.end, segment.data_end, 0, 0)]
            parts.append(segment.digest)
            parts += [
                _SHAPE.pack(
                    batch.number,
                    batch.begin,
                    batch.end,
                    batch.images.block_count,
                    batch.images.record_bytes,
                )
                for batch in self._batches_in(span)
            ]
            known = self._identities[span] = xxh3_128_digest(b"".join(parts))
            assert len(known) == IDENTITY_BYTES
        return known

    # -- making

    def step(self) -> bool:
        """Does a part of what is missing. False if nothing is."""
        self._drop_distrusted()
        if self._work is None:
            self._work = self._next_work()
            if self._work is None:
                return False
        self._advance(self._work)
        return True

    def complete(self, first: int) -> None:
        """Makes all files of single segments that are missing from position `first` on, at once:
        whoever looks up there would otherwise read the tables of all batches each time."""
        self._drop_distrusted()
        while True:
            spans = [span for span in self._missing() if span.first >= first]
            if not spans:
                return
            if self._work is None or self._work.span not in spans:
                self._give_up()
                self._work = self._of_segment(spans[0])
            self._advance(self._work)

    def _missing(self) -> list[Span]:
        spans = [span_of(segment) for segment in self._segments()]
        return [span for span in levels.missing(spans, self.files) if span not in self._left]

    def _next_work(self) -> _Work | None:
        for span in self._missing():
            return self._of_segment(span)
        run_counts = {span: file.run_count for span, file in self.files.items()}
        chosen = levels.next_merge(run_counts)
        if not chosen:
            return None
        span = Span(chosen[0].first, chosen[-1].end)
        if span in self._left:
            return None
        files = [self.files[each] for each in chosen]
        pieces = sweep([file.sequence(PIECE_CHUNKS) for file in files])
        return self._begin(span, (runs for runs, _ in pieces), chosen)

    def _of_segment(self, span: Span) -> _Work | None:
        return self._begin(span, _runs_in(self._batches_in(span), self._table), [])

    def _begin(self, span: Span, runs: Iterator[Runs], made_of: list[Span]) -> _Work | None:
        try:
            writer = IndexWriter(self._storage, self._folder, span, self._identity(span))
        except OSError:
            self._left.add(span)
            return None
        return _Work(span, runs, writer, made_of)

    def _advance(self, work: _Work | None) -> None:
        if work is None:
            return
        try:
            if work.step(self._step_runs):
                return
            file = work.writer.finish(self.cache)
        except DamageError:
            for span in work.made_of:
                self.distrust(span)  # which of them it was does not matter: they are made anew
            self._leave(work)
        except OSError:
            self._leave(work)
        else:
            self._work = None
            self.files = {**self.files, work.span: file}

    def _leave(self, work: _Work) -> None:
        self._give_up()
        self._left.add(work.span)

    def _give_up(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.writer.discard()

    # -- taking away

    def segments_changed(self) -> None:
        """One was sealed, or room was made: what could not be made is tried again."""
        self._left.clear()

    def forget(self, low: int, high: int) -> None:
        """What tells of positions [low, high), before that changes. Durable. Raises OSError."""
        if self._work is not None and levels.touched([self._work.span], low, high):
            self._give_up()
        for span in levels.touched(self._identities, low, high):
            del self._identities[span]
        self._remove(levels.touched(self.files, low, high))

    def distrust(self, span: Span) -> None:
        """Its file could not be read. It is made anew by the next step. Any thread."""
        self._distrusted.add(span)

    def _drop_distrusted(self) -> None:
        while self._distrusted:
            span = self._distrusted.pop()
            if span in self.files:
                with suppress(OSError):
                    self._remove([span])

    def _remove(self, spans: Sequence[Span]) -> None:
        gone = {span: self.files[span] for span in spans}
        if not gone:
            return
        self.files = {span: file for span, file in self.files.items() if span not in gone}
        for file in gone.values():
            with suppress(FileNotFoundError):
                self._storage.unlink(file.path)
        self._storage.sync_directory(self._folder)

    def close(self) -> None:
        self._give_up()


class _Work:
    """An index file that is being made, a step at a time."""

    def __init__(
        self, span: Span, runs: Iterator[Runs], writer: IndexWriter, made_of: list[Span]
    ) -> None:
        self.span = span
        self.writer = writer
        self.made_of = made_of
        self._runs = runs

    def step(self, runs_max: int) -> bool:
        """Writes about so many runs. False when all are written. Raises DamageError, OSError."""
        done = 0
        while done < runs_max:
            runs = next(self._runs, None)
            if runs is None:
                return False
            if not len(runs):  # only tables were read
                return True
            self.writer.add(runs)
            done += len(runs)
        return True


def _runs_in(batches: Sequence[Batch], table: Callable[[Batch], ImageTable]) -> Iterator[Runs]:
    """Those of a segment. Yields nothing at all now and then, while it reads the tables."""
    parts: list[Runs] = []
    for batch in batches:
        if batch.images.block_count:
            parts.append(runs_of(table(batch)))
            if len(parts) % TABLES_PER_STEP == 0:
                yield NO_RUNS
    for runs, _ in windows(parts):
        yield runs
