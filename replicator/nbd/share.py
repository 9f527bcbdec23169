# SPDX-License-Identifier: Apache-2.0
"""A connection's share of the memory for requests: its buffer, its place in the pool. No socket.

A request that does not fit the connection's own memory takes some that all share (memory.py). While
there is none the connection *starves*: it does not read, it waits in the row, and when that has
lasted STALL_SECONDS it presses those who stand still.

Concurrency: the event loop's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from replicator.nbd.limits import HANDSHAKE_BUFFER_BYTES, STALL_SECONDS
from replicator.nbd.memory import ReceivePool
from replicator.nbd.receive_buffer import ReceiveBuffer


class Share:
    """Implements replicator.nbd.memory.Member. `fed` is called when what it starved for is there,
    `dropped` when it has to give back what it holds."""

    __slots__ = (
        "_dropped",
        "_fed",
        "_pool",
        "_pressing",
        "buffer",
        "is_read",
        "is_visitor",
        "last_byte",
    )

    def __init__(
        self, pool: ReceivePool, *, fed: Callable[[], None], dropped: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._fed = fed
        self._dropped = dropped
        self._pressing: asyncio.TimerHandle | None = None
        self.buffer = ReceiveBuffer(HANDSHAKE_BUFFER_BYTES, self._memory)
        self.is_visitor = True
        self.is_read = True
        """What comes is taken at once: a request that does not grow is the client's doing."""
        self.last_byte = time.monotonic()
        """When one came last. The loop's own clock counts in milliseconds, or stands."""
        pool.join(self)

    @property
    def stands_still_since(self) -> float | None:
        return self.last_byte if self.is_read and self.buffer.is_large else None

    @property
    def memory_bytes(self) -> int:
        return self.buffer.memory_bytes

    def admitted(self) -> None:
        self._fed()

    def give_way(self) -> None:
        self._dropped()

    def starves(self, needed_bytes: int) -> bool:
        """There is no memory for a request of that length. Who starves is fed, or asks again."""
        lacking = self.buffer.lacks(needed_bytes)
        if not lacking or self._pool.ask(self, lacking):
            return False
        if self._pressing is None:
            self._press_in(STALL_SECONDS)
        return True

    def leave(self) -> None:
        """The connection is over. Idempotent."""
        if self._pressing is not None:
            self._pressing.cancel()
            self._pressing = None
        self._pool.leave(self)

    def _memory(self, size: int) -> bytearray:
        return self._pool.memory(self, size)

    def _press_in(self, seconds: float) -> None:
        self._pressing = asyncio.get_running_loop().call_later(seconds, self._press)

    def _press(self) -> None:
        self._pressing = None
        if not self._pool.waits(self):
            return
        again_seconds = self._pool.press(time.monotonic())
        if again_seconds is not None and self._pool.waits(self):
            self._press_in(again_seconds)
