# SPDX-License-Identifier: Apache-2.0
"""When a libvirt disk's sync has ended. No I/O.

FLUSH and READY alone are not "consistent now". QEMU splits a guest write above our maximum request
into pieces, sends them one after another, and takes the whole range for clean from the start: it
was seen to flush and to announce READY with 40 % of a guest write still to come. So a sync has
ended when all of these hold, on one and the same connection:

1. FLUSH has come;
2. READY was read back after it (events of earlier jobs arrive late, so the agent reads it from the
   domain's live XML);
3. every request of exactly the maximum length seen before the FLUSH has had its continuation (the
   request of the same kind that starts where it ends; if that has maximum length too, its own), or
   CONTINUATION_LIMIT_NS have passed without one. A request that ends at the end of the disk has
   none. The maximum is 32 MiB to make this rare.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CONTINUATION_LIMIT_NS = 1_000_000_000


@dataclass(slots=True)
class SyncEndRule:
    """The rule for one connection of one disk. `max_bytes` is the advertised maximum request."""

    disk_bytes: int
    max_bytes: int
    flushed: bool = False
    ready: bool = False
    _expected: set[tuple[int, int]] = field(default_factory=set)
    _last_progress_ns: int = 0

    def request(self, command: int, offset: int, length: int, now_ns: int) -> None:
        """A request that modifies was received."""
        continues = (command, offset) in self._expected
        if continues:
            self._expected.discard((command, offset))
            self._last_progress_ns = now_ns
        if length != self.max_bytes or offset + length >= self.disk_bytes:
            return
        # After the FLUSH only the rest of what began before it is waited for: a guest write that
        # begins later is a write under way like any other.
        if continues or not self.flushed:
            self._expected.add((command, offset + length))

    def flush(self, now_ns: int) -> None:
        self.flushed = True
        self._last_progress_ns = now_ns

    def ended(self, now_ns: int) -> bool:
        if not (self.flushed and self.ready):
            return False
        return not self._expected or now_ns - self._last_progress_ns >= CONTINUATION_LIMIT_NS
