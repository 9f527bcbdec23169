# SPDX-License-Identifier: Apache-2.0
"""HistoryLog: the history of one group as one object.

Order of use for a batch: `append` (in the file), `sync` (durable), `publish` (in the index: views
see it), then the caller overwrites the replica, then `applied`. Between publish and applied the
batch is `unapplied`: after a crash it is done again, from exactly what it says.

Concurrency: what changes the history is called by the group's apply thread. Any thread may take
`batches` and go through it: a new batch is added at the end of the list, in place (so publishing
costs the same however many there are), and where batches go or are replaced, the list is another.
Nobody else changes it, and whoever needs it to hold still takes a slice. Reading is any thread's
(receiver.history.reader); whoever reads old images (a view) pins its point, and compaction does
not touch what lies behind a pin.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from journal.segment import HEADER_BYTES as SEGMENT_HEADER_BYTES
from journal.spool import StreamName, list_segments
from receiver.history import bodies
from receiver.history.batches import Batch, Segment
from receiver.history.compaction import Compacted
from receiver.history.images import Image, ImageTable
from receiver.history.index.file import Span
from receiver.history.index.index import HistoryIndex
from receiver.history.index.stack import ImageStack, Reading, Snapshot
from receiver.history.opening import (
    Opened,
    Tail,
    clear_leftovers,
    open_history,
)
from receiver.history.reader import HistoryReader
from receiver.history.state import GroupState
from receiver.history.summaries import Summaries
from receiver.history.writer import Draft, HistoryWriter, history_name, initial_chain
from receiver.points.values import Point
from replicator.base.errors import NoSpaceError
from replicator.base.mishaps import is_full
from replicator.base.storage import Storage

_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Place:
    """Of a record."""

    path: Path
    offset: int


@dataclass(frozen=True, slots=True)
class BatchEnd:
    """The newest batch: its number, where it ended when it was written, the chain there."""

    number: int = 0
    position: int = 0
    chain: int = 0


class HistoryLog:
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
        self._group = group
        self.folder = directory / history_name(group).directory
        self._directory = directory
        self._writer = HistoryWriter(
            storage, directory, group, now_ns, segment_bytes, lost=self._lost
        )
        self._segments: list[Segment] = []  # sealed ones
        self._sealed_end = 0  # set behind the segments, and read before them
        self.merges = 0
        """How often batches were merged; the numbers up to `merged_upto` may stand for other blocks
        since then: merged batches share them anew."""
        self.merged_upto = 0
        self.segments_version = 0
        """Rises when a segment is sealed, removed or replaced."""
        self.reader = HistoryReader(storage, self.folder)
        self.index = HistoryIndex(
            storage,
            directory.with_name("index"),
            lambda: self._segments,
            self._batches_in,
            self.reader.table,
        )
        self._reading = Reading(
            self.index, lambda: self._segments, self._batches_in, self.reader.table
        )
        self.summaries = Summaries(
            storage, directory.with_name("summaries"), lambda: self._segments
        )
        self._segment_texts: set[str] = set()
        self._appended_texts: set[str] = set()  # of a batch that is not durable
        self.batches: list[Batch] = []
        self.dropped: frozenset[int] = frozenset()
        self.texts: dict[str, str] = {}
        self.unapplied: Batch | None = None
        self.next_batch = 1
        self.last_end = BatchEnd()
        """Of the newest batch that is published."""
        self._appended = BatchEnd()
        self._opened = Opened()
        self._garbage: list[Path] = []
        self._applied_at = -1  # where the last "applied" lies, while it is not durable
        self._applied_lost = False

    # -- opening

    def open(self) -> tuple[GroupState, GroupState, Tail | None]:
        """(the state in front of the last batch, the one behind it, what has to be believed
        before `accept_tail`). May be called again. Raises DamageError, VersionError."""
        self.close()
        self.unapplied, self.next_batch = None, 1
        self._storage.make_directory(self.folder)
        name = history_name(self._group)
        files = list_segments(self._storage, [self._directory], name)
        files = clear_leftovers(self._storage, self.folder, files)
        opened = open_history(self._storage, self.folder, files, self.summaries)
        self.dropped = frozenset(opened.dropped)
        self._set_batches(opened.batches)
        self.texts = opened.texts
        self._opened = opened
        before, state = self._last_states(opened)
        self.reader.set_places([(each.first, each.path) for each in opened.segments])
        self.last_end = self._end_of_last(opened)
        return before, state, opened.tail

    def _end_of_last(self, opened: Opened) -> BatchEnd:
        if opened.batches:
            last = opened.batches[-1]
            return BatchEnd(last.number, last.end, self.reader.chain_behind(last))
        first = opened.segments[-1].first if opened.segments else 0
        return BatchEnd(self.next_batch - 1, first)

    @property
    def opened_end(self) -> int:
        """Behind the last whole unit that the newest opening found."""
        return self._opened.segments[-1].end if self._opened.segments else 0

    @property
    def opened_segments(self) -> list[Segment]:
        """All that it found, the newest among them."""
        return self._opened.segments

    @property
    def imageless(self) -> int:
        """Number of the last batch that is known to have lost its images."""
        return max((each.imageless for each in self.opened_segments), default=0)

    def merged_numbers(self) -> Iterator[tuple[int, int]]:
        """(the first, the last) of the batches that compactions which the newest opening found may
        have put together."""
        begins = [batch.begin for batch in self.batches]
        for segment in self.opened_segments:
            low, high = bisect_left(begins, segment.first), bisect_left(begins, segment.end)
            if segment.data_end != segment.end and low < high:
                before = self.batches[low - 1].number if low else 0
                yield before + 1, self.batches[high - 1].number

    def accept_tail(self) -> None:
        """Cuts off what lies behind the last complete unit, and is ready to append."""
        opened = self._opened
        if opened.newest is not None:
            self._segments = opened.segments[:-1]
            digest = self._segments[-1].digest if self._segments else _NO_DIGEST
            batches = len(opened.contents.begins) if opened.contents is not None else 0
            self._writer.continue_in(opened.newest, digest, batches)
        else:
            self._segments = opened.segments
            if self._segments:
                last = self._segments[-1]
                self._writer.begin_at(last.end, last.chain, last.digest)
            else:
                self._writer.begin_at(0, initial_chain(self._group), _NO_DIGEST)
        self._set_segments(self._segments)
        self.index.open()

    def _last_states(self, opened: Opened) -> tuple[GroupState, GroupState]:
        before = state = GroupState()
        contents = opened.contents
        if contents is not None:
            assert contents.state is not None
            where = str(opened.segments[-1].path)
            before = state = state.follow(contents.state.group, where)
            self.next_batch = contents.state.next_batch
            self._segment_texts = set(contents.state.texts)
            for begin, batch in contents.begins:
                before, state = state, state.follow(begin.group, where)
                self.next_batch = batch.number + 1
                self._segment_texts.update(begin.texts)
            if contents.begins and contents.begins[-1][1].number != contents.applied:
                self.unapplied = contents.begins[-1][1]
        labels = {point.label for point in self.points() if point.label is not None}
        before.labels, state.labels = set(labels), set(labels)
        if self.unapplied is not None and self.unapplied.point is not None:
            before.labels.discard(self.unapplied.point.label or "")
        return before, state

    # -- what there is

    def points(self) -> list[Point]:
        """Of all batches in the history, those that retention has not given up. `until_ns` and
        `stood_ns` are as far as later batches know them."""
        points: list[Point] = []
        for batch in self.batches:
            held = batch.held
            if held is not None and points and points[-1].sequence == held.sequence:
                points[-1] = _held(points[-1], held, batch.point)
            if batch.point is not None and batch.point.sequence not in self.dropped:
                points.append(batch.point)
        return points

    def batch_of_point(self, sequence: int) -> Batch | None:
        """Of a point that retention has not given up."""
        batches = self.batches
        at = bisect_left(batches, sequence, key=lambda batch: batch.last_point)
        while at < len(batches) and batches[at].last_point == sequence:
            point = batches[at].point
            if point is not None and point.sequence == sequence:
                return batches[at] if sequence not in self.dropped else None
            at += 1
        return None

    @property
    def newest_number(self) -> int:
        """Of the batches that are published. Any thread."""
        batches = self.batches
        return batches[-1].number if batches else 0

    def after(self, number: int) -> list[Batch]:
        """The batches behind the one with that number, oldest first. Any thread."""
        batches = self.batches
        if not batches or batches[-1].number <= number:
            return []
        return batches[bisect_right(batches, number, key=lambda batch: batch.number) :]

    @property
    def segments(self) -> list[Segment]:
        """The sealed ones."""
        return list(self._segments)

    @property
    def newest_segment(self) -> Segment | None:
        """The one that is being written."""
        return self._writer.segment()

    @property
    def stream(self) -> StreamName:
        return history_name(self._group)

    @property
    def used_bytes(self) -> int:
        newest = self._writer.segment()
        return sum(segment.size_bytes for segment in self._segments) + (
            newest.size_bytes if newest is not None else 0
        )

    @property
    def written_bytes(self) -> int:
        """How much was ever written, about: it only rises."""
        return self._writer.log.end

    @property
    def durable_end(self) -> int:
        """Up to where it survives a power cut. Any thread."""
        return self._writer.log.durable_end

    @property
    def newest_first(self) -> int:
        """Batches from this position on lie in the segment that is being written."""
        return self._writer.log.segment_first if self._writer.in_segment else self._writer.log.end

    @property
    def is_state_safe(self) -> bool:
        """Whether the group's state stands, durable, in the segment being written: only then may
        those before it be rewritten, for a rewritten one does not tell a state in full."""
        return (
            self._writer.in_segment
            and self._writer.log.durable_end > self._writer.log.segment_first
        )

    @property
    def is_durable(self) -> bool:
        """Whether everything appended is."""
        return self._writer.log.durable_end == self._writer.log.end and not self._applied_lost

    # -- writing

    def append(self, draft: Draft, before: GroupState) -> Batch:
        """Appends a batch; `before` is the state in front of it. OSError: nothing was appended."""
        assert self.unapplied is None, "the batch before is not applied"
        assert draft.number == self.next_batch
        self._restate()
        self._prepare_segment(before)
        new = {
            digest: self.texts[digest]
            for digest in draft.group.domains.values()
            if digest not in self._segment_texts
        }
        encoded = self._writer.append_batch(replace(draft, texts=new))
        self._appended_texts = set(new)
        self._appended = BatchEnd(encoded.batch.number, encoded.batch.end, encoded.chain)
        self.reader.tables.put(encoded.batch, encoded.table)
        return encoded.batch

    def sync(self) -> None:
        """Everything appended is durable. OSError: what was not durable before is gone, but for
        that a batch is applied: that is said again."""
        self._restate()
        self._writer.log.sync()
        self._applied_at = -1
        self._segment_texts |= self._appended_texts
        self._appended_texts = set()

    def _lost(self) -> None:
        """What was not durable is about to be cut off."""
        if self._applied_at >= self._writer.log.durable_end:
            self._applied_lost = True
        self._appended_texts = set()

    def _restate(self) -> None:
        """The last "applied" went with what was lost; the replica holds that batch all the same."""
        if self._applied_lost:
            self._applied_at = self._writer.log.end
            self._writer.append_applied(self.batches[-1].number)
            self._applied_lost = False

    @property
    def is_sound(self) -> bool:
        """False while something that failed may still lie on the disk, and come back after a
        crash: see `mend`."""
        return self._writer.log.is_sound

    def mend(self) -> None:
        self._writer.log.make_sound()

    def publish(self, batch: Batch) -> None:
        """From here on views take the batch into account. It must be durable."""
        assert self._writer.log.durable_end >= batch.end, "published before it is durable"
        self.unapplied = batch
        self.batches.append(batch)
        self.last_end = self._appended
        self.next_batch = batch.number + 1

    def applied(self, batch: Batch) -> None:
        """The replica holds it, durably. That this is known becomes durable with the next sync."""
        assert self.unapplied is batch
        self._applied_at = self._writer.log.end
        self._writer.append_applied(batch.number)
        self.unapplied = None

    def drop_points(self, sequences: list[int], state: GroupState) -> None:
        """Durable when this returns. Their batches stay until reclaimed. `state` is the group's
        behind the last batch."""
        if not self._writer.in_segment:
            self._prepare_segment(state)
        self._restate()
        try:
            self._writer.append_dropped(sequences)
        except OSError:
            with suppress(OSError):
                self._writer.log.cut_back()  # of many records some may be there
            raise
        self.sync()
        self.dropped |= frozenset(sequences)

    def forget_points(self, sequences: Iterable[int]) -> None:
        """As `drop_points`, without a word in the log: their batches go at once."""
        self.dropped |= frozenset(sequences)

    def seal_newest(self, state: GroupState) -> None:
        """Seals the segment that is being written and begins another, durable, so that what is
        in it can be reclaimed."""
        assert self.unapplied is None
        self.sync()
        self._finish_segment()
        self._prepare_segment(state)
        self.sync()

    def _prepare_segment(self, state: GroupState) -> None:
        if self._writer.is_full:
            self.sync()
            self._finish_segment()
        if not self._writer.in_segment:
            texts = {digest: self.texts[digest] for digest in state.domains.values()}
            self._writer.start_segment(self.next_batch, state.whole_body(), texts)
            self._segment_texts = set(texts)
            self._set_places()

    def _finish_segment(self) -> None:
        segment = self._writer.finish_segment()
        if segment is not None:
            self._set_segments([*self._segments, segment])

    # -- reading

    def read_image(self, image: Image) -> bytes:
        """See HistoryReader, as of those that follow. Any thread."""
        return self.reader.read_image(image)

    def read_images(self, images: Sequence[Image]) -> list[bytes]:
        return self.reader.read_images(images)

    def place_of(self, image: Image) -> Place:
        """Where the image's record lies. Raises DamageError."""
        path, first, _ = self.reader.locate(image.position)
        return Place(path, SEGMENT_HEADER_BYTES + image.position - first)

    def read_begin(self, batch: Batch) -> bodies.BatchBegin:
        return self.reader.read_begin(batch)

    def table(self, batch: Batch) -> ImageTable:
        return self.reader.table(batch)

    def stack_behind(self, batch: Batch) -> ImageStack:
        """All images behind the batch. Makes what is missing of the index there, which takes long
        if much is. Raises DamageError, OSError."""
        own = next((each for each in self._segments if each.end > batch.end), None)
        if own is not None:
            self.index.complete(own.first if own.first >= batch.end else own.end)
        return ImageStack.behind(self._reading, batch, self.snapshot(batch.number))

    def snapshot(self, number: int) -> Snapshot:
        """The segments, and the batches behind the one with that number. Any thread."""
        sealed_end, segments = self._sealed_end, self._segments
        return Snapshot(sealed_end, segments, self.after(number))

    def _batches_in(self, span: Span) -> list[Batch]:
        batches = self.batches
        low = bisect_left(batches, span.first, key=lambda batch: batch.begin)
        high = bisect_left(batches, span.end, key=lambda batch: batch.begin)
        return batches[low:high]

    # -- shrinking

    def remove_oldest(self, count: int) -> int:
        """Removes the `count` oldest sealed segments, oldest first; bytes freed. The caller has
        seen to it that no kept point needs them."""
        self._clear_garbage()
        removed = self._segments[:count]
        if not removed:
            return 0
        self.index.forget(removed[0].first, removed[-1].end)
        self._set_segments(self._segments[count:])
        self._set_batches([batch for batch in self.batches if batch.begin >= removed[-1].end])
        self._garbage += [segment.path for segment in removed]
        self._clear_garbage()
        return sum(segment.size_bytes for segment in removed)

    def replace_run(self, run: Sequence[Segment], compacted: Compacted) -> None:
        """Takes over a compaction of these neighbouring sealed segments that is in place."""
        self.merges += 1
        self.merged_upto = max([self.merged_upto, *(batch.number for batch in compacted.batches)])
        self.index.forget(run[0].first, run[-1].end)
        first = self._segments.index(run[0])
        assert self._segments[first : first + len(run)] == list(run)
        self.reader.forget(run[0].path)
        self._garbage += [segment.path for segment in run[1:]]
        self._set_segments(
            [
                *self._segments[:first],
                compacted.segment,
                *self._segments[first + len(run) :],
            ]
        )
        low, high = run[0].first, run[-1].end
        self._set_batches(
            [
                *(batch for batch in self.batches if batch.begin < low),
                *compacted.batches,
                *(batch for batch in self.batches if batch.begin >= high),
            ]
        )
        self._storage.sync_directory(self.folder)
        self._clear_garbage()

    def _set_segments(self, segments: list[Segment]) -> None:
        self._segments = segments
        self._sealed_end = segments[-1].end if segments else self.newest_first
        self.segments_version += 1
        self._set_places()
        self.index.segments_changed()

    def _set_places(self) -> None:
        newest = self._writer.segment()
        places = [*self._segments, newest] if newest is not None else self._segments
        self.reader.set_places([(each.first, each.path) for each in places])

    def _set_batches(self, batches: list[Batch]) -> None:
        """After some went. Of points given up, those count whose batch is still there."""
        self.batches = batches
        self.reader.tables.clear()
        there = {batch.point.sequence for batch in batches if batch.point is not None}
        self.dropped &= there

    def _clear_garbage(self) -> None:
        """Removes segments that nothing refers to, oldest first, each for good before the next:
        so whatever a crash leaves has no gap. What an error leaves is removed the next time."""
        if self._garbage:
            self._storage.sync_directory(self.folder)  # what replaces them must be there for good
        while self._garbage:
            self.reader.forget(self._garbage[0])
            with suppress(FileNotFoundError):
                self._storage.unlink(self._garbage[0])
            self._storage.sync_directory(self.folder)
            self._garbage.pop(0)

    def close(self) -> None:
        self._writer.log.close()
        self.summaries.close()
        self.index.close()
        self.reader.close()


def _held(point: Point, held: bodies.Held, following: Point | None) -> Point:
    """Where nobody counted how long the point stood (earlier versions), it is what the source said,
    and no longer than until the next one came."""
    until_ns, stood_ns = max(point.until_ns, held.until_ns), held.stood_ns
    if stood_ns == bodies.NOT_COUNTED:
        stood_ns = until_ns - point.time_ns
        if following is not None and following.received_ns:
            stood_ns = min(stood_ns, max(following.received_ns - point.received_ns, 0))
    return replace(point, until_ns=until_ns, stood_ns=max(point.stood_ns, stood_ns))


def as_mishap(error: OSError, what: str, group: str) -> OSError | NoSpaceError:
    """A full disk as people know it; any other error as it is."""
    if not is_full(error):
        return error
    return NoSpaceError(
        f"the disk under {what} of group {group!r} is full",
        hint="free some space there, or lower [history] max_bytes and run: replicator reload; it"
        " goes on by itself, and nothing is lost meanwhile",
    )
