# SPDX-License-Identifier: Apache-2.0
"""One stream's log as its only writer sees it: records are encoded here, appended, or queued.

A batch of records becomes one list of buffers and one `pwritev`, checksums and chain made at birth.
Where the append is made depends on the segment it goes to:

    memory    in line, before `append` returns
    disk      in the *lane*, one after another in the order of encoding; `append` returns at once,
              and the batch is settled when the lane reports it

While anything is queued everything is, so that the order of encoding is the order in the log.

Invariants
* LSNs: first_lsn ≤ end_lsn (whole in the file, may be read) ≤ next_lsn (encoded) < limit_lsn.
* Each batch is settled exactly once, in order, with `kept` true (it is in the log) or false (the
  stream was abandoned: the batch is not in the log, or nobody knows).
* Nothing is taken out of the queue. A stream that cannot go on is abandoned as a whole: a write
  that was answered without a record cannot have a cut behind it.
* After `abandon` nothing more is appended, also when an append that was stuck comes back: the lane
  looks at `abandoned` before each append. What was stuck may appear behind `end_lsn` after all,
  whole, torn, or with a payload that changed under the kernel's hands; nobody was told of it, its
  checksum tells a reader, and in any case it is a write that was received next.

Concurrency: all calls come from the event loop but `_carry_out`, which the lane runs. Writer and
segment belong to whichever of the two has the queue: the loop while it is empty, else the lane.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from agent.splitter.tiers import Claim, SpoolTiers
from journal.appender import AppendError, LogWriter
from journal.record import HEADER_BYTES, encode_header, first_chain
from journal.segment import SegmentKind
from journal.spool import StreamName
from replicator.base.clock import Clock
from replicator.base.errors import NoSpaceError
from replicator.base.storage import Buffer, Storage

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM})
_NEVER_FULL: Final = 1 << 62  # this class decides on rotation; LogWriter never does by itself

Settled = Callable[[bool], None]


class Lane(Protocol):
    """Carries out work elsewhere, one after another; what sticks there sticks nobody else."""

    def put(self, work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Runs `work`, then `done` in the caller's thread with the OSError, AppendError or
        NoSpaceError that it raised. `put` itself returns at once."""
        ...

    def end(self) -> None:
        """Nothing more will be put."""
        ...


class StreamFailedError(Exception):
    """The log cannot go on. The text says why, for people."""


@dataclass(slots=True)
class Batch:
    """What one append takes."""

    buffers: list[Buffer] = field(default_factory=list)
    total_bytes: int = 0
    chain: int = 0
    submitted_ns: int = 0
    settled: Settled | None = None
    own: bool = False
    skip_memory: bool = False


