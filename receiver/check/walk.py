# SPDX-License-Identifier: Apache-2.0
"""The records of one segment, verified by chain and checksum, and on behind whatever is wrong.

The file is read once, front to back, in windows; memory is bounded by the window and the largest
record. Behind a bad record the walk goes on where a header continues the chain: as the bad one's
own header has it, or as it should be, or where two that follow agree on a chain. What could not
be read in between is one fault with its file offset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from journal.format import RECORDS
from journal.record import Record
from journal.segment import HEADER_BYTES, SegmentHeader
from journal.survey import next_good
from replicator.base.storage import File
from replicator.base.units import MIB

WINDOW_BYTES = 4 * MIB
_SEARCH_BYTES = 40 * MIB
"""Room for the largest record behind a bad one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something is wrong with this file, at this offset where that can be said. `lost_bytes` from
    there on cannot be read as records."""

    file: Path
    offset: int | None
    problem: str
    lost_bytes: int = 0

    def __str__(self) -> str:
        at = "" if self.offset is None else f" (file offset {self.offset})"
        return f"{self.file}: {self.problem}{at}"


@dataclass(frozen=True, slots=True)
class Skipped:
    """Positions up to `next` could not be read; `fault` says why."""

    next: int
    fault: Fault


Update = Callable[[bytes], None]


@dataclass(slots=True)
class RecordWalk:
    """Yields the records of positions [first, end) and, for what is bad, Skipped. `end` and
    `chain` are those behind the last good record; every byte read goes to `update`, in order."""

    path: Path
    file: File
    header: SegmentHeader
    stop: int
    update: Update
    position: int = 0
    chain: int = 0
    count: int = 0
    _window: bytes = b""
    _read_up_to: int = 0
    _is_short: bool = False

    def run(self) -> Iterator[tuple[int, Record] | Skipped]:
        self.position = self._read_up_to = self.header.first_lsn
        self.chain = self.header.chain
        while self.position < self.stop:
            self._fill(WINDOW_BYTES)
            if self._window:
                yield from self._step()
            if self._is_short and self.position >= self.stop:
                offset = HEADER_BYTES + self.stop - self.header.first_lsn
                fault = Fault(self.path, offset, "the file ends before its last record")
                yield Skipped(self.stop, fault)

    def _step(self) -> Iterator[tuple[int, Record] | Skipped]:
        start = self.position
        found = RECORDS.scan(self._window, start, self.chain, where="")
        self.position, self.chain = found.end_lsn, found.chain
        self.count += len(found.records)
        yield from found.records
        self._window = self._window[found.end_lsn - start :]
        if not found.problem or (found.torn and self._can_be_whole()):
            return
        problem = found.problem.removeprefix(": ")
        if found.torn and self._read_up_to >= self.stop:
            yield self._skipped(self.stop, problem)
            return
        self._fill(_SEARCH_BYTES)
        target = next_good(RECORDS, self._window, 0, self.chain)
        if target is None:
            yield self._skipped(self.stop, problem)
            return
        at, chain = target
        skipped = self._skipped(self.position + at, problem)
        self.chain = chain
        yield skipped

    def _can_be_whole(self) -> bool:
        """More is there of the record that the window ends in; it is read."""
        wanted = max(WINDOW_BYTES, RECORDS.stated_bytes(self._window))
        before = len(self._window)
        self._fill(wanted)
        return len(self._window) > before

    def _fill(self, wanted: int) -> None:
        size = min(wanted - len(self._window), self.stop - self._read_up_to)
        if size <= 0:
            return
        offset = HEADER_BYTES + self._read_up_to - self.header.first_lsn
        data = self.file.pread(size, offset)
        self.update(data)
        self._read_up_to += len(data)
        self._window += data
        if len(data) < size:  # the file is shorter than it should be
            self.stop = self._read_up_to
            self._is_short = True

    def _skipped(self, next_position: int, problem: str) -> Skipped:
        offset = HEADER_BYTES + self.position - self.header.first_lsn
        left = next_position - self.position
        if next_position >= self.stop:
            while self._read_up_to < self.stop:  # the digest covers these bytes all the same
                self._window = b""
                self._fill(WINDOW_BYTES)
            self._window = b""
        else:
            self._window = self._window[left:]
        self.position = next_position
        text = f"{problem}; {left} bytes cannot be read"
        return Skipped(next_position, Fault(self.path, offset, text, left))
