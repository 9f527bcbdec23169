# SPDX-License-Identifier: Apache-2.0
"""A sync over the wire: digests of exactly what the replica holds, then only what differs."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import pytest

from receiver.session.digest_stream import CHUNK_BLOCKS
from replicator.control.orders import POINTS, STATUS
from replicator.wire.limits import DIGEST_BLOCK_BYTES, DIGEST_BYTES
from replicator.wire.messages import Digests, DigestsDone, DigestsWanted, SyncKey
from tests.receiver_service.dr_site import DrSite
from tests.receiver_service.fake_agent import FakeAgent
from tests.receiver_service.source import Source
from tests.receiver_service.test_orders import order

BLOCKS = CHUNK_BLOCKS + 40
SIZE = BLOCKS * DIGEST_BLOCK_BYTES - 1000
DISKS = {"vda": SIZE}


@pytest.fixture
def site(tmp_path: Path) -> DrSite:
    return DrSite(tmp_path)


def first_life() -> Source:
    source = Source(DISKS)
    source.start_from_zero()
    for block in (0, 1, 7, 100, CHUNK_BLOCKS, BLOCKS - 2):
        source.write("vda", block * DIGEST_BLOCK_BYTES, bytes([block % 251 + 1]) * 4096)
    source.write("vda", SIZE - 512, b"e" * 512)
    source.cut("before the sync")
    return source


def expected(content: bytes, block: int, key: bytes) -> bytes | None:
    """The digest of a block; None for one of zeroes."""
    data = content[block * DIGEST_BLOCK_BYTES : (block + 1) * DIGEST_BLOCK_BYTES]
    return blake2b(data, digest_size=16, key=key).digest() if any(data) else None


async def told(agent: FakeAgent) -> dict[int, bytes | None]:
    """All digests up to DIGESTS_DONE, by block; in disk order, without gaps."""
    blocks: dict[int, bytes | None] = {}
    await agent.expect(DigestsDone)
    for message in agent.received:
        if isinstance(message, Digests):
            assert message.first_block == len(blocks)
            for at in range(0, len(message.digests), DIGEST_BYTES):
                blocks[len(blocks)] = message.digests[at : at + DIGEST_BYTES]
            for _ in range(message.zero_blocks):
                blocks[len(blocks)] = None
    return blocks


async def test_digests_say_what_the_replica_holds_and_the_difference_makes_it_equal(
    site: DrSite,
) -> None:
    old, instance = first_life(), str(uuid4())
    async with site.running():
        agent = await site.agent()
        await agent.welcomed("web", instance=instance)
        await agent.open(old)
        await agent.ship(old, 0)

        new = Source(
            DISKS, ordinal=2, first_lsn=1 << 40, contents={"vda": bytes(old.contents["vda"])}
        )
        sync_lsn = new.sync_begin("vda")
        await agent.open(new)
        await agent.ship(new, new.first_lsn)
        key = await agent.expect(SyncKey)
        assert (key.disk, key.sync_lsn) == (0, sync_lsn)
        agent.link.send(DigestsWanted(0, sync_lsn, 10))
        await agent.expect(Digests, lambda m: m.first_block + m.zero_blocks >= 9)
        agent.link.send(DigestsWanted(0, sync_lsn, BLOCKS))
        digests = await told(agent)
        held = bytes(old.contents["vda"])
        assert digests == {block: expected(held, block, key.key) for block in range(BLOCKS)}

        before = new.end_lsn
        new.write("vda", 5 * DIGEST_BLOCK_BYTES, b"n" * DIGEST_BLOCK_BYTES)
        new.zero("vda", 100 * DIGEST_BLOCK_BYTES, DIGEST_BLOCK_BYTES)
        for block in range(BLOCKS):
            if block not in (5, 100):
                offset = block * DIGEST_BLOCK_BYTES
                new.same("vda", offset, min(DIGEST_BLOCK_BYTES, SIZE - offset))
        new.sync_end("vda")
        status = (await order(site.control.order, STATUS)).groups[0]
        assert status.state == "syncing"
        new.cut("after the sync")
        await agent.ship(new, before)
        await agent.applied(new.end_lsn)
        assert site.replica("vda").read_bytes() == new.contents["vda"]
        points = await order(site.control.order, POINTS, "web")
        assert [point.label for point in points] == ["before the sync", "after the sync"]
        await agent.close()


async def test_a_resume_inside_a_sync_begins_its_digests_anew_with_another_key(
    site: DrSite,
) -> None:
    source, instance = first_life(), str(uuid4())
    async with site.running():
        agent = await site.agent()
        await agent.welcomed("web", instance=instance)
        await agent.open(source)
        begun = source.sync_begin("vda")
        await agent.ship(source, 0)
        first = await agent.expect(SyncKey)
        await agent.close()
    async with site.running():
        agent = await site.agent()
        welcome = await agent.welcomed("web", instance=instance)
        assert welcome.durable_lsn == source.end_lsn
        opened = await agent.open(source, source.end_lsn)
        assert [(each.name, each.sync_lsn) for each in opened.syncing] == [("vda", begun)]
        second = await agent.expect(SyncKey)
        assert second.key != first.key
        agent.link.send(DigestsWanted(0, begun, BLOCKS))
        digests = await told(agent)
        held = bytes(source.contents["vda"])
        assert digests == {block: expected(held, block, second.key) for block in range(BLOCKS)}
        await agent.close()


async def test_a_source_that_changed_its_size_gets_another_image_at_the_sync_begin(
    site: DrSite,
) -> None:
    async with site.running():
        agent = await site.agent()
        await agent.welcomed("web")
        old = first_life()
        await agent.open(old)
        await agent.ship(old, 0)
        await agent.applied(old.end_lsn)
        grown = Source({"vda": SIZE + 4096}, ordinal=2, first_lsn=1 << 40)
        grown.sync_begin("vda")
        await agent.open(grown)
        await agent.ship(grown, grown.first_lsn)
        await agent.applied(grown.end_lsn)
        await agent.close()
        assert site.replica("vda").read_bytes() == old.contents["vda"], "as it was"
        (other,) = site.replica("vda").parent.glob("vda@*.raw")
        assert other.stat().st_size == SIZE + 4096
