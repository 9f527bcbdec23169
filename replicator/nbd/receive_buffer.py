# SPDX-License-Identifier: Apache-2.0
"""The memory that the kernel fills: one run of bytes, parsed in place. No I/O.

    0 ......... start ............ end ............ len(view)
      handed out       received          free

Invariant, checked after every step:  0 ≤ start ≤ end ≤ len(view), and view is either the usual
memory or memory of exactly the size of the one request that did not fit there.

`writable(needed)` first moves what is unparsed to the front, so the memory before `start`, and
every payload handed out of it, is valid only until then. It returns at least one byte, because
its caller has parsed all that is complete: what is left is shorter than `needed`.

A request that does not fit the usual memory gets memory of its own. As soon as it is handed out
the buffer goes back to the usual one; the large one lives as long as somebody holds the payload.
So an idle connection never holds more than the usual memory, and a WRITE of 32 MiB is copied once
(the few bytes that came before its header was seen).
"""

from __future__ import annotations


class ReceiveBuffer:
    """See the head of this file. `view`, `start`, `end` are read directly by the parsers."""

    __slots__ = ("_usual", "end", "start", "view")

    def __init__(self, usual_bytes: int) -> None:
        self._usual = memoryview(bytearray(usual_bytes))
        self.view = self._usual
        self.start = 0
        self.end = 0

    def __len__(self) -> int:
        """Bytes received and not yet consumed."""
        return self.end - self.start

    @property
    def memory_bytes(self) -> int:
        """What this buffer keeps alive."""
        large = 0 if self.view is self._usual else len(self.view)
        return len(self._usual) + large

    def writable(self, needed_bytes: int) -> memoryview:
        """Room for the rest of what is `needed_bytes` long from `start` on. Ends all payloads."""
        held = self.end - self.start
        assert held < needed_bytes, "a complete request was left in the buffer"
        if needed_bytes > len(self.view):
            self._move(memoryview(bytearray(needed_bytes)))
        elif self.start:
            self._move(self.view)
        self._check()
        return self.view[self.end :]

    def filled(self, count: int) -> None:
        """The kernel wrote `count` bytes at the front of what `writable` returned."""
        self.end += count
        self._check()

    def consume_to(self, position: int) -> None:
        """Everything before `position` has been handed out."""
        self.start = position
        if position == self.end:
            self.start = self.end = 0
            self.view = self._usual
        self._check()

    def grow_usual(self, usual_bytes: int) -> None:
        """From now on the usual memory is that large. Keeps what is unparsed."""
        assert usual_bytes >= len(self.view)
        self._usual = memoryview(bytearray(usual_bytes))
        self._move(self._usual)
        self._check()

    def _move(self, target: memoryview) -> None:
        held = self.end - self.start
        target[:held] = self.view[self.start : self.end]
        self.view = target
        self.start = 0
        self.end = held

    def _check(self) -> None:
        assert 0 <= self.start <= self.end <= len(self.view), "receive buffer out of bounds"
