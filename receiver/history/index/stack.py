# SPDX-License-Identifier: Apache-2.0
"""All before-images behind a point: which is the earliest of each block.

What is behind the point is a stack of parts, the oldest first: what is left of the point's own
segment (in memory), index files, and the batches of the segment that is being written (in memory).
Of each block the first part that has an image wins. What is in memory is bounded by the size of
segments; what is looked up in files passes through a cache.

A stack is immutable, and stays right for as long as nothing behind its point is rewritten or
removed, which is what a pin promises. It says nothing about batches after number `upto`; `renewed`
makes one that does, and reads nothing again for it.

A file that is missing or bad is not believed: the answer is found in the segments themselves,
slowly, and the index is told to make the file anew. Only if a segment is bad too the look-up fails.

Concurrency: any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from receiver.history.batches import Batch, Segment
from receiver.history.images import Image, ImageTable
from receiver.history.index import levels as levels
from receiver.history.index.file import Span
from receiver.history.index.index import PIECE_CHUNKS, HistoryIndex, span_of
from receiver.history.index.runs import KEY_MAX, NO_RUNS, Runs, earliest, runs_of
from receiver.history.index.sweep import Pieces, merged, sweep, windows
from replicator.base.errors import DamageError


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What there is at one moment. Behind position `sealed_end` lies the segment that is being
    written. The three are taken in this order, without a lock: what is sealed meanwhile may be
    told of twice, which does no harm, and nothing is left out."""

    sealed_end: int
    segments: Sequence[Segment]
    batches: Sequence[Batch]
    """Those behind the point."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the parts of a stack are read."""

    index: HistoryIndex
    segments: Callable[[], Sequence[Segment]]
    batches_in: Callable[[Span], Sequence[Batch]]
    table: Callable[[Batch], ImageTable]

    def runs_of(self, batches: Sequence[Batch]) -> list[Runs]:
        return [runs_of(self.table(batch)) for batch in batches if batch.images.block_count]

    def within(self, span: Span, start: int, end: int) -> Runs:
        """From the index file of a span; if it cannot be used, from smaller ones, or from the
        segment itself."""
        file = self.index.files.get(span)
        if file is not None:
            try:
                return file.within(start, end)
            except (DamageError, OSError):
                self.index.distrust(span)
        inner = self._inner(span)
        if inner:
            return earliest([self.within(each, start, end) for each in inner])
        return earliest([runs.cut(start, end) for runs in self.runs_of(self.batches_in(span))])

    def sequence(self, span: Span) -> Pieces:
        """All of it, in order, from the same."""
        file = self.index.files.get(span)
        next_key: int | None = 0
        if file is not None:
            try:
                for runs, next_key in file.sequence(PIECE_CHUNKS):
                    yield runs, next_key
            except (DamageError, OSError):
                self.index.distrust(span)
            else:
                return
        assert next_key is not None, "a sequence fails before its end"
        for runs, following in self._without_file(span):
            if following is None or following > next_key:
                yield runs.cut(next_key, KEY_MAX), following

    def _without_file(self, span: Span) -> Pieces:
        inner = self._inner(span)
        if inner:
            return sweep([self.sequence(each) for each in inner])
        return windows(self.runs_of(self.batches_in(span)))

    def _inner(self, span: Span) -> list[Span]:
        """What the span is made of, but for the file that is its own; none if that is one
        segment."""
        inside = [
            span_of(segment)
            for segment in self.segments()
            if span.first <= segment.first < span.end
        ]
        if len(inside) == 1:
            return []
        files = [each for each in self.index.files if each != span]
        return levels.cover(inside, [each for each in files if each.end <= span.end], span.first)


@dataclass(frozen=True, slots=True)
class _Recent:
    """Batches of the segment that begins at `first` and is not sealed."""

    first: int
    runs: Runs


