# SPDX-License-Identifier: Apache-2.0
"""What an agent has sent and the group has not taken in yet. No socket.

Messages keep their order. Frames that lie next to each other are taken together: while one group
of them is being made durable the next gathers here, so the slower the disk, the larger the groups.

Bounds: beyond HIGH_BYTES `has_room` is false, and the session stops taking from its link, whose
own bounds then stop the peer. One event loop: one task puts, one takes.
"""

from __future__ import annotations

import asyncio
from collections import deque

from replicator.base.units import KIB, MIB
from replicator.wire.frames import Frame
from replicator.wire.messages import Message

HIGH_BYTES = 16 * MIB
GROUP_BYTES = 8 * MIB
"""Frames that are made durable together: beyond this a larger group gains nothing, and the first
of it waits for the last."""
SMALL_BYTES = 1 * KIB
"""What any other message counts for."""


class Arrivals:
    """See the head of this file."""

    def __init__(self) -> None:
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, message: Message) -> None:
        self._waiting.append(message)
        self._bytes += _cost(message)
        if self._bytes > HIGH_BYTES:
            self._room.clear()
        self._news.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._news.set()

    async def has_room(self) -> None:
        await self._room.wait()

    async def take(self) -> list[Frame] | Message | None:
        """The frames at the front, or the one other message there; None after the last."""
        while not self._waiting:
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        first = self._take_one()
        if not isinstance(first, Frame):
            return first
        frames, total = [first], first.size
        while self._waiting and total < GROUP_BYTES:
            following = self._waiting[0]
            if not isinstance(following, Frame):
                break
            self._take_one()
            frames.append(following)
            total += following.size
        return frames

    def _take_one(self) -> Message:
        message = self._waiting.popleft()
        self._bytes -= _cost(message)
        if self._bytes <= HIGH_BYTES:
            self._room.set()
        return message


def _cost(message: Message) -> int:
    return message.size if isinstance(message, Frame) else SMALL_BYTES
