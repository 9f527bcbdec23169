# SPDX-License-Identifier: Apache-2.0
"""A connection's share of the memory for requests, with the real pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from replicator.nbd import share as share_module
from replicator.nbd.limits import MAX_REQUEST_BYTES, OWN_RECEIVE_BYTES
from replicator.nbd.memory import ReceivePool
from replicator.nbd.share import Share
from tests.nbd.test_memory import SMALL, at_once


class Connection:
    """What its share tells it."""

    def __init__(self, pool: ReceivePool) -> None:
        self.is_fed = asyncio.Event()
        self.is_dropped = asyncio.Event()
        self.share = Share(pool, fed=self.is_fed.set, dropped=self._drop)

    def _drop(self) -> None:
        self.is_dropped.set()
        self.share.buffer.let_go()
        self.share.leave()

    def takes_half(self, size: int) -> None:
        """Of a request that is there by half."""
        assert not self.share.starves(size)
        self.share.buffer.writable(size)
        self.share.buffer.filled(1)


@pytest.fixture
def connection() -> Callable[[], Connection]:
    pool = ReceivePool(at_once, total_bytes=SMALL)
    return lambda: Connection(pool)


async def test_who_starves_is_fed_when_memory_is_there(
    connection: Callable[[], Connection],
) -> None:
    first, second = connection(), connection()
    first.takes_half(MAX_REQUEST_BYTES)
    assert not second.share.starves(OWN_RECEIVE_BYTES), "that much is its own"
    assert second.share.starves(MAX_REQUEST_BYTES)
    assert not second.is_fed.is_set()
    first.share.buffer.let_go()
    assert second.is_fed.is_set()
    assert not second.share.starves(MAX_REQUEST_BYTES)


async def test_who_starves_presses_those_who_stand_still(
    connection: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_module, "STALL_SECONDS", 0.01)
    first, second = connection(), connection()
    first.takes_half(MAX_REQUEST_BYTES)
    first.share.last_byte -= 100.0
    assert second.share.starves(MAX_REQUEST_BYTES)
    async with asyncio.timeout(20):
        await first.is_dropped.wait()
        await second.is_fed.wait()
    assert first.share.memory_bytes == 0


async def test_only_what_is_read_and_there_by_half_stands_still(
    connection: Callable[[], Connection],
) -> None:
    share = connection().share
    assert since(share) is None
    share.starves(MAX_REQUEST_BYTES)
    share.buffer.writable(MAX_REQUEST_BYTES)
    assert since(share) == share.last_byte
    share.is_read = False  # then it is not the client who keeps it waiting
    assert since(share) is None


def since(share: Share) -> float | None:
    """As a call, because a type checker takes a property for constant."""
    return share.stands_still_since


async def test_who_has_left_is_neither_fed_nor_presses(
    connection: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_module, "STALL_SECONDS", 0.0)
    first, second = connection(), connection()
    first.takes_half(MAX_REQUEST_BYTES)
    first.share.last_byte -= 100.0
    assert second.share.starves(MAX_REQUEST_BYTES)
    second.share.leave()
    second.share.leave()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not first.is_dropped.is_set()
    first.share.buffer.let_go()
    assert not second.is_fed.is_set()