class ImageStack:
    """See the head of this file."""

    __slots__ = ("_files", "_front", "_point_end", "_reading", "_recent", "known", "upto")

    def __init__(
        self,
        reading: Reading,
        point_end: int,
        front: Runs,
        files: Sequence[Span],
        recent: _Recent,
        upto: int,
    ) -> None:
        self._reading = reading
        self._point_end = point_end
        self._front = front
        self._files = files
        self._recent = recent
        self.upto = upto
        self.known = reading.index.files
        """The files that there were. Others since then are a reason to renew it."""

    @classmethod
    def behind(cls, reading: Reading, batch: Batch, snapshot: Snapshot) -> ImageStack:
        """All that is behind the batch. Raises DamageError, OSError."""
        sealed_end, segments, later = snapshot.sealed_end, snapshot.segments, snapshot.batches
        front: list[Batch] = []
        first = sealed_end
        own = next((each for each in segments if each.end > batch.end), None)
        if own is not None and own.first < batch.end:
            front = [each for each in later if each.begin < own.end]
            first = own.end
        elif own is not None:
            first = own.first
        return cls(
            reading,
            batch.end,
            merged(reading.runs_of(front)),
            _cover(reading, segments, first),
            _Recent(sealed_end, merged(reading.runs_of(_from(later, sealed_end)))),
            later[-1].number if later else batch.number,
        )

    def renewed(self, snapshot: Snapshot) -> ImageStack:
        """The same with the files that there are now. `snapshot` has the batches behind `upto`."""
        reading, recent, front = self._reading, self._recent, self._front
        sealed_end, segments, later = snapshot.sealed_end, snapshot.segments, snapshot.batches
        first = self._files[0].first if self._files else recent.first
        if sealed_end == recent.first:
            kept = recent.runs
        else:
            kept = NO_RUNS
            if recent.first < self._point_end:  # the point is in the segment sealed meanwhile
                own = next((each for each in segments if each.first == recent.first), None)
                assert own is not None, "what is behind a pin stays"
                added = [each for each in later if each.begin < own.end]
                front = merged([recent.runs, *reading.runs_of(added)])
                first = own.end
        return ImageStack(
            reading,
            self._point_end,
            front,
            _cover(reading, segments, first),
            _Recent(sealed_end, merged([kept, *reading.runs_of(_from(later, sealed_end))])),
            later[-1].number if later else self.upto,
        )

    @property
    def memory_bytes(self) -> int:
        return self._front.size_bytes + self._recent.runs.size_bytes

    @property
    def block_count_max(self) -> int:
        """Blocks that have an image, if none had two."""
        files = self._reading.index.files
        found = self._front.block_count + self._recent.runs.block_count
        for span in self._files:
            file = files.get(span)
            found += file.block_count if file is not None else 0
        return found

    def runs_within(self, start: int, end: int) -> Runs:
        """For the keys [start, end). Raises DamageError, OSError."""
        return earliest(
            [
                self._front.cut(start, end),
                *(self._reading.within(span, start, end) for span in self._files),
                self._recent.runs.cut(start, end),
            ]
        )

    def within(self, start: int, end: int) -> list[tuple[int, int, Image]]:
        """[(first key, end key, the image that holds these blocks)] for the keys in [start, end),
        in order; gaps are blocks without an image."""
        return self.runs_within(start, end).images()

    def walk(self, start: int = 0) -> Iterator[Runs]:
        """All of it from the key `start` on, in order, piece by piece, in bounded memory."""
        parts = [
            windows([self._front]),
            *(self._reading.sequence(span) for span in self._files),
            windows([self._recent.runs]),
        ]
        for runs, _ in sweep(parts):
            rest = runs.cut(start, KEY_MAX) if start else runs
            if len(rest):
                yield rest


def _cover(reading: Reading, segments: Sequence[Segment], first: int) -> list[Span]:
    return levels.cover([span_of(each) for each in segments], reading.index.files, first)


def _from(batches: Sequence[Batch], position: int) -> list[Batch]:
    return [each for each in batches if each.begin >= position]
