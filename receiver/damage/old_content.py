# SPDX-License-Identifier: Apache-2.0
"""Old content is verified before anything is made of it.

The rule: **no checksum is made anew over bytes that were not verified against the one they had.** A
batch reads what its blocks hold; that becomes a before-image, with a checksum of its own, and where
a write does not cover a block whole, part of the block's new content, with a new sum. So each block
that a batch of the log, of early zeroes or of a rollback touches is first compared with the sum on
record of what was written there last (receiver.history.sums.sums). A redo is not: what a crash left
half written there is no rot, and its images are made already.

    the sum fits                  nothing to say
    there is none                 `unverified_bytes`: content from before the group was, or of which
                                  the sum was lost. It gets its first checksum, for it had none
    it does not, or it cannot
    be read                       1  it is read again past the page cache: a good re-read is no
                                     damage, and is what counts
                                  2 it is healed in place, where a copy is (receiver.damage.healing)
                                  3  else it is damage: on record in the very batch, which is when
                                     the image gets its checksum, and apply goes on

A hole is old content, too: where its sum says that something was, it is looked at though zeroes are
to come over it (`ranges`). Left out, the block would keep its sum, and a scrub would heal it with
what was there before the zeroes.

What is damaged stays known for what it is: the image is on record as replaced by this batch (all
points in between need it), and a block that takes over part of it is on record as written by this
batch: the newest state needs it too. Such a block gets no sum (UNKNOWN_SUM): one would vouch for
the rot in it. It is right again when it is written whole.

Concurrency: apply thread, with no batch half done. Failure: what was healed is as good as if it had
never been bad, and what a crash left half healed is found again by its sum.
"""

from __future__ import annotations

import numpy as np
from xxhash import xxh3_64_intdigest

from receiver.blocks.content import DataRanges, DiskChange, OldBlocks
from receiver.blocks.replica import Replica
from receiver.blocks.zeroes import with_zeroes, zero_sums
from receiver.damage import damage as rules
from receiver.damage.healing import Healer
from receiver.history.batches import Batch
from receiver.history.bodies import UNKNOWN_SUM, DamagedBlocks
from receiver.history.extents import ExtentSet
from receiver.history.images import BLOCK_BYTES, U64, Bools, block_key, key_parts
from receiver.history.state import Disk
from receiver.history.sums.sums import LatestSums
from receiver.points.telling import Telling

MENDED_MAX = 1024
"""Of one disk in one batch. More is no bit that rotted: another's image lies there, or half of it
is gone; looking for copies of all that would stop apply."""
NAMED_MAX = 8
LOOKED_AT_BLOCKS = 1 << 20
"""Of a hole at once: 16 bytes for each that was ever written."""


