# SPDX-License-Identifier: Apache-2.0
"""Taking in: streams, frames, points and holds of one group, on their way into the inbox.

A stream is taken up where it was left, if it proves to be the same one (ordinal, identity, the
chain at its durable end), or begun if its ordinal is above every other; that ends the one before.
Anything else is refused: a closed stream stays closed for ever.

Nothing comes in while a rollback is under way, and it says so itself: `closing` is set under the
lock before it begins. `doubtful` bars as well: a rollback that failed may have been written all the
same, until what it left is known to be gone; and so does `mending`, while an opening has something
to put on record behind everything that is here.

Concurrency: the group's intake thread, under `lock`; a rollback takes the lock as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from journal.spool import StreamName
from receiver.catalog import GroupCatalog
from receiver.history.log import as_mishap
from receiver.history.state import GroupState
from receiver.intake.front import Front, News
from receiver.intake.inbox import Inbox, StreamInbox
from receiver.intake.units import units_of
from receiver.points.points import PointList
from receiver.points.source_clock import SourceClock
from receiver.points.telling import Telling
from receiver.points.values import Durable, Point, StreamOpened
from replicator.base.clock import NS_PER_S
from replicator.base.errors import FencedError, OwnedError, UsageError
from replicator.wire.frames import Frame, FrameOpener


class Intake:
    """See the head of this file."""

    def __init__(
        self,
        name: str,
        inbox: Inbox,
        points: PointList,
        catalog: GroupCatalog,
        telling: Telling,
        is_rolling_back: Callable[[], bool],
    ) -> None:
        self.front = Front(GroupState())
        self.lock = threading.RLock()
        self.closing = False
        self.doubtful = False
        self.mending = False
        self._name = name
        self._inbox = inbox
        self._points = points
        self._catalog = catalog
        self._telling = telling
        self._is_rolling_back = is_rolling_back
        self.source_clock = SourceClock()
        self._opener = FrameOpener()

    def start(self, state: GroupState) -> None:
        """The front: from the state behind the history over all that is in the inbox. Gives each
        point the number that it was announced with."""
        front = Front(state.copy())
        while True:
            ordinal, lsn = front.state.ordinal, front.state.lsn
            frames = self._inbox.frames_from(ordinal, lsn)
            if not frames:
                following = self._inbox.stream_after(ordinal)
                if following is None:
                    break
                name, start_lsn = following
                front.state.begin_stream(name.stream, name.ordinal, start_lsn)
                continue
            for frame in frames:
                opened = self._inbox.read(ordinal, frame)
                for unit in units_of(opened, front.state.lsn):
                    front.walk(unit.records, unit.end_lsn)
        self.front = front
        news = self._settled()
        self._points.add(news.points)
        for sequence, until_ns in news.held.items():
            self._points.hold(sequence, until_ns)

    def _settled(self) -> News:
        """What became durable, each point with when it was made."""
        news, before = self.front.settle(), self._points.newest
        for at, point in enumerate(news.points):
            news.points[at] = before = self.source_clock.dated(
                self.front.state.stream, point, before
            )
        return news

    def current(self) -> StreamInbox | None:
        """The stream that may be resumed."""
        stream = self._inbox.newest
        if stream is None or self.closing or self.mending or self._is_rolling_back():
            return None
        return stream if stream.name.ordinal > self.front.state.closed_ordinal else None

    @property
    def is_barred(self) -> bool:
        return self.closing or self.doubtful or self.mending or self._is_rolling_back()

    def reset(self, state: GroupState, points: list[Point]) -> None:
        """A rollback made another state, and points, none of which a source sent."""
        with self.lock:
            self.front.reset(state)
            self._points.add(points)

    def open_stream(self, stream: UUID, ordinal: int, start_lsn: int, chain: int) -> StreamOpened:
        """Frames of that stream will follow. Either the one that may be resumed, at exactly its
        durable end; or one with an ordinal above every other: that *ends* the one before, for
        ever. Raises FencedError, UsageError, OwnedError while a rollback is under way."""
        with self.lock:
            self._check_open()
            current = self.current()
            name = StreamName(ordinal, stream)
            if current is not None and current.name == name:
                self._check_resume(current, start_lsn, chain)
                self._forget_unsynced(current)
                return StreamOpened(start_lsn, self.front.syncs(), [])
            state = self.front.state
            if ordinal <= max(state.ordinal, state.closed_ordinal):
                raise FencedError(
                    f"stream {ordinal} of group {self._name!r} is closed for ever: stream"
                    f" {max(state.ordinal, state.closed_ordinal)} came after it",
                    hint="begin a new stream, with a sync",
                )
            durable = self.sync()
            self._inbox.begin_stream(name, start_lsn, chain)
            self.front.begin_stream(stream, ordinal, start_lsn)
            return StreamOpened(start_lsn, [], durable.points)

    def _check_resume(self, stream: StreamInbox, start_lsn: int, chain: int) -> None:
        if start_lsn != stream.durable_lsn:
            raise UsageError(
                f"stream {stream.name.ordinal} is durable up to LSN {stream.durable_lsn}, it cannot"
                f" be resumed at {start_lsn}"
            )
        if chain != stream.durable_chain:
            raise FencedError(
                f"stream {stream.name.ordinal} has another content below LSN {start_lsn} here than"
                " at the source: they are not the same stream",
                hint="begin a new stream, with a sync",
            )

    def _forget_unsynced(self, stream: StreamInbox) -> None:
        """What a session left that ended before it was acknowledged comes again."""
        if stream.received_lsn > stream.durable_lsn:
            try:
                self._inbox.drop_unsynced()
            except OSError as error:
                raise as_mishap(error, "the inbox", self._name) from error
            finally:
                self._after_loss(stream)

    def accept(self, frame: Frame) -> None:
        """The next frame. Not durable yet. Raises DamageError for a bad one, UsageError for one
        that does not continue or may not come, FencedError, NoSpaceError; then nothing of it
        was kept."""
        with self.lock:
            self._check_open()
            stream = self.current()
            if stream is None or stream.name.ordinal != self.front.state.ordinal:
                raise FencedError(
                    f"no stream of group {self._name!r} is open", hint="say hello again"
                )
            header = frame.header
            if header.start_lsn != stream.received_lsn or header.chain_start != stream.chain:
                raise UsageError(
                    f"a frame from LSN {header.start_lsn} does not continue stream"
                    f" {stream.name.ordinal}, which is at LSN {stream.received_lsn}"
                )
            opened = self._opener.open(frame)
            judged = self.front.judge(opened)
            try:
                self._inbox.append(frame, opened)
            except OSError as error:
                self._after_loss(stream)
                raise as_mishap(error, "the inbox", self._name) from error
            self.front.take(judged)

    def sync(self) -> Durable:
        """Everything accepted is durable. NoSpaceError, OSError: what was not durable before is
        gone, and the source has to send it again."""
        with self.lock:
            stream = self._inbox.newest
            try:
                self._inbox.sync()
            except OSError as error:
                self._after_loss(stream)
                raise as_mishap(error, "the inbox", self._name) from error
            news = self._settled()
            self._publish(news)
            durable_lsn = stream.durable_lsn if stream is not None else 0
            return Durable(durable_lsn, news.points, news.syncs)

    def _after_loss(self, stream: StreamInbox | None) -> None:
        """The inbox may have been cut back to its durable end."""
        if stream is not None and stream.received_lsn < self.front.state.lsn:
            self.front.rewind()

    def _publish(self, news: News) -> None:
        held = dict(news.held)
        for asked, point in news.relabelled:
            self._telling.event(
                "label.changed", asked=asked, label=point.label, point=point.sequence
            )
        for each in news.resized:
            self._telling.event(
                "disk.resized",
                disk=each.name,
                before_bytes=each.before_bytes,
                size_bytes=each.size_bytes,
            )
        for point in news.points:
            if point.clock_step_ns:
                self._telling.event(
                    "source_clock.stepped",
                    point=point.sequence,
                    seconds=point.clock_step_ns / NS_PER_S,
                )
        for sequence, until_ns in held.items():
            self._points.hold(sequence, until_ns)
        if news.points:
            self._points.add(
                [
                    replace(point, until_ns=max(point.until_ns, held.get(point.sequence, 0)))
                    for point in news.points
                ]
            )
        points = news.points
        if points:
            self._telling.index(lambda: self._catalog.add_points(points))

    def hold(self, lsn: int, until_ns: int) -> bool:
        """The source says: nothing was written between the log's end `lsn` and then, so the newest
        point holds. False where that is not what we have."""
        with self.lock:
            state = self.front.state
            stream = self.current()
            if stream is None or stream.durable_lsn != lsn or state.lsn != lsn:
                return False
            if not state.point_holds or not self._points.hold(state.last_point, until_ns):
                return False
            self._telling.index(lambda: self._catalog.hold(state.last_point, until_ns))
            return True

    def _check_open(self) -> None:
        if self.is_barred:
            what = "being mended after its opening" if self.mending else "being rolled back"
            raise OwnedError(f"group {self._name!r} is {what}", hint="try again when that is done")
