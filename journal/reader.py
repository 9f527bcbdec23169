# SPDX-License-Identifier: Apache-2.0
"""Reading a log or an inbox: whole entries, verified, following the tail over rotations.

A reader is told how far the log goes (`end_lsn`, published by its writer) and never looks beyond:
behind that an entry may be half written. Of a log whose writer is dead nobody publishes an end;
`verified_end` finds it by the chain.

Every byte that leaves here has passed scan(): header by the chain, payload by its sum. An entry
that fails is DamageError with file and offset. A segment that is missing in the middle is too.

Concurrency: one caller at a time. Meanwhile the writer may append, and others may seal or move
segments that it has left, and free those below the position that is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from journal.entry import Entry
from journal.format import ENTRIES, RECORDS, EntryFormat
from journal.record import Record
from journal.spool import StreamName
from journal.stream_files import OpenSegment, StreamFiles
from replicator.base.errors import DamageError, NotFoundError
from replicator.base.storage import Storage

# How much is read and verified at once where only the end or a chain is wanted.
WALK_BYTES = 4 << 20

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Run(Generic[E_co]):
    """A run of whole entries. `data` is the log itself, `records` its parts with their LSNs (views
    into it), `end_lsn` and `chain` what lies behind it."""

    data: bytes
    records: Sequence[tuple[int, E_co]]
    end_lsn: int
    chain: int


Chunk = Run[Record]


class _Reader(Generic[E]):
    """Reads one stream's segments, whichever of `directories` they lie in."""

    def __init__(
        self,
        storage: Storage,
        directories: Sequence[Path],
        stream: StreamName,
        form: EntryFormat[E],
    ) -> None:
        self._files = StreamFiles(storage, directories, stream)
        self._form = form

    def refresh(self) -> None:
        """Looks again which segments there are."""
        self._files.refresh()

    @property
    def first_lsn(self) -> int | None:
        """The oldest LSN still there; None when there is no segment."""
        return self._files.first_lsn

    def read(self, start_lsn: int, chain: int, end_lsn: int, max_bytes: int) -> Run[E]:
        """Whole entries from `start_lsn` on, up to `end_lsn` and `max_bytes`, from one segment. An
        entry larger than `max_bytes` comes alone. Empty when start_lsn == end_lsn.

        `chain` is the chain at `start_lsn`. Raises DamageError, and NotFoundError when the
        position has been freed.
        """
        if start_lsn >= end_lsn:
            return Run(b"", [], start_lsn, chain)
        opened = self._files.at(start_lsn)
        limit = min(end_lsn, opened.data_end())
        if limit <= start_lsn:
            raise DamageError(f"{opened.path}: the log ends at LSN {limit}, not at {end_lsn}")
        room = limit - start_lsn
        data = opened.pread(start_lsn, min(max(max_bytes, self._form.header_bytes), room))
        found = self._form.scan(data, start_lsn, chain, where=str(opened.path))
        if not found.records and found.torn and len(data) < room:
            data = opened.pread(start_lsn, min(self._form.stated_bytes(data), room))
            found = self._form.scan(data, start_lsn, chain, where=str(opened.path))
        if found.problem and not (found.torn and found.records and len(data) < room):
            if opened.next_lsn is None and self._was_left(opened, start_lsn):
                return self.read(start_lsn, chain, end_lsn, max_bytes)
            raise DamageError(_locate(opened, found.problem, found.end_lsn))
        return Run(data[: found.end_lsn - start_lsn], found.records, found.end_lsn, found.chain)

    def _was_left(self, opened: OpenSegment, lsn: int) -> bool:
        """Whether the newest segment is that no more: then it ends where the next one begins,
        and a seal may stand behind that."""
        self._files.refresh()
        again = self._files.at(lsn)
        return again.next_lsn is not None or again.segment.first_lsn != opened.segment.first_lsn

    def chain_at(self, lsn: int) -> int:
        """The chain at an LSN that is an entry's boundary, found by walking its segment.

        Raises NotFoundError for an LSN that is freed, beyond the end, or inside an entry.
        """
        try:
            opened = self._files.at(lsn)
            position, chain = opened.header.first_lsn, opened.header.chain
            while position < lsn:
                chunk = self.read(position, chain, lsn, WALK_BYTES)
                position, chain = chunk.end_lsn, chunk.chain
        except DamageError as error:
            raise NotFoundError(f"LSN {lsn} is no boundary: {error.message}") from error
        return chain

    def verified_end(self, start_lsn: int, chain: int) -> tuple[int, int, str]:
        """(end_lsn, chain, problem) of a log that nobody appends to any more: the end of what can
        be verified from `start_lsn` on without a gap, and why it ends there (empty: cleanly)."""
        self.refresh()
        position = start_lsn
        while True:
            try:
                opened = self._files.at(position)
            except (DamageError, NotFoundError) as error:
                return position, chain, error.message
            room = opened.data_end() - position
            if room <= 0:
                return position, chain, ""
            data = opened.pread(position, min(WALK_BYTES, room))
            found = self._form.scan(data, position, chain, where=str(opened.path))
            if found.torn and not found.records and len(data) < room:
                data = opened.pread(position, min(self._form.stated_bytes(data), room))
                found = self._form.scan(data, position, chain, where=str(opened.path))
            position, chain = found.end_lsn, found.chain
            if not found.problem or (found.torn and found.records and len(data) < room):
                continue
            if opened.seal_at(position, chain) is not None:
                return position, chain, ""
            return position, chain, _locate(opened, found.problem, position)

    def close(self) -> None:
        self._files.close()


class LogReader(_Reader[Record]):
    """Reads the records of a log or a history."""

    def __init__(self, storage: Storage, directories: Sequence[Path], stream: StreamName) -> None:
        super().__init__(storage, directories, stream, RECORDS)


class EntryReader(_Reader[Entry]):
    """Reads the entries of an inbox, by position."""

    def __init__(self, storage: Storage, directories: Sequence[Path], stream: StreamName) -> None:
        super().__init__(storage, directories, stream, ENTRIES)


def _locate(opened: OpenSegment, problem: str, lsn: int) -> str:
    return f"{problem} (file offset {opened.offset_of(lsn)})"
