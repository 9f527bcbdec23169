# SPDX-License-Identifier: Apache-2.0
"""The segments of a history: sealed ones, and the one that is being written.

`sealed` is replaced as a whole; `snapshot` is of one moment. What goes, goes oldest first, each for
good before the next, so whatever a crash leaves has no gap.

Concurrency: what changes it is called by the group's apply thread; `sealed`, `snapshot` and
`stack_behind` are for any.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from journal.spool import StreamName
from receiver.history.batch_list import BatchList
from receiver.history.batches import Batch, Segment
from receiver.history.compaction import Compacted
from receiver.history.index.index import HistoryIndex
from receiver.history.index.stack import ImageStack, Reading, Snapshot
from receiver.history.reader import HistoryReader
from receiver.history.writer import HistoryWriter
from replicator.base.storage import Storage


class SegmentSet:
    """See the head of this file."""

    def __init__(
        self,
        storage: Storage,
        directory: Path,
        stream: StreamName,
        writer: HistoryWriter,
        batch_list: BatchList,
    ) -> None:
        self._storage = storage
        self._writer = writer
        self._batch_list = batch_list
        self._sealed_end = 0  # set behind the segments, and read before them
        self._garbage: list[Path] = []
        self.stream = stream
        self.folder = directory / stream.directory
        self.sealed: list[Segment] = []
        """Oldest first. Not to be changed."""
        self.version = 0
        """Rises when a segment is sealed, removed or replaced."""
        self.merges = 0
        """How often batches were merged; the numbers up to `merged_upto` may stand for other blocks
        since then: merged batches share them anew."""
        self.merged_upto = 0
        self.reader = HistoryReader(storage, self.folder)
        self.index = HistoryIndex(
            storage,
            directory.with_name("index"),
            self._sealed_now,
            batch_list.within,
            self.reader.table,
        )
        self._reading = Reading(self.index, self._sealed_now, batch_list.within, self.reader.table)

    def _sealed_now(self) -> list[Segment]:
        return self.sealed

    # -- what there is

    @property
    def newest(self) -> Segment | None:
        """The one that is being written."""
        return self._writer.segment()

    @property
    def used_bytes(self) -> int:
        newest = self._writer.segment()
        return sum(segment.size_bytes for segment in self.sealed) + (
            newest.size_bytes if newest is not None else 0
        )

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

    def stack_behind(self, batch: Batch) -> ImageStack:
        """All images behind the batch. Makes what is missing of the index there, which takes long
        if much is. Raises DamageError, OSError."""
        own = next((each for each in self.sealed if each.end > batch.end), None)
        if own is not None:
            self.index.complete(own.first if own.first >= batch.end else own.end)
        return ImageStack.behind(self._reading, batch, self.snapshot(batch.number))

    def snapshot(self, number: int) -> Snapshot:
        """The segments, and the batches behind the one with that number. Any thread."""
        sealed_end, segments = self._sealed_end, self.sealed
        return Snapshot(sealed_end, segments, self._batch_list.after(number))

    # -- shrinking

    def remove_oldest(self, count: int) -> int:
        """Removes the `count` oldest sealed segments, oldest first; bytes freed. The caller has
        seen to it that no kept point needs them."""
        self._clear_garbage()
        removed = self.sealed[:count]
        if not removed:
            return 0
        self.index.forget(removed[0].first, removed[-1].end)
        self.reset(self.sealed[count:])
        self._keep([batch for batch in self._batch_list.all if batch.begin >= removed[-1].end])
        self._garbage += [segment.path for segment in removed]
        self._clear_garbage()
        return sum(segment.size_bytes for segment in removed)

    def replace_run(self, run: Sequence[Segment], compacted: Compacted) -> None:
        """Takes over a compaction of these neighbouring sealed segments that is in place."""
        self.merges += 1
        self.merged_upto = max([self.merged_upto, *(batch.number for batch in compacted.batches)])
        self.index.forget(run[0].first, run[-1].end)
        first = self.sealed.index(run[0])
        assert self.sealed[first : first + len(run)] == list(run)
        self.reader.forget(run[0].path)
        self._garbage += [segment.path for segment in run[1:]]
        self.reset(
            [
                *self.sealed[:first],
                compacted.segment,
                *self.sealed[first + len(run) :],
            ]
        )
        low, high = run[0].first, run[-1].end
        self._keep(
            [
                *(batch for batch in self._batch_list.all if batch.begin < low),
                *compacted.batches,
                *(batch for batch in self._batch_list.all if batch.begin >= high),
            ]
        )
        self._storage.sync_directory(self.folder)
        self._clear_garbage()

    def reset(self, segments: list[Segment]) -> None:
        """These are the sealed ones now."""
        self.sealed = segments
        self._sealed_end = segments[-1].end if segments else self.newest_first
        self.version += 1
        self.set_places()
        self.index.segments_changed()

    def set_places(self) -> None:
        """The reader finds records in what there is now."""
        newest = self._writer.segment()
        places = [*self.sealed, newest] if newest is not None else self.sealed
        self.reader.set_places([(each.first, each.path) for each in places])

    def _keep(self, batches: list[Batch]) -> None:
        self._batch_list.reset(batches)
        self.reader.tables.clear()

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
        self.index.close()
        self.reader.close()
