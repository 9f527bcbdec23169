# SPDX-License-Identifier: Apache-2.0
"""The memory in which a server's clients may put requests: bounded over all of them. No I/O.

Each connection has OWN_RECEIVE_BYTES, always. What it needs beyond, for a larger request, comes
from what all share, and only as much as is there:

    connections × OWN_RECEIVE_BYTES  +  memory of larger requests  ≤  RECEIVE_BYTES_MAX

Larger requests leave room for NEWCOMERS more connections, if there may be so many, so that who
comes while they are under way is accepted all the same.

* A request that fits a connection's own memory is never left unread, whatever the others do: the
  kernel holds less of a connection than that, so nothing that has come whole waits here.
* A larger one waits, in the order of asking, until there is room for it. Nobody is passed.
* Who waits does not wait for ever. A request that takes shared memory, is there by half, and has
  not grown by a byte for STALL_SECONDS although it is read, has to give it back while others wait:
  its connection is dropped. Visitors, who have not written yet, go before sources; of each, who has
  stood still longest goes first; and no more of them than the first in the row needs.

A connection for which there is no memory of its own left is not accepted.

Memory comes back when nobody holds it any more, which may be in another thread and at any moment:
then it is noted, and counted in the next step of the loop.

Concurrency: the event loop's thread, but for that.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

from replicator.nbd.limits import (
    MAX_REQUEST_BYTES,
    NEWCOMERS,
    OWN_RECEIVE_BYTES,
    RECEIVE_BYTES_MAX,
    STALL_SECONDS,
)


class Member(Protocol):
    """A connection. Hashable by identity."""

    @property
    def is_visitor(self) -> bool:
        """It has written nothing yet."""
        ...

    @property
    def stands_still_since(self) -> float | None:
        """When the last byte came of a request that is there by half, in memory of the pool; None
        if there is none, or if it is not read at the moment."""
        ...

    @property
    def memory_bytes(self) -> int:
        """What that request takes."""
        ...

    def admitted(self) -> None:
        """What it asked for is its own now. Called in a step of the loop."""
        ...

    def give_way(self) -> None:
        """Ends it; its memory comes back."""
        ...


class _Memory(bytearray):
    """Tells when it is gone, which a plain one cannot."""


class ReceivePool:
    """See the head of this file. `later` has a function called in a step of the loop, from any
    thread."""

    def __init__(
        self,
        later: Callable[[Callable[[], None]], object],
        *,
        total_bytes: int = RECEIVE_BYTES_MAX,
    ) -> None:
        self._later = later
        self._total_bytes = total_bytes
        self._members: set[Member] = set()
        self._granted: dict[Member, int] = {}  # not made into memory yet
        self._waiting: dict[Member, int] = {}  # in the order of asking
        self._used_bytes = 0  # of larger requests: granted, or memory that somebody holds
        self._returned: deque[int] = deque()

    @property
    def used_bytes(self) -> int:
        """At most this much is taken, own memory of connections included."""
        return self._used_bytes + len(self._members) * OWN_RECEIVE_BYTES

    # Connections.

    @property
    def has_place(self) -> bool:
        """Whether one more may come, and the largest request still be taken."""
        self._count_returned()
        is_free = self.used_bytes + OWN_RECEIVE_BYTES <= self._total_bytes
        return is_free and len(self._members) < self._places

    def join(self, member: Member) -> None:
        self._members.add(member)

    def leave(self, member: Member) -> None:
        """Fine if it has left already. Memory that it has is counted until it is gone."""
        self._members.discard(member)
        self._waiting.pop(member, None)
        self._used_bytes -= self._granted.pop(member, 0)
        self._admit()

    # Memory.

    def ask(self, member: Member, size: int) -> bool:
        """Whether `memory` of that size may be made for the member now. If not it stands in the
        row, and is told. Asking again changes nothing."""
        if size <= OWN_RECEIVE_BYTES or self._granted.get(member) == size:
            return True
        self._count_returned()
        self._waiting[member] = size
        self._admit(asking=member)
        return member in self._granted

    def memory(self, member: Member, size: int) -> bytearray:
        """Of that size, after `ask` has said yes."""
        if size <= OWN_RECEIVE_BYTES:
            return bytearray(size)
        if self._granted.pop(member, 0) != size:
            raise AssertionError("memory that was not asked for")
        made = _Memory(size)
        weakref.finalize(made, self._gone, size).atexit = False
        return made

    def waits(self, member: Member) -> bool:
        return member in self._waiting

    def press(self, now: float) -> float | None:
        """Drops who stands still, if somebody waits and as far as that helps the first in the row.
        In how many seconds to look again; None: nobody waits."""
        self._count_returned()
        self._admit()
        if not self._waiting:
            return None
        self._drop(next(iter(self._waiting.values())) - self._free_bytes, now)
        self._admit()
        return STALL_SECONDS / 4 if self._waiting else None

    def make_place(self, now: float) -> None:
        """For one more connection, if requests that stand still have the memory."""
        self._drop(self.used_bytes + OWN_RECEIVE_BYTES - self._total_bytes, now)

    # Inside.

    @property
    def _places(self) -> int:
        """So many connections, and the largest request."""
        return (self._total_bytes - MAX_REQUEST_BYTES) // OWN_RECEIVE_BYTES

    @property
    def _free_bytes(self) -> int:
        """For larger requests."""
        kept = min(len(self._members) + NEWCOMERS, self._places)
        return self._total_bytes - kept * OWN_RECEIVE_BYTES - self._used_bytes

    def _drop(self, missing: int, now: float) -> None:
        """Who stands still, until that many bytes have come back."""
        due = sorted(
            (
                (not member.is_visitor, since, member)
                for member in self._members
                if (since := member.stands_still_since) is not None and now - since >= STALL_SECONDS
            ),
            key=lambda each: each[:2],
        )
        for _, _, member in due:
            if missing <= 0:
                break
            missing -= member.memory_bytes
            member.give_way()
        self._count_returned()

    def _admit(self, asking: Member | None = None) -> None:
        """From the front of the row, as far as there is room. Who asks just now is not told."""
        while self._waiting:
            member, size = next(iter(self._waiting.items()))
            if size > self._free_bytes:
                return
            del self._waiting[member]
            self._granted[member] = size
            self._used_bytes += size
            if member is not asking:
                member.admitted()

    def _gone(self, size: int) -> None:
        """Any thread, any moment."""
        self._returned.append(size)
        try:
            self._later(self._settle)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    def _settle(self) -> None:
        self._count_returned()
        self._admit()

    def _count_returned(self) -> None:
        while self._returned:
            self._used_bytes -= self._returned.popleft()