class StreamLog:
    """See the head of this file. `failed(reason)` is called at most once, from the loop, when an
    append in the lane could not be made; the owner then calls `abandon`."""

    def __init__(
        self,
        *,
        storage: Storage,
        tiers: SpoolTiers,
        group: str,
        name: StreamName,
        first_lsn: int,
        limit_lsn: Callable[[], int],
        lane: Lane,
        clock: Clock,
        failed: Callable[[str], None],
    ) -> None:
        self.name = name
        self.first_lsn = first_lsn
        self.end_lsn = first_lsn
        self.next_lsn = first_lsn
        self.abandoned = False
        self.lane = lane
        self._tiers = tiers
        self._group = group
        self._limit_lsn = limit_lsn
        self._failed = failed
        self._halted = False  # set in the lane: what was queued behind a failure is not appended
        self._claim: Claim | None = None
        chain = first_chain(name.stream, name.ordinal)
        self._writer = LogWriter(
            storage,
            lambda _: self._directory(),
            kind=SegmentKind.LOG,
            group=group,
            stream=name.stream,
            ordinal=name.ordinal,
            first_lsn=first_lsn,
            chain=chain,
            segment_bytes=_NEVER_FULL,
            now_ns=clock.utc_ns,
            synced=False,
        )
        self._batch = Batch(chain=chain)
        self._queue: deque[Batch] = deque()

    # Encoding.

    def add(
        self,
        kind: int,
        disk: int,
        offset: int,
        length: int,
        sequence: int,
        time_ns: int,
        payload: bytes | bytearray | memoryview = b"",
    ) -> None:
        """Encode one record onto the batch that the next `append` takes."""
        batch = self._batch
        header, batch.chain = encode_header(
            kind, disk, offset, length, sequence, time_ns, payload, self.first_lsn, batch.chain
        )
        batch.buffers.append(header)
        size = len(payload)
        if size:
            batch.buffers.append(payload)
        batch.total_bytes += HEADER_BYTES + size

    @property
    def pending_bytes(self) -> int:
        """Encoded and not yet handed to `append`."""
        return self._batch.total_bytes

    @property
    def record_lsn(self) -> int:
        """Where the record that is encoded next will begin."""
        return self.next_lsn + self._batch.total_bytes

    @property
    def empty(self) -> bool:
        """No record was ever encoded."""
        return self.next_lsn == self.first_lsn and not self._batch.total_bytes

    # Appending.

    @property
    def queued(self) -> bool:
        return bool(self._queue)

    @property
    def oldest_ns(self) -> int | None:
        """When the oldest batch in the queue was submitted."""
        return self._queue[0].submitted_ns if self._queue else None

    def append(self, now_ns: int, settled: Settled | None = None, *, own: bool = False) -> bool:
        """Append what was added. True: done, `settled` has been forgotten. False: queued, and
        `settled` will be called. Payloads must stay valid until then.

        `own`: records of the splitter's, which open no new segment if there is one. Raises
        StreamFailedError, nothing being settled by it.
        """
        batch, self._batch = self._batch, Batch(chain=self._batch.chain)
        assert batch.total_bytes, "nothing to append"
        if self.next_lsn + batch.total_bytes > self._limit_lsn():
            raise StreamFailedError("no LSNs could be reserved in time")
        batch.submitted_ns, batch.settled, batch.own = now_ns, settled, own
        self.next_lsn += batch.total_bytes
        if not self._queue:
            try:
                if self._append_inline(batch):
                    return True
            except (AppendError, OSError) as error:
                raise StreamFailedError(_sentence(error)) from error
        self._queue.append(batch)
        self.lane.put(lambda: self._carry_out(batch), self._carried_out)
        return False

    def abandon(self) -> None:
        """Append nothing more, ever, and settle what is queued, in order, as not kept."""
        if self.abandoned:
            return
        self.abandoned = True
        self._batch = Batch()
        stuck = bool(self._queue)
        while self._queue:
            settled = self._queue.popleft().settled
            if settled is not None:
                settled(False)
        if stuck:  # the lane may be inside an append: only it knows when the file may be closed
            self.lane.put(self._writer.close, _ignore)
        else:
            self._writer.close()
        self.lane.end()
        self._tiers.release(self._group)

    def _append_inline(self, batch: Batch) -> bool:
        """False: it has to go through the lane, and the log is as it was."""
        claim = self._claim
        if claim is None or not (claim.tier.sticky or claim.fits(batch.total_bytes) or batch.own):
            claim = self._tiers.claim_inline(self._group, batch.total_bytes)
            if claim is None:
                return False
            self._move_to(claim)
        if claim.tier.sticky:
            return False
        try:
            self._append(batch)
        except AppendError as error:
            if error.broken or error.errno not in _NO_SPACE:
                raise
            batch.skip_memory = True  # the filesystem has less room than the limit says
            return False
        self.end_lsn = self._writer.end_lsn
        return True

    # In the lane.

    def _carry_out(self, batch: Batch) -> None:
        if self.abandoned or self._halted:
            return
        try:
            self._append_anywhere(batch)
        except (AppendError, OSError, NoSpaceError):
            self._halted = True
            raise

    def _append_anywhere(self, batch: Batch) -> None:
        claim = self._claim
        if claim is None or batch.skip_memory or not (batch.own or claim.fits(batch.total_bytes)):
            self._move_to(self._room(batch, skip_memory=batch.skip_memory))
        try:
            self._append(batch)
        except AppendError as error:
            on_memory = self._claim is not None and self._claim.tier is self._tiers.memory
            if error.broken or error.errno not in _NO_SPACE or not on_memory:
                raise
            self._move_to(self._room(batch, skip_memory=True))
            self._append(batch)

    def _room(self, batch: Batch, *, skip_memory: bool) -> Claim:
        return self._tiers.claim(self._group, batch.total_bytes, skip_memory=skip_memory)

    def _carried_out(self, error: Exception | None) -> None:
        """Back in the loop, in the order of the queue."""
        if self.abandoned:
            return
        if error is not None:
            self._failed(_sentence(error))
            return
        batch = self._queue.popleft()
        self.end_lsn += batch.total_bytes
        if batch.settled is not None:
            batch.settled(True)

    # In either.

    def _append(self, batch: Batch) -> None:
        assert self._claim is not None
        self._writer.append(batch.buffers, batch.total_bytes, batch.chain)
        self._claim.used_bytes += batch.total_bytes

    def _move_to(self, claim: Claim) -> None:
        """The next append opens a segment there."""
        self._writer.rotate()
        self._claim = claim

    def _directory(self) -> Path:
        assert self._claim is not None
        return self._claim.directory


def _sentence(error: Exception) -> str:
    if isinstance(error, NoSpaceError):
        return error.message
    return f"append failed: {error}"


def _ignore(_error: Exception | None) -> None:
    """Of a stream that is abandoned nobody wants to know more."""
