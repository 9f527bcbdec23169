# SPDX-License-Identifier: Apache-2.0
"""Gathers what the parts of a group say about each other. Reads, and changes nothing.

Concurrency: the group's apply thread, before anything of the group is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from journal.segment import HEADER_BYTES, SegmentHeader, parse_header
from journal.spool import list_segments, list_streams
from receiver.blocks.replica import Replica
from receiver.history.batches import Batch
from receiver.history.log import HistoryLog
from receiver.history.state import GroupState
from receiver.intake.inbox import Inbox, StreamInbox
from receiver.points.evidence import Applied, ImageState, InboxState, Line
from receiver.writes.log import FineLog
from replicator.base.errors import DamageError
from replicator.base.storage import Storage

_SEGMENT_SUFFIX = ".seg"


def line_of(applied: Applied | None, history: HistoryLog) -> Line:
    """Raises DamageError, OSError."""
    if applied is None:
        return Line.ABSENT
    if applied.history != history.segment_set.stream.stream:
        return Line.FOREIGN
    if applied.number > history.batch_list.last_end.number:
        return Line.BEYOND
    batch = batch_of(applied, history)
    if batch is None:
        return Line.HELD
    same = (batch.end, history.reader.chain_behind(batch)) == (applied.position, applied.chain)
    return Line.HELD if same else Line.OTHER


def batch_of(applied: Applied, history: HistoryLog) -> Batch | None:
    """The batch that it tells of, if the history has it as it was written: not where a compaction
    rewrote it, or retention took it away."""
    batch = next((each for each in history.batch_list.all if each.number == applied.number), None)
    return batch if batch is not None and is_as_written(batch, history) else None


def is_as_written(batch: Batch, history: HistoryLog) -> bool:
    """Whether no compaction that the newest opening found has rewritten it."""
    segment = next(each for each in reversed(history.opened.segments) if each.first <= batch.begin)
    return segment.data_end == segment.end


def image_states(
    replica: Replica, state: GroupState, applied: Applied | None
) -> dict[str, ImageState]:
    """Of all disks that the history knows. Raises OSError."""
    states: dict[str, ImageState] = {}
    for disk in state.disks.values():
        size = replica.size_of(disk.name)
        if size is None:
            states[disk.name] = ImageState.MISSING
        elif size != disk.size_bytes:
            states[disk.name] = ImageState.OTHER_SIZE
        elif applied is not None and applied.images.get(disk.name) not in (
            None,
            replica.inode(disk.name),
        ):
            states[disk.name] = ImageState.EXCHANGED
        else:
            states[disk.name] = ImageState.FITS
    return states


def was_written(replica: Replica, applied: Applied, name: str) -> bool:
    """Whether an image was written behind the statement, which says that it rests. What a power
    cut takes back of its times makes it look older."""
    stated = applied.times.get(name)
    return stated is not None and replica.times(name)[0] > stated[0]


def was_changed(replica: Replica, applied: Applied, name: str) -> bool:
    """Whether that may be: its times are not the very same, or were not stated."""
    return applied.times.get(name) != replica.times(name)


def inbox_state(inbox: Inbox, state: GroupState, unapplied: Batch | None) -> InboxState:
    """`state` is behind the last batch of the history; `unapplied` is that batch, if it is not
    known as applied."""
    redo = unapplied if unapplied is not None and unapplied.kind == "log" else None
    for stream in inbox.streams:
        if stream.name.ordinal > max(state.ordinal, state.closed_ordinal) and (
            stream.frames and stream.frames[0].position
        ):
            return InboxState.HEADLESS
    found = inbox.find(state.ordinal)
    if redo is not None:
        held = found is not None and _holds(found, state, redo.start_lsn)
        return InboxState.FITS if held else InboxState.BATCH_GONE
    if state.ordinal <= state.closed_ordinal:
        return InboxState.FITS
    if found is None:
        return InboxState.MISSING
    if found.name.stream != state.stream or _first_lsn(found) > state.lsn:
        return InboxState.GAP
    return InboxState.OLDER if found.received_lsn < state.lsn else InboxState.FITS


def _holds(stream: StreamInbox, state: GroupState, start_lsn: int) -> bool:
    return (
        stream.name.stream == state.stream
        and _first_lsn(stream) <= start_lsn
        and stream.received_lsn >= state.lsn
    )


def _first_lsn(stream: StreamInbox) -> int:
    return stream.frames[0].start_lsn if stream.frames else stream.received_lsn


def fine_reaches_beyond(fine: FineLog, state: GroupState) -> bool:
    """Whether frames that were applied once lie behind what the history has. Those of a closed
    stream may: they were given up with it. Raises OSError."""
    try:
        ends = fine.ends()
    except DamageError:
        return False  # whoever reads single writes will say it
    return any(
        name.ordinal > state.closed_ordinal and (name.ordinal, lsn) > (state.ordinal, state.lsn)
        for name, lsn in ends.items()
    )


def is_nothing_there(history: HistoryLog, replica: Replica, inbox: Inbox, fine: FineLog) -> bool:
    return not (
        history.opened.segments or replica.images() or inbox.streams or fine.oldest_ns is not None
    )


def foreign_folder(storage: Storage, directory: Path, group: str, history: HistoryLog) -> str:
    """The first folder that holds another group's files, "" if none does. Raises OSError."""
    past = directory / "history"
    for name in list_streams(storage, [past]):
        if name != history.segment_set.stream and list_segments(storage, [past], name):
            return "history"
    for folder in ("inbox", "fine"):
        for header in _headers(storage, directory / folder):
            if header.group != group:
                return folder
    return ""


def _headers(storage: Storage, folder: Path) -> Iterator[SegmentHeader]:
    """Of the first segment of each stream there, as far as it can be read."""
    for stream in list_streams(storage, [folder]):
        names = storage.names(folder / stream.directory)
        first = next((name for name in names if name.endswith(_SEGMENT_SUFFIX)), None)
        if first is None:
            continue
        path = folder / stream.directory / first
        with closing(storage.open(path)) as file:
            try:
                yield parse_header(file.pread(HEADER_BYTES, 0), str(path))
            except DamageError:
                continue  # found, and said, by whoever opens it in earnest
