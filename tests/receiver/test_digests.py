# SPDX-License-Identifier: Apache-2.0
"""Digests of replica blocks, against hashlib over the whole image."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from journal.record import RecordType
from receiver.blocks.digests import digest_runs
from receiver.points.values import DigestChunk
from replicator.wire.limits import DIGEST_BLOCK_BYTES as BLOCK
from tests.receiver.world import World
from tests.world.storage import SimStorage

KEY = b"k" * 32


def digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16, key=KEY).digest()


@given(
    st.lists(st.sampled_from("0hx"), min_size=1, max_size=12),
    st.integers(1, BLOCK),
    st.integers(0, 12),
    st.integers(0, 14),
)
def test_every_block_is_stated_once_in_order(
    kinds: list[str], last_bytes: int, first: int, count: int
) -> None:
    """h: a hole, 0: zeroes that are allocated, x: data."""
    file = SimStorage().create(Path("/d"))
    size = (len(kinds) - 1) * BLOCK + last_bytes
    file.truncate(size)
    for at, kind in enumerate(kinds):
        length = min(BLOCK, size - at * BLOCK)
        if kind != "h":
            content = bytes(length) if kind == "0" else bytes(length - 1) + bytes([1 + at])
            file.pwritev([content], at * BLOCK)
    whole = file.pread(size, 0)
    stated: list[bytes | None] = []
    at = first
    for run in digest_runs(file, size, first, count, KEY):
        assert run.first_block == at
        assert (run.zero_blocks == 0) != (run.digests == b"")
        stated += [None] * run.zero_blocks
        stated += [run.digests[i : i + 16] for i in range(0, len(run.digests), 16)]
        at = first + len(stated)
    blocks = [whole[i : i + BLOCK] for i in range(0, size, BLOCK)][first : first + count]
    assert stated == [digest(block) if any(block) else None for block in blocks]


def test_a_hole_is_not_read() -> None:
    storage = SimStorage()
    file = storage.create(Path("/d"))
    file.truncate(1 << 40)
    (run,) = digest_runs(file, 1 << 40, 0, 1 << 30, KEY)
    assert (run.first_block, run.zero_blocks) == (0, (1 << 40) // BLOCK)
    assert storage.calls["pread"] == 0


def started() -> World:
    world = World(disks=[("a", 3 * BLOCK + 512)])
    world.begin_stream(from_zero=True)
    world.write("a", 0, b"old" * 30_000)
    world.cut()
    world.settle()
    world.begin_stream(from_zero=False)
    world.ship(1)
    return world


def test_digests_are_of_the_sync_under_way_and_of_one_lsn() -> None:
    world = started()
    (notice,) = world.group.intake.sync().syncs
    sync = world.source.records[0]
    assert (notice.disk, notice.sync_lsn, notice.begun_lsn) == (0, sync.lsn, sync.end_lsn)
    assert (notice.name, notice.size_bytes) == ("a", 3 * BLOCK + 512)
    assert world.group.showing.digests(0, sync.lsn, 0, 9, KEY) is None, "not applied that far yet"
    world.apply_all()
    assert world.group.known.is_applied(2, sync.end_lsn)
    chunk = world.group.showing.digests(0, sync.lsn, 0, 9, KEY)
    assert chunk is not None
    assert chunk.lsn == sync.end_lsn
    raw = world.raw("a")
    assert chunk.runs[0].digests[:16] == digest(raw[:BLOCK])
    assert world.group.showing.digests(0, sync.lsn - 1, 0, 9, KEY) is None, "another sync"
    assert world.group.showing.digests(3, sync.lsn, 0, 9, KEY) is None


def test_waiting_zeroes_are_not_in_the_digest() -> None:
    world = started()
    world.log(world.source.zero("a", 0, 3 * BLOCK))
    world.ship_all()
    world.apply_all()
    chunk = world.group.showing.digests(0, world.source.records[0].lsn, 0, 1, KEY)
    assert isinstance(chunk, DigestChunk)
    assert chunk.runs[0].digests == digest((b"old" * 30_000)[:BLOCK])


def test_a_resume_inside_a_sync_wants_digests_again_behind_all_that_is_durable() -> None:
    world = started()
    world.write("a", 0, b"n" * 4096)
    world.ship_all()
    world.crash(power=True)
    facts = world.group.known.welcome()
    source = world.source
    opened = world.group.intake.open_stream(
        source.stream, source.ordinal, facts.durable_lsn, source.chain_at(facts.durable_lsn)
    )
    (notice,) = opened.syncs
    assert (notice.disk, notice.sync_lsn) == (0, source.records[0].lsn)
    assert notice.begun_lsn == facts.durable_lsn


def test_reduced_frames() -> None:
    """Pieces of what a sync left, with one LSN for all."""
    world = started()
    world.acknowledge()
    world.apply_all()
    source = world.source
    raw = world.raw("a")
    for offset in range(0, 3 * BLOCK, BLOCK):
        world.guest["a"][offset : offset + BLOCK] = raw[offset : offset + BLOCK]
    world.guest["a"][BLOCK : BLOCK + 4096] = b"N" * 4096
    at = len(source.records)
    for offset in range(0, 3 * BLOCK + 512, BLOCK):
        length = min(BLOCK, 3 * BLOCK + 512 - offset)
        world.log(source.write("a", offset, bytes(world.guest["a"][offset : offset + length])))
    covered = source.records[at:]
    pieces = [
        (RecordType.SAME, 0, 0, BLOCK, b""),
        (RecordType.WRITE, 0, BLOCK, 4096, b"N" * 4096),
        (RecordType.SAME, 0, BLOCK + 4096, BLOCK - 4096, b""),
        (RecordType.ZERO, 0, 2 * BLOCK, BLOCK + 512, b""),
    ]
    world.group.intake.accept(source.reduced_frame(covered, pieces))
    world.group.intake.sync()
    assert world.group.known.welcome().durable_lsn == covered[-1].end_lsn
    world.log(source.sync_end("a"))
    world.cut()
    world.settle()
    world.crash(power=True)
    world.apply_all()
    world.check()
