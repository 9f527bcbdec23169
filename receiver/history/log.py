# SPDX-License-Identifier: Apache-2.0
"""HistoryLog: the history of one group as one object.

Order of use for a batch: `append` (in the file), `sync` (durable), `publish` (in the index: views
see it), then the caller overwrites the replica, then `applied`. Between publish and applied the
batch is `unapplied`: after a crash it is done again, from exactly what it says.

Its parts are for their callers to hold: the batches (`batch_list`), the segments (`segment_set`),
the reader of images, and how far it is durable (`log`).

Concurrency: what changes the history is called by the group's apply thread. Reading is any thread's
(receiver.history.reader); whoever reads old images (a view) pins its point, and compaction does
not touch what lies behind a pin.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from journal.spool import list_segments
from receiver.history.batch_list import BatchEnd, BatchList
from receiver.history.batches import Batch
from receiver.history.opening import (
    Opened,
    Tail,
    clear_leftovers,
    open_history,
)
from receiver.history.segment_set import SegmentSet
from receiver.history.state import GroupState
from receiver.history.summaries import Summaries
from receiver.history.writer import Draft, HistoryWriter, history_name, initial_chain
from replicator.base.errors import NoSpaceError
from replicator.base.mishaps import is_full
from replicator.base.storage import Storage

_NO_DIGEST = bytes(32)


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
        self._directory = directory
        self._writer = HistoryWriter(
            storage, directory, group, now_ns, segment_bytes, lost=self._lost
        )
        self.log = self._writer.log
        self.batch_list = BatchList()
        self.segment_set = SegmentSet(
            storage, directory, history_name(group), self._writer, self.batch_list
        )
        self.reader = self.segment_set.reader
        self.summaries = Summaries(
            storage, directory.with_name("summaries"), lambda: self.segment_set.sealed
        )
        self.texts: dict[str, str] = {}
        self.opened = Opened()
        """What the newest opening found."""
        self._segment_texts: set[str] = set()
        self._appended_texts: set[str] = set()  # of a batch that is not durable
        self._appended = BatchEnd()
        self._applied_at = -1  # where the last "applied" lies, while it is not durable
        self._applied_lost = False

    # -- opening

    def open(self) -> tuple[GroupState, GroupState, Tail | None]:
        """(the state in front of the last batch, the one behind it, what has to be believed
        before `accept_tail`). May be called again. Raises DamageError, VersionError."""
        self.close()
        self.batch_list.unapplied, self.batch_list.next_number = None, 1
        self._storage.make_directory(self.segment_set.folder)
        name = history_name(self._group)
        files = list_segments(self._storage, [self._directory], name)
        files = clear_leftovers(self._storage, self.segment_set.folder, files)
        opened = open_history(self._storage, self.segment_set.folder, files, self.summaries)
        self.batch_list.dropped = frozenset(opened.dropped)
        self.batch_list.reset(opened.batches)
        self.reader.tables.clear()
        self.texts = opened.texts
        self.opened = opened
        before, state = self._last_states(opened)
        self.reader.set_places([(each.first, each.path) for each in opened.segments])
        self.batch_list.last_end = self._end_of_last(opened)
        return before, state, opened.tail

    def _end_of_last(self, opened: Opened) -> BatchEnd:
        if opened.batches:
            last = opened.batches[-1]
            return BatchEnd(last.number, last.end, self.reader.chain_behind(last))
        first = opened.segments[-1].first if opened.segments else 0
        return BatchEnd(self.batch_list.next_number - 1, first)

    def accept_tail(self) -> None:
        """Cuts off what lies behind the last complete unit, and is ready to append."""
        opened = self.opened
        if opened.newest is not None:
            sealed = opened.segments[:-1]
            digest = sealed[-1].digest if sealed else _NO_DIGEST
            batches = len(opened.contents.begins) if opened.contents is not None else 0
            self._writer.continue_in(opened.newest, digest, batches)
        else:
            sealed = opened.segments
            if sealed:
                last = sealed[-1]
                self._writer.begin_at(last.end, last.chain, last.digest)
            else:
                self._writer.begin_at(0, initial_chain(self._group), _NO_DIGEST)
        self.segment_set.reset(sealed)
        self.segment_set.index.open()

    def _last_states(self, opened: Opened) -> tuple[GroupState, GroupState]:
        before = state = GroupState()
        contents = opened.contents
        if contents is not None:
            assert contents.state is not None
            where = str(opened.segments[-1].path)
            before = state = state.follow(contents.state.group, where)
            self.batch_list.next_number = contents.state.next_batch
            self._segment_texts = set(contents.state.texts)
            for begin, batch in contents.begins:
                before, state = state, state.follow(begin.group, where)
                self.batch_list.next_number = batch.number + 1
                self._segment_texts.update(begin.texts)
            if contents.begins and contents.begins[-1][1].number != contents.applied:
                self.batch_list.unapplied = contents.begins[-1][1]
        labels = {point.label for point in self.batch_list.points() if point.label is not None}
        before.labels, state.labels = set(labels), set(labels)
        if self.batch_list.unapplied is not None and self.batch_list.unapplied.point is not None:
            before.labels.discard(self.batch_list.unapplied.point.label or "")
        return before, state

    # -- what there is

    @property
    def is_durable(self) -> bool:
        """Whether everything appended is."""
        return self.log.durable_end == self.log.end and not self._applied_lost

    # -- writing

    def append(self, draft: Draft, before: GroupState) -> Batch:
        """Appends a batch; `before` is the state in front of it. OSError: nothing was appended."""
        assert self.batch_list.unapplied is None, "the batch before is not applied"
        assert draft.number == self.batch_list.next_number
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
        self.log.sync()
        self._applied_at = -1
        self._segment_texts |= self._appended_texts
        self._appended_texts = set()

    def _lost(self) -> None:
        """What was not durable is about to be cut off."""
        if self._applied_at >= self.log.durable_end:
            self._applied_lost = True
        self._appended_texts = set()

    def _restate(self) -> None:
        """The last "applied" went with what was lost; the replica holds that batch all the same."""
        if self._applied_lost:
            self._applied_at = self.log.end
            self._writer.append_applied(self.batch_list.all[-1].number)
            self._applied_lost = False

    def publish(self, batch: Batch) -> None:
        """From here on views take the batch into account. It must be durable."""
        assert self.log.durable_end >= batch.end, "published before it is durable"
        self.batch_list.publish(batch, self._appended)

    def applied(self, batch: Batch) -> None:
        """The replica holds it, durably. That this is known becomes durable with the next sync."""
        assert self.batch_list.unapplied is batch
        self._applied_at = self.log.end
        self._writer.append_applied(batch.number)
        self.batch_list.unapplied = None

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
                self.log.cut_back()  # of many records some may be there
            raise
        self.sync()
        self.batch_list.forget(sequences)

    def seal_newest(self, state: GroupState) -> None:
        """Seals the segment that is being written and begins another, durable, so that what is
        in it can be reclaimed."""
        assert self.batch_list.unapplied is None
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
            self._writer.start_segment(self.batch_list.next_number, state.whole_body(), texts)
            self._segment_texts = set(texts)
            self.segment_set.set_places()

    def _finish_segment(self) -> None:
        segment = self._writer.finish_segment()
        if segment is not None:
            self.segment_set.reset([*self.segment_set.sealed, segment])

    def close(self) -> None:
        self.log.close()
        self.summaries.close()
        self.segment_set.close()


def as_mishap(error: OSError, what: str, group: str) -> OSError | NoSpaceError:
    """A full disk as people know it; any other error as it is."""
    if not is_full(error):
        return error
    return NoSpaceError(
        f"the disk under {what} of group {group!r} is full",
        hint="free some space there, or lower [history] max_bytes and run: replicator reload; it"
        " goes on by itself, and nothing is lost meanwhile",
    )
