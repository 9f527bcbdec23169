# SPDX-License-Identifier: Apache-2.0
"""The memory that the kernel fills: one run of bytes, parsed in place. No I/O.

    0 ......... start ............ end ............ len(view)
      handed out       received          free

Invariant, checked after every step:  0 ≤ start ≤ end ≤ len(view), and view is nothing, or the usual
memory, or memory of exactly the size of the one request that did not fit there.

`writable(needed)` first moves what is unparsed to the front, so the memory before `start`, and
every payload handed out of it, is valid only until then. It returns at least one byte, because
its caller has parsed all that is complete: what is left is shorter than `needed`.

A request that does not fit the usual memory gets memory of its own, which `allocate` makes, in
place of the usual one. As soon as it is handed out the buffer has none, until the next is asked
for; the large one lives as long as somebody holds the payload. So a connection never has more than
the larger of the two, and a WRITE of 32 MiB is copied once (the few bytes that came before its
header was seen).
"""

from __future__ import annotations

from collections.abc import Callable

_NOTHING = memoryview(bytearray())


class ReceiveBuffer:
    """See the head of this file. `view`, `start`, `end` are read directly by the parsers."""

    __slots__ = ("_allocate", "_usual_bytes", "end", "is_large", "start", "view")

    def __init__(self, usual_bytes: int, allocate: Callable[[int], bytearray] = bytearray) -> None:
        self._usual_bytes = usual_bytes
        self._allocate = allocate
        self.is_large = False
        """It has memory for one request alone."""
        self.view = _NOTHING
        self.start = 0
        self.end = 0

    def __len__(self) -> int:
        """Bytes received and not yet consumed."""
        return self.end - self.start

    @property
    def memory_bytes(self) -> int:
        """What this buffer keeps alive."""
        return len(self.view)

    def lacks(self, needed_bytes: int) -> int:
        """How large a memory `writable` would ask `allocate` for; 0 if for none."""
        fits = needed_bytes <= max(len(self.view), self._usual_bytes)
        return 0 if fits else needed_bytes

    def writable(self, needed_bytes: int) -> memoryview:
        """Room for the rest of what is `needed_bytes` long from `start` on. Ends all payloads."""
        held = self.end - self.start
        assert held < needed_bytes, "a complete request was left in the buffer"
        if needed_bytes > len(self.view):
            self.is_large = needed_bytes > self._usual_bytes
            made = self._allocate(needed_bytes) if self.is_large else bytearray(self._usual_bytes)
            self._move(memoryview(made))
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
            if self.is_large:
                self.let_go()
        self._check()

    def let_go(self) -> None:
        """All memory is given up, with what is in it."""
        self.start = self.end = 0
        self.view = _NOTHING
        self.is_large = False

    def grow_usual(self, usual_bytes: int) -> None:
        """From now on the usual memory is that large. Keeps what is unparsed."""
        assert usual_bytes >= len(self.view)
        self._usual_bytes = usual_bytes
        self._move(memoryview(bytearray(usual_bytes)))
        self._check()

    def _move(self, target: memoryview) -> None:
        held = self.end - self.start
        target[:held] = self.view[self.start : self.end]
        self.view = target
        self.start = 0
        self.end = held

    def _check(self) -> None:
        assert 0 <= self.start <= self.end <= len(self.view), "receive buffer out of bounds"