class OldContent:
    """See the head of this file. `gather` comes first, to its end."""

    def __init__(
        self, sums: LatestSums, replica: Replica, healer: Healer, telling: Telling
    ) -> None:
        self._sums = sums
        self._replica = replica
        self._healer = healer
        self._telling = telling
        self.unverified_bytes = 0
        """Content that got a checksum without having had one, since this process started."""

    def gather(self) -> bool:
        """A step of getting ready. False: all is. Raises OSError."""
        return self._sums.gather()

    def note(self, batch: Batch, changes: list[DiskChange]) -> None:
        """The batch has just been published. Raises OSError; nothing is lost by that."""
        empty = np.empty(0, dtype=np.uint64)
        keys = np.concatenate([empty, *(change.keys for change in changes)])
        sums = np.concatenate([empty, *(change.sums for change in changes)])
        self._sums.note(batch, keys, sums)

    # -- before a batch

    def ranges(self, disk: Disk) -> DataRanges:
        """Where the image holds data, or must by the sums on record."""
        file = self._replica.file(disk.name)

        def within(start: int, end: int) -> list[tuple[int, int]]:
            found = file.data_ranges(start, end)
            held, at = ExtentSet(found), start
            for low, high in [*found, (end, end)]:
                for key in self._lacking(disk, at, low) if at < low else ():
                    offset = key_parts(key)[1] * BLOCK_BYTES
                    held.add(max(offset, start), min(offset + BLOCK_BYTES, end))
                at = high
            return list(held)

        return within

    def _lacking(self, disk: Disk, start: int, end: int) -> list[int]:
        """Keys of the blocks of a hole that held something."""
        keys: list[int] = []
        last = -(-end // BLOCK_BYTES)
        for first in range(start // BLOCK_BYTES, last, LOOKED_AT_BLOCKS):
            stop = min(first + LOOKED_AT_BLOCKS, last)
            there, sums, _ = self._sums.rows_within(
                block_key(disk.slot, first), block_key(disk.slot, stop)
            )
            is_content = (sums != np.uint64(UNKNOWN_SUM)) & (sums != zero_sums(disk, there))
            keys += there[is_content].tolist()
        return keys

    def verify(self, disk: Disk, old: OldBlocks, damage: rules.Damage) -> Bools:
        """Which of the blocks hold what they must not, and nothing could be done; the others are
        right in `old`, or have no sum. `damage` is what is on record. Raises OSError."""
        keys = old.numbers.astype(np.uint64) + np.uint64(block_key(disk.slot, 0))
        known = self._sums.find(keys)
        wanted = with_zeroes(disk, keys, known.sums, known.is_changed, is_whole=self._sums.is_whole)
        found = np.array(old.sums(disk.size_bytes), dtype=np.uint64)
        is_known = wanted != np.uint64(UNKNOWN_SUM)
        is_bad = old.unreadable | (is_known & (found != wanted))
        on_record = rules.are_lost(damage, keys)
        self.unverified_bytes += int((~is_known & ~on_record).sum()) * BLOCK_BYTES
        if is_bad.any():
            self._mend(disk, old, wanted, is_bad, on_record)
        rotten: Bools = is_bad | (on_record & ~is_known)
        return rotten

    def _mend(
        self, disk: Disk, old: OldBlocks, wanted: U64, is_bad: Bools, on_record: Bools
    ) -> None:
        """Takes off `is_bad` what is right after all. What was on record has been tried before."""
        places = np.flatnonzero(is_bad & ~on_record)
        if not 0 < len(places) <= MENDED_MAX:
            return
        for place in places.tolist():
            content = self._healer.read_again(disk, int(old.numbers[place]))
            if content is not None and xxh3_64_intdigest(content) == int(wanted[place]):
                old.put(place, content)
                is_bad[place] = False
                self._tell("replica.read_again", disk, old, [place])
        places = places[is_bad[places]]
        first = np.uint64(block_key(disk.slot, 0))
        keys = old.numbers[places].astype(np.uint64) + first
        healed = places[self._healer.heal_replica(disk, keys, wanted[places])]
        for place in healed.tolist():
            offset = int(old.numbers[place]) * BLOCK_BYTES
            length = min(BLOCK_BYTES, disk.size_bytes - offset)
            old.put(place, self._replica.read(disk.name, offset, length))
            is_bad[place] = False
        self._tell("replica.healed", disk, old, healed.tolist())
        self._tell("replica.rotten", disk, old, np.flatnonzero(is_bad & ~on_record).tolist())

    def _tell(self, event: str, disk: Disk, old: OldBlocks, places: list[int]) -> None:
        if places:
            offsets = [int(old.numbers[place]) * BLOCK_BYTES for place in places[:NAMED_MAX]]
            self._telling.event(
                event,
                file=str(self._replica.path(disk.name)),
                offsets=offsets,
                blocks=len(places),
            )

    # -- what becomes of it

    def with_found(self, damage: rules.Damage, change: DiskChange) -> rules.Damage:
        """With what was found when the change was drafted: all of it in the replica still."""
        fresh = change.rotten[~rules.are_lost(damage, change.rotten)]
        if not len(fresh):
            return damage
        writers = self._sums.latest(fresh)[1]
        return rules.added(
            damage,
            [
                DamagedBlocks(*key_parts(key), 1, writer, 0)
                for key, writer in zip(fresh.tolist(), writers.tolist(), strict=True)
            ],
        )

    def healed_by(self, damage: rules.Damage, changes: list[DiskChange]) -> rules.Damage:
        """What is left of it when the content that the batch is about to write has healed what it
        fits. Then the changes have to be drafted anew. Raises OSError."""
        if not rules.in_replica(damage):
            return damage
        return self._healer.heal_with(damage, changes)

    def overwritten(
        self, damage: rules.Damage, changes: list[DiskChange], number: int
    ) -> rules.Damage:
        """Behind batch `number`: images of what is damaged are, and blocks that take over part of
        it."""
        for change in changes:
            damage = rules.overwritten(damage, change.keys, number)
            damage = rules.added(
                damage,
                [DamagedBlocks(*key_parts(key), 1, number, 0) for key in change.tainted.tolist()],
            )
        return damage
