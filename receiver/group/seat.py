# SPDX-License-Identifier: Apache-2.0
"""The seat of a group: the one place from which it may be fed. No socket.

At most one session holds it. The same agent (by the identity of its state directory) coming back
replaces its own session: the old one is fenced, and has let go of the group, before the new one
is answered. Another agent is refused while a session lives, however it got the right to feed.

Rollback needs the seat to be empty, and keeps it so until it has closed the stream: an agent that
says hello meanwhile is told to try again. Whoever sits there is asked to leave only by a person's
express order (`detach`); then too it has let go of the group before anything is done.

Concurrency: one event loop. Hellos of one group are answered one after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from replicator.base.errors import FencedError, OwnedError, ReplicatorError, UnreachableError


class Sitter(Protocol):
    """A session, as far as the seat goes."""

    @property
    def instance(self) -> str: ...

    @property
    def peer(self) -> str: ...

    @property
    def agent(self) -> str:
        """The name that its certificate proves."""
        ...

    async def fence(self) -> None:
        """Ends it; returns when nothing of it can reach the group any more."""
        ...

    def close(self, reason: ReplicatorError) -> None:
        """Ends it soon, and tells the peer why."""
        ...


class Seat:
    """See the head of this file. One for each group."""

    def __init__(self, group: str) -> None:
        self._group = group
        self._sitter: Sitter | None = None
        self._kept_for = ""
        self._one_hello = asyncio.Lock()
        self.fenced = 0

    @property
    def sitter(self) -> Sitter | None:
        """Who feeds the group now."""
        return self._sitter

    @asynccontextmanager
    async def taken_by(self, sitter: Sitter) -> AsyncIterator[None]:
        """Raises OwnedError, or UnreachableError for "try again soon"."""
        async with self._one_hello:
            await self._make_free_for(sitter)
            self._sitter = sitter
        try:
            yield
        finally:
            if self._sitter is sitter:
                self._sitter = None

    @asynccontextmanager
    async def kept_empty_for(self, order: str, *, detach: bool = False) -> AsyncIterator[None]:
        """Nobody sits down for the length of the block. Raises OwnedError where somebody sits,
        unless it is to be detached."""
        old = self._sitter
        if old is not None and not detach:
            raise OwnedError(
                f"group {self._group!r} is being fed by {old.peer}: no {order} now",
                hint="stop the source first (shut the VM down, stop the agent), then try again;"
                " --force-detach ends its connection, and it has to sync anew",
            )
        if self._kept_for:
            raise OwnedError(f"a {self._kept_for} of group {self._group!r} is under way already")
        self._kept_for = order
        try:
            if old is not None:
                async with self._one_hello:  # one that is being answered may sit down yet
                    await self._detach(order)
            yield
        finally:
            self._kept_for = ""

    async def _detach(self, order: str) -> None:
        old = self._sitter
        if old is None:
            return
        self.fenced += 1
        old.close(
            FencedError(
                f"group {self._group!r} was detached for a {order}",
                hint="the stream is closed for ever: a sync follows when it is taken again",
            )
        )
        await old.fence()

    async def _make_free_for(self, sitter: Sitter) -> None:
        if self._kept_for:
            raise UnreachableError(
                f"a {self._kept_for} of group {self._group!r} is under way",
                hint="it takes agents again when that has ended",
            )
        old = self._sitter
        if old is None:
            return
        if old.instance != sitter.instance:
            raise OwnedError(
                f"group {self._group!r} is fed by {old.peer}",
                hint="a group has one source; stop the other agent, or wait until its connection"
                " is known to be dead (20 s)",
            )
        self.fenced += 1
        await old.fence()
