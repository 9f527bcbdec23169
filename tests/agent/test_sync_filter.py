# SPDX-License-Identifier: Apache-2.0
"""The sync filter against a plain model of a whole sync, and each rule's absence against it.

The model: a source disk that a background copy and guest writes send through the log, in order; a
replica that starts as anything; a receiver that states digests of what it has applied, late and in
disk order, and keeps zeroes aside until the end. After the sync the replica must equal the source.
Blocks are 64 KiB in the code and stand for a handful of "cells" here: content is repeated bytes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.shipping import sync_filter
from agent.shipping.sync_filter import (
    BLOCK_BYTES,
    CHUNK_BLOCKS,
    LOOKAHEAD_BLOCKS,
    MAX_DIGEST_CHUNKS,
    Piece,
    PieceKind,
    SyncFilter,
    WaitFor,
)
from replicator.base.errors import UsageError

CELL = BLOCK_BYTES // 4  # the grain of the model
KEY = b"k" * 32


def content(cells: list[int]) -> bytes:
    return b"".join(bytes([cell]) * CELL for cell in cells)


def digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16, key=KEY).digest()


@dataclass
class Receiver:
    """Applies what was shipped, in order, with a delay; states digests of what it has applied."""

    replica: list[int]
    size_cells: int
    settles: bool = True
    same_clears: bool = True

    def __post_init__(self) -> None:
        self.pending: set[int] = set()

    def apply(self, kind: str, first: int, cells: list[int]) -> None:
        span = range(first, first + len(cells))
        if kind == "zero":
            self.pending |= set(span)
            return
        if kind == "same":
            if self.same_clears:
                self.pending -= set(span)
            return
        self.pending -= set(span)
        self.replica[first : first + len(cells)] = cells

    def end(self) -> None:
        for cell in self.pending if self.settles else ():
            self.replica[cell] = 0


@dataclass
class World:
    """One random sync, step by step."""

    seed: int
    barrier: bool = True
    same_clears: bool = True

    def __post_init__(self) -> None:
        self.rng = rng = random.Random(self.seed)
        self.blocks = 5
        self.cells = cells = self.blocks * 4 - rng.choice([0, 1, 2, 3])
        self.source = [rng.choice([0, 0, 1, 2, 3]) for _ in range(cells)]
        old = self.source[:] if rng.random() < 0.5 else [rng.choice([0, 7]) for _ in range(cells)]
        for cell in range(cells):
            if rng.random() < 0.2:
                old[cell] = rng.choice([0, 9])
        self.receiver = Receiver(old, cells, same_clears=self.same_clears)
        self.sync = SyncFilter(size=cells * CELL, sync_lsn=0, base_lsn=100)
        self.sync.set_key(KEY)
        # Older records that the receiver may not have applied when the sync begins.
        self.tail: list[tuple[str, int, list[int]]] = [
            ("write", rng.randrange(cells), [8]) for _ in range(rng.choice([0, 3]))
        ]
        if self.barrier:
            self.apply_tail()
        self.log: list[tuple[str, int, list[int]]] = []
        self.wire: list[tuple[str, int, list[int]]] = []
        self.stated = 0
        self.copy_at = 0
        if rng.random() < 0.5:  # the mirror job zeroes the target first
            self.log.append(("zero", 0, [0] * cells))

    def run(self) -> tuple[bool, int]:
        """(whether the replica equals the source after the sync, cells that were not shipped)."""
        steps = 0
        while self.copy_at < self.cells or self.log or self.wire:
            steps += 1
            choice = self.rng.random()
            if choice < 0.2 and steps < 200:
                self.guest_write()
            elif choice < 0.4 and self.copy_at < self.cells:
                self.copy()
            elif choice < 0.5 and self.stated < self.blocks:
                self.state_digest()
            elif choice < 0.75 and self.wire:
                if self.tail and self.rng.random() < 0.5:
                    self.receiver.apply(*self.tail.pop(0))
                self.receiver.apply(*self.wire.pop(0))
            elif self.log:
                self.ship()
        self.apply_tail()
        self.receiver.end()
        return self.receiver.replica == self.source, self.sync.same_bytes // CELL

    def apply_tail(self) -> None:
        for record in self.tail:
            self.receiver.apply(*record)
        self.tail = []

    def guest_write(self) -> None:
        """Source first, then the log."""
        rng, first = self.rng, self.rng.randrange(self.cells)
        count = min(rng.choice([1, 2, 4, 8]), self.cells - first)
        old = self.receiver.replica[first]
        value = rng.choice([0, self.source[first], old, rng.randrange(10, 250)])
        self.source[first : first + count] = [value] * count
        kind = "zero" if value == 0 and rng.random() < 0.5 else "write"
        self.log.append((kind, first, [value] * count))

    def copy(self) -> None:
        count = min(self.rng.choice([4, 8, 3]), self.cells - self.copy_at)
        part = self.source[self.copy_at : self.copy_at + count]
        kind = "zero" if not any(part) and self.rng.random() < 0.5 else "write"
        self.log.append((kind, self.copy_at, part))
        self.copy_at += count

    def state_digest(self) -> None:
        part = self.receiver.replica[self.stated * 4 : self.stated * 4 + 4]
        if any(part) or self.rng.random() < 0.5:
            self.sync.offer_digests(self.stated, 100, digest(content(part)))
        else:
            self.sync.offer_zeroes(self.stated, 100, 1)
        self.stated += 1
        if self.stated == self.blocks:
            self.sync.done()

    def ship(self) -> None:
        kind, first, part = self.log[0]
        if kind == "zero":
            self.wire.append(self.log.pop(0))
            return
        patient = self.rng.random() < 0.9
        verdict = self.sync.judge(first * CELL, content(part), patient=patient)
        if isinstance(verdict, WaitFor):
            assert self.stated <= verdict.block < self.blocks
            return
        self.log.pop(0)
        for piece in verdict:
            at = piece.offset // CELL - first
            some = part[at : at + piece.length // CELL]
            name = "same" if piece.kind is PieceKind.SAME else "write"
            self.wire.append((name, piece.offset // CELL, some))


def failures(seeds: range, **world: bool) -> int:
    return sum(not World(seed, **world).run()[0] for seed in seeds)


def test_after_a_sync_the_replica_equals_the_source() -> None:
    outcomes = [World(seed).run() for seed in range(2500)]
    assert all(equal for equal, _ in outcomes)
    assert sum(same for _, same in outcomes) > 2500  # and it does leave a lot out


class ForgetsToTouch(SyncFilter):
    """A shipped byte does not void the digest."""

    def _touch(self, block: int) -> None:
        pass


class TakesLateDigests(SyncFilter):
    """A digest is believed though the block was shipped before it came."""

    def _touch(self, block: int) -> None:
        if self._state(block) in (sync_filter._KNOWN, sync_filter._ZERO):
            super()._touch(block)


@pytest.mark.parametrize("mutant", [ForgetsToTouch, TakesLateDigests])
def test_each_rule_of_the_filter_is_needed(
    mutant: type[SyncFilter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.agent.test_sync_filter.SyncFilter", mutant)
    assert failures(range(1500)) > 0


def test_the_barrier_before_the_digests_is_needed() -> None:
    assert failures(range(600), barrier=False) > 0


def test_a_same_has_to_clear_a_zero_kept_aside() -> None:
    assert failures(range(600), same_clears=False) > 0


@pytest.mark.parametrize("rule", ["lsn", "whole"])
def test_a_digest_that_is_too_old_or_of_more_than_was_written_is_not_believed(rule: str) -> None:
    sync = SyncFilter(size=4 * BLOCK_BYTES, sync_lsn=0, base_lsn=100)
    sync.set_key(KEY)
    data = b"a" * BLOCK_BYTES
    sync.offer_digests(0, 99 if rule == "lsn" else 100, digest(data))
    written = data if rule == "lsn" else data[: BLOCK_BYTES - 1]
    assert sync.judge(0, written) == [Piece(PieceKind.SHIP, 0, len(written))]


def ready(size: int, known: dict[int, bytes]) -> SyncFilter:
    sync = SyncFilter(size=size, sync_lsn=0, base_lsn=0)
    sync.set_key(KEY)
    for block in range((size + BLOCK_BYTES - 1) // BLOCK_BYTES):
        if block in known:
            sync.offer_digests(block, 0, digest(known[block]))
        else:
            sync.offer_zeroes(block, 0, 1)
    sync.done()
    return sync


def test_pieces_are_joined_and_cover_the_write() -> None:
    same = {1: b"b" * BLOCK_BYTES, 2: b"c" * BLOCK_BYTES}
    sync = ready(6 * BLOCK_BYTES, same)
    data = b"a" * BLOCK_BYTES + same[1] + same[2] + b"d" * (2 * BLOCK_BYTES) + b"tail"
    assert sync.judge(0, data) == [
        Piece(PieceKind.SHIP, 0, BLOCK_BYTES),
        Piece(PieceKind.SAME, BLOCK_BYTES, 2 * BLOCK_BYTES),
        Piece(PieceKind.SHIP, 3 * BLOCK_BYTES, 2 * BLOCK_BYTES + 4),
    ]
    assert sync.same_bytes == 2 * BLOCK_BYTES


def test_a_short_last_block_is_whole_up_to_the_disks_end() -> None:
    sync = ready(BLOCK_BYTES + 512, {1: b"z" * 512})
    assert sync.judge(BLOCK_BYTES, b"z" * 512) == [Piece(PieceKind.SAME, BLOCK_BYTES, 512)]


def test_a_zero_run_answers_zero_blocks_and_nothing_else() -> None:
    sync = ready(3 * BLOCK_BYTES, {})
    assert sync.judge(0, bytes(BLOCK_BYTES))[0].kind is PieceKind.SAME  # type: ignore[index]
    assert sync.judge(0, b"\0" * (BLOCK_BYTES - 1) + b"x")[0].kind is PieceKind.SHIP  # type: ignore[index]


def test_zeroes_that_are_older_than_the_session_are_not_believed() -> None:
    """Records in between may have written there, and passed no filter."""
    sync = SyncFilter(size=2 * BLOCK_BYTES, sync_lsn=0, base_lsn=100)
    sync.set_key(b"k" * 32)
    sync.offer_zeroes(0, 99, 1)
    sync.offer_zeroes(1, 100, 1)
    judged = sync.judge(0, bytes(2 * BLOCK_BYTES))
    assert judged == [
        Piece(PieceKind.SHIP, 0, BLOCK_BYTES),
        Piece(PieceKind.SAME, BLOCK_BYTES, BLOCK_BYTES),
    ]


def test_zeroes_of_a_whole_chunk_that_are_too_old_are_not_believed() -> None:
    sync = SyncFilter(size=CHUNK_BLOCKS * BLOCK_BYTES, sync_lsn=0, base_lsn=100)
    sync.set_key(b"k" * 32)
    sync.offer_zeroes(0, 99, CHUNK_BLOCKS)
    assert sync.judge(0, bytes(BLOCK_BYTES)) == [Piece(PieceKind.SHIP, 0, BLOCK_BYTES)]


def test_digests_come_only_as_far_as_they_were_asked_for() -> None:
    size = 10 * LOOKAHEAD_BLOCKS * BLOCK_BYTES
    sync = SyncFilter(size=size, sync_lsn=0, base_lsn=0)
    sync.set_key(KEY)
    assert sync.wanted_end == LOOKAHEAD_BLOCKS
    sync.offer_zeroes(0, 0, LOOKAHEAD_BLOCKS)
    with pytest.raises(UsageError):
        sync.offer_zeroes(LOOKAHEAD_BLOCKS, 0, 1)


def test_a_far_guest_write_neither_waits_nor_moves_what_is_wanted() -> None:
    sync = SyncFilter(size=10 * LOOKAHEAD_BLOCKS * BLOCK_BYTES, sync_lsn=0, base_lsn=0)
    far = 5 * LOOKAHEAD_BLOCKS * BLOCK_BYTES
    assert sync.judge(far, b"x" * BLOCK_BYTES) == [Piece(PieceKind.SHIP, far, BLOCK_BYTES)]
    assert sync.wanted_end == LOOKAHEAD_BLOCKS


def test_the_copy_pulls_the_digests_along() -> None:
    blocks = 3 * LOOKAHEAD_BLOCKS
    sync = SyncFilter(size=blocks * BLOCK_BYTES, sync_lsn=0, base_lsn=0)
    sync.set_key(KEY)
    stated = 0
    step = CHUNK_BLOCKS
    zero = bytes(BLOCK_BYTES)
    for block in range(0, blocks, step):
        while stated < sync.wanted_end:
            count = min(step, sync.wanted_end - stated)
            sync.offer_zeroes(stated, 0, count)
            stated += count
        verdict = sync.judge(block * BLOCK_BYTES, zero)
        assert isinstance(verdict, list)
        assert verdict[0].kind is PieceKind.SAME
    assert stated == blocks


def test_what_an_impatient_write_ships_in_full_voids_the_digest_that_comes_later() -> None:
    sync = SyncFilter(size=2 * BLOCK_BYTES, sync_lsn=0, base_lsn=0)
    sync.set_key(KEY)
    data = b"n" * BLOCK_BYTES
    assert sync.judge(0, data) == WaitFor(0)
    assert sync.judge(0, data, patient=False) == [Piece(PieceKind.SHIP, 0, BLOCK_BYTES)]
    sync.offer_digests(0, 0, digest(data))
    assert sync.judge(0, data) == [Piece(PieceKind.SHIP, 0, BLOCK_BYTES)]


def test_memory_stays_bounded_on_a_disk_of_many_terabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync_filter, "MAX_DIGEST_CHUNKS", 4)
    monkeypatch.setattr(sync_filter, "LOOKAHEAD_BLOCKS", 2 * CHUNK_BLOCKS)
    sync = SyncFilter(size=1 << 45, sync_lsn=0, base_lsn=0)
    sync.set_key(KEY)
    stated = 0
    for chunk in range(12):
        while stated < sync.wanted_end:
            sync.offer_digests(stated, 0, b"d" * 16 * CHUNK_BLOCKS)
            stated += CHUNK_BLOCKS
        sync.judge(chunk * CHUNK_BLOCKS * BLOCK_BYTES, b"x" * BLOCK_BYTES)
    assert stated >= 12 * CHUNK_BLOCKS
    assert sync.memory_bytes <= 4 * CHUNK_BLOCKS * 17
    given_up = sync.judge(BLOCK_BYTES, b"y" * BLOCK_BYTES)
    assert given_up == [Piece(PieceKind.SHIP, BLOCK_BYTES, BLOCK_BYTES)]
    assert MAX_DIGEST_CHUNKS * CHUNK_BLOCKS * 17 < 32 << 20


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 64)), max_size=20))
def test_whatever_a_receiver_offers_is_taken_or_refused(
    offers: list[tuple[int, int, int]],
) -> None:
    sync = SyncFilter(size=30 * BLOCK_BYTES, sync_lsn=0, base_lsn=1)
    sync.set_key(KEY)
    expected = 0
    for first, lsn, count in offers:
        try:
            if count % 2:
                sync.offer_digests(first, lsn, b"d" * count)
                taken = count // 16
            else:
                sync.offer_zeroes(first, lsn, count)
                taken = min(count, 30 - first)
        except UsageError:
            continue
        assert first == expected
        expected += taken
    assert expected <= 30
