# SPDX-License-Identifier: Apache-2.0
"""A log that is cut back to its durable end: what was not made durable never comes back.

The receiver's two logs, inbox and history, are kept so. What is appended counts for nothing until
`sync` has returned; and where an append or a sync fails, whatever was appended since the last good
sync is *lost*: said by `lost`, cut off, and written anew by whoever wanted it.

Invariants
* `durable_end` and `durable_chain` are those of the last sync that succeeded. They never go back.
* A failed sync is never tried again on the same bytes: the kernel may have dropped them, and call
  the next sync a success.
* What is cut off is cut off durably before anything else is appended: by then it may have been
  said that it did not happen, so no power cut may bring it back.
* A torn tail lies in the newest segment alone: `rotate` comes behind a sync, and the segment that
  is left is durable as a whole.

Failures. Where even the cut fails, the log is not *sound*: nothing is appended, and each use tries
the cut again first. An append that failed and could be taken back (no room, most often) loses
nothing: the log is as it was.

Concurrency: one caller at a time; `lost` is called by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from journal.appender import AppendError, LogWriter
from journal.reopen import Reopened
from journal.segment import SegmentKind
from journal.spool import StreamName
from replicator.base.storage import Buffer, Storage

_UNBOUNDED = 1 << 62
"""A segment is left by `rotate` alone."""


def _nobody() -> None:
    """Nobody keeps what might be lost."""


class DurableLog:
    """See the head of this file. `begin_at`, `continue_in` or `take_up` comes first.

    `folder` holds the folders of streams. `lost`: what was not durable is gone; called before the
    cut.
    """

    def __init__(
        self,
        storage: Storage,
        folder: Path,
        kind: SegmentKind,
        group: str,
        now_ns: Callable[[], int],
        *,
        lost: Callable[[], None] = _nobody,
    ) -> None:
        self._storage = storage
        self._folder = folder
        self._kind = kind
        self._group = group
        self._now_ns = now_ns
        self._lost = lost
        self._name: StreamName | None = None
        self._writer: LogWriter | None = None
        self._doubtful: tuple[Path, int] | None = None  # a segment that has to be cut, its first
        self.durable_end = 0
        self.durable_chain = 0

    # -- where it stands

    @property
    def end(self) -> int:
        """Behind what was appended last, durable or not."""
        return self.durable_end if self._writer is None else self._writer.end_lsn

    @property
    def chain(self) -> int:
        """At `end`."""
        return self.durable_chain if self._writer is None else self._writer.chain

    @property
    def is_sound(self) -> bool:
        """Nothing that was lost is still to be cut off."""
        return self._writer is not None

    @property
    def segment_path(self) -> Path | None:
        """The segment that is appended to; None where the next append opens one."""
        return None if self._writer is None else self._writer.segment_path

    @property
    def segment_first(self) -> int:
        """Where that one begins, or the next one will."""
        return self.end if self._writer is None else self._writer.segment_first

    # -- taking over what is there

    def begin_at(self, name: StreamName, end: int, chain: int) -> None:
        """The next append opens a segment of that stream, at `end`."""
        self.close()
        self._name = name
        self.durable_end, self.durable_chain = end, chain
        self._writer = self._new_writer()

    def continue_in(self, name: StreamName, path: Path, first: int, end: int, chain: int) -> None:
        """Goes on in a segment; what lies behind `end` in it is cut off. Durable. OSError."""
        self.begin_at(name, end, chain)
        assert self._writer is not None
        self._writer.continue_in(path, first, end, chain)
        self.sync()

    def take_up(self, name: StreamName, reopened: Reopened) -> None:
        """Goes on behind what an open after a crash has found. Durable. OSError."""
        self.begin_at(name, reopened.end_lsn, reopened.chain)
        assert self._writer is not None
        reopened.attach(self._writer)
        self.sync()

    # -- appending

    @property
    def known_durable(self) -> int:
        """What an entry may say of the log before it."""
        return self.durable_end if self._writer is None else self._writer.known_durable

    def append(self, buffers: Sequence[Buffer], total_bytes: int, chain: int) -> None:
        """Whole entries of `total_bytes` altogether, or nothing; `chain` is the one behind them.
        They carry the chain before them, so `make_sound` comes before they are encoded. OSError."""
        writer = self._sound()
        try:
            writer.append(buffers, total_bytes, chain)
        except AppendError as error:
            if error.broken:
                self._lose()
            raise error.cause from None

    def sync(self) -> None:
        """Everything appended is durable. OSError: what was not durable before is lost."""
        writer = self._sound()
        try:
            writer.sync()
        except OSError:
            self._lose()
            raise
        self.durable_end, self.durable_chain = writer.end_lsn, writer.chain

    def rotate(self) -> None:
        """The next append opens a segment. Everything is durable."""
        writer = self._sound()
        assert writer.end_lsn == self.durable_end, "a segment is left that is not durable"
        writer.rotate()

    def make_sound(self) -> None:
        """Cuts off what was lost, if that is still to be done. OSError: it still is."""
        self._sound()

    def cut_back(self) -> None:
        """Loses what is not durable. OSError: it is still to be cut off."""
        self._condemn()
        self._sound()

    def close(self) -> None:
        """No more is appended until one of the three is called that come first."""
        if self._writer is not None:
            self._writer.close()
        self._writer = self._name = self._doubtful = None

    # -- inside

    def _lose(self) -> None:
        self._condemn()
        with suppress(OSError):  # the next use will tell, if it still fails then
            self._sound()

    def _condemn(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            path = writer.segment_path
            self._doubtful = None if path is None else (path, writer.segment_first)
            writer.close()
            self._lost()

    def _sound(self) -> LogWriter:
        if self._writer is None:
            self._writer = self._cut()
        return self._writer

    def _cut(self) -> LogWriter:
        """A writer behind the durable end; nothing lies there any more, for good. OSError."""
        writer = self._new_writer()
        if self._doubtful is not None:
            path, first = self._doubtful
            if self.durable_end > first:
                writer.continue_in(path, first, self.durable_end, self.durable_chain)
                try:
                    writer.sync()
                except OSError:
                    writer.close()
                    raise
            elif self._storage.exists(path.parent):
                if self._storage.exists(path):
                    self._storage.unlink(path)
                self._storage.sync_directory(path.parent)  # it may have failed when it went
        self._doubtful = None
        return writer

    def _new_writer(self) -> LogWriter:
        assert self._name is not None, "nothing was begun"
        writer = LogWriter(
            self._storage,
            lambda _bytes: self._folder,
            kind=self._kind,
            group=self._group,
            stream=self._name.stream,
            ordinal=self._name.ordinal,
            first_lsn=self.durable_end,
            chain=self.durable_chain,
            segment_bytes=_UNBOUNDED,
            now_ns=self._now_ns,
        )
        writer.known_durable = self.durable_end
        return writer
