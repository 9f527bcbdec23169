# SPDX-License-Identifier: Apache-2.0
"""What the segments of a log, an inbox or a history have in common: entries with a chain. No I/O.

An `EntryFormat` is what reading, recovery and sealing need to know of the entries. Both formats
end their header with the chain, `xxh3_64(header before it, seed=chain of the entry before)`, and
state in it the size of what follows; so the run of them can be followed without knowing more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from xxhash import xxh3_64_intdigest

from journal import entry, record
from journal.entry import Entry
from journal.record import Record

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
Bytes = bytes | bytearray | memoryview


class Scanned(Protocol[E_co]):
    """journal.record.Scan or journal.entry.EntryScan."""

    @property
    def records(self) -> Sequence[tuple[int, E_co]]: ...
    @property
    def end_lsn(self) -> int: ...
    @property
    def chain(self) -> int: ...
    @property
    def problem(self) -> str: ...
    @property
    def torn(self) -> bool: ...


class Scan(Protocol[E_co]):
    """Splits and verifies bytes that start at an LSN with a known chain. Never raises."""

    def __call__(
        self, data: Bytes, start_lsn: int, chain: int, *, where: str = ...
    ) -> Scanned[E_co]: ...


@dataclass(frozen=True, slots=True)
class EntryFormat(Generic[E]):
    """One kind of entry. `size_field` is where the header states the bytes behind it (u32);
    `looks_like` finds where one may begin; `known_durable` is what an entry states."""

    header_bytes: int
    payload_limit_bytes: int
    size_field: int
    looks_like: re.Pattern[bytes]
    scan: Scan[E]
    known_durable: Callable[[E], int]

    def stated_bytes(self, data: Bytes, at: int = 0) -> int:
        """Size of the entry at `at` as its header, which nobody has verified, states it; bounded.
        0 when not even the header is there."""
        if len(data) - at < self.header_bytes:
            return 0
        field = data[at + self.size_field : at + self.size_field + 4]
        return self.header_bytes + min(int.from_bytes(field, "little"), self.payload_limit_bytes)

    def stored_chain(self, data: Bytes, at: int) -> int:
        return int.from_bytes(data[at + self.header_bytes - 8 : at + self.header_bytes], "little")

    def computed_chain(self, data: Bytes, at: int, seed: int) -> int:
        return xxh3_64_intdigest(bytes(data[at : at + self.header_bytes - 8]), seed)

    def follows(self, data: Bytes, at: int, seed: int) -> bool:
        """Whether a whole header stands at `at` and its chain goes on from `seed`."""
        return len(data) - at >= self.header_bytes and (
            self.computed_chain(data, at, seed) == self.stored_chain(data, at)
        )

    def candidates(self, data: bytes, start: int) -> Iterator[int]:
        """Where, from `start` on, an entry may begin."""
        return (found.start() for found in self.looks_like.finditer(data, start))


RECORDS: EntryFormat[Record] = EntryFormat(
    record.HEADER_BYTES,
    record.PAYLOAD_LIMIT_BYTES,
    4,
    record.LOOKS_LIKE_RECORD,
    record.scan,
    lambda found: found.known_durable,
)
ENTRIES: EntryFormat[Entry] = EntryFormat(
    entry.HEADER_BYTES,
    entry.FRAME_LIMIT_BYTES,
    4,
    entry.LOOKS_LIKE_ENTRY,
    entry.scan_entries,
    lambda found: found.known_durable,
)
