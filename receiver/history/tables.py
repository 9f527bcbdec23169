# SPDX-License-Identifier: Apache-2.0
"""The extent tables that were used last, up to a number of bytes. A lock, no I/O.

Every table can be read again from its batch's header, so none has to be kept. Those of new batches
are put in when they are written: views and the redo of a batch ask for them first.

Concurrency: any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from receiver.history.batches import Batch
from receiver.history.images import ImageTable
from replicator.base.units import MIB

TABLES_BYTES = 16 * MIB
_ENTRY_BYTES = 512
"""What an entry takes besides its rows, about: a small table is mostly that."""


class Tables:
    """By batch. A batch that was merged with others has another place, so another table."""

    def __init__(self, bytes_max: int = TABLES_BYTES) -> None:
        self._bytes_max = bytes_max
        self._tables: OrderedDict[tuple[int, int, int], ImageTable] = OrderedDict()
        self._lock = threading.Lock()
        self.used_bytes = 0

    def get(self, batch: Batch) -> ImageTable | None:
        key = _key(batch)
        with self._lock:
            table = self._tables.get(key)
            if table is not None:
                self._tables.move_to_end(key)
            return table

    def put(self, batch: Batch, table: ImageTable) -> None:
        """One larger than all of the room is not kept."""
        key, size = _key(batch), _size(table)
        if size > self._bytes_max:
            return
        with self._lock:
            known = self._tables.pop(key, None)
            if known is not None:
                self.used_bytes -= _size(known)
            self._tables[key] = table
            self.used_bytes += size
            while self.used_bytes > self._bytes_max:
                _, gone = self._tables.popitem(last=False)
                self.used_bytes -= _size(gone)

    def clear(self) -> None:
        """What a batch's place holds may not be what it was."""
        with self._lock:
            self._tables.clear()
            self.used_bytes = 0


def _key(batch: Batch) -> tuple[int, int, int]:
    return batch.number, batch.begin, batch.end


def _size(table: ImageTable) -> int:
    return _ENTRY_BYTES + table.size_bytes
