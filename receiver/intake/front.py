# SPDX-License-Identifier: Apache-2.0
"""The front: what the received log means, ahead of apply. Numbers points. No I/O.

A frame is judged as a whole before a byte of it is kept (`judge`), and taken in only when the
inbox has it (`take`). Its points count when they are durable (`settle`). If a sync of the inbox
fails, what was not durable is gone from the inbox, and from here (`rewind`).

Only the intake thread changes it, but for a rollback, which waits until no source is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from journal.record import Record, RecordType
from receiver.history.state import CONTENT_TYPES, GroupState, Outcome, Resized
from receiver.points.values import Point, SyncNotice
from replicator.base.errors import UsageError
from replicator.wire.frames import OpenedFrame


@dataclass(slots=True)
class Judged:
    """What taking in a frame will do."""

    state: GroupState
    end_lsn: int
    outcomes: list[Outcome] = field(default_factory=list)
    only_content: bool = False


@dataclass(slots=True)
class News:
    """What became durable. `held_until_ns`: of the newest point, be it among `points` or not."""

    points: list[Point] = field(default_factory=list)
    syncs: list[SyncNotice] = field(default_factory=list)
    relabelled: list[tuple[str, Point]] = field(default_factory=list)
    resized: list[Resized] = field(default_factory=list)
    held: dict[int, int] = field(default_factory=dict)


class Front:
    """See the head of this file. `state` is behind the last frame taken in."""

    def __init__(self, state: GroupState) -> None:
        self.state = state
        self._durable = state.copy()
        self._outcomes: list[Outcome] = []

    def reset(self, state: GroupState) -> None:
        """Goes on from another state, with nothing received behind it."""
        self.state = state
        self._durable = state.copy()
        self._outcomes = []

    def begin_stream(self, stream: UUID, ordinal: int, lsn: int) -> None:
        state = self.state.copy()
        state.begin_stream(stream, ordinal, lsn)
        self.reset(state)

    def judge(self, opened: OpenedFrame) -> Judged:
        """Raises UsageError, DamageError for a frame that may not be taken in; nothing changed."""
        records = opened.records
        structural = any(record.type not in CONTENT_TYPES for _, record in records)
        state = self.state.copy() if structural else self.state
        judged = Judged(state, opened.header.end_lsn, only_content=not structural)
        if state.is_at_start and records:
            _check_first(records[0][1])
        sizes = _sizes(state)
        for lsn, record in records:
            if record.type in CONTENT_TYPES:
                size = sizes.get(record.disk)
                if size is None or record.offset + record.length > size:
                    state.check(record)
                if structural:
                    state.point_holds = False
                continue
            outcome = state.step(lsn, record)
            sizes = _sizes(state)
            if outcome is not None:
                judged.outcomes.append(outcome)
        return judged

    def take(self, judged: Judged) -> None:
        self.state = judged.state
        if judged.only_content:
            self.state.point_holds = False
        self.state.lsn = judged.end_lsn
        self._outcomes += judged.outcomes

    def walk(self, records: Sequence[tuple[int, Record]], end_lsn: int) -> None:
        """Takes in records that were judged in an earlier life."""
        for lsn, record in records:
            if record.type in CONTENT_TYPES:
                self.state.point_holds = False
                continue
            outcome = self.state.step(lsn, record)
            if outcome is not None:
                self._outcomes.append(outcome)
        self.state.lsn = end_lsn

    def settle(self) -> News:
        """Everything taken in is durable now; what is new by that."""
        news = News()
        for outcome in self._outcomes:
            if outcome.point is not None:
                news.points.append(outcome.point)
                if outcome.relabelled:
                    news.relabelled.append((outcome.relabelled, outcome.point))
            if outcome.resized is not None:
                news.resized.append(outcome.resized)
            if outcome.sync is not None:
                news.syncs.append(outcome.sync)
            if outcome.held_until_ns:
                held = news.held.get(outcome.held_point, 0)
                news.held[outcome.held_point] = max(held, outcome.held_until_ns)
        self._outcomes = []
        self._durable = self.state.copy()
        return news

    def rewind(self) -> None:
        """What was not durable is gone."""
        self.state = self._durable.copy()
        self._outcomes = []

    def syncs(self) -> list[SyncNotice]:
        """Syncs under way that want digests, on a resume behind everything received."""
        return [
            SyncNotice(index, disk.sync_lsn, self.state.lsn, disk.source_name, disk.size_bytes)
            for index, disk in sorted(self.state.by_index.items())
            if disk.syncing and not disk.from_zero
        ]


def _sizes(state: GroupState) -> dict[int, int]:
    return {index: disk.size_bytes for index, disk in state.by_index.items()}


def _check_first(record: Record) -> None:
    if record.type != RecordType.SYNC_BEGIN:
        raise UsageError(
            f"a stream begins with a sync-begin, not with {record}",
            hint="what the replica holds cannot be known to be what the stream goes on from",
        )
