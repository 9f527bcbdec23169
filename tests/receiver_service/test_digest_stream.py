# SPDX-License-Identifier: Apache-2.0
"""Digests during a sync: when they start, how far they go, when they stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from receiver.points.values import SyncNotice
from receiver.session.digest_stream import CHUNK_BLOCKS, DigestStream
from replicator.wire.limits import DIGEST_BLOCK_BYTES, DIGEST_BYTES
from replicator.wire.messages import Digests, DigestsDone, DigestsWanted, Message, SyncKey

BLOCKS = 2 * CHUNK_BLOCKS + 10
SYNC = SyncNotice(3, 500, 600, "vda", BLOCKS * DIGEST_BLOCK_BYTES - 1)


class Said:
    """A link that remembers what was said. `taken` is what the socket has room for."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.has_room = asyncio.Event()
        self.has_room.set()

    def send(self, message: Message) -> None:
        self.messages.append(message)

    async def drain(self) -> None:
        await self.has_room.wait()

    def blocks(self) -> list[int]:
        """The block numbers told, in order."""
        told: list[int] = []
        for message in self.messages:
            if isinstance(message, Digests):
                count = len(message.digests) // DIGEST_BYTES + message.zero_blocks
                told.extend(range(message.first_block, message.first_block + count))
        return told


class Replica:
    """Applies when it is told; its sync may end."""

    def __init__(self) -> None:
        self.applied_lsn = 0
        self.moved = asyncio.Event()
        self.is_over = False
        self.keys: set[bytes] = set()

    def apply_to(self, lsn: int) -> None:
        self.applied_lsn = lsn
        self.moved.set()

    async def until_applied(self, lsn: int) -> None:
        while self.applied_lsn < lsn:
            self.moved.clear()
            await self.moved.wait()

    async def digests(
        self, sync: SyncNotice, first_block: int, count: int, key: bytes
    ) -> list[Digests] | None:
        if self.is_over:
            return None
        self.keys.add(key)
        digests = bytes(count * DIGEST_BYTES)
        return [Digests(sync.disk, sync.sync_lsn, first_block, self.applied_lsn, digests)]


async def settle() -> None:
    """Lets every task run until it waits."""
    for _ in range(50):
        await asyncio.sleep(0)


@asynccontextmanager
async def streaming(said: Said, replica: Replica) -> AsyncIterator[DigestStream]:
    stream = DigestStream(said, replica)
    task = asyncio.create_task(stream.run())
    yield stream
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_nothing_is_said_before_the_sync_begin_is_applied() -> None:
    said, replica = Said(), Replica()
    async with streaming(said, replica) as stream:
        stream.begin(SYNC)
        stream.wanted(DigestsWanted(3, 500, BLOCKS))
        replica.apply_to(599)
        await settle()
        assert said.messages == []
        replica.apply_to(600)
        await settle()
        first = said.messages[0]
        assert isinstance(first, SyncKey)
        assert replica.keys == {first.key}
        assert said.blocks() == list(range(BLOCKS))
        assert said.messages[-1] == DigestsDone(3, 500)
        assert all(m.lsn >= 600 for m in said.messages if isinstance(m, Digests))


async def test_it_goes_only_as_far_as_the_agent_has_room() -> None:
    said, replica = Said(), Replica()
    replica.apply_to(600)
    async with streaming(said, replica) as stream:
        stream.begin(SYNC)
        await settle()
        assert [type(message) for message in said.messages] == [SyncKey]
        stream.wanted(DigestsWanted(3, 500, 7))
        stream.wanted(DigestsWanted(3, 500, 2))  # never falls
        await settle()
        assert said.blocks() == list(range(7))
        stream.wanted(DigestsWanted(3, 500, CHUNK_BLOCKS + 1))
        await settle()
        assert said.blocks() == list(range(CHUNK_BLOCKS + 1))
        assert not any(isinstance(message, DigestsDone) for message in said.messages)


async def test_it_waits_for_the_socket_between_chunks() -> None:
    said, replica = Said(), Replica()
    replica.apply_to(600)
    said.has_room.clear()
    async with streaming(said, replica) as stream:
        stream.begin(SYNC)
        stream.wanted(DigestsWanted(3, 500, BLOCKS))
        await settle()
        assert said.blocks() == list(range(CHUNK_BLOCKS))
        said.has_room.set()
        await settle()
        assert said.blocks() == list(range(BLOCKS))


async def test_a_sync_that_is_over_and_requests_for_unknown_ones_end_quietly() -> None:
    said, replica = Said(), Replica()
    replica.apply_to(600)
    async with streaming(said, replica) as stream:
        stream.wanted(DigestsWanted(9, 9, 9))
        stream.begin(SYNC)
        stream.wanted(DigestsWanted(3, 500, 5))
        await settle()
        replica.is_over = True
        stream.wanted(DigestsWanted(3, 500, BLOCKS))
        stream.wanted(DigestsWanted(3, 500, BLOCKS))
        await settle()
        assert said.blocks() == list(range(5))


async def test_each_sync_has_a_secret_of_its_own_and_a_later_one_replaces_the_earlier() -> None:
    said, replica = Said(), Replica()
    replica.apply_to(600)
    async with streaming(said, replica) as stream:
        stream.begin(SYNC)
        await settle()
        stream.begin(replace(SYNC, sync_lsn=900, begun_lsn=950))
        stream.wanted(DigestsWanted(3, 500, BLOCKS))
        await settle()
        assert said.blocks() == []
        replica.apply_to(950)
        stream.wanted(DigestsWanted(3, 900, 1))
        await settle()
        keys = [message.key for message in said.messages if isinstance(message, SyncKey)]
        assert len(set(keys)) == 2
        assert [m.sync_lsn for m in said.messages if isinstance(m, Digests)] == [900]
