# SPDX-License-Identifier: Apache-2.0
"""When a libvirt disk's sync has ended. No I/O.

QEMU flushes and reports READY when no block is dirty and no copy is in flight. That is not yet
"the target equals the source": a guest write larger than the export's maximum goes out in pieces,
one after the other's reply, but its whole range counts as clean from the start. FLUSH and READY
were seen with 40 % of such a write still to come, and the range held the replica's old content.

So a sync has ended when all of these hold:
* FLUSH was received on *this* connection (the one that carries the mirror now);
* READY was read back after that (events of earlier jobs arrive late);
* every request of exactly the maximum length seen before the FLUSH has had its continuation (a
  request of the same kind that begins where it ends), or CONTINUATION_NS have passed without one.
  A continuation of the maximum length awaits one in turn. A request that ends with the disk does
  not.

The time counts from our last reply, since QEMU sends a piece only after the reply to the one
before. Requests are noted in the order of receipt.
"""

from __future__ import annotations

from typing import Final

CONTINUATION_NS: Final = 1_000_000_000


class SyncEnd:
    """The rule for one sync on one connection. `longest` is the export's maximum request."""

    __slots__ = ("_awaited", "_longest", "_size", "_touched_ns", "flushed", "ready")

    def __init__(self, *, longest: int, size: int) -> None:
        self._longest = longest
        self._size = size
        self._awaited: dict[tuple[int, int], int] = {}  # (kind, offset) → how many
        self._touched_ns = 0
        self.flushed = False
        self.ready = False

    def request(self, kind: int, offset: int, length: int, now_ns: int) -> None:
        """A write or write-zeroes was received. `kind` tells the two apart."""
        continues = self._take(kind, offset)
        if length != self._longest or offset + length >= self._size:
            return
        if continues or not self.flushed:
            key = (kind, offset + length)
            self._awaited[key] = self._awaited.get(key, 0) + 1
            self._touched_ns = now_ns

    def answered(self, now_ns: int) -> None:
        """Replies have left: QEMU can send the next pieces only from now on."""
        if self._awaited:
            self._touched_ns = now_ns

    def confirm_ready(self) -> None:
        assert self.flushed, "READY counts only after the FLUSH"
        self.ready = True

    def due_ns(self) -> int | None:
        """From when on the sync has ended, if nothing more is noted; None while that is open.
        0 means at once."""
        if not (self.flushed and self.ready):
            return None
        return self._touched_ns + CONTINUATION_NS if self._awaited else 0

    def _take(self, kind: int, offset: int) -> bool:
        count = self._awaited.get((kind, offset), 0)
        if count > 1:
            self._awaited[kind, offset] = count - 1
        elif count:
            del self._awaited[kind, offset]
        return count > 0
