# SPDX-License-Identifier: Apache-2.0
"""Numbers that are never given twice: ordinals and LSNs of a group, sequences of the host.

Per group a small state file, STATE_DIR/splitter/GROUP.json, holds the highest ordinal given and
`lsn_reserved`: all LSNs below it may have been used. It is written durably *before* the numbers are
used: when a stream opens, and once per RESERVE_BYTES of log. So a stream that opens after a crash
took the tmpfs away starts where no LSN has ever been.

If the state file is lost, what the spool still shows is taken instead; if that is gone as well the
receiver refuses the ordinal, and the agent asks for one above those that the receiver knows.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from journal.spool import StreamName
from replicator.base.errors import DamageError
from replicator.base.storage import Storage, read_whole, write_durably

RESERVE_BYTES = 1 << 40
_STATE_LIMIT_BYTES = 4096


class _State(msgspec.Struct):
    ordinal: int
    lsn_reserved: int


class Numbering:
    """Ordinals and LSNs of one group. `known` is what the spool shows: (stream, last LSN seen)."""

    def __init__(self, storage: Storage, path: Path, known: list[tuple[StreamName, int]]) -> None:
        self._storage = storage
        self._path = path
        self._state = self._load()
        for name, lsn in known:
            self._state.ordinal = max(self._state.ordinal, name.ordinal)
            above = (lsn // RESERVE_BYTES + 2) * RESERVE_BYTES
            if lsn >= self._state.lsn_reserved:
                self._state.lsn_reserved = above

    def _load(self) -> _State:
        if not self._storage.exists(self._path):
            return _State(0, 0)
        data = read_whole(self._storage, self._path, _STATE_LIMIT_BYTES)
        try:
            return msgspec.json.decode(data, type=_State)
        except msgspec.DecodeError as error:
            raise DamageError(
                f"{self._path}: not a splitter state file: {error}",
                hint="move it away: the group then starts a new stream with a sync",
            ) from error

    @property
    def used(self) -> bool:
        """Whether the group has ever had a stream here."""
        return self._state.ordinal > 0

    def open_stream(self, above_ordinal: int) -> tuple[int, int]:
        """(ordinal, first LSN) of a new stream; durable when this returns."""
        first_lsn = self._state.lsn_reserved
        self._save(max(self._state.ordinal, above_ordinal) + 1, first_lsn + RESERVE_BYTES)
        return self._state.ordinal, first_lsn

    def reserve(self, end_lsn: int) -> None:
        """Called before anything is appended up to `end_lsn`. Nearly always one comparison."""
        if end_lsn > self._state.lsn_reserved:
            self._save(self._state.ordinal, end_lsn + RESERVE_BYTES)

    def _save(self, ordinal: int, lsn_reserved: int) -> None:
        state = _State(ordinal, lsn_reserved)
        self._storage.make_directory(self._path.parent)
        write_durably(self._storage, self._path, msgspec.json.encode(state))
        self._state = state


class HostSequence:
    """One counter for all records of all groups of the host."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next = 0

    def take(self) -> int:
        number = self.next
        self.next = number + 1
        return number
