# SPDX-License-Identifier: Apache-2.0
"""One stream on its way to the receiver: how far it was read, and where it ends.

Of a *live* stream the splitter publishes the end, and nothing beyond it is looked at. Of a *dead*
one (its splitter is gone, or has gone on to another stream) nobody publishes anything: it is
shipped as far as it verifies, and `end_lsn` is found when reading comes to that point.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.shipping.resume import Leg
from journal.reader import Chunk, LogReader
from replicator.base.errors import DamageError, NotFoundError
from replicator.base.storage import Storage

# Beyond any LSN: a log whose writer is gone ends where its records end.
_UNBOUNDED = 1 << 62


class Stretch:
    """Shipped up to `lsn`, where the log's chain is `chain`. `opened`: the receiver has said so.

    `wanted`: up to which block digests were asked for, by (disk, sync_lsn); it has an entry as
    soon as that sync's key has come.
    """

    def __init__(self, storage: Storage, directories: Sequence[Path], leg: Leg) -> None:
        self.name = leg.name
        self.lsn = leg.start_lsn
        self.chain = leg.chain
        self.opened = False
        self.end_lsn: int | None = None
        self.freed_lsn = -1
        self.wanted: dict[tuple[int, int], int] = {}
        self._reader = LogReader(storage, directories, leg.name)

    @property
    def is_over(self) -> bool:
        """Read to the end of a dead stream."""
        return self.end_lsn is not None and self.lsn >= self.end_lsn

    def read_live(self, end_lsn: int, max_bytes: int) -> Chunk:
        """Up to the published end. Raises DamageError, NotFoundError."""
        self.end_lsn = None
        return self._reader.read(self.lsn, self.chain, end_lsn, max_bytes)

    def read_dead(self, max_bytes: int) -> Chunk | None:
        """As far as it verifies; None at its end."""
        limit = _UNBOUNDED if self.end_lsn is None else self.end_lsn
        try:
            return self._reader.read(self.lsn, self.chain, limit, max_bytes)
        except (DamageError, NotFoundError):
            if self.end_lsn is not None:
                return None
        self.end_lsn, _, _ = self._reader.verified_end(self.lsn, self.chain)
        if self.is_over:
            return None
        return self._reader.read(self.lsn, self.chain, self.end_lsn, max_bytes)

    def close(self) -> None:
        self._reader.close()
