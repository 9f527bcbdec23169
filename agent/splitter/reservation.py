# SPDX-License-Identifier: Apache-2.0
"""Ordinals and LSNs of a group, durable ahead of use: neither is ever given twice.

    STATE_DIR/splitter/GROUP.json   {"ordinal": 3, "lsn_reserved": 4398046511104}
    STATE_DIR/splitter/starts       how often a splitter was started

Invariants
* Every stream of the group on this host has an ordinal ≤ `ordinal`, every LSN was < `lsn_reserved`,
  *before* the first byte of it was written. So after a crash that took the tmpfs with the log's
  end away, a new stream still begins beyond everything that anybody may have read or acknowledged.
* Record sequences of one start of the splitter lie in a range of their own, above all before.
* Of stamps it is known what the spool says (last_stamp.py): they go on from there.

Concurrency: `new_stream` and `extend` sync a file and so may take long; they are called in threads,
and a lock keeps them apart. `limit_lsn` changes only after the file is durable, and may be read
meanwhile.

Failure: the file is the old or the new one. A reservation that nobody used is a gap, which means
nothing. Without the file (a new state directory) the spool's own streams are the lower bound.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec

from agent.splitter.last_stamp import last_stamp_ns
from journal.segment import HEADER_BYTES
from journal.spool import list_segments, list_streams
from replicator.base.errors import DamageError
from replicator.base.storage import Storage, read_whole, write_durably

LSN_STEP: Final = 1 << 40
STATE_BYTES_MAX: Final = 4096
SEQUENCES_PER_START: Final = 1 << 48
"""At a million records a second this lasts nine years, and allows for 65,536 starts."""

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]


class ReservationState(msgspec.Struct, frozen=True):
    ordinal: _Count = 0
    lsn_reserved: _Count = 0


@dataclass(frozen=True, slots=True)
class NewStream:
    ordinal: int
    first_lsn: int


class Reservation:
    """One group's. `spool` are the group's directories in all tiers."""

    def __init__(
        self, storage: Storage, state_dir: Path, group: str, spool: Sequence[Path]
    ) -> None:
        self._storage = storage
        self._path = state_dir / "splitter" / f"{group}.json"
        self._spool = spool
        self._lock = threading.Lock()
        self._state = _load(storage, self._path)
        self.last_stamp_ns = last_stamp_ns(storage, spool)

    @property
    def limit_lsn(self) -> int:
        """LSNs below this may be used by the newest stream."""
        return self._state.lsn_reserved

    def known_ordinal(self) -> int:
        """The highest that is known here; 0 where the group never had a stream."""
        streams = list_streams(self._storage, self._spool)
        return max(self._state.ordinal, streams[-1].ordinal if streams else 0)

    def new_stream(self, above_ordinal: int = 0) -> NewStream:
        """Durable when it returns."""
        with self._lock:
            ordinal = max(self.known_ordinal(), above_ordinal) + 1
            first_lsn = max(self._state.lsn_reserved, self._spool_end())
            self._store(ReservationState(ordinal, first_lsn + LSN_STEP))
            return NewStream(ordinal, first_lsn)

    def extend(self) -> None:
        """Another step for the newest stream. Durable when it returns."""
        with self._lock:
            self._store(ReservationState(self._state.ordinal, self._state.lsn_reserved + LSN_STEP))

    def _store(self, state: ReservationState) -> None:
        self._storage.make_directory(self._path.parent)
        write_durably(self._storage, self._path, msgspec.json.encode(state))
        self._state = state

    def _spool_end(self) -> int:
        """A bound of the LSNs that the spool's files hold, rounded up to a step."""
        end = 0
        for stream in list_streams(self._storage, self._spool):
            for segment in list_segments(self._storage, self._spool, stream)[-1:]:
                size = _size(self._storage, segment.path)
                end = max(end, segment.first_lsn + size - HEADER_BYTES)
        return -(-end // LSN_STEP) * LSN_STEP


def first_sequence(storage: Storage, state_dir: Path) -> int:
    """The first record sequence of this start of the splitter. Durable when it returns."""
    path = state_dir / "splitter" / "starts"
    starts = 0
    if storage.exists(path):
        text = read_whole(storage, path, STATE_BYTES_MAX).strip()
        if not text.isdigit() or int(text) >= (1 << 64) // SEQUENCES_PER_START - 1:
            raise _damaged(path, "no count of starts")
        starts = int(text)
    storage.make_directory(path.parent)
    write_durably(storage, path, b"%d\n" % (starts + 1))
    return starts * SEQUENCES_PER_START + 1


def _load(storage: Storage, path: Path) -> ReservationState:
    if not storage.exists(path):
        return ReservationState()
    try:
        return msgspec.json.decode(
            read_whole(storage, path, STATE_BYTES_MAX), type=ReservationState
        )
    except msgspec.DecodeError as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> DamageError:
    return DamageError(
        f"{path}: {why}",
        hint="if it is lost for good, remove it: the group then needs a sync, and the receiver's "
        "newest ordinal is taken over from it",
    )


def _size(storage: Storage, path: Path) -> int:
    file = storage.open(path)
    try:
        return max(file.size(), HEADER_BYTES)
    finally:
        file.close()
