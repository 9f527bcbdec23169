# SPDX-License-Identifier: Apache-2.0
"""What a group appends to: the stream of now, and the records of the splitter's own. No policy.

`stream` is the newest stream, `log` the same while it is open: `begin` makes one, `admit` opens it,
`end` closes it for ever. Between `begin` and `admit` a stream is empty and reserved, no more.

LSNs are reserved ahead of use: when less than half a step is left the next one is asked for in the
stream's lane, and only a stream that outruns a device for half a tebibyte comes to its end by that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from agent.splitter.cutter import Cutter, Stamp
from agent.splitter.reservation import LSN_STEP, NewStream, Reservation
from agent.splitter.stream import Lane, Settled, StreamFailedError, StreamLog
from agent.splitter.tiers import SpoolTiers
from journal.bodies import CutKind, Member
from journal.record import RecordType
from journal.spool import StreamName
from replicator.base.clock import NS_PER_S, Clock
from replicator.base.storage import Storage

_log = logging.getLogger(__name__)

EXTEND_BELOW: Final = LSN_STEP // 2


@dataclass(frozen=True, slots=True)
class MadeCut:
    """A cut that is in the log. `lsn` is the end of its record."""

    lsn: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a group needs of the process. `sequence` numbers the records of all groups;
    `wake(t)` asks for a tick no later than `t` (monotonic), `changed()` says that the status is
    another one; neither may call back."""

    storage: Storage
    clock: Clock
    tiers: SpoolTiers
    sequence: Iterator[int]
    make_lane: Callable[[], Lane]
    make_uuid: Callable[[], UUID]
    wake: Callable[[int], None] = lambda _: None
    changed: Callable[[], None] = lambda: None


class GroupWriter:
    """See the head of this file. `failed(reason)`: the log cannot go on."""

    def __init__(
        self,
        group: str,
        *,
        checkpoint_interval_ns: int,
        max_stall_ns: int,
        around: Surroundings,
        reservation: Reservation,
        failed: Callable[[str], None],
    ) -> None:
        self.stream: StreamLog | None = None
        self.log: StreamLog | None = None
        self.cutter = Cutter(
            around.clock, checkpoint_interval_ns, around.sequence, self._clock_stepped
        )
        self._group = group
        self.max_stall_ns = max_stall_ns
        self._around = around
        self._reservation = reservation
        self._failed = failed
        self._extending = False

    def begin(self, reserved: NewStream) -> StreamName:
        assert self.log is None, "the stream before is still open"
        around = self._around
        name = StreamName(reserved.ordinal, around.make_uuid())
        self.stream = StreamLog(
            storage=around.storage,
            tiers=around.tiers,
            group=self._group,
            name=name,
            first_lsn=reserved.first_lsn,
            limit_lsn=lambda: self._reservation.limit_lsn,
            lane=around.make_lane(),
            clock=around.clock,
            failed=self._failed,
        )
        self.cutter.begin_stream()
        self._extending = False
        return name

    def admit(self) -> None:
        self.log = self.stream

    def end(self) -> None:
        """Nothing is appended any more; what is queued is settled. Fine if there is none."""
        self.log = None
        if self.stream is not None:
            self.stream.abandon()

    # Records.

    def add(self, kind: RecordType, disk: int, body: bytes) -> None:
        """Encode a record of the splitter's own."""
        assert self.log is not None
        now_ns = self.cutter.passing_ns()
        self.log.add(int(kind), disk, 0, 0, next(self._around.sequence), now_ns, body)
        self.cutter.uncut = True

    def append(self, settled: Settled | None, *, own: bool = False) -> bool:
        """As StreamLog.append, which may raise StreamFailedError."""
        log = self.log
        assert log is not None
        now_ns = self._around.clock.monotonic_ns()
        done = log.append(now_ns, settled, own=own)
        if not done:
            self._around.wake(now_ns + self.max_stall_ns)
        if self._reservation.limit_lsn - log.next_lsn < EXTEND_BELOW and not self._extending:
            self._extending = True
            log.lane.put(self._reservation.extend, self._extended)
        return done

    def append_own(self, settled: Settled | None = None) -> None:
        """Records of the splitter's own: they do not fail for want of a new segment. `settled` is
        always called."""
        try:
            if self.append(settled, own=True) and settled is not None:
                settled(True)
        except StreamFailedError as error:
            self._failed(str(error))
            if settled is not None:
                settled(False)

    def cut(
        self,
        members: list[Member],
        kind: CutKind,
        label: str | None,
        made: Callable[[MadeCut | None], None] | None = None,
        *,
        expire_ns: int = 0,
        at: Stamp | None = None,
    ) -> None:
        """`made` is called when the cut is in the log, with None if it was lost on the way.
        `at`: see Cutter.cut."""
        assert self.log is not None
        lsn, time_ns = self.cutter.cut(self.log, members, kind, label, expire_ns=expire_ns, at=at)

        def settled(kept: bool) -> None:
            if kept:
                self.cutter.made(time_ns)
                self._around.changed()
            if made is not None:
                made(MadeCut(lsn, time_ns) if kept else None)

        self.append_own(settled)

    @property
    def oldest_ns(self) -> int | None:
        """When the oldest batch that is queued was submitted."""
        return None if self.log is None else self.log.oldest_ns

    def _clock_stepped(self, step_ns: int) -> None:
        seconds = round(step_ns / NS_PER_S, 3)
        _log.warning(
            "the wall clock was set; points say so, and their times go on without a step back",
            extra={"group": self._group, "seconds": seconds},
        )

    def _extended(self, error: Exception | None) -> None:
        self._extending = False
        if error is not None:
            reason = str(error)
            _log.warning("LSN reservation failed", extra={"group": self._group, "reason": reason})
