# SPDX-License-Identifier: Apache-2.0
"""Tells an agent what the replica holds while a disk is in a sync: keyed digests in disk order.

For each sync of this session: wait until everything up to and with its sync-begin is applied (a
digest of an older state would call blocks equal that are not), then send SYNC_KEY with a fresh
secret (a guest must not be able to prepare colliding blocks), then digests as far as the agent
has room for them (DIGESTS_WANTED), then DIGESTS_DONE. The next chunk is read only when the socket
has taken the one before: nothing piles up here.

The blocks are read by the group's apply thread, between batches: so each chunk is of exactly one
LSN, the one it states. A sync that has ended meanwhile is dropped silently; the agent does so too.

Concurrency: `begin` and `wanted` are called by the session's task, `run` is a task of its own.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Protocol

from receiver.points.values import SyncNotice
from replicator.wire.limits import DIGEST_BLOCK_BYTES, DIGESTS_PER_MESSAGE, SYNC_KEY_BYTES
from replicator.wire.messages import Digests, DigestsDone, DigestsWanted, Message, SyncKey

CHUNK_BLOCKS = 256
"""Blocks read in one go: 16 MiB, some 20 ms of the apply thread."""
assert CHUNK_BLOCKS <= DIGESTS_PER_MESSAGE


class DigestSource(Protocol):
    """The group, as far as digests go."""

    async def until_applied(self, lsn: int) -> None:
        """Returns once everything below `lsn` is applied. Raises what stopped the applying."""
        ...

    async def digests(
        self, sync: SyncNotice, first_block: int, count: int, key: bytes
    ) -> list[Digests] | None:
        """Messages for exactly these blocks, in order; None if that sync is over."""
        ...


class Speaker(Protocol):
    """The sending half of a link."""

    def send(self, message: Message) -> None: ...

    async def drain(self) -> None: ...


class _Sync:
    """How far the telling of one sync has come."""

    def __init__(self, start: SyncNotice) -> None:
        self.start = start
        self.key = secrets.token_bytes(SYNC_KEY_BYTES)
        self.block_count = -(-start.size_bytes // DIGEST_BLOCK_BYTES)
        self.next_block = 0
        self.wanted_end = 0
        self.announced = False

    @property
    def has_work(self) -> bool:
        return not self.announced or self.next_block < min(self.wanted_end, self.block_count)


class DigestStream:
    """See the head of this file. One for each session."""

    def __init__(self, link: Speaker, source: DigestSource) -> None:
        self._link = link
        self._source = source
        self._syncs: dict[tuple[int, int], _Sync] = {}
        self._news = asyncio.Event()

    def begin(self, start: SyncNotice) -> None:
        """A later sync of the same disk replaces the one before."""
        for key in [key for key in self._syncs if key[0] == start.disk]:
            del self._syncs[key]
        self._syncs[start.disk, start.sync_lsn] = _Sync(start)
        self._news.set()

    def forget_all(self) -> None:
        """Another stream begins: its syncs are others."""
        self._syncs.clear()

    def wanted(self, message: DigestsWanted) -> None:
        """More credit. For a sync that is over or unknown: ignored, it was on its way."""
        sync = self._syncs.get((message.disk, message.sync_lsn))
        if sync is not None:
            sync.wanted_end = max(sync.wanted_end, message.end_block)
            self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            sync = next((sync for sync in self._syncs.values() if sync.has_work), None)
            if sync is None:
                self._news.clear()
                await self._news.wait()
            elif not sync.announced:
                await self._announce(sync)
            else:
                await self._tell(sync)

    async def _announce(self, sync: _Sync) -> None:
        start = sync.start
        await self._source.until_applied(start.begun_lsn)
        sync.announced = True
        if self._is_current(sync):
            self._link.send(SyncKey(start.disk, start.sync_lsn, sync.key))

    async def _tell(self, sync: _Sync) -> None:
        """One chunk."""
        start, first = sync.start, sync.next_block
        end = min(first + CHUNK_BLOCKS, sync.wanted_end, sync.block_count)
        messages = await self._source.digests(start, first, end - first, sync.key)
        if not self._is_current(sync):
            return
        if messages is None:
            del self._syncs[start.disk, start.sync_lsn]
            return
        sync.next_block = end
        for message in messages:
            self._link.send(message)
        if end == sync.block_count:
            self._link.send(DigestsDone(start.disk, start.sync_lsn))
        await self._link.drain()

    def _is_current(self, sync: _Sync) -> bool:
        return self._syncs.get((sync.start.disk, sync.start.sync_lsn)) is sync
